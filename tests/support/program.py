"""The program as people run it: its environment, how a run ended, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "samples" / "minilm.safetensors"


@dataclass(frozen=True)
class Ran:
    """How a run of the program ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Standard output as one JSON document."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Standard output as NDJSON."""
        return [json.loads(line) for line in self.out.splitlines()]


Door = Callable[..., Ran]  # runs the program with these arguments


def environment(**more: str) -> dict[str, str]:
    """A plain 80-column environment in which this very attncli is found."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "LINES")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**kept, "COLUMNS": "80", "PYTHONPATH": path, "PYTHONUTF8": "1", **more}


@contextmanager
def running(cwd: Path, *arguments: object, **streams: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process of the program that does not outlive the test."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(
        [sys.executable, "-m", "attncli", *map(str, arguments)],
        cwd=cwd, env=environment(), **{**pipes, **streams},
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                with suppress(BrokenPipeError):
                    stream.close()


def array(ran: Ran, name: str = "output") -> Any:
    """An array of the answer in JSON."""
    assert ran.code == 0, ran.err
    return np.array(ran.data[name], float)


CODES = ("bad_file", "bad_input", "bad_mask", "too_large", "usage")


def assert_bad(door: Door, *arguments: object, expected: str, code: str | None = None) -> None:
    """Exit 2 and the message: as ``error: …`` on stderr alone, and as JSON on stdout alone."""
    ran = door(*arguments)
    assert ran.code == 2, ran
    assert ran.out == ""
    assert ran.err.startswith("error: ")
    assert expected in ran.err
    assert "Traceback" not in ran.err
    assert len(ran.err.splitlines()) <= 4
    spoken = door(*arguments, "--json")
    assert (spoken.code, spoken.err) == (2, "")
    error = spoken.data["error"]
    assert set(error) == {"code", "message", "hint"}
    assert expected in error["message"] + "\n" + (error["hint"] or "")
    assert error["code"] == code or (code is None and error["code"] in CODES)
