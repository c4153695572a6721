"""Weights of single cells from the known lse, in float64, and of those near the diagonal."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from attncli.attention.problem import Problem

Array = np.ndarray[Any, np.dtype[Any]]

NEAR = 4  # positions to each side that are near by
ROWS = 512  # whose keys are worked on at once: they stay in a processor's cache


def weights_at(problem: Problem, b: int, h: int, lse: Array, rows: Array, keys: Array) -> Array:
    """Return the weights of single cells of a head, ``(n,)`` like rows and keys; 0 where hidden.

    lse ``(Lq,)``, sink included; a row or key that does not exist has no weight.
    """
    p = problem
    there = (keys >= 0) & (keys < p.keys) & (rows >= 0) & (rows < p.queries)
    i, j = np.where(there, rows, 0), np.where(there, keys, 0)
    query = p.query[b, h, i].astype(np.float64) * p.scale
    scores = np.vecdot(query, p.key[b, p.group(h), j].astype(np.float64))
    cells = i[:, None], j[:, None]
    return _weights_of(p, b, h, lse, scores[:, None], cells, there[:, None])[:, 0]


def near_weights(
    problem: Problem, b: int, h: int, lse: Array, i0: int, i1: int, offset: int
) -> Array:
    """Return the weights of keys i + offset − NEAR … + NEAR for rows i0:i1 of a head.

    ``(i1 − i0, 2·NEAR + 1)``; 0 where there is none. lse ``(Lq,)``, sink included.
    """
    p, near = problem, np.zeros((i1 - i0, 2 * NEAR + 1))
    key = p.key[b, p.group(h)]
    for start in range(i0, i1, ROWS):
        i = np.arange(start, min(start + ROWS, i1))[:, None]
        j = i + np.arange(offset - NEAR, offset + NEAR + 1)
        window = np.arange(j[0, 0], j[-1, -1] + 1).clip(0, p.keys - 1)
        keys = sliding_window_view(key[window].astype(np.float64), 2 * NEAR + 1, 0)  # (n, D, 9)
        query = p.query[b, h, i[:, 0], None].astype(np.float64) * p.scale
        scores = np.vecdot(query, keys.swapaxes(1, 2))  # (n, 9)
        there = (j >= 0) & (j < p.keys)
        cells = i, np.where(there, j, 0)
        near[start - i0 : start - i0 + len(i)] = _weights_of(p, b, h, lse, scores, cells, there)
    return near


def _weights_of(
    p: Problem, b: int, h: int, lse: Array, scores: Array, cells: tuple[Array, Array], there: Array
) -> Array:
    """Return the weights of cells whose scores are known, ``(n, m)`` like them; 0 where hidden."""
    z = scores if p.softcap is None else p.softcap * np.tanh(scores / p.softcap)
    for bias in p.mask.biases:
        z = z + bias.at(b, h, *cells)
    sees = there & p.mask.predicate.allows(b, h, *cells)
    return np.where(sees, np.exp(np.minimum(z - lse[cells[0]], 0)), 0)
