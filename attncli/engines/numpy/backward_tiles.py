"""What the gradients' tiles read and write: a query head, some keys, and their products."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.engines.numpy.forward import LOG2E
from attncli.engines.numpy.rows import Buffers, split_rows
from attncli.engines.whole import not_finite

Array = np.ndarray[Any, np.dtype[Any]]

buffers = Buffers()


class BiasSum:
    """The gradient of one float mask tensor, ``(B or 1, H or 1, Lq or 1, Lk or 1)``."""

    def __init__(self, shape: tuple[int, ...], p: Problem) -> None:
        whole = shape == (p.batch, p.heads, p.queries, p.keys)
        self.total = np.zeros(shape, p.dtype if whole else np.float64)
        self.lock = threading.Lock()

    def add(self, b: int, h: int, i0: int, j0: int, dz: Array) -> None:
        """Add dZ of a tile, ``(R, C)``, that begins at row i0 and key j0."""
        total = self.total[b % self.total.shape[0], h % self.total.shape[1]]
        rows, keys = slice(i0, i0 + dz.shape[0]), slice(j0, j0 + dz.shape[1])
        if total.shape[1] == 1:
            dz, keys = dz.sum(1, keepdims=True, dtype=total.dtype), slice(0, 1)
        if total.shape[0] == 1:
            dz, rows = dz.sum(0, keepdims=True, dtype=total.dtype), slice(0, 1)
        with self.lock:
            total[rows, keys] += dz[:, : max(0, total.shape[1] - keys.start)]


class Head:
    """One query head, ready for the products.

    ``left`` ``(Lq, D + 1)``: scaled queries and −lse; ``right`` ``(Lq, Dv + 1)``: dO and −δ.
    ``query`` and ``grad`` are what the sums over queries read, 0 where not finite; ``bad`` are
    those rows, ``raw`` what stands there. The weights of row i are exp((z − top_i) − rest_i).
    """

    def __init__(
        self, at: tuple[int, int], query: Array, grad: Array, out: Array, lse: Array,
        unit: float, plain: bool,
    ) -> None:  # fmt: skip
        """at: (b, h), query ``(Lq, D)``, grad and out ``(Lq, Dv)``, lse ``(Lq,)``.

        A product with ``left`` is unit·q·k; when ``plain``, less lse in units of ln 2.
        """
        (self.b, self.h), dtype = at, query.dtype
        self.top = np.where(np.isneginf(lse), 0, np.where(np.isposinf(lse), np.nan, lse))
        self.top = self.top.astype(dtype)
        self.rest: Array | None = None
        self.query, self.grad = np.ascontiguousarray(query), np.ascontiguousarray(grad)
        self.raw, self.bad = (self.query, self.grad), np.union1d(odd_rows(query), odd_rows(grad))
        if self.bad.size:
            self.query, self.grad = finite(query), finite(grad)
            grad = np.where(out == 0, dtype.type(0), grad)  # a dead row's dO is not read
        self.delta = np.vecdot(grad, out)
        self.left = np.empty((len(query), query.shape[1] + 1), dtype)
        np.multiply(query, dtype.type(unit), out=self.left[:, :-1])
        self.left[:, -1] = -self.top * dtype.type(LOG2E) if plain else 0
        self.right = np.empty((len(query), grad.shape[1] + 1), dtype)
        self.right[:, :-1], self.right[:, -1] = self.raw[1], -self.delta


class KeyTile:
    """Keys j0:j1 of one head, transposed in blocks with a channel of ones; one per thread."""

    def __init__(self, p: Problem, b: int, g: int, j0: int, j1: int, block: int) -> None:
        self.j0, self.block = j0, block
        key = p.key[b, g, j0:j1].astype(p.dtype, copy=False)  # (C, D)
        value = p.value[b, g, j0:j1].astype(p.dtype, copy=False)  # (C, Dv)
        self.keys_across = self._across("keys", key)
        self.values_across = self._across("values", value)
        self.raw = np.ascontiguousarray(key)
        self.bad = odd_rows(key)
        self.key = finite(key) if self.bad.size else self.raw

    def _across(self, name: str, array: Array) -> Array:
        """``(C, D)`` as ``(blocks, D + 1, block)``; the last block is filled with zeros."""
        count, width = array.shape
        number = -(-count // self.block)
        blocks = buffers.take(name, (number, (width + 1) * self.block), array.dtype)
        blocks = blocks.reshape(number, width + 1, self.block)
        whole = count - count % self.block
        body = array[:whole].reshape(whole // self.block, self.block, width)
        np.copyto(blocks[: len(body), :width], body.swapaxes(1, 2))
        if whole < count:
            blocks[-1] = 0
            blocks[-1, :width, : count - whole] = array[whole:].T
        blocks[:, width] = 1
        return blocks

    def times(self, name: str, rows: Array, blocks: Array, a: int, z: int) -> Array:
        """Return rows ``(R, D + 1)`` times keys a:z of this tile, in a buffer: ``(R, z − a)``."""
        blocks = blocks[a // self.block : -(-z // self.block)]
        out = buffers.take(name, (len(rows), len(blocks) * self.block), rows.dtype)
        for part, chunks, step in split_rows(len(rows), self.block * rows.shape[1]):
            left = rows[part].reshape(chunks, 1, step, rows.shape[1])
            into = out[part].reshape(chunks, step, *blocks.shape[::2]).swapaxes(1, 2)
            np.matmul(left, blocks, out=into)  # (chunks, blocks, step, block)
        return out[:, : z - a]


def add_product(total: Array, left: Array, right: Array) -> None:
    """Add left ``(M, N)`` @ right ``(N, W)`` to total ``(M, W)``."""
    if not total.size:
        return
    (rows, inner), width = left.shape, total.shape[1]
    part = buffers.take("part", total.shape, total.dtype)
    for some, chunks, step in split_rows(rows, inner * width):
        into = part[some].reshape(chunks, step, width)
        np.matmul(left[some].reshape(chunks, step, inner), right, out=into)
    np.add(total, part, out=total)


def odd_rows(array: Array) -> Array:
    """Return the rows of ``(L, W)`` that are not all finite; a sum tells whether there are any."""
    return not_finite(array) if not np.isfinite(array.sum()) else np.empty(0, np.int64)


def finite(array: Array) -> Array:
    """Return array with 0 in place of what is not finite."""
    return np.where(np.isfinite(array), array, array.dtype.type(0))


def within(bad: Array, start: int, stop: int) -> Array:
    """Return the indices in start:stop, counted from start."""
    return bad[(bad >= start) & (bad < stop)] - start


def mend_product(total: Array, left: Array, seen: Array, right: Array, bad: Array) -> None:
    """Add to total ``(M, W)`` what entries of right ``(N, W)`` that are not finite do.

    They stand in its rows ``bad``. left, seen ``(M, N)``: cells that are not seen are not read.
    """
    for n in bad:
        odd = np.where(np.isfinite(right[n]), 0, right[n])
        at = np.flatnonzero(seen[:, n])
        total[at] += np.where(odd == 0, 0, left[at, n][:, None] * odd)
