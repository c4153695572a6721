"""A theory: how a candidate may have been made. It is held against the candidate, row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from attncli.attention.problem import Problem
from attncli.errors import AttnError
from attncli.measures import budget
from attncli.measures.budget import Block, eps
from attncli.resources import Progress, run_jobs
from attncli.studies.compare.judged import Judged, Tolerance

Array = np.ndarray[Any, np.dtype[Any]]

CELLS = 1 << 19  # of a matrix that a thread holds a few of
SMALL = 1 << 16  # cells below which threads cost more than they save

#: What a faulty program does to results: from ``(problem, b, h, rows, arrays)`` what it changes.
After = Callable[[Problem, int, int, Array, Mapping[str, Array]], Mapping[str, Array]]
#: A problem posed otherwise; None where it cannot be.
Change = Callable[[Problem], "Problem | None"]
#: What a plain implementation gives, by name: from ``(b, h, rows, keys)``.
Plain = Callable[[int, int, Array, slice], dict[str, Array]]
#: How a stage of a candidate ``(B, H, L, …)`` is to be read; None where it cannot be read so.
View = Callable[[str, Array], "Array | None"]


@dataclass(frozen=True, eq=False)
class Theory:
    """A problem, what is done to its results, how the candidate is to be read.

    ``said`` are the options that say it, by flag (None: leave it out), ``words`` what they do not
    say; ``kinds`` are the questions that it answers, so that no other answers them again;
    ``changes`` led to the problem from what was asked. ``fitted``: a number of it was found by
    fitting. ``whole``: what it gives is that of all heads together, ``(B, 1, L, …)``.
    """

    whole: ClassVar[bool] = False

    problem: Problem
    said: Mapping[str, str | None] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    kinds: frozenset[str] = frozenset()
    fitted: bool = False
    after: tuple[After, ...] = ()
    view: View | None = None
    changes: tuple[Change, ...] = ()

    def changed(self, change: Change) -> Self | None:
        """Return the theory of a problem posed otherwise; None where it cannot be."""
        try:
            problem = change(self.problem)
        except AttnError:
            return None
        if problem is None:
            return None
        return replace(self, problem=problem, changes=(*self.changes, change))

    def parts(self, candidate: Candidate) -> list[tuple[Theory, Candidate]]:
        """Return the theories that give a candidate's stages, each with its own."""
        return [(self, candidate)]

    def by_head(self, candidate: Candidate) -> bool:
        """Whether the output of a candidate is that of each head."""
        return not self.parts(candidate)[-1][0].whole

    def units(self, units: Sequence[Unit] | None) -> Sequence[Unit]:
        """Return units as this theory takes them; all there are for None."""
        return whole(self.problem) if units is None else units

    def alike(self, other: Theory) -> bool:
        """Whether two theories of the same problem are the same."""
        return True

    def block(
        self,
        b: int,
        h: int,
        rows: Array,
        own: np.dtype[Any] | None,
        keys: slice,
        matrices: bool = False,
    ) -> Block:
        """Return the truth of this theory and, with ``own``, its bands; see ``budget.truth``."""
        if own is None:
            p = self.problem
            arrays = budget.truth(p, b, h, rows, bands=False, keys=self._keys(keys)).arrays
            return Block(self._changed(b, h, rows, arrays), {})
        found = budget.truth(
            self.problem, b, h, rows, own=own, keys=self._keys(keys), matrices=matrices
        )
        arrays, bands = self._changed(b, h, rows, found.arrays), dict(found.bands)
        for name, array in arrays.items():
            before = found.arrays[name]
            if array is not before and name in bands:
                bands[name] = _moved(bands[name], before, array, self.problem, own)
        return Block(arrays, bands)

    def plains(self, own: np.dtype[Any]) -> Sequence[Plain]:
        """Return the plain implementations of this theory in ``own``."""
        given = budget.as_own(self.problem, own)
        return [partial(self.plain, given, way) for way in budget.ways(self.problem, own)]

    def plain(
        self, given: Problem, way: budget.Way, b: int, h: int, rows: Array, keys: slice
    ) -> dict[str, Array]:
        """Return what a plain implementation gives; ``given`` is ``budget.as_own``."""
        return self._changed(b, h, rows, budget.plain(given, b, h, rows, way, self._keys(keys)))

    def _keys(self, keys: slice) -> slice | None:
        return None if self.after else keys

    def _changed(self, b: int, h: int, rows: Array, arrays: dict[str, Array]) -> dict[str, Array]:
        for one in self.after:
            with np.errstate(all="ignore"):
                arrays = {**arrays, **one(self.problem, b, h, rows, arrays)}
        return arrays

    def seen(self, b: int, h: int, rows: Array) -> slice:
        """Return the range of keys outside which none of the rows, ascending, sees anything."""
        if not len(rows):
            return slice(0, 0)
        spans = self.problem.mask.spans(b, h, int(rows[0]), int(rows[-1]) + 1)
        return slice(spans[0][0], spans[-1][1]) if spans else slice(0, 0)


