"""1 − p₁ without cancellation: statistics of rows that one key all but owns, in every engine."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import attncli
from attncli.attention.pose import pose
from attncli.engines import How
from attncli.engines.numpy import forward
from attncli.engines.rounded import rounded
from attncli.measures import rows as measure_rows
from attncli.measures.evidence import Evidence, told
from attncli.measures.sample import largest_eigenvalues
from attncli.studies.attend import solve

Array = np.ndarray[Any, np.dtype[Any]]

ENGINES = ["reference", "numpy", "torch"]
GAPS = [0.5, 5, 10, 14, 17, 25, 40, 60, 100, 300]
SHARP = (
    "entropy", "jacobian_trace", "jacobian_frobenius", "jacobian_spectral_low",
    "jacobian_spectral_high",
)  # fmt: skip


def truth(z: Array) -> dict[str, float]:
    """Statistics of a row of logits in float64, 1 − p₁ summed from the others."""
    z = np.sort(z.astype(np.float64))[::-1]
    e = np.exp(z - z[0])
    p, others = e / e.sum(), e[1:].sum() / e.sum()
    log = z - z[0] - np.log1p(e[1:].sum())
    each = np.append(others, 1 - p[1:])  # 1 − p_i
    squares = p[1:] ** 2
    pairs = np.sum(squares * (p[0] ** 2 + squares.sum() - squares))
    pairs += p[0] ** 2 * squares.sum()  # Σ_{i≠j} p_i² p_j²
    return {
        "entropy": -np.sum(p * log),
        "jacobian_trace": np.sum(p * each),
        "jacobian_frobenius": np.sqrt(np.sum((p * each) ** 2) + pairs),
        "jacobian_spectral_low": p[1],
        "jacobian_spectral_high": min(0.5, p[0] * (others + p[1])),
    }


def agree(found: dict[str, Array], right: dict[str, float], rel: float = 1e-4) -> None:
    for name in SHARP:
        np.testing.assert_allclose(found[name], right[name], rtol=rel, atol=0, err_msg=name)


def logits(gap: float, keys: int, top: int) -> Array:
    """Keys about ``gap`` below one at ``top``, all numbers that bfloat16 holds."""
    z = -np.round(np.random.default_rng(keys).random(keys) * 4) / 4 * min(1.0, gap)
    z = z - gap
    z[top] = 0
    return z


def columns(z: Array, dtype: str) -> dict[str, Any]:
    """A problem whose logits are z, in two channels: (1, 1) · (half, half)."""
    key = np.stack([z / 2, z / 2], 1)
    return {"query": np.ones((3, 2)), "key": key, "scale": 1.0, "dtype": dtype}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ENGINES)
@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize(("keys", "top"), [(2, 0), (2, 1), (3, 1), (900, 700), (40000, 12345)])
def test_every_gap(gap: float, backend: str, dtype: str, keys: int, top: int) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    z = logits(gap, keys, top)
    got = attncli.attend(**columns(z, dtype), backend=backend, want=("row_statistics",))
    assert got.row_statistics is not None
    agree(got.row_statistics, truth(z.astype(dtype)))


@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("sink", [1.0, -30.0])
def test_a_sink_is_another_outcome_of_a_sharp_row(gap: float, sink: float) -> None:
    z = logits(gap, 500, 77)
    for backend in ("reference", "numpy"):
        got = attncli.attend(
            **columns(z, "float32"), backend=backend, sink=[sink], want=("row_statistics",)
        )
        assert got.row_statistics is not None
        agree(got.row_statistics, truth(np.append(z, sink)))


@pytest.mark.parametrize("gap", [g for g in GAPS if g < 80])
def test_logits_that_are_rounded(gap: float) -> None:
    z = np.float32(logits(gap, 300, 5)).astype(np.float16).astype(np.float64)
    z[5] = 0
    p = pose(**columns(z, "float32"))
    done = rounded(p, "float16", np.ones((1, 1, 3, 2), np.float32))
    found = Evidence(p, done.rows).row_values(told(measure_rows))
    half = (z / 2).astype(np.float16).astype(np.float64)
    agree(found, truth((2 * half).astype(np.float16)))


@pytest.mark.parametrize("gap", GAPS)
def test_tiles_and_threads_change_nothing(gap: float) -> None:
    rng = np.random.default_rng(1)
    z = logits(gap, 1000, 640)
    query = rng.choice([0.25, 0.5, 1.0], size=(300, 1)) * [[1.0, 1.0]]
    p = pose(query, np.stack([z / 2, z / 2], 1), scale=1.0, dtype="float32")
    for tiling in (None, (64, 128), (300, 384), (512, 512)):
        shape = tiling and forward.Tiling(*tiling)
        done = forward.attend(p, ("row_statistics",), How(2), tiling=shape)
        assert done.rows is not None
        found = Evidence(p, done.rows).row_values(told(measure_rows))
        for i in (0, 7, 299):
            row = {name: values[0, 0, i] for name, values in found.items()}
            agree(row, truth(np.float32(z) * query[i, 0]))


@pytest.mark.parametrize("backend", ENGINES)
def test_ties_at_the_top_are_no_rest(backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    z = np.array([3.0, 3.0, -40.0, 3.0])
    got = attncli.attend(**columns(z, "float32"), backend=backend, want=("row_statistics",))
    assert got.row_statistics is not None
    agree(got.row_statistics, truth(z))


@pytest.mark.parametrize("gap", GAPS)
def test_the_largest_eigenvalue_of_two_keys_is_known(gap: float) -> None:
    small = np.exp(-gap) / (1 + np.exp(-gap))
    found = largest_eigenvalues(np.array([[small, 1 - small], [1 - small, small]]))
    np.testing.assert_allclose(found, 2 * small * (1 - small), rtol=1e-12)


def test_a_row_that_sees_a_nan_has_no_statistics() -> None:
    for keys in (1, 2, 5):
        key = np.zeros((keys, 2))
        key[0] = np.nan
        for backend in ("reference", "numpy"):
            got = solve(
                replace(pose(np.ones((1, 2)), key)), backend=backend, want=("row_statistics",)
            )
            assert got.row_values is not None
            assert all(np.isnan(got.row_values[name]).all() for name in SHARP)
