"""A problem divided among processes, by keys, heads or batch elements, and put together again.

By keys, each has the running sums of its own (``rows``), which merge in any order and grouping.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol

import numpy as np

from attncli.attention.moved import Piece, moved
from attncli.attention.pose import pose
from attncli.attention.problem import Family, Problem
from attncli.attention.rows import Rows
from attncli.attention.words import AXES as AXES
from attncli.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = list[Array]

STEP = 512  # rows that are asked together which keys they see


class Exchange(Protocol):
    """What processes need to work together; each calls the same of these in the same order."""

    rank: int
    ranks: int

    def merged(self, arrays: Arrays, merge: Callable[[Arrays, Arrays], Arrays]) -> Arrays:
        """Return the arrays of all, merged in the order of ranks: to the bit the same for all."""

    def gathered(self, array: Array) -> list[Array]:
        """Return the array of each, in the order of ranks; they may differ in shape."""

    def texts(self, text: str) -> list[str]:
        """Return what each has to say, in the order of ranks."""


class Partial(NamedTuple):
    """Attention to some of the keys.

    output ``(B, H, Lq, Dv)`` as if there were no others; rows ``(B, H, Lq)``, float64, their keys
    counted over all, without a sink.
    """

    output: Array
    rows: Rows

    def merge(self, other: Partial) -> Partial:
        """Return attention to both key sets, which must be disjoint."""
        rows = self.rows.merge(other.rows)
        ours, theirs = (_share(part.rows, rows)[..., None] for part in (self, other))
        output = np.empty_like(self.output)
        for at in np.ndindex(output.shape[:2]):  # in float64, a head at a time
            with np.errstate(invalid="ignore", over="ignore"):
                output[at] = ours[at] * self.output[at] + theirs[at] * other.output[at]
        return Partial(output, rows)

    def with_sink(self, sink: Array | None) -> Partial:
        """Merge a logit per head, ``(H,)``, that has no key and no value."""
        if sink is None:
            return self
        rows = self.rows.with_sink(sink)
        output = _share(self.rows, rows)[..., None] * self.output
        return Partial(output.astype(self.output.dtype), rows)

    @property
    def arrays(self) -> Arrays:
        """All its arrays: the output, then the fields of Rows."""
        return [self.output, *(getattr(self.rows, field.name) for field in fields(Rows))]

    @classmethod
    def of(cls, arrays: Sequence[Array]) -> Partial:
        """Return what has these ``arrays``."""
        output, *sums = arrays
        names = (field.name for field in fields(Rows))
        return cls(output, Rows(**dict(zip(names, sums, strict=True))))


@np.errstate(invalid="ignore", over="ignore", under="ignore", divide="ignore")
def _share(part: Rows, whole: Rows) -> Array:
    """Return the weight that some keys have among all, ``(B, H, Lq)``; 0 where none is seen."""
    none = np.isneginf(part.m)
    share = np.exp(np.where(none, 0, part.m - whole.m)) * part.e1 / whole.e1
    return np.where(none, 0, share)


@dataclass(frozen=True, eq=False)
class Share:
    """What one of some processes does of a problem: a range along ``axis``, one of AXES.

    Nobody else is there without an ``exchange``.
    """

    axis: str
    rank: int
    ranks: int
    exchange: Exchange | None = None

    def bounds(self, problem: Problem) -> Array:
        """Return where the range of each process begins, and the end: ``(ranks + 1,)``.

        Ranges of keys see about as many cells each, by blocks of STEP rows: of a long causal mask
        the first is the shortest.
        Query heads of a key head stay together where there are enough of them.
        """
        p = problem
        if self.axis == "keys":
            return _by_cells(p, self.ranks)
        if self.axis == "batch":
            return _evenly(p.batch, self.ranks)
        each = p.heads // max(p.kv_heads, 1)
        if self.ranks <= p.kv_heads:
            return _evenly(p.kv_heads, self.ranks) * each
        several = np.diff(_evenly(self.ranks, max(p.kv_heads, 1)))
        starts = [n * each + _evenly(each, count)[:-1] for n, count in enumerate(several)]
        return np.append(np.concatenate(starts), p.heads)

    def piece(self, problem: Problem) -> Piece:
        """Return the own range of a problem."""
        p = problem
        start, stop = self.bounds(p)[self.rank : self.rank + 2].tolist()
        sizes = {"batch": p.batch, "heads": p.heads, "keys": p.keys}
        ranges = {axis: slice(0, size) for axis, size in sizes.items()}
        return Piece(**{**ranges, self.axis: slice(start, stop)}, whole=p.keys)

    def part(self, problem: Problem) -> Problem:
        """Return the own part of a problem, views of its tensors; without a sink where by keys.

        Results are in the arithmetic's precision.
        """
        p, piece = problem, self.piece(problem)
        each = p.heads // max(p.kv_heads, 1)
        some = piece.heads
        groups = slice(0, 0)
        if some.start < some.stop:
            groups = slice(some.start // each, -(-some.stop // each))
        keys = piece.batch, groups, piece.keys
        sink = None if p.sink is None or self.axis == "keys" else p.sink[some]
        return replace(
            p, query=p.query[piece.batch, some], key=p.key[keys], value=p.value[keys], sink=sink,
            mask=moved(p.mask, piece), result_dtype=p.dtype, family=Family(4), past=0, rope=None,
            warnings=(), cache=None, unturned=None, real=p.real_rows[piece.batch], share=None,
        )  # fmt: skip

    def of_rows(self, problem: Problem, array: Array) -> Array:
        """Return the own part of ``(B, H, Lq, …)``."""
        piece = self.piece(problem)
        return array[piece.batch, piece.heads]

    def partial(self, problem: Problem, output: Array, rows: Rows) -> Partial:
        """Return what was made of the own keys, these counted over all."""
        first = self.piece(problem).first
        seen = np.where(rows.top_j < 0, -1, rows.top_j + first)
        zero = rows.first if first == 0 else np.full_like(rows.first, -np.inf)
        return Partial(output, replace(rows, top_j=seen, first=zero))

    # -- together -----------------------------------------------------------------------------

    @property
    def others(self) -> Exchange:
        """The exchange with the other processes."""
        assert self.exchange is not None, "nobody else is there"
        return self.exchange

    def joined(self, array: Array, axis: int | None = None) -> Array:
        """Return what all have of an array side by side, along the share's own axis or another."""
        at = {"batch": 0, "heads": 1}.get(self.axis, axis) if axis is None else axis
        assert at is not None, "an array of what has no keys is summed"
        return np.concatenate(self.others.gathered(array), at)

    def summed(self, *arrays: Array) -> Arrays:
        """Return the sums of what all have."""
        return self.others.merged(
            [*arrays], lambda a, b: [x + y for x, y in zip(a, b, strict=True)]
        )


