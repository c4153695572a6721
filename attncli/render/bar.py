"""The bar of long work. rich is loaded with the first drawing: work is mostly too short for one."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress


WIDTH, PER_SECOND = 30, 10  # cells, drawings


class Bar:
    """Draws the share done that it is called with, past ``delay`` seconds of work."""

    def __init__(self, out: TextIO, label: str, delay: float) -> None:
        self._out, self._label = out, label
        self._begin = time.monotonic() + delay
        self._lock = threading.Lock()
        self._drawn: Progress | None = None

    def __call__(self, share: float) -> None:
        if time.monotonic() < self._begin:
            return
        with self._lock:
            share = min(max(share, 0.0), 1.0)
            if self._drawn is not None:
                self._drawn.update(self._drawn.task_ids[0], completed=share)
                return
            self._drawn = _drawn_on(self._out)  # known before it starts: Ctrl-C may come between
            task = self._drawn.add_task(self._label, total=1.0)
            self._drawn.update(task, completed=share)
            self._drawn.start()

    def clear(self) -> None:
        """Take the bar away, for good."""
        with self._lock:
            self._begin = float("inf")
            if self._drawn is not None:
                self._drawn.stop()


def _drawn_on(out: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    class Steady(Console):
        """Leaves the cursor as it is: a process that is killed could not bring it back."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

    return Progress(
        TextColumn("{task.description}"), BarColumn(WIDTH),
        TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=Steady(file=out), transient=True, refresh_per_second=PER_SECOND,
        redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip
