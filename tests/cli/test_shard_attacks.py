"""Processes that divide a problem, and parts of one, given what does not go together."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli.cli import ranks
from attncli.errors import FileError, InputError, Misfit
from tests.conftest import Ran, environment

Door = Callable[..., Ran]
PROGRAM = ("-m", "attncli")
Started = list[subprocess.Popen[bytes]]


@pytest.fixture(autouse=True)
def tensors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 4, 9, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", query=q, key=k, value=v)
    k[0, 8, 0] = np.nan
    np.savez(tmp_path / "nan.npz", query=q, key=k, value=v)


# -- parts ------------------------------------------------------------------------------------


def test_a_part_is_no_problem_and_says_what_it_is(door: Door) -> None:
    door("compute", "x.npz", "--part", "1/2", "-o", "one.safetensors")
    ran = door("compute", "one.safetensors")
    assert ran.code == 2
    assert "is a part of a problem" in ran.err
    assert "--merge" in ran.err


def test_what_a_part_refuses_it_does_not_send_elsewhere(door: Door) -> None:
    ran = door("compute", "x.npz", "--part", "1/2", "-o", "one.json", "--grad-output", "ones")
    assert ran.code == 2
    assert "--grad-output has no use" in ran.err
    assert "--merge" not in ran.err.partition("\n")[2]  # which takes no gradient, either


def test_parts_in_json_merge(door: Door) -> None:
    for part in (1, 2):
        door("compute", "x.npz", "--part", f"{part}/2", "-o", f"{part}.json")
    include = ("--json", "--include", "output")
    merged = door("compute", "--merge", "2.json", "1.json", *include)
    whole = door("compute", "x.npz", *include)
    np.testing.assert_allclose(merged.data["output"], whole.data["output"], atol=1e-5)


# -- processes --------------------------------------------------------------------------------


class Fake:
    """The exchange of one process of two that have agreed."""

    def __init__(self, rank: int) -> None:
        self.rank, self.ranks = rank, 2


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is process 1."""
    monkeypatch.setattr(ranks, "_ranks", Fake(1))
    monkeypatch.setattr(ranks, "_agreed", True)
    monkeypatch.setattr(ranks, "PATIENCE", 0)


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize("error", [
    FileError("x.npy is cut off", "make it again"), InputError("x.npy is cut off", "make it again"),
    Misfit("output", "x.npy is cut off", "make it again"),
])  # fmt: skip
def test_an_error_of_one_process_is_told(error: InputError) -> None:
    said = ranks.failed(error)
    assert said is not None
    assert (said.message, said.hint) == ("process 1: x.npy is cut off", "make it again")
    assert not ranks.first()  # its JSON would go nowhere


def test_different_commands_end_at_once() -> None:
    with pytest.raises(InputError, match=r"'compute a --shard keys', and 'compute a' in process 1"):
        ranks._demand_one_command(["compute a --shard keys", "compute a"])


@contextmanager
def started(
    folder: Path, *commands: list[str], second: Sequence[str] = PROGRAM
) -> Iterator[Started]:
    """A process for each command, of one run, as torchrun would start them on several machines."""
    pytest.importorskip("torch.distributed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    found = [
        subprocess.Popen(
            [sys.executable, *(second if rank else PROGRAM), *command], cwd=folder,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=environment(
                RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(len(commands)),
                LOCAL_WORLD_SIZE=str(len(commands)), MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
                OMP_NUM_THREADS="1",
            ),
        )
        for rank, command in enumerate(commands)
    ]  # fmt: skip
    try:
        yield found
    finally:
        for process in found:
            process.kill()
            process.communicate()


def ended(processes: Started) -> list[tuple[int, str, str]]:
    """Return exit code, standard output and error of each."""
    said: list[Any] = [process.communicate(timeout=60) for process in processes]
    return [
        (process.returncode, out.decode(), err.decode())
        for process, (out, err) in zip(processes, said, strict=True)
    ]


@pytest.mark.slow
def test_nobody_reads_standard_input(tmp_path: Path) -> None:
    command = ["compute", "-", "--shard", "keys"]
    with started(tmp_path, command, command) as processes:
        (code, _, err), other = ended(processes)
    assert code == 2
    assert "standard input cannot be read by 2 processes" in err
    assert other == (2, "", "")


@pytest.mark.slow
def test_processes_with_different_commands_do_not_wait(tmp_path: Path) -> None:
    command = ["compute", "x.npz", "--shard", "keys"]
    with started(tmp_path, [*command, "--grad-output", "ones"], command) as processes:
        (code, _, err), (other, *_) = ended(processes)
    assert (code, other) == (2, 2)
    assert "different commands" in err


@pytest.mark.slow
def test_gradients_of_nan_that_one_process_has(tmp_path: Path, door: Door) -> None:
    command = ["compute", "nan.npz", "--grad-output", "ones", "--include", "grad_key", "--json"]
    shared = [*command, "--shard", "keys"]
    with started(tmp_path, shared, shared) as processes:
        (code, out, _), other = ended(processes)
    assert (code, other) == (0, (0, "", ""))
    ours, whole = (json.loads(text)["grad_key"] for text in (out, door(*command).out))
    assert str(ours).count("NaN") == str(whole).count("NaN") > 0


KILLED = """
import os, sys
from attncli.cli import main
from attncli.engines import shared

shared.part_of_keys = lambda *_: os.kill(os.getpid(), 9)
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_who_loses_another_ends_and_writes_nothing(tmp_path: Path) -> None:
    command = ["compute", "x.npz", "--shard", "keys", "-o", "out.npz"]
    before = {*os.listdir(tmp_path)}
    with started(tmp_path, command, command, second=["-c", KILLED]) as processes:
        (code, _, err), (other, *_) = ended(processes)
    assert (code, other) == (3, -signal.SIGKILL)
    assert "has lost the others" in err
    assert {*os.listdir(tmp_path)} == before
