"""The README's table of speed, made of what was measured: ``python -m tests.benchmarks --readme``.

A row is the lines of one part that compare the same: their geometric mean, and the worst cell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.timing import Line, geometric_mean
from tests.support.program import ROOT

README = ROOT / "README.md"
MARKED = re.compile(r"(?<=<!-- speed -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)
HEAD = "| | what | against | figure | worst cell | target | met |"


def rows(lines: Sequence[Line]) -> list[str]:
    """Return a row for each thing that was compared, as Markdown."""
    groups: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.part, line.what, line.against), []).append(line)
    return [row(groups[key]) for key in sorted(groups, key=lambda key: int(key[0][1:]))]


def row(group: Sequence[Line]) -> str:
    """Return the row of lines that compare the same."""
    one = group[0]
    mean = geometric_mean([max(line.figure, 0.01) for line in group])
    worst = (min if one.more else max)(group, key=lambda line: line.figure)
    where = f"{worst.figure:.3g} ({worst.cell})" if len(group) > 1 else worst.cell
    wanted = list(dict.fromkeys(line.wanted for line in group))
    met = sum(line.met is True for line in group)
    result = "" if not wanted[0] else "yes" if met == len(group) else f"{met} of {len(group)}"
    cells = (one.part, one.what, one.against, f"{mean:.3g}{one.unit}", where, ", ".join(wanted))
    return f"| {' | '.join(cells)} | {result if met or not wanted[0] else 'no'} |"


def markdown(report: Mapping[str, Any]) -> str:
    """Return the table of a report, ``results.json``, with what it was measured with above it."""
    lines = [Line(**line) for line in report["lines"]]
    clock = "CPU time of one thread" if report["cpu"] else f"time of {report['threads']} threads"
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    clock += ", shorter runs (--quick)" if report["quick"] else ""
    found = [f"Measured: {clock}; {versions}; `auto` is {report['auto']}.", ""]
    found += [HEAD, "| --- | --- | --- | ---: | --- | --- | --- |", *rows(lines)]
    if report["unmeasured"]:
        found += [
            "",
            *(f"{part} was not measured: {why}." for part, why in report["unmeasured"].items()),
        ]
    return "\n".join(found) + "\n"


def write(report: Mapping[str, Any], readme: Path = README) -> None:
    """Put the table of a report between the marks of a document."""
    text = readme.read_text("utf-8")
    readme.write_text(MARKED.sub(lambda _: markdown(report), text), "utf-8")
