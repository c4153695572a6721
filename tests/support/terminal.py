"""A real terminal: the program runs in it, and what it draws comes back."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

from tests.support.program import environment


def in_terminal(
    cwd: Path, *arguments: object, columns: int = 80, rows: int = 40, **env: str
) -> tuple[int, str]:
    """Return the exit code and all that a terminal of that size is sent. Not on Windows."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    asked = ("COLUMNS", "LINES", "NO_COLOR", "COLORTERM", "TERM")
    kept = {name: value for name, value in environment().items() if name not in asked}
    with subprocess.Popen(
        [sys.executable, "-m", "attncli", *map(str, arguments)], stdin=theirs, stdout=theirs,
        stderr=theirs, cwd=cwd, env={**kept, "TERM": "xterm-256color", **env},
    ) as process:  # fmt: skip
        os.close(theirs)
        sent = bytearray()
        while True:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # of Linux, when the other end is closed
                break
            if not piece:
                break
            sent += piece
        code = process.wait(60)
    os.close(ours)
    return code, sent.decode().replace("\r\n", "\n")
