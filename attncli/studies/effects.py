"""What a change does to attention and its gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.problem import Problem
from attncli.attention.rows import Rows
from attncli.measures import rows as measure_rows
from attncli.measures.evidence import Evidence, told
from attncli.measures.outputs import largest, unit_of
from attncli.measures.rows import SATURATED, pooled_std
from attncli.measures.statistic import Summaries, of_every_head, quantile
from attncli.studies.part import Part, part_of

Array = np.ndarray[Any, np.dtype[Any]]

VANISHED = 1e-3  # of the median row's ‖dS‖ at scale 1/√D
#: What is told of all rows of all heads: a statistic, and its quantile where it is one of rows.
OVERALL = {
    "logit_std": ("logit_std", ""),
    "score_variance": ("score_variance", ""),
    "logit_max": ("logit_max", ""),
    "saturated_share": ("saturated_share", ""),
    "entropy": ("entropy", "median"),
    "max_weight": ("max_weight", "median"),
    "grad_score_p05": ("grad_score_norm", "p05"),
    "grad_score_median": ("grad_score_norm", "median"),
    "grad_score_cv": ("grad_score_norm", "cv"),
    "vanishing_share": ("vanishing_share", ""),
}
#: What is told of each head.
OF_HEADS = (*told(measure_rows), "grad_score_norm", "vanishing_share")
COUNTS = ("rows", "rows_with_choice", "dead_rows")  # what the mask alone decides
LINEAR = ("logit_max", "logit_std")  # in the scale
CELLS = 1 << 24  # scores of a changed scale that are looked at
FEWEST = 512  # rows, however many heads and keys there are


class Overall(NamedTuple):
    """A change to some heads: ``statistics`` (OVERALL) of all their rows, ``moved`` ‖O′ − O‖/‖O‖
    over the rows that both have, ``lost`` how many rows of the output became NaN or infinite.
    """

    text: str
    statistics: Mapping[str, float]
    moved: float
    lost: int


@dataclass(frozen=True, eq=False)
class Effect:
    """What a change does to the heads of ``part``, ``(B, H)`` each: ``run`` is the changed run.

    ``apart`` and ``whole`` are ‖O′ − O‖² and ‖O‖² over the rows that both have; ``lost`` counts the
    rows of the output that became NaN or infinite. Where ``part`` has only some of the rows, all
    of this is of these rows; ``scores`` is then a run of all of them whose scores are those of the
    changed one but for the factor ``ratio``, which says the rest.
    """

    text: str
    run: Evidence
    part: Part
    apart: Array
    whole: Array
    lost: Array
    scores: Evidence
    ratio: float = 1.0
    _over: dict[tuple[tuple[int, int], ...] | None, Overall] = field(
        default_factory=dict, init=False
    )

    @cached_property
    def heads(self) -> Summaries:
        """The statistics of each head."""
        found = self.run.summaries(OF_HEADS)
        if self.scores is not self.run:
            found |= {name: self.scores.values(name) for name in COUNTS}
            found |= {name: self.scores.values(name) * self.ratio for name in LINEAR}
        return found

    @cached_property
    def statistics(self) -> list[list[dict[str, Any]]]:
        """The same by head, ``[b][h]`` of the part."""
        return of_every_head(self.heads, *self.apart.shape)

    @property
    def sample(self) -> tuple[int, int] | None:
        """How many rows were looked at, and of how many, if not at all."""
        if self.part.rows is None:
            return None
        return len(self.part.rows), int(self.scores.problem.real_rows.any(0).sum())

    @property
    def moved(self) -> Array:
        """‖O′ − O‖/‖O‖ of each head."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(np.sqrt(self.apart / self.whole))

    def of_batches(self, at: slice, problem: Problem) -> Effect:
        """Return what it does to some batch elements, ``problem``; of all heads and rows."""
        assert self.part.whole and self.part.rows is None and self.scores is self.run
        p = self.run.problem
        run = self.run.of_batches(at, replace(problem, scale=p.scale, scale_source=p.scale_source))
        part = Effect(
            self.text, run, part_of(problem), self.apart[at], self.whole[at], self.lost[at], run
        )
        vars(part)["statistics"] = self.statistics[at]
        return part

    def over(self, pairs: Iterable[tuple[int, int]] | None = None) -> Overall:
        """Return what it does to these (batch, head) pairs of the problem, or to all."""
        pairs = None if pairs is None else tuple(pairs)
        if pairs not in self._over:
            self._over[pairs] = self._look(pairs)
        return self._over[pairs]

    def _look(self, pairs: tuple[tuple[int, int], ...] | None) -> Overall:
        at = np.full(self.apart.shape, pairs is None)
        for b, h in pairs or ():
            at[self.part.at(b, h)] = True
        with np.errstate(invalid="ignore", divide="ignore"):
            moved = float(np.sqrt(self.apart[at].sum() / self.whole[at].sum()))
        found = overview(self.run, at)
        if self.scores is not self.run:
            found |= spread(self.scores, at, self.ratio)
        return Overall(self.text, found, moved, int(self.lost[at].sum()))


