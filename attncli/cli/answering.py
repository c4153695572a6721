"""How ``attncli inspect`` answers one problem: posed, examined, reported."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from attncli.cli import output, ranks
from attncli.cli.groups import inspect as own

if TYPE_CHECKING:
    from attncli import files
    from attncli.attention.problem import Problem
    from attncli.attention.view import Labels, View
    from attncli.reports.blocks import Report
    from attncli.reports.picking import Picking
    from attncli.studies.health import Examination


class Posed(NamedTuple):
    """What was given, the problem that it poses, and what is looked at."""

    given: Any
    problem: Problem
    labels: Labels
    notes: tuple[str, ...]
    seen: View


class Answering:
    """What makes the report on one bundle; policy and what-ifs are read here, once.

    ``drawn`` are members of View: how it is shown.
    """

    def __init__(self, asked: own.Asked, page: output.Page, **drawn: Any) -> None:
        from attncli.studies import what_if

        self.asked, self.page, self.drawn = asked, page, drawn
        self.picked, self.limits = _picked(asked), asked.limits()
        self.what_ifs = [what_if.parse(text) for text in asked.what_if or ()]
        self.include = page.names or (own.SAVED if page.target else ())

    def __call__(
        self, source: files.Bundle | None, progress: Callable[[float], None] | None = None,
        shard: str | None = None,
    ) -> tuple[Report, Labels]:  # fmt: skip
        from attncli.studies.health import examine

        posed = self.pose(source)
        posed = posed._replace(
            problem=ranks.divided(shard, self.asked.device, lambda: posed.problem)
        )
        examined = examine(
            posed.problem, what_ifs=self.what_ifs, progress=progress, **self.how(posed)
        )
        ranks.rest()
        return self.report(posed, examined), posed.labels

    def pose(self, source: files.Bundle | None) -> Posed:
        """Pose the problem."""
        from attncli.cli.given.view import view
        from attncli.cli.given.weights import gather, posed

        given = gather(source, self.asked)
        output.keep_inputs(self.page, given.sources)
        problem, labels, notes = posed(given, self.asked.query_start)
        return Posed(given, problem, labels, notes, view(problem, self.asked, **self.drawn))

    def how(self, posed: Posed) -> dict[str, Any]:
        """Return how it is examined."""
        from attncli.reports.selection import select

        asked, labels = self.asked, posed.labels
        return {
            "tokens": labels.key, "query_tokens": labels.query,
            "changed": [*select(posed.problem, posed.seen).pairs], "policy": self.limits,
            "grad_output": f"random:{asked.seed}", "backend": asked.backend,
            "device": asked.device, "threads": asked.threads, "seed": asked.seed,
        }  # fmt: skip

    def report(self, posed: Posed, examined: Examination) -> Report:
        """Return the report."""
        from attncli.reports.health import inspect_report

        return inspect_report(
            examined, posed.labels, posed.seen, asked=self.picked, fail_on=self.asked.fail_on,
            include=self.include, notes=posed.notes,
        )  # fmt: skip


def _picked(asked: own.Asked) -> Picking:
    """Return what --filter, --sort and --map ask of the heads of attention."""
    from attncli.measures.statistic import STATISTICS
    from attncli.reports.picking import picking
    from attncli.reports.tensors import SORTABLE
    from attncli.studies.health import TOLD

    return picking(
        {name: STATISTICS[name] for name in TOLD}, ("batch", "head"), filters=asked.filter or (),
        sort=asked.sort, map=asked.map, others=SORTABLE,
    )  # fmt: skip
