"""JSON as it comes, a document or a line at a time; standard input."""

from __future__ import annotations

import io
import mmap
import select
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import BinaryIO

from attncli.errors import AttnError, FileError
from attncli.files.bundle import STDIN, Bundle
from attncli.files.formats import HEAD, JSON, is_text
from attncli.files.formats.entry import reading
from attncli.files.references import with_references
from attncli.files.sniffing import read_as, read_whole

AHEAD = 256  # lines that are read before the first of them is answered
AHEAD_BYTES = 1 << 20  # of text, beyond which no further line is
CHUNK = 1 << 16


class Lines(Iterator[bytes]):
    """The lines of a stream as they come, and whether the next one is there already."""

    def __init__(self, stream: BinaryIO | mmap.mmap) -> None:
        self._stream = stream
        self._whole: list[bytes] = []  # the next one last
        self._begun: list[bytes] = []  # pieces of the line after them
        self._ended = False

    def __next__(self) -> bytes:
        while not (self._whole or self._ended):
            self._take()
        if self._whole:
            return self._whole.pop()
        raise StopIteration

    def peek(self) -> bytes | None:
        """Return the next line, or None where it is not there yet or there is none."""
        while not (self._whole or self._ended) and self._is_there():
            self._take()
        return self._whole[-1] if self._whole else None

    def put_back(self, lines: list[bytes]) -> None:
        """Let these lines be the next ones."""
        self._whole += lines[::-1]

    def read(self) -> bytes:
        """Return all that is left."""
        rest = [*self._whole[::-1], *self._begun, self._stream.read()]
        self._whole, self._begun, self._ended = [], [], True
        return b"".join(rest)

    def _take(self) -> None:
        """Take some of what is there, or wait for it."""
        if isinstance(self._stream, mmap.mmap):
            line = self._stream.readline()
            self._whole, self._ended = [line] if line else [], not line
            return
        some = self._stream.read1(CHUNK)  # type: ignore[attr-defined]
        self._ended = not some
        *ends, rest = some.split(b"\n")
        if ends or self._ended:
            pieces = [*(end + b"\n" for end in ends), *([rest] if self._ended else [])]
            pieces[0] = b"".join([*self._begun, pieces[0]])
            self._whole, self._begun = [line for line in pieces[::-1] if line], []
        self._begun += [rest] if rest else []

    def _is_there(self) -> bool:
        """Whether something, or the end, can be read without waiting for whoever writes it."""
        if isinstance(self._stream, mmap.mmap):
            return True
        try:
            return bool(select.select([self._stream], [], [], 0)[0])
        except io.UnsupportedOperation:
            return True  # it lies in memory
        except (OSError, ValueError):
            return False  # nobody can say


class Records(Iterator["Bundle | AttnError"]):
    """One bundle a line of NDJSON, or the error that stands in its place; blank lines skipped.

    ``line`` is the number of the last line read, from 1; ``source`` the path, or standard input.
    """

    line = 0

    def __init__(self, lines: Lines, source: str, close: Callable[[], None]) -> None:
        self._lines = lines
        self._passed = self._bytes = 0
        self.source = source
        self.close = close

    def __next__(self) -> Bundle | AttnError:
        while True:
            try:
                line = next(self._lines, b"")
            except Exception:
                with reading(self.source):
                    raise
            if not line:
                self.close()
                raise StopIteration
            self._passed += 1
            self._bytes += len(line)
            if not line.isspace():
                self.line = self._passed
                try:
                    return with_references(read_as(JSON, line, f"{self.source}, line {self.line}"))
                except AttnError as error:
                    return error

    def together(
        self, heard: Callable[[Bundle], None] = lambda line: None
    ) -> Iterator[list[tuple[int, Bundle | AttnError]]]:
        """Yield all with the numbers of their lines, several at once where they are there already.

        Nothing waits for a line that is still to come; at most ``AHEAD`` lines are yielded, and
        none follows ``AHEAD_BYTES`` of text. ``heard`` takes each good one as it is read.
        """
        some: list[tuple[int, Bundle | AttnError]] = []
        for one in self:
            some.append((self.line, one))
            if isinstance(one, Bundle):
                heard(one)
            if len(some) < AHEAD and self._bytes < AHEAD_BYTES and self._is_next():
                continue
            yield some
            some, self._bytes = [], 0

    def _is_next(self) -> bool:
        """Pass by the blank lines that are there; return whether another line is."""
        while (line := self._lines.peek()) and line.isspace():
            next(self._lines)
            self._passed += 1
        return line is not None


def read_lines(stream: BinaryIO, source: str = STDIN) -> Records:
    """Read NDJSON: a bundle a line as it arrives; a bad line yields its error."""
    return Records(Lines(stream), source, lambda: None)


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
    lines, passed = Lines(stream), list[bytes]()

    def next_line() -> bytes:
        for line in lines:
            passed.append(line)
            if not line.isspace():
                return line
        return b""

    def records() -> Records:
        lines.put_back(passed)
        return Records(lines, source, close)

    first = next_line()
    if not first:
        raise FileError(f"{source} is empty{' (only blanks)' if passed else ''}")
    if not is_text(first[:HEAD]) and not (as_lines and _is_line(first)):
        return read_whole(b"".join(passed) + lines.read(), source, None)
    passed[0] = passed[0].removeprefix(b"\xef\xbb\xbf")
    if as_lines:
        return records()
    if first[-64:].rstrip()[-1:] not in b"[{,:":  # else the document goes on
        try:
            only: Bundle | None = read_as(JSON, passed[-1], source)
        except AttnError:
            only = None
        second = next_line()
        if only and not second:
            return only
        if only or second[:1] == b"{":
            return records()
    return read_as(JSON, b"".join(passed) + lines.read(), source)


def _is_line(line: bytes) -> bool:
    """Whether this is a line of text, if perhaps not of JSON."""
    try:
        return b"\0" not in line.decode().encode()
    except UnicodeDecodeError:
        return False
