"""The default engine's gradients (see ``gradients``): in tiles, from the lse. Memory is O(L·D).

A job is some tiles of keys of one key head, and walks over the queries that see them. What it
adds to dK and dV is its own; what it adds to dQ goes to a part of its own and is summed in a fixed
order, so that nobody waits and two runs agree to the bit (up to four threads, for any number).

Five products a tile, and only two passes of anything else: −lse and −δ come out of the products, as
one more channel of Q and dO beside a channel of ones in K and V.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from attncli.attention.gradients import Gradients, float_masks
from attncli.attention.predicates import EMPTY, MIXED
from attncli.attention.problem import Problem
from attncli.attention.softcap import softcap_with_slope
from attncli.engines import ANYHOW, Attended, How
from attncli.engines.arranged import arranged
from attncli.engines.numpy.backward_tiles import (
    BiasSum,
    Head,
    KeyTile,
    add_product,
    buffers,
    mend_product,
    within,
)
from attncli.engines.numpy.forward import LOG2E, TINY_CELLS, Tiling, attend
from attncli.engines.numpy.rows import BLOCK, GRAIN
from attncli.resources import Job, processors, run_jobs

Array = np.ndarray[Any, np.dtype[Any]]
Run = tuple[int, int, list[tuple[int, int]]]
Cells = tuple[int, int, int, int, int, int]  # b, h, rows i0:i1, keys j0:j1

HIDDEN = 1024  # most masks of mixed grains that are kept, 16 KiB each
SLICES = 16  # most jobs of one head: each holds a dQ of its own
FAR = 1e4  # scores this large differ by 1e-3 with the order in which float32 sums them
FROM_LSE = ("float64",)  # in which it starts from the lse that it is given, of however many keys
TRUSTED = 1e12  # likewise by 1e-3 in float64: from there on gradients are off by as much
LARGE = 1e3  # an lse this far from 0 has lost digits that the weights need


def backward(
    problem: Problem,
    grad_output: Array,
    attended: Attended | None = None,
    want: Collection[str] = (),
    how: How = ANYHOW,
    tiling: Tiling | None = None,
) -> Gradients:
    """Return the gradients of a problem. grad_output: ``(B, H, Lq, Dv)``.

    ``attended`` is what ``attend`` returned for it, used when it is in the arithmetic's dtype and
    computed otherwise. ``want``: any of ``biases``, ``score_norm``, ``alone``. ``softmax_dtype`` is
    left out: rounding has no derivative. ``tiling`` None chooses the size of the tiles. What may
    have scores beyond FAR is computed in float64.
    """
    p, threads = problem, how.threads or processors()
    if tiling is None and "biases" not in want and (found := arranged(p)):
        kept = attended and found.attended(attended, found.moved)
        back = backward(found.problem, found.moved(grad_output), kept, want, how)
        return found.gradients(back)
    if p.dtype == np.float32 and reach(p) > FAR:
        return _in_double(p, grad_output, want, how, tiling)
    if attended is None or attended.output.dtype != p.dtype or p.softmax_dtype is not None:
        exact = replace(p, result_dtype=p.dtype, softmax_dtype=None)
        attended = attend(exact, (), How(threads))
    walk = Walk(p, grad_output, attended, tiling or _tiling(p, threads), threads, want)
    cells = p.batch * p.heads * p.queries * p.keys
    if cells:
        tiny = cells <= TINY_CELLS
        run_jobs(walk.jobs(), threads, tiny, how.progress)
    return walk.gradients()


def reach(p: Problem) -> float:
    """Return what no score is beyond, softcapped if so: |scale|·max‖q‖·max‖k‖; ∞ where one is."""
    bound = abs(p.scale)
    for array in (p.query, p.key):
        array = array.astype(p.dtype, copy=False)
        with np.errstate(over="ignore", invalid="ignore"):
            bound *= float(np.sqrt(np.fmax.reduce(np.vecdot(array, array), None, initial=0)))
    return bound if p.softcap is None else min(bound, p.softcap)


def _in_double(
    p: Problem, grad_output: Array, want: Collection[str], how: How, tiling: Tiling | None
) -> Gradients:
    """Return the gradients of a float32 problem, computed in float64.

    Two products that are summed in another order differ by a rounding of the largest scores, and
    the weights by a power of e of it.
    """
    double = np.dtype(np.float64)
    tensors = {n: getattr(p, n).astype(double) for n in ("query", "key", "value")}
    wide = replace(p, **tensors, dtype=double, result_dtype=double)
    found = backward(wide, grad_output, None, want, how, tiling)
    with np.errstate(over="ignore"):
        return replace(
            found,
            **{n: a.astype(p.dtype) for n in tensors if (a := getattr(found, n)) is not None},
            biases=tuple(bias.astype(p.dtype) for bias in found.biases),
        )


def _tiling(p: Problem, threads: int) -> Tiling:
    """A tile's weights and dS together fill the second-level cache; enough tiles for threads.

    Few rows waste little where a mask ends inside a tile. 240 × 128 × 32 is below the 10⁶
    multiplications of ``split_rows``, and 256 × 128 × 32 is not.
    """
    large = p.mask.trivial and p.queries >= 1024
    rows = 128 if not large else 256 if max(p.width, p.value_width) <= 64 else 240
    keys = 512 if large else 1024
    while keys > GRAIN and p.batch * p.kv_heads * -(-p.keys // keys) < 2 * max(4, threads):
        keys //= 2
    return Tiling(rows, keys)


@dataclass
class Group:
    """The query heads of one key head: what its jobs share, until the last of them is done."""

    b: int
    g: int
    left: int
    lock: threading.Lock
    parts: list[Array | None]
    norms: list[Array | None]
    heads: list[Head] | None = None


class Walk:
    """The gradients as jobs that walk over tiles of ``tiling.keys`` keys × ``tiling.rows`` rows."""

    def __init__(
        self, problem: Problem, grad_output: Array, attended: Attended, tiling: Tiling,
        threads: int, want: Collection[str],
    ) -> None:  # fmt: skip
        self.problem = p = problem
        self.grad_output, self.attended = grad_output, attended
        self.rows, self.keys = tiling.rows, tiling.keys
        self.grain = min(GRAIN, self.keys)
        self.block = min(BLOCK, self.grain)
        self.plain = p.softcap is None and not p.mask.has_bias
        self.unit = LOG2E if self.plain else 1.0 if p.softcap is None else 1 / p.softcap
        self.query = np.zeros(p.query.shape, p.dtype)
        self.key, self.value = (np.zeros(a.shape, p.dtype) for a in (p.key, p.value))
        shape = (p.batch, p.heads, p.queries)
        self.sink = None if p.sink is None else np.zeros((p.batch, p.heads))
        self.norm = np.zeros(shape) if "score_norm" in want else None
        self.alone = "alone" in want
        self.biases = [BiasSum(s, p) for s in float_masks(p)] if "biases" in want else []
        tiles, heads = -(-p.keys // self.keys), max(1, p.batch * p.kv_heads)
        self.slices = max(1, min(tiles, SLICES, -(-4 * max(4, threads) // heads)))
        self.states: dict[tuple[int, int], Array] = {}
        self.plans: dict[tuple[int, int, int], list[tuple[int, int, list[Run]]]] = {}
        self.hidden: dict[tuple[int, int, int, int], Array] = {}
        batches, each = p.mask.distinct()
        self.distinct = len(batches) > 1, len(each) > 1

    def gradients(self) -> Gradients:
        query, key, value = (None,) * 3 if self.alone else (self.query, self.key, self.value)
        return Gradients(
            query=query, key=key, value=value,
            sink=None if self.sink is None else self.sink.sum(0),
            biases=tuple(b.total.astype(self.problem.dtype) for b in self.biases),
            score_norm=None if self.norm is None else np.sqrt(self.norm),
        )  # fmt: skip

    # --- what to visit --------------------------------------------------------------------------

    def jobs(self) -> list[Job]:
        """Return the jobs, longest first, so that threads end together."""
        p, found = self.problem, list[tuple[int, Job]]()
        for b, g in np.ndindex(p.batch, p.kv_heads):
            none: list[Array | None] = [None] * self.slices
            group = Group(b, g, self.slices, threading.Lock(), none, none.copy())
            for at in range(self.slices):
                cells = sum(
                    (z - a) * (i1 - i0)
                    for j0, j1 in self.tiles(at)
                    for h in self._heads(g)
                    for i0, i1, runs in self.plan(b, h, j0, j1)
                    for a, z, _ in runs
                ) if not p.mask.trivial else 0  # fmt: skip
                found.append((cells, partial(self.job, group, at)))
        return [job for _, job in sorted(found, key=lambda pair: -pair[0])]

    def _heads(self, g: int) -> range:
        each = self.problem.heads // self.problem.kv_heads
        return range(g * each, (g + 1) * each)

    def tiles(self, at: int) -> Iterator[tuple[int, int]]:
        """Yield (j0, j1) of a slice's tiles: to and fro, as a causal mask's last cost least."""
        for turn, first in enumerate(range(0, self.problem.keys, self.slices * self.keys)):
            j0 = first + self.keys * (self.slices - 1 - at if turn % 2 else at)
            if j0 < self.problem.keys:
                yield j0, min(j0 + self.keys, self.problem.keys)

    def plan(self, b: int, h: int, j0: int, j1: int) -> list[tuple[int, int, list[Run]]]:
        """Return (i0, i1, runs) of the rows that see keys j0:j1.

        A run (a, z, mixed) is keys j0 + a : j0 + z without an empty grain, and which are mixed.
        """
        p = self.problem
        where = b * self.distinct[0], h * self.distinct[1], j0
        if where not in self.plans:
            starts = range(0, p.queries, self.rows)
            edges = [*range(0, j1 - j0, self.grain), j1 - j0]
            if p.mask.trivial:
                runs: list[list[Run]] = [[(0, j1 - j0, [])] for _ in starts]
            else:
                grains = slice(j0 // self.grain, -(-j1 // self.grain))
                runs = [_runs(row, edges) for row in self._states(b, h)[:, grains].tolist()]
            self.plans[where] = [
                (i0, min(i0 + self.rows, p.queries), each)
                for i0, each in zip(starts, runs, strict=True)
                if each
            ]
        return self.plans[where]

    def _states(self, b: int, h: int) -> Array:
        """EMPTY, MIXED or FULL of each row tile and grain of keys: int8 ``(tiles, grains)``."""
        p = self.problem
        b, h = b * self.distinct[0], h * self.distinct[1]
        if (b, h) not in self.states:
            grains = -(-p.keys // self.grain)
            states = np.zeros((-(-p.queries // self.rows), grains), np.int8)
            for row, i0 in zip(states, range(0, p.queries, self.rows), strict=True):
                i1 = min(i0 + self.rows, p.queries)
                for start, stop in p.mask.spans(b, h, i0, i1):
                    first, last = start // self.grain, -(-stop // self.grain)
                    edges = np.minimum(np.arange(first, last + 1) * self.grain, p.keys)
                    row[first:last] = p.mask.tiles(b, h, i0, i1, edges)
            self.states[b, h] = states
        return self.states[b, h]

    # --- what to do there -----------------------------------------------------------------------

    def job(self, group: Group, at: int) -> None:
        """Add what the tiles of slice ``at`` give."""
        p, b, g = self.problem, group.b, group.g
        with group.lock:
            if group.heads is None:
                group.heads = [self._head(b, h) for h in self._heads(g)]
        heads = group.heads
        own = slice(heads[0].h, heads[-1].h + 1)
        grad_query = self.query[b, own] if self.slices == 1 else np.zeros_like(self.query[b, own])
        squares = np.zeros((len(heads), p.queries)) if self.norm is not None else None
        for j0, j1 in self.tiles(at):
            tile = KeyTile(p, b, g, j0, j1, self.block)
            for n, head in enumerate(heads):
                for i0, i1, runs in self.plan(b, head.h, j0, j1):
                    for run in runs:
                        ds = self._tile(head, i0, i1, tile, run, grad_query[n, i0:i1])
                        if squares is not None:
                            squares[n, i0:i1] += np.vecdot(ds, ds)
            self.key[b, g, j0:j1] *= p.dtype.type(p.scale)
        with group.lock:
            group.parts[at], group.norms[at] = grad_query, squares
            group.left -= 1
            if group.left:
                return
        self._close(group)

    def _close(self, group: Group) -> None:
        """Sum what the jobs of a group left, in their order."""
        heads = slice(self._heads(group.g).start, self._heads(group.g).stop)
        total = self.query[group.b, heads]
        for part in group.parts if self.slices > 1 else ():
            total += part
        total *= total.dtype.type(self.problem.scale)
        if self.norm is not None:
            self.norm[group.b, heads] = sum(part for part in group.norms if part is not None)
        group.heads, group.parts, group.norms = None, [], []

    def _head(self, b: int, h: int) -> Head:
        p = self.problem
        lse = self.attended.lse[b, h].astype(np.float64)
        grad = self.grad_output[b, h].astype(p.dtype, copy=False)
        query = p.query[b, h].astype(p.dtype, copy=False)
        head = Head(
            (b, h), query, grad, self.attended.output[b, h], lse, p.scale * self.unit, self.plain
        )
        if p.mask.has_bias and (np.abs(lse) > LARGE)[np.isfinite(lse)].any():
            head.top, head.rest = self._settle(head)
        if self.sink is not None and p.sink is not None:
            sunk = np.exp(p.sink[h] - np.where(np.isneginf(lse), np.inf, lse))
            self.sink[b, h] = -np.sum(sunk * head.delta)
        return head

    def _tile(
        self, head: Head, i0: int, i1: int, tile: KeyTile, run: Run, grad_query: Array
    ) -> Array:
        """Add to grad_query ``(R, D)`` and to the keys' gradients; return dS ``(R, C)``."""
        a, z, mixed = run
        b, h, j0 = head.b, head.h, tile.j0
        at = b, self.problem.group(h), slice(j0 + a, j0 + z)
        hide = [
            (slice(m - a, n - a), self._hidden((b, h, i0, i1, j0 + m, j0 + n))) for m, n in mixed
        ]
        weights = tile.times("weights", head.left[i0:i1], tile.keys_across, a, z)  # (R, C)
        slope = None
        if self.plain:
            np.exp2(weights, out=weights)
        else:
            slope = self._weights(head, (b, h, i0, i1, j0 + a, j0 + z), weights)
        for some, hidden in hide:
            np.copyto(weights[:, some], 0, where=hidden)
            if slope is not None:
                np.copyto(slope[:, some], 0, where=hidden)
        ds = tile.times("ds", head.right[i0:i1], tile.values_across, a, z)  # dP − δ
        np.multiply(ds, weights, out=ds)
        for some, hidden in hide:
            np.copyto(ds[:, some], 0, where=hidden)
        for bias in self.biases:
            bias.add(b, h, i0, j0 + a, ds)
        if slope is not None:
            np.multiply(ds, slope, out=ds)
        if self.alone:
            return ds
        add_product(self.value[at], weights.T, head.grad[i0:i1])
        add_product(self.key[at], ds.T, head.query[i0:i1])
        add_product(grad_query, ds, tile.key[a:z])
        if head.bad.size or tile.bad.size:
            seen = np.ones(ds.shape, bool)
            for some, hidden in hide:
                seen[:, some] = ~hidden
            rows, keys = within(head.bad, i0, i1), within(tile.bad, a, z)
            mend_product(grad_query, ds, seen, tile.raw[a:z], keys)
            mend_product(self.key[at], ds.T, seen.T, head.raw[0][i0:i1], rows)
            mend_product(self.value[at], weights.T, seen.T, head.raw[1][i0:i1], rows)
        return ds

    def _hidden(self, cells: Cells) -> Array:
        """Return the cells that are masked, bool ``(R, C)``; heads that are alike share them."""
        b, h, i0, i1, j0, j1 = cells
        b, h = b * self.distinct[0], h * self.distinct[1]
        found = self.hidden.get((b, h, i0, j0))
        if found is None:
            found = ~self.problem.mask.keep(b, h, i0, i1, j0, j1)
            if len(self.hidden) < HIDDEN:
                self.hidden[b, h, i0, j0] = found
        return found

    def _weights(self, head: Head, cells: Cells, s: Array) -> Array | None:
        """Turn q·k·unit ``(R, C)`` into weights in place; return 1 − (c/cap)² with a softcap."""
        slope = self._logits(cells, s)
        i0, i1 = cells[2:4]
        np.subtract(s, head.top[i0:i1, None], out=s)
        if head.rest is not None:
            np.subtract(s, head.rest[i0:i1, None], out=s)
        np.exp(s, out=s)
        return slope

    def _logits(self, cells: Cells, s: Array) -> Array | None:
        """Turn q·k·unit ``(R, C)`` into logits in place; return 1 − (c/cap)² with a softcap."""
        slope, cap = None, self.problem.softcap
        if cap is not None:
            slope = buffers.take("slope", s.shape, s.dtype)
            softcap_with_slope(s, cap, slope)
        bias = self.problem.mask.bias(*cells)
        if bias is not None:
            np.add(s, bias, out=s, casting="same_kind")
        return slope

    def _settle(self, head: Head) -> tuple[Array, Array]:
        """Return the maximum and log Σ exp(z − maximum) of each row, ``(Lq,)``, sink included.

        Rows of nothing but finite sentinels (−1e9) have an lse that has lost log Σ to rounding.
        """
        p, width, b, h = self.problem, self.keys, head.b, head.h
        if p.dtype.name in FROM_LSE and self.attended.rows is not None:
            known = self.attended.rows.with_sink(p.sink)  # perhaps of more keys than these
            most, less = known.m[b, h], known.rest[b, h]
            seen = ~np.isneginf(most)
            return np.where(seen, most, 0), np.asarray(np.where(seen, np.log1p(less), 0))
        sink = -np.inf if p.sink is None else p.sink[h]
        top, total = np.full(p.queries, sink), np.full(p.queries, float(sink > -np.inf))
        tiles = [
            (b, h, i0, min(i0 + self.rows, p.queries), j0, min(j0 + width, stop))
            for i0 in range(0, p.queries, self.rows)
            for start, stop in p.mask.spans(b, h, i0, min(i0 + self.rows, p.queries))
            for j0 in range(start, stop, width)
        ]
        for cells in tiles:
            rows, keys = slice(*cells[2:4]), slice(*cells[4:])
            key = p.key[b, p.group(h), keys].astype(p.dtype, copy=False)
            z = head.left[rows, :-1] @ key.T  # (R, C)
            self._logits(cells, z)
            z[~p.mask.keep(*cells)] = -np.inf
            new = np.maximum(top[rows], z.max(1))
            shift = np.where(np.isneginf(new), 0, new)
            total[rows] *= np.exp(np.where(total[rows] > 0, top[rows] - shift, 0))
            total[rows] += np.exp(z - shift[:, None].astype(z.dtype)).sum(1)
            top[rows] = new
        top, rest = np.where(np.isneginf(top), 0, top), np.where(total == 0, 0, np.log(total))
        return top.astype(p.dtype), rest.astype(p.dtype)


def _runs(states: list[int], edges: list[int]) -> list[Run]:
    """Return the runs of grains that are not EMPTY; grain n is edges[n] : edges[n + 1]."""
    runs: list[Run] = []
    for state, a, z in zip(states, edges, edges[1:], strict=False):
        if state != EMPTY:
            start, mixed = runs.pop()[::2] if runs and runs[-1][1] == a else (a, [])
            runs.append((start, z, [*mixed, (a, z)] if state == MIXED else mixed))
    return runs
