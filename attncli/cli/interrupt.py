"""Ctrl-C ends the program without a traceback, even while it is still loading."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

INTERRUPTED = 130  # as shells say it: 128 + SIGINT
_happened = False


def _quit(number: int, frame: Any) -> None:
    with suppress(OSError):  # nobody may listen
        os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _raise(number: int, frame: Any) -> None:
    global _happened
    _happened = True
    raise KeyboardInterrupt


def happened() -> bool:
    """Return whether Ctrl-C came, even if a library made another error of it."""
    return _happened


def _replace(old: Any, new: Any) -> None:
    """Set the handler, unless somebody else's is there (or none, under nohup)."""
    with suppress(ValueError):  # no main thread
        if signal.getsignal(signal.SIGINT) is old:
            signal.signal(signal.SIGINT, new)


def loaded() -> None:
    """Give Ctrl-C back after the imports."""
    _replace(_quit, signal.default_int_handler)


@contextmanager
def watched() -> Iterator[None]:
    """Notice Ctrl-C inside."""
    global _happened
    _happened = False
    _replace(signal.default_int_handler, _raise)
    try:
        yield
    finally:
        _replace(_raise, signal.default_int_handler)


_replace(signal.default_int_handler, _quit)
