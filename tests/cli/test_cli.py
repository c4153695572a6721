"""The program as a process: pipes that close, disks that fill, bugs, and commands that are none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.program import Door, environment, running

X = np.random.default_rng(7).normal(size=(4, 3))


@pytest.mark.parametrize("options", [[], ["--json"], ["--format", "csv"], ["-o", "-"]])
def test_a_closed_pipe_ends_quietly(fruit: Path, options: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with running(fruit.parent, "compute", fruit, *options, stdout=writer) as process:
        os.close(writer)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b"")


def test_a_pipe_closed_after_one_line(attncli: Door, tmp_path: Path) -> None:
    lines = b'{"x": [[1, 2, 3]]}\n' * 300
    with running(tmp_path, "compute", "-") as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(lines)
        process.stdin.flush()
        assert json.loads(process.stdout.readline())
        process.stdout.close()
        process.stdin.close()
        assert process.wait(60) == 0
        assert process.stderr.read() == b""


def test_a_closed_pipe_does_not_lose_the_file(fruit: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with running(fruit.parent, "compute", fruit, "-o", "out.npy", stdout=writer) as process:
        os.close(writer)
        process.communicate(timeout=60)
    assert np.load(fruit.parent / "out.npy").item() == pytest.approx(8)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("options", [[], ["--json"], ["--format", "csv"], ["-o", "-"]])
def test_a_full_disk(fruit: Path, options: list[str]) -> None:
    with (
        open("/dev/full", "wb") as full,
        running(fruit.parent, "compute", fruit, *options, stdout=full) as process,
    ):
        _, err = process.communicate(timeout=60)
        assert process.returncode == 2
        assert err.startswith(b"error: no space left to write")
        assert b"Traceback" not in err


def test_standard_output_that_is_closed(fruit: Path) -> None:
    script = f"{sys.executable} -m attncli compute fruit.json >&-"
    done = subprocess.run(
        ["sh", "-c", script], cwd=fruit.parent, env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == b"error: standard output is closed\n"


@pytest.mark.skipif(os.name == "nt", reason="a shell's redirection")
def test_standard_error_may_be_closed(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    for options, code in (("x.npy -m '~prefix(4)' -o o.npz", 0), ("nothing.npy", 2)):
        done = subprocess.run(
            ["sh", "-c", f"exec {sys.executable} -m attncli compute {options} 2>&-"],
            cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, check=False,
        )  # fmt: skip
        assert done.returncode == code
        assert b"wrote" not in done.stdout
        assert (b"Output" in done.stdout) == (code == 0)
    assert (tmp_path / "o.npz").exists()


def test_a_bug_is_called_a_bug(door: Door, fruit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attncli.studies import attend

    def broken(*arguments: Any, **more: Any) -> None:
        raise ZeroDivisionError("float division")

    monkeypatch.setattr(attend, "solve", broken)
    monkeypatch.setattr("attncli.cli._drop_stdout", lambda: None)
    ran = door("compute", fruit)
    assert ran.code == 70
    assert "ZeroDivisionError: float division" in ran.err
    assert "bug in attncli" in ran.err
    assert "Traceback" not in ran.err
    monkeypatch.setenv("ATTNCLI_TRACEBACK", "1")
    assert "Traceback" in door("compute", fruit).err


def test_out_of_memory_is_no_bug(door: Door, fruit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from attncli.studies import attend

    def greedy(*arguments: Any, **more: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(attend, "solve", greedy)
    ran = door("compute", fruit, "--json")
    assert ran.code == 2
    assert ran.data["error"]["code"] == "too_large"


@pytest.mark.skipif(sys.platform != "linux", reason="address spaces have limits on Linux")
def test_a_library_that_does_not_load_is_no_bug(fruit: Path) -> None:
    def small() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (48 << 20, 48 << 20))

    done = subprocess.run(
        [sys.executable, "-m", "attncli", "compute", str(fruit)],
        capture_output=True, text=True, env=environment(), check=False, preexec_fn=small,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (3, "")
    assert "a library does not load: " in done.stderr
    assert len(done.stderr.splitlines()) == 2


def test_unknown_command(door: Door) -> None:
    ran = door("comptue")
    assert (ran.code, ran.out) == (2, "")
    assert "did you mean 'compute'?" in ran.err
