"""A report for programs: JSON, CSV and Markdown."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attncli import files
from attncli.errors import InputError
from attncli.render.cells import LRM, columns_of, escaped, visible
from attncli.reports.blocks import Report, Step, Table

if TYPE_CHECKING:
    from attncli.errors import AttnError


WIDTH, HEIGHT = 100, 48  # of what stands in a code block of Markdown
COLUMNS = 12  # of a matrix in Markdown
FLUSH = 1 << 16


def json_line(report: Report, more: Mapping[str, Any] = MappingProxyType({})) -> bytes:
    """Return the report's data and ``more`` as one object on one line, strict JSON."""
    data = report.data()
    head = {name: data[name] for name in ("schema", "command") if name in data}
    return files.dumps({**head, **more, **data}) + b"\n"


def error_line(error: AttnError, command: str | None, more: Mapping[str, Any]) -> bytes:
    """Return an error as one object on one line: ``{"error": {"code", "message", "hint"}}``."""
    data: dict[str, Any] = {"command": command} if command else {}
    if command:
        data = {"schema": f"attncli.{command}/1", **data}
    said = {"code": error.code, "message": error.message, "hint": error.hint}
    return files.dumps({**data, **more, "error": said}) + b"\n"


def csv_lines(report: Report) -> Iterator[str]:
    """Return the report's one tidy table as CSV with a header line, in pieces.

    Numbers are written in full, NaN and inf as Python's float reads them, labels as they are but
    for control characters other than tab and newline, which are spelled out.
    Raises InputError where a report has no such table.
    """
    import csv

    if report.records is None:
        raise InputError(
            f"{report.command} has no table of this kind", "use --format json or markdown"
        )
    records = report.records()
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(records.columns)
    for row in records.rows:
        writer.writerow([escaped(x, "\t\n") if isinstance(x, str) else x for x in row])
        if buffer.tell() > FLUSH:
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()
    yield buffer.getvalue()


def markdown_lines(report: Report) -> Iterator[str]:
    """Return the blocks of the report as pipe tables, arithmetic as lists, maps as code."""
    yield " · ".join(map(_escape, report.headline))
    for note in report.notes:
        yield ""
        yield _escape(note)
    from attncli.render.maps import gathered
    from attncli.render.paint import Paint
    from attncli.render.terminal import block_lines

    for block, *beside in gathered(report.blocks):
        yield ""
        if isinstance(block, Table):
            yield from _pipe_table(block)
        elif isinstance(block, Step):
            yield f"### {block.number} {block.name}: {_escape(block.formula)}"
            yield ""
            yield _escape(block.meaning)
            if block.table:
                yield ""
                yield from _pipe_table(block.table)
            if block.lines:
                yield ""
                yield from (f"- {_escape(line)}" for line in block.lines)
        else:
            yield from _code(block_lines([block, *beside], Paint(0), WIDTH, HEIGHT))


def _pipe_table(table: Table) -> Iterator[str]:
    body = columns_of(table)
    shown = list(range(len(body)))
    gap = table.column_gap
    if table.matrix and not table.whole and (gap or len(shown) > COLUMNS):
        half = COLUMNS // 2
        shown = [*range(half), -1, *range(len(body) - half, len(body))]
    title = ""
    heads, lines = [], []
    for n in shown:
        column = table.columns[max(n, 0)]
        title = column.title or title  # a column without one continues the one before
        heads.append("…" if n < 0 else f"{title}, {column.sub}" if column.sub else title)
        lines.append(":--" if n >= 0 and column.kind in ("text", "verdict") else "--:")
    yield _row([table.title, *heads])
    yield _row([":--", *lines], escape=False)
    for r, label in enumerate(table.labels):
        if table.row_gap and r == table.row_gap.after:
            yield _row(["…"] * (len(shown) + 1))
        yield _row([label, *("…" if n < 0 else body[n][r] for n in shown)])
    facts = [table.part] if table.part else []
    if -1 in shown:
        total = len(body) + (gap.count if gap else 0)
        facts.append(f"{len(shown) - 1} of {total} {table.things}")
    facts += table.notes
    if facts:
        yield ""
        yield _escape("; ".join(facts) + (f" ({table.hint})" if table.hint else ""))


def _row(cells: list[str], escape: bool = True) -> str:
    return "| " + " | ".join(_escape(c) if escape else c for c in cells) + " |"


def _escape(text: str) -> str:
    """Return text, in one line, that Markdown shows as it is."""
    return "".join("\\" + c if c in "\\`*_[]<>|&$~" else c for c in visible(text))


def _code(lines: Iterable[str]) -> Iterator[str]:
    """Return lines as a block of code, whose fence is longer than any in them."""
    shown = [escaped(line, LRM) for line in lines]
    fence = "`" * max(3, *(len(run) + 1 for line in shown for run in re.findall("`+", line)), 0)
    yield from (fence, *shown, fence)
