"""What all tests share: the program through its real door, and the engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from attncli import engines

ROOT = Path(__file__).parent.parent


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


def environment(**more: str) -> dict[str, str]:
    """A plain 80-column environment in which this very attncli is found."""
    kept = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "LINES")}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**kept, "COLUMNS": "80", "PYTHONPATH": path, "PYTHONUTF8": "1", **more}


@pytest.fixture
def attncli(tmp_path: Path) -> Callable[..., Ran]:
    """Run the program in a process of its own, in ``tmp_path``; ``stdin`` is text or bytes."""

    def run(*arguments: object, stdin: str | bytes = b"", **env: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "attncli", *map(str, arguments)],
            input=stdin.encode() if isinstance(stdin, str) else stdin,
            capture_output=True, cwd=tmp_path, env=environment(**env), timeout=120, check=False,
        )  # fmt: skip
        return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())

    return run


@pytest.fixture
def door(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Ran]:
    """Run ``main()`` in this process, in ``tmp_path``: the same door, without the start-up."""
    from attncli.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["attncli", *map(str, arguments)])
        capfd.readouterr()
        code = main()
        out, err = capfd.readouterr()
        return Ran(code, out, err)

    return run


@pytest.fixture(params=list(engines.ENGINES))
def backend(request: pytest.FixtureRequest) -> str:
    """Every engine by name; skipped, with its own reason, where it cannot run."""
    reason = engines.missing(request.param)
    if reason:
        pytest.skip(f"{request.param}: {reason}")
    name: str = request.param
    return name
