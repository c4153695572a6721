"""Small problems that differ in numbers alone, examined together: each as it is alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from attncli.attention.gradients import upstream
from attncli.attention.problem import Problem
from attncli.engines import DEFAULT
from attncli.measures.statistic import of_batches
from attncli.studies import together
from attncli.studies.health import Examination, exact, examine

KEYS = 128  # of more, the order of sums depends on how many problems there are
Pairs = Collection[tuple[int, int]]


def examine_together(
    problem: Problem,
    whole: Problem,
    *,
    changed: Pairs,
    grad_output: str,
    backend: str = DEFAULT,
    tokens: Sequence[Sequence[str]] | None = None,
    query_tokens: Sequence[Sequence[str]] | None = None,
    **how: Any,
) -> list[Examination]:
    """Return what ``examine`` says of each of the problems of which ``stacked`` made a whole.

    ``tokens`` and ``changed`` are those of one problem, ``how`` further arguments that are no
    what-ifs. Nothing where they cannot be told apart again. Raises what ``examine`` raises.
    """
    p, each = exact(problem, backend), problem.batch
    if p.keys > KEYS or p.queries > KEYS or len(set(changed)) < each * p.heads:
        return []
    count = whole.batch // each

    def repeated(one: Sequence[Sequence[str]] | None) -> Sequence[Sequence[str]] | None:
        return one if one is None or len(one) == 1 else [*one] * count

    done = examine(
        whole, backend=backend, tokens=repeated(tokens), query_tokens=repeated(query_tokens),
        grad_output=grad_output, upward=np.tile(upstream(grad_output, p), (count, 1, 1, 1)), **how,
    )  # fmt: skip
    if not done.sample.whole or done.result.problem.dtype != p.dtype:
        return []
    for effect in done.scale:
        _ = effect.statistics  # made for all at once
    answers = []
    for n, result in enumerate(together.parts(p, done.result)):
        at = slice(n * each, (n + 1) * each)
        own = result.problem
        heads = done.heads[at.start * p.heads : at.stop * p.heads]
        heads = tuple(replace(head, batch=head.batch - at.start) for head in heads)
        answer = replace(
            done, result=result, evidence=done.evidence.of_batches(at, own), heads=heads,
            found=of_batches(done.found, at),
            scale=tuple(effect.of_batches(at, own) for effect in done.scale),
        )  # fmt: skip
        vars(answer)["statistics"] = done.statistics[at]
        answers.append(answer)
    return answers
