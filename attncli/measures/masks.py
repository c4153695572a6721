"""What a mask keeps: counts, empty rows, the future, tiles; in tiles, never the whole matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.attention.masks import Extent, Mask
from attncli.attention.predicates import EMPTY, FULL, MIXED
from attncli.errors import TooLarge
from attncli.resources import Progress

Array = np.ndarray[Any, np.dtype[Any]]

TILE = 128  # what block-sparse kernels skip by
MOST_TILES = 1 << 33
MOST_PLANES = 1 << 20
MOST_ADDED = 1 << 30  # cells of a bias that are looked at one by one
CHUNK = 1 << 22
SHOWN = 100  # differing cells that are named one by one


@dataclass(frozen=True)
class MaskFacts:
    """Counts over all ``cells`` = B·H·Lq·Lk.

    ``empty_rows`` see no key; ``padding_rows`` see none either, but are padding. ``future_rows``
    see a key behind their own position, which exists only where it is known which key a query
    stands at (else None). ``first_empty``, ``first_future``, ``first_difference`` are (batch, head,
    query[, key]). Tiles are 128 × 128.
    """

    cells: int
    kept: int
    rows: int
    empty_rows: int
    first_empty: tuple[int, int, int] | None
    padding_rows: int
    future_rows: int | None
    first_future: tuple[int, int, int, int] | None
    tiles_empty: int
    tiles_full: int
    tiles_mixed: int


def _edges(length: int, tile: int = TILE) -> Array:
    return np.append(np.arange(0, length, tile), length)


def _planes(mask: Mask) -> Iterator[tuple[int, int, int]]:
    """Yield one (batch, head) of each set that shares its cells, and how many it stands for."""
    batches, heads = mask.distinct()
    e = mask.extent
    for b in batches:
        for h in heads:
            yield b, h, (e.batch // len(batches)) * (e.heads // len(heads))


def mask_facts(mask: Mask, progress: Progress | None = None) -> MaskFacts:
    """Count what a mask keeps. Time goes with its mixed tiles, memory with one row of tiles.

    Raises TooLarge for a mask of more tiles than can be counted in minutes.
    """
    e = mask.extent
    check_size(e)
    cached = e.past is not None or e.lengths is not None
    offsets = e.offsets(None) if cached else mask.positions()  # a cache places queries, as causal
    padding = mask.padding_rows()
    kept = empty_rows = padding_rows = future_rows = 0
    first_empty: tuple[int, int, int] | None = None
    first_future: tuple[int, int, int, int] | None = None
    tiles = {EMPTY: 0, FULL: 0, MIXED: 0}
    edges, row_edges = _edges(e.keys), _edges(e.queries)
    planes = list(_planes(mask))
    for done, (b, h, times) in enumerate(planes):
        for i0, i1 in zip(row_edges[:-1].tolist(), row_edges[1:].tolist(), strict=True):
            fills = mask.tiles(b, h, i0, i1, edges) if e.keys else np.zeros(0, np.int8)
            seen = np.zeros(i1 - i0, np.int64)
            farthest = np.full(i1 - i0, -1)
            for k in np.flatnonzero(fills != EMPTY).tolist():
                j0, j1 = int(edges[k]), int(edges[k + 1])
                if fills[k] == FULL:
                    seen += j1 - j0
                    farthest[:] = j1 - 1
                    continue
                block = mask.keep(b, h, i0, i1, j0, j1)
                some = block.any(1)
                seen += block.sum(1)
                last = j1 - 1 - np.argmax(block[:, ::-1], axis=1)
                farthest = np.where(some, last, farthest)
                fills[k] = FULL if block.all() else MIXED if some.any() else EMPTY
            for fill in tiles:
                tiles[fill] += times * int((fills == fill).sum())
            kept += times * int(seen.sum())
            empty = np.flatnonzero((seen == 0) & ~padding[b, i0:i1])
            empty_rows += times * len(empty)
            padding_rows += times * int(((seen == 0) & padding[b, i0:i1]).sum())
            if len(empty) and first_empty is None:
                first_empty = (b, h, i0 + int(empty[0]))
            if offsets is not None:
                ahead = farthest > np.arange(i0, i1) + offsets[b]
                future = np.flatnonzero(ahead & (seen > 0))
                future_rows += times * len(future)
                if len(future) and first_future is None:
                    i = int(future[0])
                    first_future = (b, h, i0 + i, int(farthest[i]))
            if progress:
                progress((done + i1 / max(e.queries, 1)) / len(planes))
    return MaskFacts(
        cells=e.batch * e.heads * e.queries * e.keys, kept=kept,
        rows=e.batch * e.heads * e.queries, empty_rows=empty_rows, first_empty=first_empty,
        padding_rows=padding_rows,
        future_rows=None if offsets is None else future_rows, first_future=first_future,
        tiles_empty=tiles[EMPTY], tiles_full=tiles[FULL], tiles_mixed=tiles[MIXED],
    )  # fmt: skip


def check_size(extent: Extent) -> None:
    """Raise TooLarge for more heads, or more tiles of one, than can be counted in minutes."""
    planes = extent.batch * extent.heads
    if planes > MOST_PLANES:
        raise TooLarge(
            f"a mask of {extent.batch} × {extent.heads} heads is too large",
            f"give up to {MOST_PLANES} heads, those of all batch elements counted",
        )
    tiles = -(-extent.queries // TILE) * -(-extent.keys // TILE)
    if tiles > MOST_TILES:
        raise TooLarge(
            f"a mask of {extent.queries} × {extent.keys} has {tiles:.0e} tiles of 128 × 128",
            f"give lengths up to {int(MOST_TILES**0.5) * TILE}",
        )


@dataclass(frozen=True)
class Difference:
    """The cells where two masks differ.

    ``first`` is (batch, head, query, key); ``some`` are the first SHOWN of them.
    """

    cells: int
    only_one: int
    only_other: int
    first: tuple[int, int, int, int] | None
    some: tuple[tuple[int, int, int, int], ...] = ()


def difference(one: Mask, other: Mask, progress: Progress | None = None) -> Difference:
    """Compare two masks of the same extent cell by cell, tiles that agree whole at once."""
    e = one.extent
    edges, row_edges = _edges(e.keys, 512), _edges(e.queries, 512)
    only_one = only_other = 0
    some: list[tuple[int, int, int, int]] = []
    check_size(e)
    batches = sorted({*one.distinct()[0], *other.distinct()[0]})
    heads = sorted({*one.distinct()[1], *other.distinct()[1]})
    times = (e.batch // max(len(batches), 1)) * (e.heads // max(len(heads), 1))
    for b in batches if e.keys else ():
        for h in heads:
            for i0, i1 in zip(row_edges[:-1].tolist(), row_edges[1:].tolist(), strict=True):
                ours, theirs = one.tiles(b, h, i0, i1, edges), other.tiles(b, h, i0, i1, edges)
                for k in np.flatnonzero((ours != theirs) | (ours == MIXED)).tolist():
                    j0, j1 = int(edges[k]), int(edges[k + 1])
                    a, c = one.keep(b, h, i0, i1, j0, j1), other.keep(b, h, i0, i1, j0, j1)
                    only_one += times * int((a & ~c).sum())
                    only_other += times * int((c & ~a).sum())
                    if len(some) < SHOWN:
                        cells = np.argwhere(a != c)[: SHOWN - len(some)].tolist()
                        some += [(b, h, i0 + i, j0 + j) for i, j in cells]
                if progress:
                    progress(i1 / max(e.queries, 1))
    size = e.batch * e.heads * e.queries * e.keys
    return Difference(size, only_one, only_other, some[0] if some else None, tuple(some))


def kept_blocks(mask: Mask, b: int, h: int, rows: int, keys: int) -> Array:
    """Return the share of cells kept, float ``(rows, keys)``, each of a block of the mask.

    Blocks are as equal as they can be; needs rows ≤ Lq and keys ≤ Lk.
    """
    e = mask.extent
    row_edges = np.linspace(0, e.queries, rows + 1).astype(int)
    edges = np.linspace(0, e.keys, keys + 1).astype(int)
    shares = np.zeros((rows, keys))
    for r, (i0, i1) in enumerate(zip(row_edges[:-1].tolist(), row_edges[1:].tolist(), strict=True)):
        fills = mask.tiles(b, h, i0, i1, edges)
        shares[r] = fills == FULL
        for k in np.flatnonzero(fills == MIXED).tolist():
            shares[r, k] = mask.keep(b, h, i0, i1, int(edges[k]), int(edges[k + 1])).mean()
    return shares


def added_blocks(
    mask: Mask, b: int, h: int, rows: int, keys: int, progress: Progress | None = None
) -> tuple[Array, Array]:
    """Return the number furthest from 0 that is added to a visible score of each block, and where.

    float and bool ``(rows, keys)``, blocks as in ``kept_blocks``, 0 where nothing is visible.
    Raises TooLarge for more cells than can be looked at in seconds: biases have no tiles to skip.
    """
    e = mask.extent
    if e.queries * e.keys > MOST_ADDED:
        raise TooLarge(
            f"{e.queries} × {e.keys} numbers are too many for a map of what is added",
            f"give lengths up to {int(MOST_ADDED**0.5)}, or leave out --heatmap",
        )
    row_edges = np.linspace(0, e.queries, rows + 1).astype(int).tolist()
    starts = np.linspace(0, e.keys, keys + 1).astype(int)[:-1]
    high, low = np.full((rows, keys), -np.inf), np.full((rows, keys), np.inf)
    step = max(1, CHUNK // max(e.keys, 1))
    for r in range(rows):
        for i0 in range(row_edges[r], row_edges[r + 1], step):
            i1 = min(i0 + step, row_edges[r + 1])
            keep, bias = mask.keep(b, h, i0, i1, 0, e.keys), mask.bias(b, h, i0, i1, 0, e.keys)
            added = 0.0 if bias is None else bias
            for found, of, none in ((high, np.maximum, -np.inf), (low, np.minimum, np.inf)):
                columns = of.reduce(np.where(keep, added, none), 0)
                found[r] = of(found[r], of.reduceat(columns, starts))
        if progress:
            progress((r + 1) / rows)
    seen = ~np.isneginf(high)
    return np.where(seen, np.where(-low > high, low, high), 0), seen
