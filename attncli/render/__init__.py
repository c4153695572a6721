"""The one place that prints: reports on standard output, everything else on standard error."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from attncli.errors import AttnError
    from attncli.reports.blocks import Report


LINES = "ndjson"  # a line of JSON for each problem that came in
FORMATS = ("table", "json", "csv", "markdown")
DEFAULT_WIDTH, DEFAULT_HEIGHT = 100, 48  # where there is no terminal


def show(
    report: Report,
    format: str = "table",
    *,
    stream: TextIO | None = None,
    color: str = "auto",
    width: int | None = None,
    height: int | None = None,
    line: int | None = None,
) -> None:
    """Print a report. ``json`` and ``ndjson`` are one object on one line, with ``line`` in it.

    ``color`` is auto, always or never; ``width`` and ``height`` are cells, by default the
    terminal's. Raises AttnError where a report has no such format, OSError from the stream.
    """
    out = stream or sys.stdout
    if out is None:
        from attncli.errors import FileError

        raise FileError("standard output is closed")
    if format in ("json", "ndjson"):
        from attncli.render import data as render_data

        _write_bytes(out, render_data.json_line(report, {} if line is None else {"line": line}))
        return
    if format == "csv":
        from attncli.render import data as render_data

        _write(out, render_data.csv_lines(report))
    elif format == "markdown":
        from attncli.render import data as render_data

        _write(out, (line + "\n" for line in render_data.markdown_lines(report)))
    else:
        from attncli.render import terminal

        columns, rows = _size(out)
        lines = terminal.lines(
            report,
            width=width or columns,
            height=height or max(rows - 8, 8),
            color=_colored(out, color),
        )
        _write(out, (line + "\n" for line in lines))


def show_error(
    error: AttnError, *, json: bool = False, command: str | None = None, **more: Any
) -> None:
    """Print an error on standard error; with ``json`` as an object on standard output instead.

    ``more`` are further members of that object, such as the ``line`` of NDJSON.
    """
    if json:
        from attncli.render import data as render_data

        if sys.stdout is not None:
            _write_bytes(sys.stdout, render_data.error_line(error, command, more))
        return
    from attncli.render.cells import escaped

    lines = [f"error: {line}" for line in error.message.splitlines()[:1] or [""]]
    lines += [f"       {line}" for line in error.message.splitlines()[1:]]
    lines += [f"       {line}" for line in (error.hint or "").splitlines()]
    _write(sys.stderr, (escaped(line) + "\n" for line in lines))


def show_warnings(warnings: Iterable[str]) -> None:
    """Print warnings on standard error, one line each."""
    from attncli.render.cells import escaped

    _write(sys.stderr, (f"warning: {escaped(text)}\n" for text in warnings))


@contextmanager
def progress(
    label: str = "attention", *, stream: TextIO | None = None, delay: float = 1.0
) -> Iterator[Callable[[float], None]]:
    """Yield a function that takes the share done, 0 to 1, from any thread.

    It draws a bar on standard error, only on a terminal and only past ``delay`` seconds of work.
    """
    out = stream or sys.stderr
    if out is None or not out.isatty():
        yield lambda share: None
        return
    bar = _Bar(out, label, delay)
    try:
        yield bar
    finally:
        bar.clear()


class _Bar:
    WIDTH, EVERY = 30, 0.1

    def __init__(self, out: TextIO, label: str, delay: float) -> None:
        self._out, self._label = out, label
        self._start = time.monotonic()
        self._next = self._start + delay
        self._drawn = False
        self._lock = threading.Lock()

    def __call__(self, share: float) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        with self._lock:
            self._next = now + self.EVERY
            share = min(max(share, 0.0), 1.0)
            full = round(share * self.WIDTH)
            left = f"{(now - self._start) * (1 - share) / share:.0f} s left" if share else ""
            bar = "█" * full + "░" * (self.WIDTH - full)
            _write(self._out, [f"\r{self._label}  {bar} {100 * share:3.0f} %  {left}\x1b[K"])
            self._drawn = True

    def clear(self) -> None:
        """Take the bar away."""
        with self._lock:
            if self._drawn:
                self._out.write("\r\x1b[K")
                self._out.flush()
            self._next = float("inf")


def _colored(out: TextIO, color: str) -> bool:
    if color != "auto":
        return color == "always"
    return out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


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
        int(a) if a.isdecimal() and int(a) else n for a, n in zip(asked, size, strict=True)
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
