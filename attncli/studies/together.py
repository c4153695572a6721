"""Small problems that differ in the numbers of their tensors alone: one call answers them all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from attncli.attention.masks import Mask
from attncli.attention.pose import canonical, pose
from attncli.attention.problem import STAGES, Problem
from attncli.engines import Attended
from attncli.measures.statistic import of_batches
from attncli.studies.attend import Result, run
from attncli.studies.warned import warnings

Array = np.ndarray[Any, np.dtype[Any]]

TENSORS = ("query", "key", "value")
CELLS = 1 << 16  # scores of one call: engines take as many without threads
WANTED = frozenset(("output", "lse", "row_statistics", *STAGES))  # the same in any company


@dataclass(frozen=True, eq=False)
class Part(Result):
    """The answer to one of the problems of a ``whole``: its batch elements from ``start`` on.

    The running sums stay there (``rows`` is None), and what is made of them is.
    """

    whole: Result | None = None
    start: int = 0

    @property
    def _at(self) -> slice:
        return slice(self.start, self.start + self.problem.batch)

    @cached_property
    def row_values(self) -> dict[str, Array] | None:
        assert self.whole is not None
        values = self.whole.row_values
        return values and {name: one[self._at] for name, one in values.items()}

    @cached_property
    def summaries(self) -> dict[str, Any]:
        assert self.whole is not None
        return of_batches(self.whole.summaries, self._at)

    @property
    def statistics_by_head(self) -> list[list[dict[str, Any]]]:
        assert self.whole is not None
        return self.whole.statistics_by_head[self._at]


def at_most(problem: Problem) -> int:
    """Return how many problems of this size are worth one call."""
    cells = problem.batch * problem.heads * problem.queries * max(problem.keys, problem.value_width)
    return CELLS // max(1, cells)


def stacked(
    problem: Problem, arguments: Mapping[str, Any], others: Sequence[Mapping[str, Array]]
) -> Problem | None:
    """Return several problems as one, a batch element or more each; None where they are not.

    ``problem`` is what ``pose`` makes of ``arguments``; each of ``others`` holds tensors of the
    same shapes and dtypes in place of theirs. They are not one where the mask is another one for
    another batch element. Raises AttnError for what does not fit a batch.
    """
    counts = {"query": arguments["heads"]}
    family, own = problem.family, arguments["kv_heads"] or arguments["heads"]
    together = {
        name: np.concatenate(
            [canonical(name, one[name], family, counts.get(name, own)) for one in others]
        )
        for name in others[0]
    }
    whole = pose(**{**arguments, **together, "heads": None, "kv_heads": None, "family": family})
    return whole if _same_mask(whole.mask, problem.mask) else None


def _same_mask(whole: Mask, one: Mask) -> bool:
    """Whether a mask is the other one, which does not vary, for every batch element."""
    if whole.trivial and one.trivial:
        return True
    if whole.varies.batch or one.varies.batch or whole.notes != one.notes:
        return False
    e = one.extent
    cells = 0, e.queries, 0, e.keys
    padding = one.padding()
    return (
        all(
            np.array_equal(whole.keep(0, h, *cells), one.keep(0, h, *cells))
            and np.array_equal(whole.bias(0, h, *cells), one.bias(0, h, *cells))  # type: ignore[arg-type]
            for h in range(e.heads)
        )
        and bool((padding == padding[:1]).all())
        and bool((whole.padding() == padding[:1]).all())
    )


def solve(problem: Problem, whole: Problem, *, want: Collection[str], **how: Any) -> list[Result]:
    """Return the answers to the problems of which ``stacked`` made a whole.

    ``how`` are further arguments of ``run``, and so is what is raised.
    """
    known_lse = not {"lse", "row_statistics"}.isdisjoint(want)
    return parts(problem, run(whole, want=want, **how), known_lse)


def parts(problem: Problem, result: Result, known_lse: bool = True) -> list[Result]:
    """Return the answers to problems like this one, of whose whole this is the answer."""
    whole = result.problem
    odd = len(result.warnings) > len(whole.warnings)  # else nothing is odd in any of them
    answers: list[Result] = []
    for start in range(0, whole.batch, problem.batch):
        at = slice(start, start + problem.batch)
        own = _part(problem, whole, at)
        attended = _attended(result.attended, at)
        said = warnings(own, attended.lse, known_lse) if odd else ()
        said = *problem.warnings, *said
        answers.append(Part(own, result.engine, attended, None, said, whole=result, start=start))
    return answers


def _part(problem: Problem, whole: Problem, at: slice) -> Problem:
    """Return the problem with the tensors of these batch elements of a whole."""
    unturned = whole.unturned and (whole.unturned[0][at], whole.unturned[1][at])
    tensors = {name: getattr(whole, name)[at] for name in TENSORS}
    return Problem(**{**vars(problem), **tensors, "unturned": unturned})


def _attended(done: Attended, at: slice) -> Attended:
    """Return what an engine made of these batch elements, but the running sums."""
    return Attended(
        done.output[at], done.lse[at], None, {name: one[at] for name, one in done.stages.items()},
        done.kernel, done.threads, done.device, done.seconds,
    )  # fmt: skip
