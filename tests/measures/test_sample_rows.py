"""Whole rows of weights: distances are their definition, and few steps find an eigenvalue."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.attention import definition
from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.measures import sample


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def logits(kind: str, keys: int, rows: int = 50) -> Any:
    """Rows that are hard for an iteration: flat, sharp, ties, one top, a cluster, a decay."""
    rng = np.random.default_rng(keys)
    z = rng.normal(size=(rows, keys))
    if kind == "flat":
        return 1e-9 * z
    if kind == "sharp":
        return 30 * z
    if kind == "near ties":
        z[:, :] = 0
        z[:, 0] = rng.uniform(0, 40, rows)
        z[:, 1] = z[:, 0] - 10.0 ** rng.uniform(-16, 0, rows)
        return z
    if kind == "one top":
        z *= 1e-12
        z[:, 0] = rng.uniform(0, 200, rows)
        return z
    if kind == "cluster":
        return np.where(rng.random((rows, keys)) < 0.5, -100 * rng.random((rows, keys)), 0)
    return -np.arange(keys) * 10.0 ** rng.uniform(-6, 1, (rows, 1))


KINDS = ("flat", "sharp", "near ties", "one top", "cluster", "decay")


def bisected(p: Any) -> Any:
    """The root of the secular equation by halving, as λ − p₂, so that it keeps its digits."""
    rows, top = np.arange(len(p)), p.argmax(1)
    p1, rest = p[rows, top], p.copy()
    rest[rows, top] = 0
    others, p2 = rest.sum(1), rest.max(1)
    low, high = np.zeros(len(p)), np.minimum(0.5, p1 * (others + p2)) - p2
    for _ in range(120):
        t = (low + high) / 2
        away = p2[:, None] - rest + t[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):  # where the top two are one
            psi = np.divide(rest**2, away, out=np.zeros_like(rest), where=rest > 0).sum(1)
            above = p2 + t - p1 * others > psi * (p1 - p2 - t)
        low, high = np.where(above, low, t), np.where(above, t, high)
    return p2 + (low + high) / 2


@pytest.mark.parametrize("keys", [2, 3, 40, 300])
@pytest.mark.parametrize("kind", KINDS)
def test_ten_steps_find_the_eigenvalue_to_its_last_digits(
    kind: str, keys: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sample, "STEPS", 10)
    p = softmax(logits(kind, keys))
    np.testing.assert_allclose(sample.largest_eigenvalues(p), bisected(p), rtol=2e-13, atol=1e-100)


def test_what_is_given_is_left_as_it_was() -> None:
    p = softmax(logits("sharp", 5))
    before = p.copy()
    sample.largest_eigenvalues(p)
    sample.all_distances(p[None].repeat(3, 0))
    np.testing.assert_array_equal(p, before)


@pytest.mark.parametrize("piece", [1, 100, 1 << 15])
def test_distances_are_their_definition(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "PIECE", piece)
    p = softmax(np.random.default_rng(0).normal(size=(5, 7, 9)) * 3)
    p[1, 2] = np.eye(9)[3]  # zeros have no logarithm
    p[2, 2] = np.eye(9)[4]
    found = sample.all_distances(p)
    for a, b in np.ndindex(5, 5):
        for row in range(7):
            x, y = p[a, row], p[b, row]
            m = (x + y) / 2
            bits = sum(
                (w[w > 0] * np.log2(w[w > 0] / m[w > 0])).sum() / 2 for w in (x, y)
            )  # fmt: skip
            assert found[a, b, row] == pytest.approx(np.sqrt(max(bits, 0)), abs=1e-7)
    assert found[1, 2, 2] == pytest.approx(1, abs=1e-15)  # nothing in common


def test_a_copy_is_at_no_distance_and_a_small_one_keeps_its_digits() -> None:
    rng = np.random.default_rng(1)
    p = softmax(rng.normal(size=(1, 20, 64)))
    p = np.concatenate([p, p, softmax(np.log(p) + 1e-3 * rng.normal(size=p.shape))])
    found = sample.all_distances(p)
    assert not found[0, 1].any()
    x, y = p[0], p[2]
    second = ((x - y) ** 2 / (x + y)).sum(-1) / 4 / np.log(2)  # to second order
    np.testing.assert_allclose(found[0, 2], np.sqrt(second), rtol=1e-3)


def test_a_row_with_nan_says_nothing_of_its_head() -> None:
    p = softmax(np.random.default_rng(0).normal(size=(3, 4, 5)))
    p[1, 2, 3] = np.nan
    found = sample.all_distances(p)
    assert np.isnan(found[1, 0, 2]) and np.isnan(found[2, 1, 2])
    assert np.isfinite(np.delete(found, 2, axis=2)).all() and np.isfinite(found[0, 2]).all()


def test_a_sample_is_its_definition_in_any_number_of_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(2)
    problem = pose(*rng.normal(size=(3, 2, 3, 90, 8)), mask=masker("causal"), sink=[0.5, -1, 2])
    chosen = np.ones((2, 3, 90), bool)
    chosen[1, 0, ::3] = False
    monkeypatch.setattr(sample, "PIECE", 1 << 10)
    one, two = (sample.sample(problem, chosen, threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one.spectral, two.spectral)
    np.testing.assert_array_equal(one.distances, two.distances)
    monkeypatch.setattr(sample, "PIECE", 1 << 30)
    whole = sample.sample(problem, chosen)
    np.testing.assert_allclose(whole.distances, one.distances, rtol=1e-12)
    assert one.whole and (one.rows, one.total) == (180, 180)
    for b, h in np.ndindex(2, 3):
        p = definition.stages(problem, b, h)["weights"]
        p = np.column_stack([p, 1 - p.sum(1)])
        exact = [np.linalg.eigvalsh(np.diag(row) - np.outer(row, row))[-1] for row in p]
        own = np.where(chosen[b, h], exact, np.nan)
        np.testing.assert_allclose(one.spectral[b, h], own, atol=1e-14)
    both = chosen[1, 0] & chosen[1, 2]
    parts = [definition.stages(problem, 1, h)["weights"] for h in (0, 2)]
    pair = np.stack([np.column_stack([w, 1 - w.sum(1)]) for w in parts])
    mean = sample.all_distances(pair)[0, 1][both].mean()
    assert one.distances[1, 0, 2] == pytest.approx(mean, rel=1e-12)
    assert np.isnan(one.distances[:, [0, 1, 2], [0, 1, 2]]).all()


def test_the_sampled_rows_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "CELLS", 50 * 16)
    problem = pose(*np.random.default_rng(0).normal(size=(3, 1, 2, 50, 4)))
    chosen = np.ones((1, 2, 50), bool)
    some, again, other = (sample.sample(problem, chosen, seed=n) for n in (0, 0, 1))
    assert not some.whole and (some.rows, some.total) == (16, 50)
    assert np.isfinite(some.spectral[0]).sum(-1).tolist() == [16, 16]
    np.testing.assert_array_equal(some.spectral, again.spectral)
    assert (np.isnan(some.spectral) != np.isnan(other.spectral)).any()
