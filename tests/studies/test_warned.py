"""Warnings count the rows that they are about, and nobody else's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attncli
from attncli.attention import definition
from attncli.attention.language import masker, tensor_masker
from attncli.attention.pose import pose
from attncli.studies.warned import leaks, odd_numbers, rows_that_see
from tests.support.problems import mask_expressions


def warned(*inputs: Any, **options: Any) -> str:
    return "\n".join(attncli.attend(*inputs, **options).warnings)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", ["key", "value"])
@pytest.mark.parametrize("backend", ["numpy", "reference", "torch"])
def test_rows_that_see_a_nan_are_counted(name: str, backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    tensors = {"query": noise(2, 10, 4), "key": noise(2, 10, 4), "value": noise(2, 10, 4)}
    tensors[name][1, 7, 2] = np.nan
    told = warned(*tensors.values(), mask="causal", backend=backend)
    assert f"{name} has 1 value that is NaN or infinite" in told
    assert "3 of 20 rows see it and carry it on" in told
    tensors[name][1, 8:] = np.inf
    told = warned(*tensors.values(), mask="causal", backend=backend)
    assert f"{name} has 9 values that are NaN or infinite" in told
    assert "3 of 20 rows see one and carry it on" in told


@pytest.mark.parametrize("name", ["key", "value"])
def test_a_masked_nan_is_not_carried_on(name: str) -> None:
    tensors = {"query": noise(10, 4), "key": noise(10, 4), "value": noise(10, 4)}
    tensors[name][8:] = np.nan
    told = warned(*tensors.values(), mask="padding(8)")
    assert "no row sees one" in told
    assert "carry" not in told


def test_queries_that_see_nothing_carry_nothing_on() -> None:
    query = noise(6, 4)
    query[[1, 5]] = np.nan
    mask = np.ones((6, 6), bool)
    mask[5] = False
    told = warned(query, noise(6, 4), noise(6, 4), attn_mask=mask)
    assert "1 of 6 rows see one and carry it on" in told
    assert "1 of 6 rows see no key" in told


@given(mask_expressions(2, 7, 9), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_rows_that_see_some_keys_are_those_of_the_mask(mask: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    key = np.where(rng.random((2, 2, 9, 3)) < 0.1, np.nan, 0.0)
    p = pose(np.zeros((2, 4, 7, 3)), key, key, mask=[masker(mask)])
    odd = odd_numbers(p.key)
    if odd is None:
        assert np.isfinite(key).all()
        return
    bad = np.isnan(key).any(-1).repeat(2, 1)
    np.testing.assert_array_equal(
        rows_that_see(p, odd.rows), (p.mask.dense() & bad[:, :, None]).any(-1)
    )


@given(
    st.integers(0, 999), st.sampled_from([-1e4, -1e9, float(np.finfo(np.float32).min)]),
    st.sampled_from([1.0, 30.0, 300.0, 3e4]), st.sampled_from(["float32", "float64"]),
    st.sampled_from([(2, 3, 5, 6), (1, 1, 5, 6), (2, 1, 1, 6), (6,), (5, 6)]),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_sentinels_leak_where_they_have_weight(
    seed: int, low: float, size: float, dtype: str, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(seed)
    tensor = np.where(rng.random(shape) < rng.choice([0.3, 0.9]), low, 0.0)
    tensor = np.where(rng.random(shape) < 0.1, -np.inf, tensor)
    q, k = rng.normal(size=(2, 3, 5, 4)) * size, rng.normal(size=(2, 3, 6, 4))
    p = pose(q, k, k, mask=[tensor_masker(tensor)], dtype=dtype)
    full = np.broadcast_to(tensor, (2, 3, 5, 6))
    for b, h in np.ndindex(2, 3):
        weights = definition.stages(p, b, h)["weights"].astype(dtype)
        right = ((full[b, h] == low) & (weights > 0)).any(1)
        np.testing.assert_array_equal(leaks(p)[b, h], right)


def test_a_sentinel_is_said_to_leak_or_not() -> None:
    x = noise(1, 1, 6, 4)
    mask = np.where(np.tril(np.ones((6, 6))), 0.0, -1e9)
    assert "leaks into no row here" in warned(x, attn_mask=mask)
    mask[[2, 4]] = -1e9
    assert "leaks into 2 of 6 rows" in warned(x, attn_mask=mask)
    assert "leaks into 12 of 12 rows" in warned(noise(1, 2, 6, 4), attn_mask=np.full(6, -1e9))
    near = np.where(np.tril(np.ones((6, 6))), 0.0, -1e4)
    # the scores of the keys seen are −13500, −10800, −8100, …, and hidden ones have 0 − 10⁴
    assert "leaks into 2 of 6 rows" in warned(
        np.full((6, 1), -150.0), np.linspace(90, 0, 6)[:, None], attn_mask=near, scale=1.0
    )


@pytest.mark.parametrize("size", [1e10, 1e11, 1e13, 1e15])
def test_gradients_of_scores_without_digits_are_warned_about(size: float) -> None:
    """Where nothing is said they are right to 1 ‰, and by torch always."""
    q, k, v = (np.random.default_rng(0).normal(size=(3, 1, 2, 64, 16))).astype(np.float64)
    q, k = q * np.sqrt(size), k * np.sqrt(size)
    k[..., 1::2, :] = k[..., ::2, :]  # each row has two keys to choose from
    want = ("output", "lse", "gradients")
    truth = attncli.attend(q, k, v, want=want, backend="reference", grad_output=v).gradients
    for backend in ("numpy", "torch"):
        if backend == "torch":
            pytest.importorskip("torch")
        made = attncli.attend(q, k, v, want=want, backend=backend, grad_output=v)
        assert truth is not None and made.gradients is not None
        off = np.abs(made.gradients.value - truth.value).max() / np.abs(truth.value).max()
        told = [line for line in made.warnings if "gradients by numpy are off" in line]
        assert bool(told) == (backend == "numpy" and size > 1e12)
        assert (off > 1e-3) == bool(told)
    assert not attncli.attend(q, k, v, want=("output", "lse"), backend="numpy").warnings
