"""What all tests share: the program through its real door, and the engines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from attncli import engines
from tests.support.program import Door, Ran, environment


@pytest.fixture
def attncli(tmp_path: Path) -> Door:
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
) -> Door:
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


@pytest.fixture(params=[name for name, row in engines.ENGINES.items() if not row.partial])
def backend(request: pytest.FixtureRequest) -> str:
    """Every engine that takes all problems; skipped, with its own reason, where it cannot run."""
    reason = engines.missing(request.param)
    if reason:
        pytest.skip(f"{request.param}: {reason}")
    name: str = request.param
    return name