def _moved(band: Array, before: Array, after: Array, problem: Problem, own: np.dtype[Any]) -> Array:
    """Return the band of what was changed afterwards: it grows as the results did."""
    with np.errstate(all="ignore"):
        size = np.where(np.isfinite(after), np.abs(after), 0).astype(np.float64)
        growth = size / np.where(np.isfinite(before), np.abs(before), 0)
        growth = np.where(np.isfinite(growth), np.maximum(growth, 1), 1)
        top = growth.max(-1, keepdims=True, initial=1) if growth.ndim > 1 else growth
        reads = np.where(np.isfinite(problem.value), np.abs(problem.value), 0)
        step = eps(budget.as_own(problem, own).dtype)
        most = float(reads.max(initial=0)) if before.ndim > 1 else 1.0
        return np.asarray(band * top + eps(own) * size + 8 * step * most)


class Unit(NamedTuple):
    """Some rows of one head, ascending."""

    b: int
    h: int
    rows: Array


@dataclass(frozen=True, eq=False)
class Candidate:
    """What is to be explained: stages ``(B, H, L, …)``, the type it is judged at, and held in.

    ``own`` is the type of the arithmetic's results; ``kept`` the types of single stages where they
    are coarser, by name.
    """

    stages: Mapping[str, Array]
    own: np.dtype[Any]
    kept: Mapping[str, np.dtype[Any]]
    tolerance: Tolerance | None = None

    def seen_by(self, theory: Theory) -> Candidate | None:
        """Return it as the theory reads it, or None where it cannot be read so."""
        if theory.view is None:
            return self
        stages: dict[str, Array] = {}
        for name, array in self.stages.items():
            made = theory.view(name, array)
            if made is None or made.shape != array.shape:
                return None
            stages[name] = made
        return replace(self, stages=stages)


