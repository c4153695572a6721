"""JSON as it comes, a document or a line at a time; standard input."""

from __future__ import annotations

import mmap
import sys
import weakref
from collections.abc import Callable, Iterator
from itertools import chain
from typing import BinaryIO

from attncli.errors import AttnError, FileError
from attncli.files.bundle import STDIN, Bundle
from attncli.files.formats import HEAD, JSON, is_text
from attncli.files.formats.entry import reading
from attncli.files.references import with_references
from attncli.files.sniffing import read_as, read_whole


class Records(Iterator["Bundle | AttnError"]):
    """One bundle a line of NDJSON, or the error that stands in its place; blank lines skipped.

    ``line`` is the number of the last line read, from 1; ``source`` the path, or standard input.
    """

    line = 0

    def __init__(self, lines: Iterator[bytes], source: str, close: Callable[[], None]) -> None:
        self._lines = enumerate(lines, 1)
        self.source = source
        self.close = close

    def __next__(self) -> Bundle | AttnError:
        while True:
            with reading(self.source):
                number, line = next(self._lines, (0, b""))
            if not line:
                self.close()
                raise StopIteration
            if not line.isspace():
                self.line = number
                try:
                    return with_references(read_as(JSON, line, f"{self.source}, line {number}"))
                except AttnError as error:
                    return error


def read_lines(stream: BinaryIO, source: str = STDIN) -> Records:
    """Read NDJSON: a bundle a line as it arrives; a bad line yields its error."""
    return Records(iter(stream.readline, b""), source, lambda: None)


_stdin_bundles: weakref.WeakKeyDictionary[BinaryIO, Bundle] = weakref.WeakKeyDictionary()


def read_stdin(as_lines: bool) -> Bundle | Records:
    """Read standard input; a bundle is kept, so that -::query and -::key can both be asked for."""
    if sys.stdin is None:
        raise FileError("standard input is closed")
    stream: BinaryIO = sys.stdin.buffer
    if stream not in _stdin_bundles:
        with reading(STDIN):
            found = read_stream(stream, STDIN, lambda: None, as_lines)
        if not isinstance(found, Bundle):
            return found
        _stdin_bundles[stream] = found
    return _stdin_bundles[stream]


def read_stream(
    stream: BinaryIO | mmap.mmap, source: str, close: Callable[[], None], as_lines: bool
) -> Bundle | Records:
    """Read what may come line by line; only `Records` need the stream any longer.

    ``close`` is for them. With ``as_lines`` text is NDJSON whatever its first line looks like.
    """
    lines: list[bytes] = []

    def next_line() -> bytes:
        while line := stream.readline():
            lines.append(line)
            if not line.isspace():
                return line
        return b""

    first = next_line()
    if not first:
        raise FileError(f"{source} is empty{' (only blanks)' if lines else ''}")
    if not is_text(first[:HEAD]) and not (as_lines and _is_line(first)):
        return read_whole(b"".join(lines) + stream.read(), source, None)
    lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
    if as_lines:
        return Records(chain(lines, iter(stream.readline, b"")), source, close)
    if first[-64:].rstrip()[-1:] not in b"[{,:":  # else the document goes on
        try:
            only: Bundle | None = read_as(JSON, lines[-1], source)
        except AttnError:
            only = None
        second = next_line()
        if only and not second:
            return only
        if only or second[:1] == b"{":
            return Records(chain(lines, iter(stream.readline, b"")), source, close)
    return read_as(JSON, b"".join(lines) + stream.read(), source)


def _is_line(line: bytes) -> bool:
    """Whether this is a line of text, if perhaps not of JSON."""
    try:
        return b"\0" not in line.decode().encode()
    except UnicodeDecodeError:
        return False
