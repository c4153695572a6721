"""Joins an engine, the statistics, the verdicts and the what-ifs: is this attention healthy?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.measures import outputs, rows, sweep
from attncli.measures import sample as measure_sample
from attncli.measures.outputs import vanishing_share
from attncli.measures.policy import POLICY, Rule, Verdict, judge
from attncli.measures.roles import Role, looks_at
from attncli.measures.statistic import Found, of_head, summarize, with_cv
from attncli.resources import Job, Progress, processors, run_jobs, stages
from attncli.studies import what_if
from attncli.studies.attend import Result
from attncli.studies.effects import (
    VANISHED,
    Array,
    Effect,
    Measured,
    effect,
    measure,
    measure_half,
    medians,
)
from attncli.studies.what_if import WhatIf

SMALL = 1 << 15  # numbers of the output that need no threads
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
    """Everything `inspect` knows: ``found`` are the statistics by name, ``(B, H)``; ``row_values``
    those of rows, ``(B, H, Lq)``; ``scale`` are today's, auto and none; ``what_ifs`` as asked.
    """

    result: Result
    found: Found
    row_values: Mapping[str, Array]
    heads: tuple[Head, ...]
    sample: measure_sample.Sample
    scale: tuple[Effect, ...]
    what_ifs: tuple[Effect, ...]
    grad_output: str


def examine(
    problem: Problem,
    *,
    tokens: Sequence[Sequence[str]] | None = None,
    what_ifs: Sequence[WhatIf] = (),
    policy: Sequence[Rule] = POLICY,
    grad_output: Any = "random:0",
    backend: str = "numpy",
    device: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Examination:
    """Examine attention: every statistic, a verdict on each head, the effect of the scale.

    tokens label the keys, a list each batch element or one for all. Samples are drawn with
    ``seed``. Problems of at most EXACT cells are computed in float64, since float32 cannot hold the
    gradient of a saturated row. Raises AttnError for what cannot be run.
    """
    p = problem
    if p.batch * p.heads * p.queries * p.keys <= EXACT:
        p = replace(p, dtype=np.dtype(np.float64))
    auto = what_if.with_scale(p, "auto")
    scales: dict[float, Problem] = {}
    for one in (auto, what_if.with_scale(p, "none"), p):
        scales.setdefault(one.scale, one)
    # the runs, then the sweep and the sample, each half as long as a run, then the what-ifs
    stage = stages(progress, [*[2] * len(scales), 1, 1, *[2] * len(what_ifs)])

    def run(one: Problem) -> Measured:
        return measure(
            one, grad_output, backend=backend, device=device, threads=threads, progress=next(stage)
        )

    now = run(p)
    assert now.result is not None
    measured = {scale: now if scale == p.scale else run(one) for scale, one in scales.items()}
    usual = medians(measured[auto.scale])
    with np.errstate(over="ignore", invalid="ignore"):
        noise = ROUNDING * float(np.abs(np.asarray(problem.value, np.float64)).max(initial=0))
    floor = VANISHED * np.where(usual > noise, usual, 0)  # a share of rounding says nothing
    lse = np.asarray(now.result.attended.lse, np.float64)
    swept = sweep.sweep(p, lse, now.chosen, threads=threads, progress=next(stage))
    sample = measure_sample.sample(p, now.chosen, seed=seed, progress=next(stage))
    row_values = {
        **rows.per_row(now.rows),
        **sweep.row_values(swept),
        "output_norm": outputs.output_norm(now.output.astype(np.float64)),
        **{name: now.norms[name] for name in ("grad_score_norm", "grad_query_norm")},
    }
    found = _statistics(now, swept, sample, row_values, floor, threads)
    heads = tuple(
        _head(p, found, swept, b, h, tokens, policy) for b, h in np.ndindex(p.batch, p.heads)
    )
    scale = [
        effect(_scale_text(one), measured[number], now, floor) for number, one in scales.items()
    ]
    effects = []
    for change in what_ifs:
        changed = change.apply(p, np.asarray(found["logit_max"]))
        if change.dtype:
            m = measure_half(
                changed, change.dtype, grad_output, threads=threads, progress=next(stage)
            )
        else:
            m = run(changed)
        effects.append(effect(change.text, m, now, floor))
    return Examination(
        result=now.result, found=found, row_values=row_values, heads=heads, sample=sample,
        scale=tuple(scale), what_ifs=tuple(effects),
        grad_output=grad_output if isinstance(grad_output, str) else "given",
    )  # fmt: skip


def _statistics(
    now: Measured, swept: sweep.Sweep, sample: measure_sample.Sample,
    row_values: Mapping[str, Array], floor: Array, threads: int | None,
) -> Found:  # fmt: skip
    p = now.problem
    found = rows.per_head(now.rows, p.real_rows)
    for name in (m.name for m in sweep.ROW_MEASURES):
        found[name] = summarize(row_values[name], now.chosen)
    found |= sweep.head_values(swept)
    found["jacobian_spectral"] = summarize(sample.spectral, now.chosen)
    found["head_similarity"] = measure_sample.head_similarity(sample.distances)
    found["similar_head"] = measure_sample.similar_head(sample.distances)
    real = np.broadcast_to(p.real_rows[:, None], now.chosen.shape)
    found["output_norm"] = summarize(row_values["output_norm"], real)
    shape = now.chosen.shape[:2]
    rank, residual = np.full(shape, np.nan), np.full(shape, np.nan)
    lost = np.zeros(shape, np.int64)

    def look(b: int, h: int) -> None:
        output = now.output[b, h][real[b, h]].astype(np.float64)
        good = np.isfinite(output).all(1)
        lost[b, h] = (~good).sum()
        rank[b, h] = outputs.effective_rank(output[good])
        residual[b, h] = outputs.rank_residual(output[good])

    jobs: list[Job] = [partial(look, *at) for at in np.ndindex(shape)]
    run_jobs(jobs, threads or processors(), now.output.size > SMALL, None)
    found["effective_rank"], found["rank_residual"] = rank, residual
    found["overflow_room"] = outputs.overflow_room(np.asarray(found["logit_max"]), p.scale)
    for name in ("grad_score_norm", "grad_query_norm"):
        found[name] = with_cv(now.norms[name], now.chosen)
    keys = np.arange(p.keys) < np.asarray(p.mask.lengths or (p.keys,) * p.batch)[:, None]
    group = [p.group(h) for h in range(p.heads)]
    for name in ("grad_key_norm", "grad_value_norm"):
        of_groups = with_cv(
            now.norms[name], np.broadcast_to(keys[:, None], (p.batch, p.kv_heads, p.keys))
        )
        found[name] = {q: values[:, group] for q, values in of_groups.items()}
    found["vanishing_share"] = vanishing_share(now.score_norm, now.chosen, floor)
    found["nonfinite_outputs"] = lost
    found["nonfinite_scores"] = (real & ~np.isfinite(now.rows.amax)).sum(-1)
    return found


def _head(
    p: Problem, found: Found, swept: sweep.Sweep, b: int, h: int,
    tokens: Sequence[Sequence[str]] | None, policy: Sequence[Rule],
) -> Head:  # fmt: skip
    own = of_head(found, b, h)
    labels = tokens[b if len(tokens) > 1 else 0] if tokens else None
    what, placed = looks_at(
        own, swept.received[b, h].tolist(), int(swept.rows[b, h]), int(swept.cells[b, h]), labels,
        p.mask.positions() is not None,
    )  # fmt: skip
    many = max(own["rows"], 1)
    lost = max(own[name] for name in ("nonfinite", "nonfinite_outputs", "nonfinite_scores"))
    half = p.result_dtype.name == "float16"
    extra = {
        "dead_share": own["dead_rows"] / many,
        "nonfinite_share": lost / many,
        "overflow_room": math.nan if half else own["overflow_room"],
        "overflow_room_now": own["overflow_room"] if half else math.nan,
    }
    sink = own["sink_mass"] > 0.9
    return Head(b, h, judge({**own, **extra}, placed, policy, sink), tuple(what), placed)


def _scale_text(p: Problem) -> str:
    if p.scale_source.startswith("1/√"):
        return p.scale_source
    return "none" if p.scale == 1 else f"{p.scale:.4g}"