def whole(problem: Problem) -> list[Unit]:
    """Return all rows, as many together as a thread should hold."""
    step = max(1, min(problem.queries, CELLS // max(problem.keys, 1)))
    return [
        Unit(b, h, np.arange(i, min(i + step, problem.queries)))
        for b, h in np.ndindex(problem.batch, problem.heads)
        for i in range(0, problem.queries, step)
    ]


def held(
    theory: Theory,
    candidate: Candidate,
    units: Sequence[Unit] | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Judged]:
    """Judge the stages of a candidate by a theory, over all rows or some."""
    found: dict[str, Judged] = {}
    for one, part in theory.parts(candidate):
        found |= _held(one, part, one.units(units), threads, progress)
    return {name: found[name] for name in candidate.stages}


def _held(
    theory: Theory,
    candidate: Candidate,
    units: Sequence[Unit],
    threads: int | None,
    progress: Progress | None,
) -> dict[str, Judged]:
    p, own = theory.problem, candidate.own
    plain = theory.plains(own) if candidate.tolerance is None else ()
    found = {
        name: Judged.empty(
            name,
            array.shape,
            candidate.kept.get(name, own),
            array.dtype,
            candidate.tolerance,
            whole=theory.whole,
        )
        for name, array in candidate.stages.items()
    }
    matrices = any(name in budget.MATRICES for name in candidate.stages)

    def judge(unit: Unit) -> None:
        b, h, rows = unit
        keys = slice(0, p.keys) if matrices else theory.seen(b, h, rows)
        block = theory.block(b, h, rows, own, keys, matrices)
        doubtful = np.zeros(len(rows), bool)
        parts = {}
        for name, array in candidate.stages.items():
            part = array[b, h][rows]
            right, band = block.arrays[name], block.bands[name]
            part, right, band = (x[:, None] if x.ndim == 1 else x for x in (part, right, band))
            kept = candidate.kept.get(name, own)
            with np.errstate(all="ignore"):
                if eps(kept) > eps(own):
                    band = band + eps(kept) * np.where(np.isfinite(right), np.abs(right), 0)
                if name == "scores":  # what no row sees is nobody's business
                    keep = p.mask.predicate.allows(b, h, rows[:, None], np.arange(p.keys)[None])
                    right, part = np.where(keep, right, 0), np.where(keep, part, 0)
                doubtful |= ~(np.abs(part.astype(np.float64) - right) <= band).all(1)
            parts[name] = part, right, band
        at = np.flatnonzero(doubtful) if candidate.tolerance is None else rows[:0]
        plains = [one(b, h, rows[at], keys) for one in plain] if len(at) else []
        for name, (part, right, band) in parts.items():
            allowed = np.array(np.broadcast_to(band, right.shape))
            if plains:
                own_error = budget.most(
                    right[at], [_column(one[name]).reshape(right[at].shape) for one in plains]
                )
                allowed[at] += 2 * own_error
            found[name].fill((b, h, rows), part, right, allowed)

    jobs = [partial(judge, unit) for unit in units]
    rows = sum(len(job.args[0].rows) for job in jobs)
    run_jobs(list(jobs), threads, rows * p.keys <= SMALL, progress)
    return found


def _column(array: Array) -> Array:
    return array[:, None] if array.ndim == 1 else array


def residual(theory: Theory, candidate: Candidate, units: Sequence[Unit]) -> float:
    """Return how much of the candidate a theory leaves over, Σ error² / Σ candidate² by stage.

    ∞ where one is a number and the other is none.
    """
    read = candidate.seen_by(theory)
    if read is None:
        return np.inf
    return sum(_residual(one, part, one.units(units)) for one, part in theory.parts(read))


def _residual(theory: Theory, read: Candidate, units: Sequence[Unit]) -> float:
    total = 0.0
    sums = {name: np.zeros(2) for name in read.stages}
    for b, h, rows in units:
        keys = slice(0, theory.problem.keys)
        arrays = theory.block(b, h, rows, None, keys).arrays
        for name, array in read.stages.items():
            part, right = array[b, h][rows].astype(np.float64), arrays[name]
            with np.errstate(all="ignore"):
                if name == "scores":
                    right = np.where(np.isneginf(arrays["masked"]), part, right)
                good = np.isfinite(part)
                if (good != np.isfinite(right.astype(read.kept.get(name, read.own)))).any():
                    return np.inf
                sums[name] += (
                    np.sum((part - right) ** 2, where=good), np.sum(part**2, where=good)
                )  # fmt: skip
    for error, size in sums.values():
        total += error / (size or 1.0)
    return total


def outputs_of(
    theory: Theory, candidate: Candidate, unit: Unit
) -> Iterator[tuple[Mapping[str, Array], Array]]:
    """Yield what a theory makes of a unit and the candidate's output ``(n, Dv)``, if it has one."""
    if "output" not in candidate.stages or theory.view or theory.after:
        return
    b, h, rows = unit
    arrays = theory.block(b, h, rows, None, slice(0, theory.problem.keys)).arrays
    wanted = candidate.stages["output"][b, h][rows].astype(np.float64)
    if np.isfinite(wanted).all():
        yield arrays, wanted
