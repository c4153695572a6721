"""Singular values and inner products of heads keep the digits of their weights' precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attncli.files.bundle import Bundle
from attncli.measures.circuits import circuits_of, layer_facts
from attncli.models.finding import find_layers

HEADS, GROUPS, WIDTH, MODEL = 6, 2, 8, 48
Array = np.ndarray[Any, np.dtype[Any]]


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(size=shape)


def spread(ratio: float) -> Array:
    """Return heads ``(n, D, E)`` whose singular values fall from 1 to ``1/ratio``."""
    left, _, right = np.linalg.svd(normal(HEADS, WIDTH, MODEL), full_matrices=False)
    return np.asarray((left * np.geomspace(1, 1 / ratio, WIDTH)) @ right)


def short() -> Array:
    """Return heads of rank 3."""
    return np.asarray(normal(HEADS, WIDTH, 3) @ normal(HEADS, 3, MODEL))


def half_empty() -> Array:
    heads = normal(HEADS, WIDTH, MODEL)
    heads[:, ::2] = 0
    return heads


CASES: dict[str, Callable[[], Array]] = {
    "random": lambda: normal(HEADS, WIDTH, MODEL),
    "singular values over two decades": lambda: spread(100),
    "singular values down to √ε": lambda: spread(5000),
    "singular values below float32's digits": lambda: spread(1e10),
    "less than full rank": short,
    "channels that are 0": half_empty,
    "tiny": lambda: 1e-17 * normal(HEADS, WIDTH, MODEL),
    "huge": lambda: 1e15 * normal(HEADS, WIDTH, MODEL),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_singular_values_are_those_of_the_whole_matrices(case: str, dtype: str) -> None:
    heads = CASES[case]().astype(dtype)
    layer = layer_of(heads)
    found = circuits_of(layer)
    for h in range(HEADS):
        q, k, v = (heads[at].astype(np.float64) for at in (h, h // 3, h // 3))
        o = heads[h].astype(np.float64)
        for ours, whole, bound in (
            (found.qk[h], q.T @ k, _norm(q) * _norm(k)),
            (found.ov[h], o.T @ v, _norm(o) * _norm(v)),
        ):
            truth = np.linalg.svd(whole, compute_uv=False)[:WIDTH]
            assert np.abs(ours - truth).max() <= 4 * np.finfo(dtype).eps * bound, h


def _norm(matrix: Array) -> float:
    return float(np.linalg.norm(matrix, 2))


def layer_of(heads: Array) -> Any:
    """Return a layer whose W_Q and W_Oᵀ are ``(HEADS, D, E)``, W_K and W_V the first of them."""
    flat, few = heads.reshape(-1, MODEL), heads[:GROUPS].reshape(-1, MODEL)
    weights = {"wq": flat, "wk": few, "wv": few, "wo": np.ascontiguousarray(flat.T)}
    return find_layers(Bundle("x", "arrays", weights), heads=HEADS, kv_heads=GROUPS)[0]


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_similarity_is_that_of_whole_matrices_however_heads_are_grouped(groups: int) -> None:
    heads, keys = normal(HEADS, WIDTH, MODEL), normal(groups, WIDTH, MODEL)
    heads[4] = heads[1] + 0.1 * heads[4]
    flat = heads.reshape(-1, MODEL)
    weights = {"wq": flat, "wk": keys.reshape(-1, MODEL), "wv": keys.reshape(-1, MODEL)}
    layer = find_layers(Bundle("x", "arrays", weights), heads=HEADS, kv_heads=groups)[0]
    facts = layer_facts(layer)
    whole = np.stack([(heads[h].T @ keys[h // (HEADS // groups)]).ravel() for h in range(HEADS)])
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    cosine = np.abs(whole @ whole.T)
    np.fill_diagonal(cosine, -1)
    assert facts["similarity"] == pytest.approx(cosine.max(1), rel=1e-9)
    assert facts["similar_head"].tolist() == cosine.argmax(1).tolist()
