"""Somebody else's answers to a test set: judged case by case, then summed up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from attncli.cli import groups, output
from attncli.errors import AttnError, FileError, Misuse, listed
from attncli.render import LINES

if TYPE_CHECKING:
    from attncli import files
    from attncli.attention.problem import Problem
    from attncli.studies.cases.tally import Tally

#: What gives the answer to the problem of a case, by the case's name.
Answers = Callable[..., Mapping[str, Any]]

#: In words, which failures are explained.
WHICH = {"all": "every failure", "first": "the first failure of each kind", "none": "no failure"}


def judge(
    source: files.Bundle | files.Records,
    asked: groups.Problem,
    answers: Answers,
    explain: str | None,
    printed: groups.Printed,
) -> None:
    """Judge the answers to all cases, print each (for programs) and the sums; exit 1 if one failed.

    Raises Misuse where no answer can be had at all.
    """
    explain = explain or "first"

    from attncli import render
    from attncli.reports.cases import judged_report, tally_report
    from attncli.studies.cases.tally import Failure, Tally

    shown = printed.format if printed.format == LINES else output.format_of(printed)
    machine = shown in ("json", LINES)
    tally = Tally()
    names: dict[str, int] = {}
    for line, record in _numbered(source):
        options = {} if isinstance(record, AttnError) else record.options
        which = {"line": line} | {n: options[n] for n in ("id",) if n in options}
        kind = options["kind"] if isinstance(options.get("kind"), str) else ""
        name = _name(options, line)
        dtype = failure = None
        try:
            if isinstance(record, AttnError):
                raise record
            if name in names:
                raise FileError(f"'{name}' is the name of line {names[name]}, too")
            names[name] = line
            problem, upstream = _posed(record, asked, line)
            dtype = problem.result_dtype.name
            found = _compared(
                problem, answers(name, problem, upstream), upstream,
                explain=explain == "all" or (explain == "first" and not _failed(tally, kind)),
            )  # fmt: skip
        except Misuse:  # no case's fault
            raise
        except AttnError as error:
            failure = Failure(line, name, error.message)
            if machine:
                render.show_error(error, json=True, command="compute", **which)
        else:
            if not found.passed:
                failure = Failure(line, name, found.sentence)
            if machine:
                render.show(judged_report(found.data(), kind), LINES, which=which)
        tally.add(kind, dtype, failure)
    left: list[str] = getattr(answers, "unclaimed", list)()
    if left:
        are = "files belong" if len(left) > 1 else "file belongs"
        render.show_warnings([f"{len(left)} {are} to no case: {listed(left)}"])
    report = tally_report(tally, WHICH[explain], len(left))
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


def _name(options: Mapping[str, Any], line: int) -> str:
    """Return what a case is called: by its id, its name, or the number of its line."""
    said = (options.get(name) for name in ("id", "name"))
    return next((str(s) for s in said if isinstance(s, str | int)), str(line))


def _posed(record: files.Bundle, asked: groups.Problem, line: int) -> tuple[Problem, Any]:
    """Return the problem of a case and the gradient of its output, if it has one."""
    from attncli import render
    from attncli.attention import gradients
    from attncli.cli.given import attention

    given = attention.gather(record, asked)
    render.show_warnings([f"line {line}: {w}" for w in given.warnings])
    problem = given.pose()
    said: str | None = getattr(asked, "grad_output", None)
    if said is None:
        return problem, given.grad_output
    return problem, problem.family.restore(gradients.upstream(attention.upstream(said), problem))


def _compared(problem: Problem, candidates: Mapping[str, Any], upstream: Any, **how: Any) -> Any:
    """Judge one answer."""
    from importlib import import_module

    compare: Any = import_module("attncli.studies.compare").compare
    more = {} if upstream is None else {"grad_output": upstream}
    return compare(problem, candidates, **how, **more)


def _failed(tally: Tally, kind: str) -> bool:
    """Whether a case of this kind has failed already."""
    return kind in tally.kinds and bool(tally.kinds[kind].failed)
