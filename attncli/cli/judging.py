"""Somebody else's answers to a test set: judged case by case, then summed up."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from attncli import files
from attncli.cli import groups, output
from attncli.cli.groups.compute import Others
from attncli.cli.groups.expected import Explained
from attncli.errors import AttnError, FileError, InputError, Misuse, NoAnswer, listed
from attncli.render import LINES

if TYPE_CHECKING:
    from attncli.attention.problem import Problem
    from attncli.cli.given.attention import Inputs
    from attncli.studies.compare import Comparison


class Answers(Protocol):
    """Who answers: a folder or a command."""

    def __call__(
        self, name: str, problem: Problem, grad_output: Any = None, /
    ) -> Mapping[str, Any]:
        """Return the answer to the problem of a case, by stage; raises NoAnswer."""

    def whose(self, name: str) -> str:
        """Return what that answer is called in a sentence."""


#: In words, which failures are explained.
WHICH = {"all": "every failure", "first": "the first failure of each kind", "none": "no failure"}


class Case(NamedTuple):
    """What a line says of itself."""

    line: int
    name: str
    kind: str
    which: Mapping[str, Any]  # what an answer in JSON repeats


def judge(
    source: files.Bundle | files.Records,
    asked: Others,
    answers: Answers,
    printed: groups.Printed,
) -> None:
    """Judge the answers to all cases, print each (for programs) and the sums; exit 1 if one failed.

    The answer to a lone problem is reported as with ``--expect``. Raises Misuse where no answer can
    be had at all.
    """
    if not isinstance(source, files.Records) and printed.format != LINES:
        return _judge_one(source, asked, answers, printed)
    from attncli import render
    from attncli.cli.given import attention
    from attncli.reports.cases import judged_report, tally_report
    from attncli.studies.cases.tally import Failure, Tally

    shown = printed.format if printed.format == LINES else output.format_of(printed)
    machine = shown in ("json", LINES)
    tally, explained = Tally(), Explained(asked.explain)
    names: dict[str, int] = {}
    total = 0 if machine else _lines_of(source)
    with render.progress("cases") as progress:
        for line, record in _numbered(source):
            case = _case(record, line)
            dtype = failure = None
            try:
                if isinstance(record, AttnError):
                    raise record
                if names.setdefault(case.name, line) != line:
                    raise FileError(f"'{case.name}' is the name of line {names[case.name]}, too")
                given = attention.gather(record, asked)
                render.show_warnings([f"line {line}: {w}" for w in given.warnings])
                problem, upstream = _posed(given, asked)
                dtype = problem.result_dtype.name
                answer = answers(case.name, problem, upstream)
                left = _unanswered(given.expected, answer)
                found = _compared(problem, answer, asked, upstream, explained.wants(case.kind))
            except Misuse:  # no case's fault
                raise
            except AttnError as error:
                failure = Failure(line, case.name, _words(error))
                if machine:
                    render.show_error(error, json=True, command="compute", **case.which)
            else:
                explained.saw(case.kind, failed=not found.passed)
                failure = None if found.passed else Failure(line, case.name, found.sentence)
                tally.differing += not found.passed
                tally.unanswered += bool(left)
                if machine:
                    report = judged_report(found.data(), case.kind, left)
                    render.show(report, LINES, which=case.which)
            tally.add(case.kind, dtype, failure)
            if total:
                progress(min(line / total, 1.0))
    report = tally_report(
        tally, WHICH[explained.which], _warn_of_unclaimed(answers), every=explained.which == "all"
    )
    output.finish(report, output.Page(shown), printed)


def _judge_one(
    record: files.Bundle, asked: Others, answers: Answers, printed: groups.Printed
) -> None:
    """Judge the answer to a lone problem, and report it as with ``--expect``."""
    from attncli.attention.view import View
    from attncli.cli.given import attention
    from attncli.reports import arrays
    from attncli.reports.compute import compute_report
    from attncli.studies import attend

    page, case = output.page_of(printed), _case(record, 1)
    given = attention.gather(record, asked)
    problem, upstream = _posed(given, asked)
    answer = answers(case.name, problem, upstream)
    left = _unanswered(given.expected, answer)
    found = _compared(problem, answer, asked, upstream, asked.explain != "none")
    _warn_of_unclaimed(answers)
    view = View()
    result = attend.solve(problem, want=arrays.wanted(problem, view, None, machine=False))
    labels = given.labels(problem)
    notes = [*given.notes, *([f"not answered: {listed(left)}"] if left else [])]
    report = compute_report(
        result, labels, view, None, notes=notes, judged=found, name=answers.whose(case.name)
    )
    output.conclude(report, labels, page, printed)


def _unanswered(expected: Collection[str], answer: Collection[str]) -> list[str]:
    """Return the gradients that are expected and not answered.

    Raises NoAnswer for gradients alone where more is expected.
    """
    forward, answered = ([n for n in names if not _backward(n)] for names in (expected, answer))
    if forward and not answered:
        raise NoAnswer(
            f"the answer holds {listed(answer)} alone",
            "expected the output, or another stage before it",
        )
    return [name for name in expected if _backward(name) and name not in answer]


def _backward(stage: str) -> bool:
    return stage.startswith("grad_")


def _warn_of_unclaimed(answers: Answers) -> int:
    """Warn of files that belong to no case; return how many there are."""
    left: list[str] = getattr(answers, "unclaimed", list)()
    if left:
        from attncli import render

        are = "files belong" if len(left) > 1 else "file belongs"
        render.show_warnings([f"{len(left)} {are} to no case: {listed(left)}"])
    return len(left)


def _numbered(
    source: files.Bundle | files.Records,
) -> Iterator[tuple[int, files.Bundle | AttnError]]:
    """Yield the number of each line and what it holds."""
    if isinstance(source, files.Bundle):
        yield 1, source
        return
    for record in source:
        yield source.line, record


def _lines_of(source: files.Bundle | files.Records) -> int:
    """Return how many lines a regular file of NDJSON has; 0 where that is not known."""
    path = source.source
    if not os.path.isfile(path):
        return 0
    with open(path, "rb") as stream:
        return sum(1 for _ in stream)


def _case(record: files.Bundle | AttnError, line: int) -> Case:
    """Return what a line is called, by its id, its name or its number, and of which kind it is."""
    options = {} if isinstance(record, AttnError) else record.options
    said = (options.get(name) for name in ("id", "name"))
    name = next((str(s) for s in said if isinstance(s, str | int)), str(line))
    kind = options.get("kind")
    which = {"line": line} | ({"id": options["id"]} if "id" in options else {})
    return Case(line, name, kind if isinstance(kind, str) else "", which)


def _posed(given: Inputs, asked: Others) -> tuple[Problem, Any]:
    """Return the problem of a case and the gradient of its output, ``(B, H, Lq, Dv)``, if any."""
    from attncli.attention import gradients
    from attncli.cli.given import attention

    problem = given.pose()
    said = asked.grad_output
    spec = given.grad_output if said is None else attention.upstream(said)
    return problem, None if spec is None else gradients.upstream(spec, problem)


def _compared(
    problem: Problem,
    candidate: Mapping[str, Any],
    asked: Others,
    upstream: Any,
    explain: bool,
) -> Comparison:
    """Return how an answer fares; InputError where a typed --grad-output has no use."""
    from attncli.cli.given.expected import tolerance_of
    from attncli.studies.compare import compare

    if asked.grad_output is not None and not any(map(_backward, candidate)):
        raise InputError("--grad-output is given, but the answer holds no gradient")
    return compare(
        problem, candidate, tolerance=tolerance_of(asked), explain=explain, grad_output=upstream
    )


def _words(error: AttnError) -> str:
    """Return an error in a line: for a command, also the last that it said itself."""
    last = (error.hint or "").strip().rpartition("\n")[2]
    return f"{error.message}: {last}" if isinstance(error, NoAnswer) and last else error.message
