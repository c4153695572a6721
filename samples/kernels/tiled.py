"""Attention as a fused kernel goes about it: tiles of queries and keys, an online softmax, float32.

As a command it answers ``attncli compute TESTS -- python samples/kernels/tiled.py``.
"""

from __future__ import annotations

import numpy as np
from wire import answer

TILE = 16


def tiles(length):
    """All tiles; the last one may be shorter."""
    return [slice(start, min(start + TILE, length)) for start in range(0, length, TILE)]


def corner(queries, keys):
    """Causal hides the keys behind i + corner: the last query sees the last key."""
    return keys - queries


def attention(
    query, key, value, *, causal=False, mask=None, scale=None, softcap=None, sink=None,
    key_tiles=tiles, corner=corner,
):  # fmt: skip
    """Return the output (…, H, Lq, Dv), in the query's type, and the lse (…, H, Lq).

    query (…, H, Lq, D); key and value (…, G, Lk, …), where G divides H. mask is added to the
    scores, in any shape that broadcasts to (…, H, Lq, Lk). sink: a number a head.
    """
    *heads, queries, width = query.shape
    keys = key.shape[-2]
    added = np.zeros((*heads, queries, keys), np.float32)
    if mask is not None:
        added += mask
    if causal:
        added[..., ~np.tri(queries, keys, corner(queries, keys), dtype=bool)] = -np.inf
    scale = width**-0.5 if scale is None else scale
    group = heads[-1] // key.shape[-3]
    output = np.zeros((*heads, queries, value.shape[-1]), query.dtype)
    lse = np.zeros((*heads, queries), np.float32)
    for *batch, head in np.ndindex(*heads):
        at, kv = (*batch, head), (*batch, head // group)
        q, k, v = (x.astype(np.float32) for x in (query[at], key[kv], value[kv]))
        first = -np.inf if sink is None else np.ravel(sink)[head]
        for rows in tiles(queries):
            parts = ((k[cols], v[cols], added[at][rows, cols]) for cols in key_tiles(keys))
            output[at][rows], lse[at][rows] = one_tile(q[rows] * scale, parts, softcap, first)
    return output, lse


def one_tile(q, parts, softcap, first):
    """A tile of queries against all tiles of keys: the output and the lse of its rows.

    top is the largest score so far, total the sum of exp(score - top), acc that of its values;
    what was summed before shrinks when a larger score comes. A sink is a score without a value.
    """
    top = np.full(len(q), first, np.float32)
    total = np.isfinite(top).astype(np.float32)
    acc = np.float32(0)
    for k, v, added in parts:
        scores = q @ k.T
        if softcap:
            scores = softcap * np.tanh(scores / softcap)
        scores = scores + added
        new = np.maximum(top, scores.max(1))
        base = np.where(np.isfinite(new), new, 0)  # a row that has seen no key yet
        weights = np.exp(scores - base[:, None])
        shrink = np.exp(top - base)
        total = total * shrink + weights.sum(1)
        acc = acc * shrink[:, None] + weights @ v
        top = new
    with np.errstate(divide="ignore"):
        return acc / np.where(total > 0, total, 1)[:, None], top + np.log(total)


if __name__ == "__main__":
    answer(attention)
