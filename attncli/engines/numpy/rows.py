"""The rows of one job of the tiled engine, and the key head that they walk over."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.tile_sums import TileSums
from attncli.engines.whole import not_finite

Array = np.ndarray[Any, np.dtype[Any]]

BLOCK = 64  # keys of a transposed block: a block of width 64 fits the first-level cache
GRAIN = 128  # keys: the grid on which masks are asked
RUN = 128  # keys of a product with values; runs, then tiles are summed: fewer roundings in a row
SMALL = 10**6  # multiplications of a product that OpenBLAS runs without packing


class Buffers(threading.local):
    """Arrays that a thread uses again for every tile: fresh memory costs page faults."""

    def __init__(self) -> None:
        self.store: dict[tuple[str, Any], Array] = {}

    def take(self, name: str, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
        size = shape[0] * shape[1]
        flat = self.store.get((name, dtype))
        if flat is None or flat.size < size:
            flat = self.store[name, dtype] = np.empty(size, dtype)
        return flat[:size].reshape(shape)


_buffers = Buffers()


class Head:
    """One key head: ``(Lk, D)`` transposed in blocks, values ``(Lk, Dv)`` and bounds."""

    def __init__(self, key: Array, value: Array, blocks: Array) -> None:
        """blocks: ``(⌈Lk/BLOCK⌉, D, BLOCK)``, to be filled when first used."""
        self.key, self.blocks, self.filled = key, blocks, False
        self.lock = threading.Lock()
        self.key_reach = math.sqrt(np.vecdot(key, key).max())
        self.value_reach = math.sqrt(np.vecdot(value, value).max())
        self.bad = np.empty(0, np.int64)
        if not math.isfinite(self.value_reach):
            self.bad = not_finite(value)

    def fill(self) -> None:
        with self.lock:
            if self.filled:
                return
            keys, width = self.key.shape
            whole = keys - keys % BLOCK
            body = self.key[:whole].reshape(whole // BLOCK, BLOCK, width)
            np.copyto(self.blocks[: len(body)], body.swapaxes(1, 2))
            if whole < keys:
                self.blocks[-1] = 0
                self.blocks[-1, :, : keys - whole] = self.key[whole:].T
            self.filled = True


class Part(NamedTuple):
    """Heads h0:h1 of batch element b, query rows i0:i1: R = (h1 − h0)·(i1 − i0) rows in all."""

    b: int
    h0: int
    h1: int
    i0: int
    i1: int

    @property
    def size(self) -> int:
        return (self.h1 - self.h0) * (self.i1 - self.i0)

    @property
    def block(self) -> tuple[int, slice, slice]:
        """Where the part stands in ``(B, H, Lq, …)``."""
        return self.b, slice(self.h0, self.h1), slice(self.i0, self.i1)

    def by_head(self, array: Array) -> Array:
        """Return ``(R, …)`` as ``(h1 − h0, i1 − i0, …)``."""
        return array.reshape(self.h1 - self.h0, self.i1 - self.i0, *array.shape[1:])

    def where(self) -> list[tuple[int, int, int, int]]:
        return [(self.b, h, self.i0, self.i1) for h in range(self.h0, self.h1)]

    def stack(self, one: Callable[..., Array | None], j0: int, j1: int) -> Array:
        """Return what a mask says about keys j0:j1, head under head: ``(R, C)``."""
        if self.h1 - self.h0 == 1:
            return np.asarray(one(*self.where()[0], j0, j1))
        return np.concatenate([np.asarray(one(*where, j0, j1)) for where in self.where()])


@dataclass
class Rowset:
    """The rows of a part while they walk.

    q ``(G, R/G, D)`` scaled, blocks ``(G, blocks, D, BLOCK)``, value ``(G, Lk, Dv)``,
    acc ``(R, Dv)``; G: the key heads of the part. ``sums`` are statistics, where wanted.
    """

    part: Part
    q: Array
    blocks: Array
    value: Array
    acc: Array
    sums: TileSums | None = None

    def scores(self, j0: int, j1: int) -> Array:
        """Return q·k of keys j0:j1, j0 a multiple of BLOCK, in a buffer: ``(R, C)``."""
        groups, rows, width = self.q.shape
        blocks = self.blocks[:, None, j0 // BLOCK : -(-j1 // BLOCK)]
        count = blocks.shape[2]
        s = _buffers.take("s", (self.part.size, count * BLOCK), self.q.dtype)
        grouped = s.reshape(groups, rows, count * BLOCK)
        for some, chunks, step in split_rows(rows, BLOCK * width):
            q = self.q[:, some].reshape(groups, chunks, 1, step, width)
            out = grouped[:, some].reshape(groups, chunks, step, count, BLOCK).swapaxes(2, 3)
            np.matmul(q, blocks, out=out)  # (G, chunks, blocks, step, BLOCK)
        return s[:, : j1 - j0]

    def spare(self, s: Array) -> Array:
        """Return a second buffer like s."""
        return _buffers.take("e", s.shape, s.dtype)

    def add(self, e: Array, j0: int, j1: int) -> None:
        """Add e @ value to acc. e: ``(R, C)``."""
        groups, rows, _ = self.q.shape
        width = self.acc.shape[1]
        tile = _buffers.take("tile", self.acc.shape, e.dtype)
        part = _buffers.take("part", self.acc.shape, e.dtype)
        e = e.reshape(groups, rows, j1 - j0)
        for start in range(j0, j1, RUN):
            stop = min(start + RUN, j1)
            into = tile if start == j0 else part
            value, weights = self.value[:, None, start:stop], e[:, :, start - j0 : stop - j0]
            out = into.reshape(groups, rows, width)
            for some, chunks, step in split_rows(rows, (stop - start) * width):
                shape = groups, chunks, step
                chunk = weights[:, some].reshape(*shape, stop - start)  # (G, chunks, step, RUN)
                np.matmul(chunk, value, out=out[:, some].reshape(*shape, width))
            if into is part:
                np.add(tile, part, out=tile)
        np.add(self.acc, tile, out=self.acc)


def split_rows(rows: int, cells: int) -> Iterator[tuple[slice, int, int]]:
    """Split rows into (slice, chunks, rows a chunk): equal chunks, and the rest as one.

    Products of up to 10⁶ multiplications go to OpenBLAS's kernels for small matrices (AVX-512),
    which pack nothing: 15 to 25 % faster than one large product.
    """
    step = 1 << max(0, (SMALL // max(cells, 1)).bit_length() - 1)
    whole = rows - rows % step
    if whole:
        yield slice(0, whole), whole // step, step
    if whole < rows:
        yield slice(whole, rows), 1, rows - whole
