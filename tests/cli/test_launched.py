"""What torchrun starts and nothing divides: refused, and said once."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from attncli.cli import ranks
from attncli.errors import FileError, InputError, TooLarge
from attncli.studies.ranks import launched
from tests.support.program import Door

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
    "MASTER_PORT": "1",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _files(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", query=np.ones((4, 8)))


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> None:
    """This is process 1 of torchrun's two."""
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "PATIENCE", 0.2)


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("compute x.npz -o out.npz", "--shard keys; or start it once"),
        ("inspect x.npz", "--shard keys"),
        ("multihead x.npz --random-weights 0 --heads 2", "  start it once"),
        ("mask causal -l 4", "  start it once: env -u WORLD_SIZE attncli"),
    ],
)
def test_what_is_not_divided_is_refused(
    command: str, hint: str, door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = door(*command.split())
    assert (ran.code, ran.out) == (2, "")
    assert "process 1: torchrun started 2 processes, and each would do the same" in ran.err
    assert hint in ran.err and not (tmp_path / "out.npz").exists()
    monkeypatch.delenv("WORLD_SIZE")  # as the hint says
    assert door(*command.split()).code == 0


@pytest.mark.usefixtures("second")
def test_parts_are_of_one_process_each(door: Door) -> None:
    assert door("compute", "x.npz", "--part", "1/1", "-o", "part.safetensors").code == 0
    assert door("compute", "--merge", "part.safetensors").code == 0


@pytest.mark.usefixtures("second")
@pytest.mark.parametrize("name", [*TORCHRUN])
def test_a_scheduler_that_sets_some_of_it_is_none(
    name: str, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert launched() == 2
    monkeypatch.delenv(name)
    assert launched() == 1 and door("mask", "causal", "-l", "4").code == 0


@pytest.mark.usefixtures("second")
def test_process_0_says_first_what_may_be_the_error_of_all(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    for error, waits in ((InputError("x"), True), (FileError("x"), True), (TooLarge("x"), False)):
        started = time.monotonic()
        said = ranks.failed(error)
        assert said is not None and said.message == "process 1: x"
        assert (time.monotonic() - started > 0.15) == waits
    assert "error: process 1: no such option: --shrd\n" in door("compute", "--shrd", "keys").err
    monkeypatch.setenv("RANK", "0")
    assert "error: no such option: --shrd\n" in door("compute", "--shrd", "keys").err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("compute x.npz --shard keys --scale abc", "--scale is 'abc'"),
        ("compute x.npz -o out.npz", "torchrun started 2 processes"),
    ],
)
def test_torchrun_itself(command: str, said: str, tmp_path: Path) -> None:
    pytest.importorskip("torch.distributed")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ran = subprocess.run(
        [*start, "-m", "attncli", *command.split()], cwd=tmp_path, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert ran.returncode != 0 and ran.stdout == ""
    assert len(re.findall(f"error: .*{re.escape(said)}", ran.stderr)) == 1
    assert not (tmp_path / "out.npz").exists()
