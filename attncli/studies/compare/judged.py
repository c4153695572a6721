"""A candidate held against the truth, cell by cell; what is kept is a number or two a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from itertools import pairwise
from threading import Lock
from typing import Any, NamedTuple

import numpy as np

from attncli.errors import InputError
from attncli.measures.budget import eps

Array = np.ndarray[Any, np.dtype[Any]]

#: Axes of a worst cell by stage: the batch element and head come first.
AXES = {
    "output": ("query", "channel"),
    "lse": ("query",),
    "scores": ("query", "key"),
    "weights": ("query", "key"),
    "grad_query": ("query", "channel"),
    "grad_key": ("key", "channel"),
    "grad_value": ("key", "channel"),
}
#: In the order in which they are computed: the first that diverges is where to look.
STAGES = ("scores", "lse", "weights", "output", "grad_value", "grad_query", "grad_key")


class Tolerance(NamedTuple):
    """|error| ≤ atol + rtol·|truth|, in place of the error budget."""

    rtol: float = 0.0
    atol: float = 0.0

    @classmethod
    def of(cls, rtol: float | None, atol: float | None) -> Tolerance:
        """Return it, what is not given as 0. Raises InputError for what is no tolerance."""
        for name, value in (("rtol", rtol), ("atol", atol)):
            if value is not None and not 0 <= value < np.inf:
                raise InputError(f"{name} is {value}", "expected a number, 0 or more")
        return cls(rtol or 0.0, atol or 0.0)


def errors(
    name: str, candidate: Array, right: Array, own: np.dtype[Any]
) -> tuple[Array, Array, Array]:
    """Return |candidate − right| of a stage, ``(n, c)``, where the truth is no number, and where
    only one of both is.

    Where the truth, rounded to the candidate's type, is NaN or infinite, so must the candidate be;
    a NaN may stand for an infinity. Else the error is ∞.
    """
    with np.errstate(all="ignore"):
        rounded = right.astype(own).astype(np.float64)
        odd = ~np.isfinite(rounded)
        wide = candidate.astype(np.float64)
        error = np.abs(wide - right).astype(np.float64)
        error[odd] = 0
        wrong = np.isfinite(wide) == odd
        if name == "lse":
            wrong |= odd & (wide != rounded) & ~np.isnan(rounded)
        error[wrong] = np.inf
    return error, odd, wrong


@dataclass
class Judged:
    """One stage of a candidate. Arrays are ``(B, H, L)``, filled row by row.

    ``error`` is the largest absolute error of a row, ∞ where one of candidate and truth is not a
    number and the other is; ``excess`` the largest error as a multiple of what is allowed, and
    ``cell`` where that is; ``allowed`` and ``relative`` (error by truth) belong to that cell.
    ``room`` is what is allowed in the cell with the largest error.
    ``own`` is the type that the candidate is judged at, ``kept`` the one that holds it. ``whole``:
    the numbers are those of all heads together, and H is 1.
    """

    name: str
    own: np.dtype[Any]
    kept: np.dtype[Any]
    error: Array
    tolerance: Tolerance | None = None
    whole: bool = False
    excess: Array = field(init=False)
    allowed: Array = field(init=False)
    cell: Array = field(init=False)
    relative: Array = field(init=False)
    room: Array = field(init=False)
    needed: Array = field(init=False)  # the smallest atol that passes, by row
    ulps: Array = field(init=False)  # the error in steps of the largest number of its row
    squares: Array = field(init=False)  # (2, B, H, L): of the truth and of the error
    odd: Array = field(init=False)  # cells of a row that are not numbers where the truth is one
    across: Array = field(init=False)  # (c,): the largest excess of each channel, or key
    width: InitVar[int] = 1

    def __post_init__(self, width: int) -> None:
        for name in ("excess", "allowed", "relative", "room", "needed", "ulps"):
            setattr(self, name, np.zeros_like(self.error))
        self.cell = np.zeros(self.error.shape, np.int64)
        self.odd = np.zeros(self.error.shape, np.int64)
        self.squares = np.zeros((2, *self.error.shape))
        self.across = np.zeros(width)
        self._lock = Lock()

    @classmethod
    def empty(
        cls,
        name: str,
        shape: tuple[int, ...],
        own: np.dtype[Any],
        kept: np.dtype[Any],
        tolerance: Tolerance | None = None,
        *,
        whole: bool = False,
    ) -> Judged:
        """Return one with nothing judged yet; shape: ``(B, H, L)``, or ``(B, H, L, c)``."""
        width = shape[3] if len(shape) > 3 else 1
        return cls(name, own, kept, np.zeros(shape[:3]), tolerance, whole, width=width)

    def fill(self, at: Any, candidate: Array, right: Array, allowed: Array) -> None:
        """Judge the rows ``at`` an index of ``(B, H, L)``. The arrays: ``(n, c)``."""
        error, odd, wrong = errors(self.name, candidate, right, self.own)
        with np.errstate(all="ignore"):
            size = np.where(odd, 0, np.abs(right)).astype(np.float64)
            if self.tolerance is not None:
                share = self.tolerance.rtol * size
                allowed = self.tolerance.atol + share
                needed = error - share
                short = needed + share < error  # it was rounded down
                self.needed[at] = (needed + short * np.spacing(error)).max(1, initial=0)
            else:
                self.needed[at] = error.max(1, initial=0)
            share = np.where(error > 0, error / allowed, 0)
            share = np.where(np.isnan(share), np.inf, share)
            if not error.shape[1]:
                return
            cell = share.argmax(1)
            rows = np.arange(len(cell))
            self.cell[at], self.excess[at] = cell, share[rows, cell]
            self.error[at] = error.max(1)
            allowed = np.broadcast_to(allowed, error.shape)
            self.allowed[at] = allowed[rows, cell]
            self.room[at] = allowed[rows, error.argmax(1)]
            self.relative[at] = (error / size)[rows, cell]
            top = size.max(1, initial=0)
            step = np.exp2(np.floor(np.log2(np.where(top > 0, top, 1)))) * eps(self.own)
            self.ulps[at] = error.max(1) / step
            finite = np.where(np.isfinite(error), error, 0)
            self.squares[0][at], self.squares[1][at] = (size**2).sum(1), (finite**2).sum(1)
            self.odd[at] = (wrong & ~odd).sum(1)
            with self._lock:  # rows are one thread's own, channels are not
                np.maximum(self.across, share.max(0, initial=0), out=self.across)

    # -- what is said of it --

    @property
    def passed(self) -> bool:
        """Whether no cell is off by more than is allowed."""
        return not (self.excess > 1).any()

    @property
    def idle(self) -> bool:
        """Whether in most rows more is allowed than half of what is there: it judges nothing."""
        if self.tolerance is not None or not self.error.size:
            return False
        size = np.sqrt(self.squares[0] / max(len(self.across), 1))
        return bool(np.median((self.room > 0.5 * size)[size > 0]) > 0.5) if size.any() else False

    @property
    def bad(self) -> Array:
        """Which rows hold a cell that is off by more than is allowed, bool ``(B, H, L)``."""
        return np.asarray(self.excess > 1)

    @property
    def max_error(self) -> float:
        """The largest absolute error."""
        return float(self.error.max(initial=0))

    @property
    def smallest_atol(self) -> float:
        """The smallest absolute tolerance that would pass, beside the rtol given."""
        return float(max(self.needed.max(initial=0), 0))

    @property
    def worst(self) -> dict[str, int]:
        """The cell that is farthest beyond what is allowed, by the names of its axes."""
        if not self.excess.size:
            return {}
        b, h, row = (int(x) for x in np.unravel_index(int(self.excess.argmax()), self.error.shape))
        names = ("batch", "head", *AXES[self.name])
        found = dict(zip(names, (b, h, row, int(self.cell[b, h, row])), strict=False))
        return {n: at for n, at in found.items() if n != "head"} if self.whole else found

    @property
    def budget(self) -> float:
        """What is allowed in the cell with the largest error."""
        return float(self.room.flat[int(self.error.argmax())]) if self.error.size else 0.0

    @property
    def telling(self) -> tuple[float, float]:
        """An error, and what is allowed there: the largest, or the worst where that may be."""
        if self.passed or not self.max_error <= self.budget:
            return self.max_error, self.budget
        at = int(self.excess.argmax())
        room, excess = float(self.allowed.flat[at]), float(self.excess.flat[at])
        return (room * excess if np.isfinite(excess) else float(self.error.flat[at])), room

    @property
    def snr(self) -> float:
        """Signal to noise, 10·log10(Σ truth² / Σ error²) in dB; ∞ without any error."""
        signal, noise = (float(part.sum()) for part in self.squares)
        if not np.isfinite(self.error).all():
            return float("nan")
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(10 * np.log10(signal / noise)) if noise else float("inf")

    def by_head(self) -> Array:
        """The largest error of each head, ``(B, H)``."""
        return np.asarray(self.error.max(-1, initial=0))

    def by_row(self) -> Array:
        """The largest error of each row over heads and batch, ``(L,)``."""
        return np.asarray(self.error.max((0, 1), initial=0))


def first_bad(stages: Mapping[str, Judged]) -> str | None:
    """Return the first stage, in the order of computing, that is not within what is allowed."""
    return next((n for n in STAGES if n in stages and not stages[n].passed), None)


def ordered(stages: Mapping[str, Judged]) -> dict[str, Judged]:
    """Return the stages in the order of computing."""
    return {name: stages[name] for name in STAGES if name in stages}


def pooled(values: Array, most: int) -> tuple[Array, list[int]]:
    """Return the largest of each of at most ``most`` blocks of ``(L,)``, and the blocks' edges."""
    count = min(len(values), most)
    edges = np.linspace(0, len(values), count + 1).round().astype(int)
    parts: Sequence[Array] = [values[a:b] for a, b in pairwise(edges)]
    return np.array([part.max() for part in parts]), edges.tolist()
