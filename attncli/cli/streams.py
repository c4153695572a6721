"""Standard streams: output is taken whole or fails; what nobody hears of errors is no failure."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class Whole(io.FileIO):
    """A file whose ``write`` takes all bytes or raises OSError.

    A raw stream may take fewer than given, and a non-blocking one none: it is waited for.
    """

    def write(self, data: Any, /) -> int:
        """Write all of ``data`` and return how many bytes that were."""
        import select

        left = memoryview(data).cast("B")
        total = len(left)
        while left:
            taken: int | None = super().write(left)
            if taken is None:  # full, and nobody waits for it
                select.select([], [self], [])
            left = left[taken or 0 :]
        return total


class Told(Whole):
    """A file that takes all bytes, whether or not somebody listens: no result depends on it."""

    def write(self, data: Any, /) -> int:
        """Write ``data`` as far as that can be done, and return how many bytes it has."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def hold() -> None:
    """Make standard output whole and error patient; labels must not break an ASCII terminal.

    A descriptor that is closed is held open on nothing, or the next file would take its place.
    Streams that are somebody else's keep their way of writing.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    for name, kind in (("stdout", Whole), ("stderr", Told)):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        stream.reconfigure(errors="replace")
        if stream is getattr(sys, f"__{name}__"):
            setattr(sys, name, _held(stream, kind))


def _held(stream: io.TextIOWrapper, kind: type[Whole]) -> io.TextIOWrapper:
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(kind(stream.fileno(), "w", closefd=False)),
        encoding=stream.encoding, errors="replace", line_buffering=stream.line_buffering,
    )  # fmt: skip
