"""Somebody else's answers to a test set: judged case by case, then summed up."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from attncli.cli import groups, output
from attncli.cli.groups.compute import Explained
from attncli.errors import AttnError, FileError, InputError, Misuse, NoAnswer, listed
from attncli.render import LINES

if TYPE_CHECKING:
    from attncli import files
    from attncli.attention.problem import Problem
    from attncli.studies.compare import Comparison

#: What gives the answer to the problem of a case, by the case's name.
Answers = Callable[..., Mapping[str, Any]]

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
    asked: groups.Posed,
    answers: Answers,
    explain: str | None,
    printed: groups.Printed,
) -> None:
    """Judge the answers to all cases, print each (for programs) and the sums; exit 1 if one failed.

    Raises Misuse where no answer can be had at all.
    """
    from attncli import render
    from attncli.reports.cases import judged_report, tally_report
    from attncli.studies.cases.tally import Failure, Tally

    shown = printed.format if printed.format == LINES else output.format_of(printed)
    machine = shown in ("json", LINES)
    tally, explained = Tally(), Explained(explain)
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
                problem, upstream = _posed(record, asked, line)
                dtype = problem.result_dtype.name
                given = answers(case.name, problem, upstream)
                found = _compared(problem, given, asked, upstream, explained.wants(case.kind))
            except Misuse:  # no case's fault
                raise
            except AttnError as error:
                failure = Failure(line, case.name, _words(error))
                if machine:
                    render.show_error(error, json=True, command="compute", **case.which)
            else:
                explained.saw(case.kind, failed=not found.passed)
                failure = None if found.passed else Failure(line, case.name, found.sentence)
                if machine:
                    report = judged_report(found.data(), case.kind)
                    render.show(report, LINES, which=case.which)
            tally.add(case.kind, dtype, failure)
            if total:
                progress(min(line / total, 1.0))
    left: list[str] = getattr(answers, "unclaimed", list)()
    if left:
        are = "files belong" if len(left) > 1 else "file belongs"
        render.show_warnings([f"{len(left)} {are} to no case: {listed(left)}"])
    report = tally_report(tally, WHICH[explained.which], len(left))
    output.finish(report, output.Page(shown), printed)


def _numbered(
    source: files.Bundle | files.Records,
) -> Iterator[tuple[int, files.Bundle | AttnError]]:
    """Yield the number of each line and what it holds."""
    from attncli import files

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


def _posed(record: files.Bundle, asked: groups.Posed, line: int) -> tuple[Problem, Any]:
    """Return the problem of a case and the gradient of its output, ``(B, H, Lq, Dv)``, if any."""
    from attncli import render
    from attncli.attention import gradients
    from attncli.cli.given import attention

    given = attention.gather(record, asked)
    render.show_warnings([f"line {line}: {w}" for w in given.warnings])
    problem = given.pose()
    said: str | None = getattr(asked, "grad_output", None)
    spec = given.grad_output if said is None else attention.upstream(said)
    return problem, None if spec is None else gradients.upstream(spec, problem)


def _compared(
    problem: Problem,
    candidate: Mapping[str, Any],
    asked: groups.Posed,
    upstream: Any,
    explain: bool,
) -> Comparison:
    """Return how an answer fares; InputError where a typed --grad-output has no use."""
    from attncli.cli.given.expected import tolerance_of
    from attncli.studies.compare import compare

    if getattr(asked, "grad_output", None) and not any(n.startswith("grad_") for n in candidate):
        raise InputError("--grad-output is given, but the answer holds no gradient")
    return compare(
        problem, candidate, tolerance=tolerance_of(asked), explain=explain, grad_output=upstream
    )


def _words(error: AttnError) -> str:
    """Return an error in a line: for a command, also the last that it said itself."""
    last = (error.hint or "").strip().rpartition("\n")[2]
    return f"{error.message}: {last}" if isinstance(error, NoAnswer) and last else error.message
