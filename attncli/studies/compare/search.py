"""The search for what explains a candidate: suspects alone, numbers fitted, suspects in pairs.

All are held against a sample of rows that tells them apart; what is left is held against the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np

from attncli.attention.problem import Problem
from attncli.studies.compare.cuts import cut_suspects
from attncli.studies.compare.faults import fault_suspects
from attncli.studies.compare.fits import fitted
from attncli.studies.compare.judged import Judged
from attncli.studies.compare.mask_suspects import mask_suspects
from attncli.studies.compare.paddings import padding_suspects
from attncli.studies.compare.suspects import ROUNDED, Question, suspects
from attncli.studies.compare.theory import Candidate, Theory, Unit, held, residual, whole
from attncli.studies.compare.windows import window_suspects

Array = np.ndarray[Any, np.dtype[Any]]

Maker = Callable[[], "Theory | None"]
Fitting = Callable[[Theory, Candidate, Sequence[Unit]], Iterator[Theory]]

HEADS, ROWS = 6, 24  # of the sample
LEAST = 6  # rows of a head, however many keys there are
PAIR_HEADS, PAIR_ROWS = 2, 8  # of the sample for pairs
CLOSE = 0.3  # the part of the residual that may be left by what is worth a second look
EXACT = 0.02  # the same, of a rounding: what passes by it must be made by it
KEPT = 16  # theories that are kept of all
SECOND = 30  # theories that are worth more than a glance
CELLS = 1 << 17  # of the sample of all heads together
BESIDE = 5  # singles beside which numbers are fitted and keys looked for
FEW = 12  # theories that are held against the whole at most
LIKE = 4.0  # residuals that differ by less do not tell theories apart
SLIGHT = 1e-12  # of a candidate: as good as nothing left


@dataclass(frozen=True, eq=False)
class Tried:
    """A theory, what it leaves over of the sample, and how it fared against the whole."""

    theory: Theory
    left: float
    found: dict[str, Judged] | None = None

    @property
    def passed(self) -> bool:
        """Whether it explains the whole candidate."""
        return self.found is not None and all(one.passed for one in self.found.values())


def sample(
    problem: Problem, found: dict[str, Judged], heads: int = HEADS, rows: int = ROWS
) -> list[Unit]:
    """Return rows that tell theories apart: the worst, those at edges, and some of all."""
    errors = [np.where(one.bad, 1 + np.minimum(one.excess, 1e6), 0) for one in found.values()]
    shape = (problem.batch, problem.heads, problem.queries)
    error = np.broadcast_to(sum(errors, np.zeros(())), shape)
    worst = error.max(-1).ravel()  # (B·H,)
    pairs = list(np.ndindex(problem.batch, problem.heads))
    order = [int(n) for n in np.argsort(-worst, kind="stable")]
    some = [*order[: (heads + 1) // 2], 0, len(pairs) - 1, *order[::-1]]
    chosen = list(dict.fromkeys(some))[:heads]
    rows = max(LEAST, min(rows, CELLS // max(problem.keys * len(chosen), 1)))
    units = []
    for n in sorted(chosen):
        b, h = pairs[n]
        bad = np.argsort(-error[b, h], kind="stable")[: rows // 3]
        spread = np.linspace(0, problem.queries - 1, max(rows // 2, 1)).round().astype(int)
        edges = [0, 1, 63, 64, 127, 128, problem.queries - 1]
        edges = [i for i in edges if i < problem.queries]
        units.append(Unit(b, h, np.unique([*bad, *spread, *edges[: rows // 3]])))
    return units


def wide(problem: Problem) -> Problem:
    """Return the problem with float64 tensors, so that none is converted again and again."""
    q, k, v = (
        a.astype(np.float64, copy=False) for a in (problem.query, problem.key, problem.value)
    )
    return replace(problem, query=q, key=k, value=v)


class Search:
    """The search for one candidate; ``found`` is what the problem itself makes of it."""

    small: ClassVar[tuple[int, int]] = (PAIR_HEADS, PAIR_ROWS)
    spared: Array | None = None

    def __init__(
        self,
        problem: Problem,
        candidate: Candidate,
        found: dict[str, Judged],
        threads: int | None,
        spared: Array | None = None,
        base: Theory | None = None,
    ) -> None:
        """spared: rows to be left out, bool ``(B, H, L)``; base: how the problem is computed."""
        self.base = Theory(wide(problem)) if base is None else base
        self.problem, self.candidate, self.threads = problem, candidate, threads
        self.spared = spared
        self.units = self._without(sample(problem, found))
        self.few = self._without(sample(problem, found, *self.small))
        self.start = residual(self.base, candidate, self.units)
        self.suspects = list(self.asked(frozenset(candidate.stages)))

    def asked(self, stages: frozenset[str]) -> Iterator[Question]:
        """Yield what may have been done otherwise, to be seen in these stages."""
        yield from suspects(self.base.problem)
        yield from mask_suspects(self.base.problem)
        yield from fault_suspects(self.base.problem, stages)

    def run(self) -> list[Tried]:
        """Return what was tried, what passes first, each group by what it leaves over."""
        singles = self.alone(self.suspects)
        singles = self._best(singles, self._tried(self._beside(self.base, fitted)))
        done = self._whole(singles)
        if any(one.passed for one in done):
            return done
        return self._whole(self._best(self._tried(self._pairs(singles)), singles))

    def alone(self, suspects: Sequence[Question]) -> list[Tried]:
        """Return suspects and missing keys, each tried alone on the sample, the best first."""
        made = self._tried(partial(one.applied, self.base) for one in suspects)
        kinds = (cut_suspects, window_suspects, padding_suspects)
        return self._best(made, self._tried(self._beside(self.base, *kinds)))

    def _beside(self, theory: Theory, *kinds: Fitting) -> Iterator[Maker]:
        """Yield what makes the theories that are fitted to the sample beside another."""
        for kind in kinds:
            for made in kind(theory, self.candidate, self.units):
                yield partial(_itself, made)

    def _tried(self, makers: Iterator[Maker]) -> list[Tried]:
        """Return the best theories on the sample; a glance at a few rows decides on which to look.

        A theory may hold tensors of its own: it is made again rather than kept.
        """
        first: list[tuple[float, int, Maker]] = []
        for n, maker in enumerate(makers):
            theory = maker()
            if theory is not None:
                first.append((residual(theory, self.candidate, self.few), n, maker))
        kept: list[Tried] = []
        for _, _, maker in sorted(first, key=lambda one: one[:2])[:SECOND]:
            theory = maker()
            assert theory is not None
            tried = Tried(theory, residual(theory, self.candidate, self.units))
            kept = self._best(kept, [tried])
        return kept

    def _best(self, *groups: Sequence[Tried]) -> list[Tried]:
        """Return the best of some groups; of equals the earlier ones."""
        return sorted([one for group in groups for one in group], key=_left)[:KEPT]

    def _pairs(self, singles: Sequence[Tried]) -> Iterator[Maker]:
        """Yield pairs that leave little of a small sample, and fits beside the best singles."""
        start = residual(self.base, self.candidate, self.few)
        loose = [one for one in self.suspects if one.pair]
        close: list[tuple[float, int, Maker]] = []
        for n, one in enumerate(loose):
            theory = one.applied(self.base)
            for other in loose[n + 1 :]:
                if theory is None or one.kind == other.kind:
                    continue
                both = other.applied(theory)
                if both is None:
                    continue
                left = residual(both, self.candidate, self.few)
                if left < CLOSE * start or (math.isinf(start) and left < math.inf):
                    close.append((left, len(close), partial(_joined, self.base, one, other)))
        yield from (maker for _, _, maker in sorted(close, key=lambda pair: pair[:2])[:FEW])
        for single in singles[:BESIDE]:
            if single.left < math.inf:
                yield from self._beside(single.theory, window_suspects, cut_suspects, fitted)

    def _whole(self, tried: Sequence[Tried]) -> list[Tried]:
        """Hold the best against the whole; return all, those that pass first.

        Once one passes, those are left alone that leave so much more that they are no rivals.
        """
        limit = CLOSE * self.start if math.isfinite(self.start) else math.inf
        done: list[Tried] = []
        for n, one in enumerate(tried):
            t = one.theory
            near = one.left <= (min(limit, EXACT * self.start) if ROUNDED in t.kinds else limit)
            if n < FEW and near and self._plausible(t):
                one = replace(one, found=self._held(t))
                if one.passed:
                    limit = min(limit, LIKE * one.left + SLIGHT)
            done.append(one)
        return sorted(done, key=lambda one: (not one.passed, one.left))

    def _plausible(self, theory: Theory) -> bool:
        """Whether it passes on the sample."""
        read = self.candidate.seen_by(theory)
        if read is None:
            return False
        found = held(theory, read, self.units, threads=self.threads)
        return all(one.passed for one in found.values())

    def _held(self, theory: Theory) -> dict[str, Judged]:
        read = self.candidate.seen_by(theory)
        assert read is not None
        units = None if self.spared is None else self._without(whole(self.problem))
        return held(theory, read, units, threads=self.threads)

    def _without(self, units: Sequence[Unit]) -> list[Unit]:
        """Return the units without the rows that are left out."""
        if self.spared is None:
            return list(units)
        kept = [Unit(b, h, rows[~self.spared[b, h, rows]]) for b, h, rows in units]
        return [unit for unit in kept if len(unit.rows)]


def _itself(theory: Theory) -> Theory:
    return theory


def _joined(base: Theory, one: Question, other: Question) -> Theory | None:
    theory = one.applied(base)
    return None if theory is None else other.applied(theory)


def _left(one: Tried) -> float:
    return one.left
