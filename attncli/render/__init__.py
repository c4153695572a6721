"""The one place that prints: reports on standard output, everything else on standard error."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from attncli.errors import AttnError
    from attncli.reports.blocks import Report


LINES = "ndjson"  # a line of JSON for each problem that came in
FORMATS = ("table", "json", "csv", "markdown")
#: Options that write pictures, and how their files may end.
PICTURES = {"plot": (".png", ".svg", ".pdf"), "report": (".html",)}
DEFAULT_WIDTH, DEFAULT_HEIGHT = 100, 48  # where there is no terminal
NARROWEST = 24  # cells for a message, however narrow the terminal


def show(
    report: Report,
    format: str = "table",
    *,
    stream: TextIO | None = None,
    color: str = "auto",
    width: int | None = None,
    height: int | None = None,
    which: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Print a report. ``json`` and ``ndjson`` are one object on one line.

    ``color`` is auto, always or never; ``width`` and ``height`` are cells, by default the
    terminal's; ``which`` are members that say what the object answers, such as ``line`` and ``id``.
    Raises AttnError where a report has no such format, OSError from the stream.
    """
    out = stream or sys.stdout
    if out is None:
        from attncli.errors import FileError

        raise FileError("standard output is closed")
    if format == "table":
        from attncli.render import paint, terminal

        columns, rows = _size(out)
        lines = terminal.lines(
            report,
            width=width or columns,
            height=height or max(rows - 8, 8),
            colors=paint.colors_of(out, color),
        )
        _write(out, (text + "\n" for text in lines))
        return
    from attncli.render import data

    if format == "csv":
        _write(out, data.csv_lines(report))
    elif format == "markdown":
        _write(out, (text + "\n" for text in data.markdown_lines(report)))
    elif format in ("json", "ndjson"):
        _write_bytes(out, data.json_line(report, which))
    else:
        raise ValueError(f"unknown format {format!r}")


def draw(report: Report, kind: str, path: str) -> None:
    """Write the pictures of a report, ``kind`` of PICTURES, to a file: whole, or not at all.

    Raises Unavailable where what draws is not installed, FileError where nothing can be written,
    InputError where there is nothing to draw.
    """
    from importlib import import_module

    from attncli.files.writing import atomic

    made = import_module(f"attncli.render.{kind}").made(report, os.path.splitext(path)[1].lower())
    with atomic(path) as out:
        out.write(made)


def show_error(
    error: AttnError, *, json: bool = False, command: str | None = None, **more: Any
) -> None:
    """Print an error on standard error; with ``json`` as an object on standard output instead.

    ``more`` are further members of that object, such as the ``line`` of NDJSON.
    """
    if json:
        from attncli.render import data

        if sys.stdout is not None:
            _write_bytes(sys.stdout, data.error_line(error, command, more))
        return
    _tell("error: ", [*error.message.split("\n"), *(error.hint or "").split("\n")])


def show_warnings(warnings: Iterable[str]) -> None:
    """Print warnings on standard error, one line each."""
    for text in warnings:
        _tell("warning: ", [text])


def _tell(what: str, lines: list[str]) -> None:
    """Print lines on standard error; on a terminal they break at words.

    A line that begins with blanks stands under a place in the line before: both stay as they are.
    """
    from attncli.render.cells import escaped, flow

    out = sys.stderr
    room = _size(out)[0] - len(what) if out is not None and out.isatty() else None
    lines = [escaped(line) for line in lines if line] or [""]
    told = []
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        placed = line.startswith(" ") or after.startswith(" ")
        told += [line] if room is None or placed else flow(line, max(room, NARROWEST))
    head = what
    for line in told:
        _write(out, [f"{head}{line}\n"])
        head = " " * len(what)


@contextmanager
def progress(
    label: str = "attention", *, stream: TextIO | None = None, delay: float = 1.0
) -> Iterator[Callable[[float], None]]:
    """Yield a function that takes the share done, 0 to 1, from any thread.

    It draws a bar on standard error, only on a terminal and only past ``delay`` seconds of work.
    """
    out = stream or sys.stderr
    if out is None or not out.isatty() or os.environ.get("TERM") == "dumb":
        yield lambda share: None
        return
    from attncli.render.bar import Bar

    bar = Bar(out, label, delay)
    try:
        yield bar
    finally:
        bar.clear()


def _size(out: TextIO) -> tuple[int, int]:
    """Return columns and lines: COLUMNS and LINES, else the terminal's, else the defaults."""
    size = (DEFAULT_WIDTH, DEFAULT_HEIGHT)
    try:
        if out.isatty():
            found = os.get_terminal_size(out.fileno())
            size = (found.columns or size[0], found.lines or size[1])
    except (OSError, ValueError):
        pass
    asked = (os.environ.get("COLUMNS", ""), os.environ.get("LINES", ""))
    columns, rows = (
        int(a) if re.fullmatch("0*[1-9][0-9]{0,5}", a) else n
        for a, n in zip(asked, size, strict=True)
    )
    return columns, rows


def _write(out: TextIO | None, lines: Iterable[str]) -> None:
    """Write text as it comes, in signs that the stream's encoding has; nothing if it is closed."""
    if out is None:
        return
    encoding = getattr(out, "encoding", None) or "utf-8"
    for line in lines:
        if not line.isascii():
            from attncli.render.cells import in_encoding

            line = in_encoding(line, encoding)
        out.write(line)
    out.flush()


def _write_bytes(out: TextIO, data: bytes) -> None:
    out.flush()
    if hasattr(out, "buffer"):
        out.buffer.write(data)
    else:
        out.write(data.decode())
    out.flush()
