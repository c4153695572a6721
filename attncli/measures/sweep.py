"""What needs the weights themselves, from the known lse, in tiles: O(L·D) memory, no L×L.

Column sums (the mass that each key receives), sums along the diagonals (the mass at each distance),
what goes to repeated tokens, mean distances and underflow walk over every visible cell; the masses
on near-by keys are dot products of their own, O(L·D).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.gradients import WeightSums
from attncli.attention.predicates import EMPTY, MIXED
from attncli.attention.problem import Problem
from attncli.attention.shares import Share, share_of
from attncli.measures.cells import NEAR, near_weights
from attncli.measures.statistic import statistic
from attncli.resources import Job, Progress, processors, run_jobs

Array = np.ndarray[Any, np.dtype[Any]]
Words = tuple[Array, Array]

TILE_ROWS, TILE_KEYS = 256, 512
TINY = 1 << 16  # cells that need no threads
UNDERFLOW = 2.0**-24  # the smallest positive float16; half of it rounds to 0
LOG2E = math.log2(math.e)


class Sweep(NamedTuple):
    """What a second sweep found.

    received ``(B, H, Lk)``: Σ_i p_ij over the chosen rows; distance ``(B, H, Lq)``: Σ_j p_ij |i−j|,
    NaN where positions are not known; tiny, cells ``(B, H)``: visible cells of the chosen rows with
    p < 2⁻²⁴, and all of them; near ``(B, H, Lq, 2·NEAR + 1)``: the weight of key i + d at d + NEAR;
    rows ``(B, H)``: how many rows were chosen, those whose lse is not finite left out; diagonals
    ``(B, H, Lq + Lk − 1)``: Σ_i p_ij over the chosen rows of the cells with j = i + n − (Lq − 1),
    where i counts from 0; repeats ``(B, H, Lq, 2)``: the mass on other occurrences of the row's own
    token, and on the keys after earlier ones; occurrences, alike: how many such keys the row sees.
    """

    received: Array
    distance: Array
    tiny: Array
    cells: Array
    near: Array
    rows: Array
    diagonals: Array
    repeats: Array
    occurrences: Array


@statistic("row", unit="positions", source="Vig & Belinkov 2019")
def mean_distance(placed: Sweep) -> Array:
    """Σ_j p_ij |i−j|, how far away a row looks, ``(B, H, Lq)``."""
    return placed.distance


@statistic("row", source="Clark et al. 2019", heading="self", kind="percent")
def diagonal_mass(placed: Sweep) -> Array:
    """The weight of the own position, ``(B, H, Lq)``."""
    return np.asarray(placed.near[..., NEAR])


@statistic("row", source="Clark et al. 2019", heading="previous token", kind="percent")
def previous_mass(placed: Sweep) -> Array:
    """The weight of the position before, ``(B, H, Lq)``."""
    return np.asarray(placed.near[..., NEAR - 1])


@statistic("row", source="Clark et al. 2019", heading="next token", kind="percent")
def next_mass(placed: Sweep) -> Array:
    """The weight of the position after, ``(B, H, Lq)``."""
    return np.asarray(placed.near[..., NEAR + 1])


@statistic("row")
def local_mass(placed: Sweep) -> Array:
    """The weight of positions at most NEAR = 4 away, ``(B, H, Lq)``."""
    return np.asarray(placed.near.sum(-1))


@statistic("head", unit="positions", heading="offset", kind="count")
def top_offset(placed: Sweep, offsets: Array) -> Array:
    """The offset j − i whose keys receive most mass, ``(B, H)``; 0 where there is none."""
    if not placed.diagonals.shape[-1]:
        return np.zeros(placed.rows.shape, np.int64)
    first = 1 - placed.distance.shape[-1] - offsets[:, None]  # (B, 1)
    return np.where(placed.diagonals.any(-1), placed.diagonals.argmax(-1) + first, 0)


@statistic("head", heading="at offset", kind="percent")
def offset_mass(placed: Sweep) -> Array:
    """The mean weight at that offset over the rows, ``(B, H)``; NaN where there is none."""
    most = placed.diagonals.max(-1, initial=0)
    known = (placed.rows > 0) & placed.diagonals.any(-1)
    return np.where(known, most / np.maximum(placed.rows, 1), np.nan)


@statistic("row", source="Olsson et al. 2022", heading="induction", kind="percent", over="followed")
def induction_mass(repeats: Sweep) -> Array:
    """The weight of keys after earlier occurrences of the row's own token, ``(B, H, Lq)``."""
    return np.asarray(repeats.repeats[..., 1])