def share_of(problem: Problem) -> Share | None:
    """Return what this process does of a problem, None where it is not divided."""
    share = problem.share
    assert share is None or isinstance(share, Share)
    return share


def pose_some(
    start: int, count: int | None, query: Any, key: Any, value: Any, **how: Any
) -> Problem:
    """Return the problem of some keys: those given are keys ``start``… of ``count``.

    ``how`` are the arguments of ``pose``; masks are those of all keys. Raises InputError for keys
    that do not lie among ``count``, and for a cache or RoPE, which speak of all.
    """
    if count is None:
        raise InputError(
            f"key_start is {start} without key_count", "key_count says how many keys there are"
        )
    for name in ("past_key", "past_value", "rope"):
        if how.get(name) is not None:
            raise InputError(
                f"{name} is given with key_start and key_count", "apply it to all keys first"
            )
    own = pose(query, key, value, **{**how, "mask": (), "kv_lengths": None})
    if start < 0 or start + own.keys > count:
        raise InputError(
            f"keys {start} to {start + own.keys - 1} do not lie among {count}",
            "key_start is the place of the first key given, key_count how many there are in all",
        )
    said = {name: how[name] for name in how.keys() - {"heads", "kv_heads", "layout"}}
    every = (
        np.broadcast_to(a.dtype.type(0), (*a.shape[:2], count, a.shape[3]))
        for a in (own.key, own.value)
    )
    p = pose(own.query, *every, **said, family=own.family)
    keys = slice(start, start + own.keys)
    piece = Piece(slice(0, p.batch), slice(0, p.heads), keys, count)
    return replace(p, key=own.key, value=own.value, mask=moved(p.mask, piece), real=p.real_rows)


def merged(ours: Arrays, theirs: Arrays) -> Arrays:
    """Merge the arrays of two ``Partial``."""
    return Partial.of(ours).merge(Partial.of(theirs)).arrays


def _by_cells(p: Problem, ranks: int) -> Array:
    """Return where ranges of keys begin that rows see about as often, by the mask's spans."""
    if p.mask.trivial or p.keys < ranks:
        return _evenly(p.keys, ranks)
    seen = np.zeros(p.keys + 1)
    for i0 in range(0, p.queries, STEP):
        i1 = min(i0 + STEP, p.queries)
        for start, stop in p.mask.spans(0, 0, i0, i1) if p.batch * p.heads else ():
            seen[[start, stop]] += i1 - i0, i0 - i1
    work = np.cumsum(np.maximum(np.cumsum(seen)[:-1], 1))  # a key costs something, seen or not
    place = np.arange(1, ranks)
    ends = np.searchsorted(work, work[-1] * place / ranks)
    ends = np.maximum.accumulate(np.maximum(ends, 1) - place) + place  # at least a key for each
    return np.concatenate([[0], np.minimum(ends, p.keys - ranks + place), [p.keys]])


def _evenly(count: int, parts: int) -> Array:
    """Return where ``parts`` of nearly one size begin, and the end."""
    return np.arange(parts + 1) * count // parts
