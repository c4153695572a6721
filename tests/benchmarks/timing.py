"""What the parts share: how time is taken, and what a measured line is.

Every part checks its answers first, then times all competitors in turn in one run, and says
ratios: absolute times of a shared machine mean little.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from attncli.engines import How, choose, load, there
from attncli.resources import processors

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[], Any]
Times = dict[str, list[float]]
STATISTICS = ("output", "lse", "row_statistics")
ENGINES = ("auto", "numpy")
#: For processes: BLAS and OpenMP with one thread.
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL")}


class Unmeasured(Exception):
    """Why a part cannot be measured here."""


@dataclass(frozen=True)
class Setting:
    """How to measure: elapsed time with all processors, or the CPU time of one thread."""

    cpu: bool
    quick: bool

    @property
    def threads(self) -> int:
        return 1 if self.cpu else processors()

    @property
    def clock(self) -> Callable[[], float]:
        return time.process_time if self.cpu else time.perf_counter


@dataclass(frozen=True)
class Line:
    """One figure, and the target that it is held against; no target: it is only shown.

    ``what`` names the lines that are one row of the README's table. ``more``: the figure is at
    least the target where it is met, else at most. ``best`` is that of the best times.
    """

    part: str
    what: str
    cell: str
    against: str
    figure: float
    best: float
    target: float | None
    more: bool
    unit: str = "×"
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        return self.figure >= self.target if self.more else self.figure <= self.target

    @property
    def wanted(self) -> str:
        sign = "≥" if self.more else "≤"
        return "" if self.target is None else f"{sign} {self.target:g}{self.unit.strip()}"


def in_turn(runs: Mapping[str, Run], setting: Setting, seconds: float) -> Times:
    """Return the seconds of every round of each, run in turn.

    A pool of threads spins on for a while after its work, and a pool that rested is slow to wake:
    by the clock each turn waits for the one before to fall asleep, and runs once untimed.
    """
    times: Times = {name: [] for name in runs}
    for run in runs.values():
        run()
    spent, rounds, clock = 0.0, 0, setting.clock
    while rounds < 5 or (spent < seconds and rounds < 60):
        rounds += 1
        for name, run in runs.items():
            if not setting.cpu:
                time.sleep(0.25)
                run()
            start = clock()
            run()
            times[name].append(clock() - start)
            spent += times[name][-1]
    return times


def ratio(times: Times, over: str, under: str) -> tuple[float, float]:
    """Return how many times longer ``over`` takes: the median of all rounds, and of the bests.

    Of each round, because what else the machine does then slows both alike.
    """
    each = (a / b for a, b in zip(times[over], times[under], strict=True))
    return median(each), min(times[over]) / min(times[under])


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def tensors(heads: int, length: int, width: int, count: int = 3) -> list[Array]:
    """Return query, key, value and so on, ``(1, heads, length, width)`` in float32."""
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, heads, length, width), dtype=np.float32) for _ in range(count)]


def attending(backend: str, problem: Any, want: tuple[str, ...], setting: Setting) -> Run:
    """Return what computes that with the engine of that name."""
    engine = load(choose(there(backend), problem, want)[0])
    return lambda: engine.attend(problem, want, How(setting.threads))


def demand(same: bool, what: str) -> None:
    """End the program where answers are not the same: nothing is timed that is wrong."""
    if not same:
        raise SystemExit(f"the answers differ: {what}")


# -- processes --------------------------------------------------------------------------------


def attncli(*words: str) -> list[str]:
    return [sys.executable, "-m", "attncli", *words]


@dataclass(frozen=True)
class Ran:
    """A process: its CPU seconds, all threads together, its elapsed seconds, what it printed."""

    cpu: float
    wall: float
    out: bytes


def ran(words: list[str], variables: Mapping[str, str] | None = None) -> Ran:
    """Run a process to its end; it ends this one where it fails.

    Python keeps what it compiles, as it does wherever attncli is installed.
    """
    variables = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", **(variables or {})}
    with tempfile.TemporaryFile() as out:
        start = time.perf_counter()
        process = subprocess.Popen(words, stdout=out, env=variables)
        _, status, used = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            raise SystemExit(f"{' '.join(words[:5])} … failed")
        out.seek(0)
        return Ran(used.ru_utime + used.ru_stime, wall, out.read())


def processes(commands: Mapping[str, list[str]], setting: Setting, rounds: int) -> Times:
    """Return the seconds of every round of each, run in turn; the first round does not count."""
    variables = ONE_THREAD if setting.cpu else {}
    times: Times = {name: [] for name in commands}
    for at in range(rounds + 1):
        for name, words in commands.items():
            done = ran(words, variables)
            if at:
                times[name].append(done.cpu if setting.cpu else done.wall)
    return times
