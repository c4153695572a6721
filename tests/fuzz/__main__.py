"""Run the targets for a time, and print how many inputs each has taken, and every fault."""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tests.fuzz.calls import workplace
from tests.fuzz.targets import TARGETS

SLOW = 60.0  # seconds after which an input hangs


class Hangs(Exception):
    """An input that takes too long."""


def _late(number: int, frame: Any) -> None:
    raise Hangs


def attack(target: str, seed: int, inputs: int | None, seconds: float) -> tuple[int, list[str]]:
    """Return how many inputs a target has taken, and its faults."""
    signal.signal(signal.SIGALRM, _late)
    faults: list[str] = []
    end, taken = time.monotonic() + seconds, 0
    while (inputs is None or taken < inputs) and time.monotonic() < end:
        signal.setitimer(signal.ITIMER_REAL, SLOW)
        try:
            TARGETS[target](np.random.default_rng([seed + taken, len(target)]))
        except Exception:
            faults.append(f"--target {target} --seed {seed + taken}: {traceback.format_exc(-3)}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        taken += 1
    return taken, faults


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--target", choices=TARGETS, action="append")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inputs", type=int, help="at most so many for each target")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--processes", type=int, help="start so many whole processes instead")
    asked = parser.parse_args()
    if asked.processes is not None:
        from tests.fuzz import processes

        return 1 if processes.attack(asked.processes, asked.seed) else 0
    names = asked.target or list(TARGETS)
    faults: list[str] = []
    with TemporaryDirectory() as folder, workplace(folder):
        for name in names:
            start = time.process_time()
            taken, found = attack(name, asked.seed, asked.inputs, asked.seconds / len(names))
            spent = time.process_time() - start
            print(
                f"{name:10} {taken:9,} inputs {spent:8.1f} CPU s  {len(found)} faults", flush=True
            )
            faults += found
    kinds = {fault.partition(": ")[2].split("File", 1)[-1][-300:]: fault for fault in faults}
    for fault in list(kinds.values())[:40]:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