def spread(run: Evidence, heads: Array, ratio: float = 1.0) -> dict[str, float]:
    """Return what OVERALL says of the scores of ``heads``, bool ``(B, H)``, times ``ratio``."""
    seen = run.real & heads[..., None] & (run.rows.n > 0) & np.isfinite(run.rows.m2)
    std = float(pooled_std(_one_head(run.rows), seen.reshape(1, 1, -1))[0, 0]) * ratio
    most = float(np.max(run.rows.amax, where=seen, initial=0)) * ratio
    return {"logit_std": std, "score_variance": std**2, "logit_max": most}


def overview(run: Evidence, heads: Array | None = None) -> dict[str, float]:
    """Return the statistics of OVERALL over ``heads``, bool ``(B, H)``, or over all.

    ``run.floor`` must be known.
    """
    ours = np.ones(run.chosen.shape[:2], bool) if heads is None else heads
    chosen = run.chosen & ours[..., None]

    def pooled(name: str) -> Array:
        values = run.values(name)
        some = values[chosen & np.isfinite(values)]  # (n)
        some.sort()
        return some

    def at(some: Array, share: float) -> float:
        return quantile(some, share) if some.size else math.nan

    assert run.floor is not None
    entropy, weights, norms = map(pooled, ("entropy", "max_weight", "grad_score_norm"))
    vanished = chosen & (run.values("grad_score_norm") < run.floor[..., None])
    mean = norms.mean() if norms.size else 0.0
    found = (
        *spread(run, ours).values(),
        float(np.mean(weights > SATURATED)) if weights.size else math.nan,
        at(entropy, 0.5),
        at(weights, 0.5),
        at(norms, 0.05),
        at(norms, 0.5),
        float(norms.std() / mean) if mean else math.nan,
        vanished.sum() / norms.size if norms.size else math.nan,
    )
    return dict(zip(OVERALL, found, strict=True))


def _one_head(rows: Rows) -> Rows:
    """Return all rows of all heads as those of one, ``(1, 1, B·H·Lq)``."""
    sums = {name: array.reshape(1, 1, -1, *array.shape[3:]) for name, array in vars(rows).items()}
    return Rows(**sums)


def sampled(part: Part, problem: Problem, seed: int) -> Part:
    """Return the part with a sample of the rows that are no padding, where they are very many.

    Each of the rows of one head is as likely as any other, and the sample is the same for all.
    """
    p = problem
    most = max(FEWEST, CELLS // max(1, len(part.batches) * len(part.heads) * p.keys))
    rows = np.flatnonzero(p.real_rows.any(0))
    if len(rows) <= most:
        return part
    rows = np.random.default_rng(seed).choice(rows, most, replace=False)
    return replace(part, rows=np.sort(rows))


def effect(text: str, changed: Evidence, before: Evidence, part: Part) -> Effect:
    """Return what a change did to attention that was ``before``.

    changed: the run of the heads and rows of ``part``; both know their floor. Where it is of some
    rows, nothing but the scale was changed.
    """
    shape = changed.chosen.shape[:2]
    apart, whole, lost = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.int64)
    assert before.output is not None and changed.output is not None
    known = part.of_rows(before.output)
    scale = unit_of(_most(before.output))  # so that squares are numbers
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for b, h in np.ndindex(shape):
            real = changed.real[b, h]
            outputs = known[b, h], changed.output[b, h]
            old, new = (o[real].astype(np.float64) / scale for o in outputs)
            had, has = np.isfinite(old).all(1), np.isfinite(new).all(1)
            both = had & has
            apart[b, h] = np.sum((new[both] - old[both]) ** 2)
            whole[b, h] = np.sum(old[both] ** 2)
            lost[b, h] = (had & ~has).sum()
    run = changed if changed is before else replace(changed, output=None)
    found = Effect(text, run, part, apart, whole, lost, run)
    if part.rows is None:
        return found
    ratio = abs(changed.problem.scale / before.problem.scale)
    return replace(found, scores=_of(replace(part, rows=None), before), ratio=ratio)


def _most(output: Array) -> Array:
    """Return the largest finite magnitude of an output, ``()``."""
    most = np.zeros(())
    for at in np.ndindex(output.shape[:2]):
        head = output[at]
        own = largest(head)
        if not np.isfinite(own):
            own = largest(np.where(np.isfinite(head), head, 0))
        most = np.maximum(most, own)
    return most


def _of(part: Part, run: Evidence) -> Evidence:
    """Return what the heads of ``part`` say of their scores."""
    if part.whole:
        return run
    sums = Rows(**{name: part.of(array) for name, array in vars(run.sums).items()})
    return Evidence(part.problem(run.problem), sums)