@statistic(
    "row", source="Wang et al. 2022", heading="duplicate token", kind="percent", over="repeated"
)
def duplicate_mass(repeats: Sweep) -> Array:
    """The weight of other occurrences of the row's own token, ``(B, H, Lq)``."""
    return np.asarray(repeats.repeats[..., 0])


@statistic(
    "row", source="Olsson et al. 2022", heading="previous of a repeat", kind="percent",
    over="repeated",
)  # fmt: skip
def repeat_previous_mass(repeats: Sweep) -> Array:
    """The weight of the position before, in rows whose token occurs again, ``(B, H, Lq)``."""
    return np.asarray(repeats.near[..., NEAR - 1])


@statistic("head", source="Xiao et al. 2024", kind="count")
def sink_key(sweep: Sweep) -> Array:
    """The key that receives most mass, ``(B, H)``; −1 where no row was chosen."""
    if not sweep.received.shape[-1]:
        return np.full(sweep.rows.shape, -1)
    return np.where(sweep.rows > 0, sweep.received.argmax(-1), -1)


@statistic("head", source="Xiao et al. 2024", kind="percent")
def sink_mass(sweep: Sweep) -> Array:
    """The mean weight of that key over the rows, ``(B, H)``."""
    most = sweep.received.max(-1, initial=0)
    return np.where(sweep.rows > 0, most / np.maximum(sweep.rows, 1), np.nan)


@statistic("head", unit="cells", source="IEEE 754 binary16", heading="underflow", kind="percent")
def underflow_share(sweep: Sweep) -> Array:
    """Share of the visible cells with p < 2⁻²⁴, ``(B, H)``."""
    return np.where(sweep.cells > 0, sweep.tiny / np.maximum(sweep.cells, 1), np.nan)


