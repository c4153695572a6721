"""Joins an engine, the statistics, the verdicts and the what-ifs: is this attention healthy?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from attncli.attention.gradients import upstream
from attncli.attention.problem import Problem
from attncli.attention.shares import share_of
from attncli.engines import DEFAULT, ENGINES
from attncli.errors import InputError
from attncli.measures import outputs, rows, sample, sweep
from attncli.measures.evidence import Evidence, told, words_of
from attncli.measures.outputs import largest
from attncli.measures.policy import POLICY, Rule, Verdict, judge
from attncli.measures.roles import Role, looks_at
from attncli.measures.sample import Sample
from attncli.measures.statistic import Summaries, of_every_head
from attncli.resources import Progress, stages
from attncli.studies import what_if
from attncli.studies.attend import Result
from attncli.studies.effects import VANISHED, Effect, effect, sampled
from attncli.studies.part import Part, part_of
from attncli.studies.runs import median_gradient, run_both_ways, run_forward, run_rounded
from attncli.studies.what_if import WhatIf

Array = np.ndarray[Any, np.dtype[Any]]

TOLD = told(rows, sweep, sample, outputs)
EXACT = 1 << 22  # scores that float64 does not make slow
ROUNDING = 1e-13  # of the largest value: a gradient this small is none


@dataclass(frozen=True)
class Head:
    """What is said about one head."""

    batch: int
    head: int
    verdict: Verdict
    roles: tuple[Role, ...]
    placed: float


@dataclass(frozen=True, eq=False)
class Examination:
    """Everything `inspect` knows: ``found`` are the statistics of heads by name; ``scale`` are
    auto, none and today's, which is number ``today`` of them, where asked for; ``what_ifs`` as
    asked.
    """

    result: Result
    evidence: Evidence
    found: Summaries
    heads: tuple[Head, ...]
    scale: tuple[Effect, ...]
    today: int
    what_ifs: tuple[Effect, ...]
    grad_output: str

    @property
    def row_values(self) -> Mapping[str, Array]:
        """The statistics of every row by name, ``(B, H, Lq)``."""
        return self.evidence.row_values(self.found)

    @cached_property
    def statistics(self) -> list[list[dict[str, Any]]]:
        """The statistics of every head by name, ``[b][h]``."""
        p = self.result.problem
        return of_every_head(self.found, p.batch, p.heads)

    @property
    def missing(self) -> Mapping[str, str]:
        """The statistics that are not told, and what each would need."""
        return self.evidence.missing(TOLD)

    @property
    def sample(self) -> Sample:
        """What whole rows of weights said, and how many were looked at."""
        return self.evidence.sample


def examine(
    problem: Problem,
    *,
    tokens: Sequence[Sequence[str]] | None = None,
    query_tokens: Sequence[Sequence[str]] | None = None,
    changed: Collection[tuple[int, int]] | None = None,
    what_ifs: Sequence[WhatIf] = (),
    effects: bool = True,
    policy: Sequence[Rule] = POLICY,
    grad_output: Any = "random:0",
    upward: Array | None = None,
    backend: str = DEFAULT,
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Examination:
    """Examine attention: every statistic, a verdict on each head, the effect of the scale.

    tokens label the keys, a list each batch element or one for all, query_tokens the queries (as
    many queries as keys: by default they are the same). They name what heads look at, and no
    verdict depends on them. ``changed`` are the (batch, head) pairs whose scale is changed, and
    that what-ifs are about (default: all); what depends on that is NaN of others. Without
    ``effects`` the scale is not changed, which saves a run. Samples are drawn with ``seed``; of
    very many rows another scale is tried on a sample. ``upward`` is the gradient of the output as
    ``upstream`` returns it, where ``grad_output`` only names it. Of attention weights alone there
    are no effects, no what-ifs and no gradients. Small problems are computed in float64
    (``exact``). Raises AttnError for what cannot be run.
    """
    p = exact(problem, backend)
    effects = effects and p.scored
    auto = what_if.with_scale(p, "auto") if p.scored else p
    scales: dict[float, Problem] = {}
    for one in (auto, *([what_if.with_scale(p, "none")] if effects else ()), p):
        scales.setdefault(one.scale, one)
    # the runs, then what their statistics need, about as long as a run, then the what-ifs
    stage = stages(progress, [1] * (len(scales) + 1 + len(what_ifs)))

    if what_ifs and not p.scored:
        raise InputError(
            f"what if {what_ifs[0].text}? Of attention weights alone nobody knows",
            "give query and key, or leave it out",
        )
    part, everything = part_of(p, changed), part_of(p)
    upward = upstream(grad_output, p) if upward is None else upward
    # of 1/√D the median gradient of all rows is needed
    parts = {scale: everything if scale == p.scale else part for scale in scales}
    if 0 < abs(p.scale) < np.inf:
        few = sampled(part, p, seed)
        parts |= {scale: few for scale in scales if scale not in (p.scale, auto.scale)}

    def run(one: Problem, of: Part = part, alone: bool = True) -> Result:
        if not one.scored:
            return run_forward(
                one, backend=backend, device=device, threads=threads, progress=next(stage)
            )
        return run_both_ways(
            of.problem(one), of.of_rows(upward), alone=alone, backend=backend, device=device,
            threads=threads, progress=next(stage),
        )  # fmt: skip

    result = run(p, everything, alone=False)
    runs = {
        scale: (result if scale == p.scale else run(one, parts[scale])).evidence
        for scale, one in scales.items()
    }
    if p.scored:
        floor = _floor(problem, runs[auto.scale], parts[auto.scale])
        runs = {scale: replace(one, floor=parts[scale].of(floor)) for scale, one in runs.items()}
    apart = p.mask.extent.apart
    queries = query_tokens or (tokens if p.queries == p.keys else None)
    runs[p.scale] = now = replace(
        runs[p.scale], words=None if apart else words_of(queries, tokens, p.batch), seed=seed,
        threads=threads, progress=next(stage),
    )  # fmt: skip
    found = now.summaries(now.known(TOLD))
    heads = tuple(
        head_of(now, found, b, h, tokens, policy, not apart)
        for b, h in np.ndindex(p.batch, p.heads)
    )
    scale = [
        effect(_scale_text(one), runs[number], now, parts[number])
        for number, one in (scales.items() if effects else ())
    ]
    changes = []
    for change in what_ifs:
        after = change.apply(p, now.values("logit_max"))
        if change.dtype:
            made = run_rounded(
                part.problem(after), change.dtype, part.of(upward), threads=threads,
                progress=next(stage),
            )  # fmt: skip
        else:
            made = run(after).evidence
        made = replace(made, floor=part.of(floor))
        changes.append(effect(change.text, made, now, part))
    return Examination(
        result=result, evidence=now, found=found, heads=heads, scale=tuple(scale),
        today=list(scales).index(p.scale),
        what_ifs=tuple(changes),
        grad_output=grad_output if isinstance(grad_output, str) else "given",
    )  # fmt: skip


def exact(problem: Problem, backend: str) -> Problem:
    """Return a problem of at most EXACT cells in float64, others as they are.

    float32 cannot hold the gradient of a saturated row. An engine that was named and does not take
    every problem keeps its own arithmetic.
    """
    p, named = problem, ENGINES.get(backend)
    small = p.batch * p.heads * p.queries * p.keys <= EXACT
    if not small or (named is not None and named.partial):
        return p
    return replace(p, dtype=np.dtype(np.float64))


def _floor(problem: Problem, auto: Evidence, part: Part) -> Array:
    """Return the ‖dS‖ below which a gradient vanishes, ``(B, H)``; auto: ``part`` at scale 1/√D."""
    usual = part.spread(median_gradient(auto), problem.batch, problem.heads)
    with np.errstate(over="ignore", invalid="ignore"):
        noise = ROUNDING * _largest_value(problem)
        # a share of rounding says nothing
        return np.where(np.isnan(usual) | (usual > noise), VANISHED * usual, 0)


def _largest_value(problem: Problem) -> float:
    share = share_of(problem)
    if share is None:
        return float(largest(problem.value))
    most = np.atleast_1d(largest(share.part(problem).value))
    whole = share.others.merged([most], lambda a, b: [np.maximum(a[0], b[0])])
    return float(whole[0][0])


def head_of(
    now: Evidence, found: Summaries, b: int, h: int, tokens: Sequence[Sequence[str]] | None,
    policy: Sequence[Rule], self_attention: bool = True,
) -> Head:  # fmt: skip
    """Judge one head by statistics that were ``found``; tokens label the keys."""
    own = now.judged(found, b, h)
    labels = tokens[b if len(tokens) > 1 else 0] if tokens else None
    what, placed = looks_at(now, own, b, h, labels, self_attention)
    return Head(b, h, judge(own, placed, policy), tuple(what), placed)


def _scale_text(p: Problem) -> str:
    if p.scale_source.startswith("1/√"):
        return p.scale_source
    return "none" if p.scale == 1 else f"{p.scale:.4g}"
