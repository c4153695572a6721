"""How far weights, outputs and circuits have moved, against their definitions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.measures import changes
from attncli.models.finding import load
from tests.support.definitions import by_formulas

Array = np.ndarray[Any, np.dtype[Any]]


def problem(seed: int, heads: int = 2, length: int = 6, **how: Any) -> Any:
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(1, heads, length, 4)) for _ in range(3))
    return pose(q, k, v, mask=[masker("causal")], **how)


def divergence(p: Array, q: Array) -> float:
    """The Jensen–Shannon distance with the logarithm to the base 2, as Lin has it."""
    m = (p + q) / 2

    def kl(a: Array) -> float:
        return float(sum(x * np.log2(x / y) for x, y in zip(a, m, strict=True) if x > 0))

    return float(np.sqrt(kl(p) / 2 + kl(q) / 2))


def test_distances_are_those_of_the_definition() -> None:
    before, after = problem(0), problem(1)
    chosen = np.ones((1, 2, 6), bool)
    found = changes.moved(before, after, chosen)
    for h in range(2):
        p, q = (by_formulas(one, 0, h)["p"] for one in (before, after))
        want = [divergence(a, b) for a, b in zip(p, q, strict=True)]
        np.testing.assert_allclose(found.distances[0, h], want, atol=1e-7)
    assert (found.rows, found.total) == (6, 6)


def test_what_a_sink_takes_is_an_outcome_and_so_is_seeing_nothing() -> None:
    chosen = np.ones((1, 2, 6), bool)
    sunk = changes.moved(problem(0), problem(0, sink=[50.0, -50.0]), chosen)
    assert sunk.distances[0, 0] == pytest.approx(1, abs=1e-6)
    assert sunk.distances[0, 1] == pytest.approx(0, abs=1e-6)


def test_numbers_in_only_one_are_as_far_as_can_be_and_in_none_unknown() -> None:
    broken = problem(0)
    broken.query[0, 0, 3] = np.nan
    chosen = np.ones((1, 2, 6), bool)
    one = changes.moved(problem(0), broken, chosen).distances
    assert one[0, 0, 3] == 1 and one.sum() == 1
    assert np.isnan(changes.moved(broken, broken, chosen).distances).sum() == 1


def test_long_rows_are_sampled_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "CELLS", 96)
    before, after = problem(0, length=12), problem(1, length=12)
    chosen = np.ones((1, 2, 12), bool)
    some, again, other = (changes.moved(before, after, chosen, seed=n) for n in (0, 0, 1))
    assert (some.rows, some.total) == (8, 12)
    np.testing.assert_array_equal(some.distances, again.distances)
    assert (np.isnan(some.distances) != np.isnan(other.distances)).any()


def test_outputs_are_compared_by_their_norms() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 1, 3, 5, 4))
    real = np.ones((1, 3, 5), bool)
    real[0, :, 4] = False
    for unit in (1.0, 1e200, 1e-200):  # whose squares are no numbers
        found = changes.output_change(*changes.output_squares(a * unit, b * unit, real))
        for h in range(3):
            x, y = a[0, h, :4], b[0, h, :4]
            assert found[0, h] == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x))


@pytest.mark.parametrize(
    ("before", "after", "want"),
    [(0, 0, 0), (0, 1, np.inf), (1, np.nan, np.inf), (np.nan, 1, np.inf), (1, 0, 1)],
)
def test_what_has_no_ratio(before: float, after: float, want: float) -> None:
    a, b = (np.full((1, 1, 2, 3), x) for x in (before, after))
    assert changes.output_change(*changes.output_squares(a, b, np.ones((1, 1, 2), bool))) == want


def test_nothing_can_be_said_of_what_is_never_a_number() -> None:
    a = np.full((1, 1, 2, 3), np.nan)
    found = changes.output_change(*changes.output_squares(a, a, np.ones((1, 1, 2), bool)))
    assert np.isnan(found).all() and np.isnan(changes.change(found, found)).all()


# -- weights alone ----------------------------------------------------------------------------


def layer(**changed: Any) -> Any:
    rng = np.random.default_rng(0)
    made = {name: rng.normal(size=(8, 8)) for name in ("wq", "wk", "wv", "wo")}
    made["bq"] = rng.normal(size=8)
    made |= {name: change(made[name]) for name, change in changed.items()}
    return load(made, heads=2)


def circuits(one: Any, h: int) -> tuple[Array, Array]:
    """W_Qᵀ W_K·scale, the bias one more input, and W_O W_V, of one head."""
    made = one.projections()
    rows = slice(4 * h, 4 * h + 4)
    q = np.column_stack([made.query[rows], made.query_bias[rows] / np.sqrt(8)])
    k = np.column_stack([made.key[rows], np.zeros(4)])
    return q.T @ k * one.scale, made.output[:, rows] @ made.value[rows]


def test_circuits_are_compared_by_their_frobenius_norms() -> None:
    rng = np.random.default_rng(1)
    add = lambda w: w + 0.1 * rng.normal(size=w.shape)  # noqa: E731
    before, after = layer(), layer(wq=add, wk=add, wv=add, wo=add, bq=add)
    found = changes.changes_of_weights(before, after)
    for h in range(2):
        for name, was, now in zip(
            ("qk_change", "ov_change"), circuits(before, h), circuits(after, h), strict=True
        ):
            want = np.linalg.norm(now - was) / np.linalg.norm(was)
            assert found[name][h] == pytest.approx(want, rel=1e-9)
    np.testing.assert_array_equal(
        found["change"], np.maximum(found["qk_change"], found["ov_change"])
    )


def test_the_same_weights_are_exactly_the_same() -> None:
    assert not changes.changes_of_weights(layer(), layer())["change"].any()


def test_what_leaves_the_circuit_as_it_was_is_no_change() -> None:
    found = changes.changes_of_weights(
        layer(), layer(wq=lambda w: 2 * w, bq=lambda b: 2 * b, wk=lambda w: w / 2)
    )
    assert found["change"] == pytest.approx(0, abs=1e-7)


def test_lost_weights_are_an_endless_change_where_one_has_them() -> None:
    def lose(w: Array) -> Array:
        w = w.copy()
        w[0 if w.ndim > 1 else ..., 0] = np.nan
        return w

    broken = layer(wq=lose)
    one, both = (changes.changes_of_weights(a, broken) for a in (layer(), broken))
    assert np.isinf(one["change"]).any() and not np.isnan(one["change"]).any()
    assert np.isnan(both["change"]).any()