def sweep(
    problem: Problem,
    lse: Array,
    chosen: Array,
    *,
    words: Words | None = None,
    before: int = 0,
    sums: WeightSums | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Go once more through all visible cells. lse, chosen (bool): ``(B, H, Lq)``, sink included.

    words: numbers that tell the tokens of queries ``(B, Lq)`` and keys ``(B, before + Lk)`` apart;
    those ``before`` are of keys that this problem has not. ``sums`` are what somebody has already
    summed: then only cells near by are left, but for words.
    """
    p = problem
    shape = (p.batch, p.heads)
    chosen = chosen & np.isfinite(lse)
    offsets = p.mask.positions()
    found = Sweep(
        received=np.zeros((*shape, p.keys)),
        distance=np.full((*shape, p.queries), np.nan),
        tiny=np.zeros(shape, np.int64),
        cells=np.zeros(shape, np.int64),
        near=np.full((*shape, p.queries, 2 * NEAR + 1), np.nan),
        rows=chosen.sum(-1),
        diagonals=np.zeros((*shape, max(p.queries + p.keys - 1, 0))),
        repeats=np.full((*shape, p.queries, 2), np.nan),
        occurrences=np.zeros((*shape, p.queries, 2), np.int64),
    )
    if not p.queries * p.keys * p.batch * p.heads:
        if offsets is not None:  # rows that have a choice have it among the keys of others
            for one in (found.distance, found.near, found.repeats):
                one[chosen] = 0
        return found
    threads = threads or processors()
    if sums is not None and words is None:
        return _of_sums(found, sums, p, lse, chosen, threads, progress)
    if share := share_of(p):
        return _shared(found, share, p, lse, chosen, words, threads, progress)
    tiny = p.batch * p.heads * p.queries * p.keys <= TINY
    tiles = -(-p.queries // TILE_ROWS)
    parts = max(1, min(tiles, -(-4 * threads // (p.batch * p.heads))))
    rows = -(-tiles // parts) * TILE_ROWS
    walks = [
        _Walk(
            p,
            b,
            h,
            i0,
            min(i0 + rows, p.queries),
            lse[b, h],
            chosen[b, h],
            offsets,
            words and (words[0][b], words[1][b]),
            before,
        )
        for b, h in np.ndindex(shape)
        for i0 in range(0, p.queries, rows)
    ]
    jobs: list[Job] = [partial(walk.run, found) for walk in walks]
    run_jobs(jobs, threads, tiny, progress)
    for walk in walks:  # in order, so that threads change nothing
        found.received[walk.b, walk.h] += walk.received
        found.tiny[walk.b, walk.h] += walk.tiny
        found.cells[walk.b, walk.h] += walk.cells
        first = p.queries - walk.i1
        found.diagonals[walk.b, walk.h, first : first + len(walk.diagonals)] += walk.diagonals
    return found


def _of_sums(
    found: Sweep, sums: WeightSums, p: Problem, lse: Array, chosen: Array, threads: int,
    progress: Progress | None,
) -> Sweep:  # fmt: skip
    """Return a sweep that has found nothing yet with what is known already, and with near cells."""
    found = found._replace(received=sums.received, tiny=sums.tiny, cells=sums.cells)
    if p.mask.positions() is None:
        return found
    share = share_of(p)
    if share is None:
        near = _all_near(p, lse, chosen, threads, progress)
    else:
        own = share.part(p), share.of_rows(p, lse), share.of_rows(p, chosen)
        part = _all_near(*own, threads, progress)
        near = share.summed(part)[0] if share.axis == "keys" else share.joined(part)
    distance = np.where(chosen, sums.distance, np.nan)
    return found._replace(near=near, distance=distance, diagonals=sums.diagonals)


def _all_near(
    p: Problem, lse: Array, chosen: Array, threads: int, progress: Progress | None
) -> Array:
    """Return the weights near by of the chosen rows, ``(B, H, Lq, 2·NEAR + 1)``, NaN of others."""
    offsets, found = p.mask.positions(), np.full((*chosen.shape, 2 * NEAR + 1), np.nan)
    assert offsets is not None

    def near(b: int, h: int) -> None:
        weights = near_weights(p, b, h, lse[b, h], 0, p.queries, offsets[b])
        found[b, h] = np.where(chosen[b, h, :, None], weights, np.nan)

    jobs: list[Job] = [partial(near, b, h) for b, h in np.ndindex(p.batch, p.heads)]
    run_jobs(jobs, threads, chosen.size * p.keys <= TINY, progress)
    return found


def _shared(
    found: Sweep, share: Share, p: Problem, lse: Array, chosen: Array, words: Words | None,
    threads: int, progress: Progress | None,
) -> Sweep:  # fmt: skip
    """Return the sweep of all processes that divide a problem."""
    piece = share.piece(p)
    own = words and (words[0][piece.batch], words[1][piece.batch, : piece.keys.stop])
    ours = sweep(
        share.part(p), share.of_rows(p, lse), share.of_rows(p, chosen), words=own,
        before=piece.first, threads=threads, progress=progress,
    )  # fmt: skip
    if share.axis != "keys":
        return Sweep(*map(share.joined, ours))
    found.diagonals[..., piece.first :][..., : ours.diagonals.shape[-1]] = ours.diagonals
    added = ours._replace(diagonals=found.diagonals)._asdict()
    received, rows = (added.pop(name) for name in ("received", "rows"))
    summed = dict(zip(added, share.summed(*added.values()), strict=True))
    return Sweep(received=share.joined(received, 2), rows=rows, **summed)


class _Walk:
    """Rows i0:i1 of one head."""

    def __init__(
        self, p: Problem, b: int, h: int, i0: int, i1: int, lse: Array, chosen: Array,
        offsets: tuple[int, ...] | None, words: Words | None, before: int,
    ) -> None:  # fmt: skip
        self.before = before
        self.p, self.b, self.h, self.i0, self.i1 = p, b, h, i0, i1
        self.lse, self.chosen = lse, chosen
        self.offset = None if offsets is None else offsets[b]
        self.plain = p.softcap is None and not p.mask.has_bias
        self.received, self.tiny, self.cells = np.zeros(p.keys), 0, 0
        self.diagonals = np.zeros(0 if self.offset is None else i1 - i0 + p.keys - 1)
        self.skewed: dict[tuple[int, ...], Array] = {}
        self.words = words if words and self.offset is not None else None

    def run(self, found: Sweep) -> None:
        p = self.p
        key = p.key[self.b, p.group(self.h)].astype(p.dtype, copy=False)  # (Lk, D)
        # −lse is one more channel of the queries, beside a channel of ones in the keys
        across = np.empty((p.width + 1, p.keys), p.dtype)
        across[:-1], across[-1] = key.T, 1
        for i0 in range(self.i0, self.i1, TILE_ROWS):
            i1 = min(i0 + TILE_ROWS, self.i1)
            if self.chosen[i0:i1].any():
                rows = _Rows(self, i0, i1)
                for j0, j1, states in self._plan(i0, i1):
                    self._tile(rows, across, j0, j1, states)
                if self.offset is not None:
                    at = self.b, self.h, slice(i0, i1)
                    found.distance[at] = np.where(rows.good, rows.distance, np.nan)
                    if self.words:
                        found.repeats[at] = np.where(rows.good[:, None], rows.repeats, np.nan)
                        found.occurrences[at] = np.where(rows.good[:, None], rows.occurrences, 0)
        if self.offset is not None:
            found.near[self.b, self.h, self.i0 : self.i1] = self._near()

    def _plan(self, i0: int, i1: int) -> list[tuple[int, int, int]]:
        """Return (j0, j1, state) of the tiles that rows i0:i1 see."""
        mask, found = self.p.mask, []
        for start, stop in mask.spans(self.b, self.h, i0, i1):
            edges = np.append(np.arange(start, stop, TILE_KEYS), stop)
            states = mask.tiles(self.b, self.h, i0, i1, edges)
            for a, z, state in zip(edges[:-1].tolist(), edges[1:].tolist(), states, strict=True):
                if state != EMPTY:
                    found.append((a, z, int(state)))
        return found

    def _tile(self, rows: _Rows, across: Array, j0: int, j1: int, state: int) -> None:
        p = self.p
        e = rows.query @ across[:, j0:j1]  # (R, C), float32 or float64
        if not self.plain:
            if p.softcap is not None:
                e = p.dtype.type(p.softcap) * np.tanh(e / p.dtype.type(p.softcap))
            bias = p.mask.bias(self.b, self.h, rows.i0, rows.i1, j0, j1)
            if bias is not None:
                e += bias
            e = (e - rows.lse[:, None]) * LOG2E
        np.exp2(e, out=e)
        if not e.max() <= 1:  # huge scores round past their own lse
            np.minimum(e, 1, out=e)
        visible, keep = len(e) * (j1 - j0), None
        if state == MIXED:
            keep = p.mask.keep(self.b, self.h, rows.i0, rows.i1, j0, j1)
            np.copyto(e, 0, where=~keep)
            visible = int(np.count_nonzero(keep[rows.good]))
        elif rows.bad.size:
            visible = len(rows.good_at) * (j1 - j0)
        if rows.bad.size:
            e[rows.bad] = 0
        hidden = e.size - visible
        self.tiny += int(np.count_nonzero(e < UNDERFLOW)) - hidden
        self.cells += visible
        self.received[j0:j1] += rows.ones @ e
        if self.offset is None:
            return
        self._along(rows, e, j0)
        if self.words:
            self._repeats(rows, e, j0, keep)
        i = np.arange(rows.i0, rows.i1) + self.offset - j0
        wide = e.shape[1]
        low, high = min(max(int(i[0]), 0), wide), min(max(int(i[-1]) + 1, 0), wide)
        if low:
            rows.distance += _away(e[:, :low], i - low + 1, -1)
        if high < wide:
            rows.distance += _away(e[:, high:], high - i, 1)
        if low < high:  # keys on both sides
            away = np.abs(i[:, None] - np.arange(low, high))
            rows.distance += np.vecdot(e[:, low:high], away.astype(p.dtype))

    def _along(self, rows: _Rows, e: Array, j0: int) -> None:
        """Add what lies on each diagonal of a tile ``(R, C)``."""
        high, wide = e.shape
        skewed = self.skewed.get(e.shape)
        if skewed is None:  # what is 0 stays so
            skewed = self.skewed[e.shape] = np.zeros((high, high + wide + 1), e.dtype)
        flat = skewed.reshape(-1)[: high * (high + wide)].reshape(high, -1)  # a cell less a row
        flat[:, high:] = e  # (i, j) of it is (i, R + j − i) of the skewed one
        sums = (np.ones(high, e.dtype) @ skewed)[1 : high + wide]  # from j − i = 1 − R on
        start = j0 + self.i1 - rows.i1
        self.diagonals[start : start + len(sums)] += sums

    def _repeats(self, rows: _Rows, e: Array, j0: int, keep: Array | None) -> None:
        """Add the mass on other occurrences of the tokens, and on the keys after earlier ones."""
        assert self.words and self.offset is not None
        own, others = self.words
        for n in range(2):  # 0: the occurrence itself, 1: the key after it
            j = np.arange(j0, j0 + e.shape[1]) + self.before
            r, c = np.nonzero(own[rows.i0 : rows.i1, None] == others[np.maximum(j - n, 0)])
            place = r + rows.i0 + self.offset + self.before
            counts = (j[c] >= 1) & (j[c] < place) if n else j[c] != place
            if keep is not None:
                counts &= keep[r, c]
            r, c = r[counts], c[counts]
            rows.repeats[:, n] += np.bincount(r, e[r, c], len(e))
            rows.occurrences[:, n] += np.bincount(r, minlength=len(e))

    def _near(self) -> Array:
        """Return the weight of keys i − NEAR … i + NEAR, ``(R, 2·NEAR + 1)``; 0 where none is."""
        assert self.offset is not None
        near = near_weights(self.p, self.b, self.h, self.lse, self.i0, self.i1, self.offset)
        near[~self.chosen[self.i0 : self.i1]] = np.nan
        return near


def _away(e: Array, nearest: Array, step: int) -> Array:
    """Return Σ_j p_ij |i − j| of keys on one side of all rows, ``(R, C)``.

    ``nearest`` ``(R,)``: how far the nearest of them is, the first for step 1, the last for −1.
    """
    farther = np.arange(e.shape[1], dtype=e.dtype)[::step]
    sums = e @ np.stack([np.ones_like(farther), farther], 1)  # (R, 2)
    return np.asarray(nearest * sums[:, 0].astype(np.float64) + sums[:, 1])


class _Rows:
    """The rows of a tile: scaled queries ``(R, D + 1)``, which are good, what they have summed."""

    def __init__(self, walk: _Walk, i0: int, i1: int) -> None:
        p = walk.p
        self.i0, self.i1 = i0, i1
        self.good = walk.chosen[i0:i1]
        self.good_at, self.bad = np.flatnonzero(self.good), np.flatnonzero(~self.good)
        self.ones = self.good.astype(p.dtype)
        self.lse = np.where(self.good, walk.lse[i0:i1], 0).astype(p.dtype)
        self.query = np.empty((i1 - i0, p.width + 1), p.dtype)
        unit = LOG2E if walk.plain else 1.0
        self.query[:, :-1] = p.query[walk.b, walk.h, i0:i1].astype(p.dtype) * p.dtype.type(
            p.scale * unit
        )
        self.query[:, -1] = -self.lse * unit if walk.plain else 0
        self.distance = np.zeros(i1 - i0)
        self.repeats, self.occurrences = np.zeros((i1 - i0, 2)), np.zeros((i1 - i0, 2), np.int64)
