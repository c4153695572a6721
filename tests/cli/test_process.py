"""The process: standard streams that are full, closed or non-blocking, and signals at any time."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli.errors import FileError
from attncli.files.writing import atomic
from tests.conftest import Ran, environment

Run = Callable[..., Ran]
pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and descriptors of POSIX")

#: One call of each command that saves something, without where to.
CALLS = {
    "compute": ["compute", "x.npy"],
    "mask": ["mask", "causal", "-l", "4"],
    "multihead": ["multihead", "x.npy", "--random-weights", "0", "--heads", "2"],
    "inspect": ["inspect", "x.npy", "-q", "x.npy"],
}


@pytest.fixture(autouse=True)
def x(tmp_path: Path) -> None:
    """64 vectors, so that the weights are more than any buffer holds."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(64, 4)))


def ran(folder: Path, *arguments: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "attncli", *arguments],
        cwd=folder, env=environment(**how.pop("env", {})), timeout=60, check=False, **how,
    )  # fmt: skip


# -- standard output --------------------------------------------------------------------------


@pytest.mark.parametrize("command", CALLS)
def test_standard_output_may_be_closed_where_a_file_is_written(
    command: str, tmp_path: Path
) -> None:
    call = CALLS[command] if command != "inspect" else ["inspect", "-q", "x.npy"]
    done = ran(
        tmp_path, *call, "-o", "o.json", stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1)
    )
    assert (done.returncode, b"wrote o.json" in done.stderr) == (0, True), done.stderr
    assert json.loads((tmp_path / "o.json").read_bytes())


def test_all_streams_may_be_closed(tmp_path: Path) -> None:
    done = ran(tmp_path, "compute", "x.npy", "-o", "o.npz", preexec_fn=lambda: os.closerange(0, 3))
    assert done.returncode == 0
    assert np.load(tmp_path / "o.npz")["output"].shape == (64, 4)


def test_a_report_needs_standard_output(tmp_path: Path) -> None:
    done = ran(tmp_path, "compute", "x.npy", stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1))
    assert done.returncode == 2
    assert b"standard output is closed" in done.stderr


@pytest.mark.parametrize("deaf", ["full", "broken"])
def test_nothing_depends_on_who_listens_to_standard_error(deaf: str, tmp_path: Path) -> None:
    """The answer is whole beside warnings that cannot be said, and an error keeps its exit code."""
    reader, writer = os.pipe()
    os.close(reader)
    if deaf == "full":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    how = {"stdout": subprocess.PIPE, "stderr": writer}
    np.savez(tmp_path / "unused.npz", query=np.eye(2), unheard_of=np.eye(2))
    try:
        warned = ran(tmp_path, "compute", "unused.npz", "--json", **how)
        assert warned.returncode == 0
        assert json.loads(warned.stdout)["warnings"]
        assert ran(tmp_path, "compute", "x.npy", "--threads", "x", **how).returncode == 2
    finally:
        os.close(writer)


LONG = (
    ["--json", "--include", "weights"], ["--format", "csv", "--include", "weights"],
    ["--full"], ["-o", "-.json", "--include", "weights"],
    ["-o", "-.safetensors", "--include", "weights"], ["-o", "-.npz", "--include", "weights"],
)  # fmt: skip


def small_disk() -> None:
    """Let files grow to 4 KB: the last write takes a part, the next one fails."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("options", LONG, ids=" ".join)
def test_what_is_cut_short_is_no_success(
    options: Sequence[str], unbuffered: str, tmp_path: Path
) -> None:
    with (tmp_path / "cut").open("wb") as out:
        done = ran(
            tmp_path, "compute", "x.npy", *options, stdout=out, stderr=subprocess.PIPE,
            env={"PYTHONUNBUFFERED": unbuffered}, preexec_fn=small_disk,
        )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert b"written" in done.stderr or b"write" in done.stderr
    assert (tmp_path / "cut").stat().st_size == 4096


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("options", LONG[::2], ids=" ".join)
def test_a_non_blocking_pipe_gets_everything(
    options: Sequence[str], unbuffered: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(150, 4)))  # > 64 KB
    call = ["compute", "x.npy", *options]
    whole = ran(tmp_path, *call, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with subprocess.Popen(
        [sys.executable, "-m", "attncli", *call],
        cwd=tmp_path, env=environment(PYTHONUNBUFFERED=unbuffered), stdout=writer,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        os.close(writer)
        time.sleep(0.8)  # the pipe fills up
        with open(reader, "rb") as pipe:
            found = pipe.read()
        assert process.wait(30) == 0
    assert len(whole) > 1 << 16
    assert found == whole


# -- signals ----------------------------------------------------------------------------------

WRITING = """
import os, signal, sys
from attncli.files import writing
real = getattr(os, {name!r})
def sent(*arguments):
    if {after}: real(*arguments)
    os.kill(os.getpid(), {number})
    if not {after}: real(*arguments)
if {name!r} == "open":
    import builtins
    def opened(path, mode, real=builtins.open):
        stream = real(path, mode)
        os.kill(os.getpid(), {number})
        return stream
    writing.open = opened
else:
    setattr(writing.os, {name!r}, sent)
with writing.atomic("out.npy") as stream:
    stream.write(b"new")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("name", "after"), [("open", True), ("replace", False), ("replace", True)])
def test_a_signal_around_opening_and_renaming_leaves_nothing(
    name: str, after: bool, number: signal.Signals, tmp_path: Path
) -> None:
    (tmp_path / "out.npy").write_bytes(b"old")
    code = WRITING.format(name=name, after=after, number=int(number))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment(), check=False,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == -number
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.npy", "x.npy"]
    assert (tmp_path / "out.npy").read_bytes() == (
        b"new" if after and name == "replace" else b"old"
    )


def test_handlers_are_given_back_and_ignored_signals_stay_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        kept = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        with atomic(str(tmp_path / "a")) as stream:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            stream.write(b"a")
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == kept
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_fails_leaves_no_temporary_file(tmp_path: Path) -> None:
    with pytest.raises(FileError), atomic(str(tmp_path / "a")):
        raise OSError(28, "No space left on device")
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]


def kills(folder: Path, count: int, seed: int = 0) -> list[int]:
    """Kill ``count`` runs at random times and return how they ended; nothing may be left."""
    x = np.random.default_rng(0).normal(size=(700, 4)).astype(np.float32)
    np.save(folder / "x.npy", x)
    call = [sys.executable, "-m", "attncli", "compute", "x.npy", "--include", "weights", "-o"]
    start = time.monotonic()
    subprocess.run([*call, "o.json"], cwd=folder, env=environment(), check=True,
                   capture_output=True)  # fmt: skip
    lasts, whole = time.monotonic() - start, (folder / "o.json").read_bytes()
    rng, codes = random.Random(seed), []
    for _ in range(count):
        with subprocess.Popen(
            [*call, "o.json"], cwd=folder, env=environment(), stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            time.sleep(rng.uniform(0.03, 1.1 * lasts))
            process.send_signal(rng.choice([signal.SIGINT, signal.SIGTERM]))
            error = process.communicate(timeout=30)[1]
        codes.append(process.returncode)
        assert process.returncode in (0, 130, -signal.SIGTERM, -signal.SIGINT, 1), error
        assert process.returncode != 1 or b"attncli" not in error  # Python itself was starting
        assert sorted(p.name for p in folder.iterdir()) == ["o.json", "x.npy"]
        assert (folder / "o.json").read_bytes() == whole
    return codes


@pytest.mark.slow
def test_kills_at_random_times_leave_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    assert len(kills(tmp_path, 15)) == 15
