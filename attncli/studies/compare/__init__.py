"""Is mine right? A candidate result held against the definition, and what explains it if not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.resources import Progress, one_blas_thread
from attncli.studies.compare.answers import PASSED, UNEXPLAINED
from attncli.studies.compare.answers import Explanation as Explanation
from attncli.studies.compare.judged import Judged, first_bad, ordered
from attncli.studies.compare.judged import Tolerance as Tolerance
from attncli.studies.compare.reading import read
from attncli.studies.compare.theory import Candidate, Theory, held

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Comparison:
    """A candidate judged: each stage of it, and what explains it if it did not pass."""

    problem: Problem
    candidate: Candidate
    stages: Mapping[str, Judged]
    explanations: Sequence[Explanation] = ()
    located: Sequence[str] = ()
    notes: Sequence[str] = ()
    verdict: str = PASSED
    explained: bool = field(default=True)  # whether an explanation was looked for

    @property
    def passed(self) -> bool:
        """Whether every stage is within what is allowed."""
        return self.stage is None

    @property
    def stage(self) -> str | None:
        """The first stage, in the order of computing, that diverges."""
        return first_bad(self.stages)

    @property
    def shown(self) -> Judged:
        """The stage to be looked at: the one that diverges, or else the last of all."""
        return self.stages[self.stage or list(self.stages)[-1]]

    def data(self) -> dict[str, Any]:
        """Return the member ``expect`` of JSON."""
        from attncli.studies.compare.told import data

        return data(self)

    @property
    def sentence(self) -> str:
        """What is to be said first: whether it is right, and why not."""
        from attncli.studies.compare.told import sentence

        return sentence(self)

    def __str__(self) -> str:
        """Return the report in words, for the message of a failed test."""
        from attncli.studies.compare.told import lines

        return "\n".join(lines(self))


def compare(
    problem: Problem,
    candidates: Mapping[str, Any],
    *,
    tolerance: Tolerance | None = None,
    explain: bool = True,
    grad_output: Array | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Judge the stages of a candidate by name, each in the shape family of the problem.

    ``candidates``: output, weights, lse, scores, grad_query, grad_key, grad_value. ``grad_output``
    dO ``(B, H, Lq, Dv)``, for the gradients. With ``tolerance`` it takes the place of the error
    budget. Raises InputError for what does not fit.
    """
    notes: list[str] = []
    candidate = read(problem, candidates, notes, tolerance)
    found = judged(Theory(problem), candidate, grad_output, threads=threads, progress=progress)
    notes += [
        f"in most rows the budget of the {name} is more than half of what is there: scores this "
        "large leave no digits to judge by"
        for name, one in found.items()
        if one.idle
    ]
    if first_bad(found) is None or not explain:
        verdict = PASSED if first_bad(found) is None else UNEXPLAINED
        return Comparison(
            problem, candidate, found, notes=notes, verdict=verdict, explained=explain
        )
    from attncli.studies.compare.diagnosis import diagnose

    with one_blas_thread():
        answer = diagnose(problem, candidate, found, grad_output, threads)
    return Comparison(
        problem, candidate, found, answer.explanations, answer.located, notes, answer.verdict
    )


def judged(
    theory: Theory,
    candidate: Candidate,
    grad_output: Array | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Judged]:
    """Judge forward stages and gradients."""
    from attncli.studies.compare.backward import GRADIENTS, held_gradients

    forward = {n: a for n, a in candidate.stages.items() if n not in GRADIENTS}
    found = {}
    if forward:
        part = Candidate(forward, candidate.own, candidate.kept, candidate.tolerance)
        found = held(theory, part, threads=threads, progress=progress)
    if len(forward) < len(candidate.stages):
        found |= held_gradients(theory, candidate, grad_output, threads)
    return ordered(found)
