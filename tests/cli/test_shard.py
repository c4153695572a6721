"""Several processes through the real door: torchrun starts them, and one of them speaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.support.model import write_model

pytestmark = pytest.mark.slow
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, heads in (("q", 4), ("k", 2), ("v", 2)):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(2, heads, 60, 8)).astype(np.float32))
    return tmp_path


INPUTS = ("-q", "q.npy", "-k", "k.npy", "-v", "v.npy", "--causal")


def launched(folder: Path, ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*LAUNCH, str(ranks), "-m", "attncli", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )


def alone(folder: Path, *arguments: str) -> Any:
    command = [sys.executable, "-m", "attncli", *arguments]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240,
                         check=True)  # fmt: skip
    return json.loads(ran.stdout)


def close(ours: Any, whole: Any, path: str = "") -> None:
    """Hold that two answers are one but for rounding, and what they say of the engine."""
    if isinstance(whole, dict):
        assert ours.keys() == whole.keys(), path
        for key in whole.keys() - {"engine"}:
            close(ours[key], whole[key], f"{path}.{key}")
    elif isinstance(whole, list):
        assert len(ours) == len(whole), path
        for n, (a, b) in enumerate(zip(ours, whole, strict=True)):
            close(a, b, f"{path}[{n}]")
    elif isinstance(whole, float):
        assert ours == pytest.approx(whole, rel=2e-4, abs=1e-5), path
    else:
        assert ours == whole, path


@pytest.mark.parametrize(("axis", "ranks"), [("keys", 3), ("heads", 2), ("batch", 2)])
def test_compute(folder: Path, axis: str, ranks: int) -> None:
    arguments = ("compute", *INPUTS, "--json", "--include", "output,lse,weights")
    ran = launched(folder, ranks, *arguments, "--shard", axis)
    assert ran.returncode == 0, ran.stderr
    ours = json.loads(ran.stdout)  # one object: the others are silent
    close(ours, alone(folder, *arguments))
    assert f"{axis} divided among {ranks} processes" in ours["engine"]["note"]


def test_inspect_by_keys(folder: Path) -> None:
    arguments = ("inspect", *INPUTS, "--json", "--what-if", "softcap=5")
    ran = launched(folder, 2, *arguments, "--shard", "keys")
    assert ran.returncode == 0, ran.stderr
    close(json.loads(ran.stdout), alone(folder, *arguments))


def test_inspect_a_model_and_its_checkpoint_by_layers(folder: Path) -> None:
    pytest.importorskip("transformers")
    write_model(folder / "llama")
    np.save(folder / "ids.npy", np.arange(12)[None] % 7)
    for more in ((), ("--ids", "ids.npy")):
        arguments = ("inspect", "llama", *more, "--json")
        ran = launched(folder, 2, *arguments, "--shard", "layers")
        assert ran.returncode == 0, ran.stderr
        close(json.loads(ran.stdout), alone(folder, *arguments))


def test_one_speaks_where_all_fail_alike(folder: Path) -> None:
    ran = launched(folder, 2, "compute", *INPUTS, "-m", "causall", "--shard", "keys")
    assert ran.returncode != 0
    assert ran.stdout == ""
    assert ran.stderr.count("error: unknown mask 'causall'") == 1


def test_more_processes_than_parts(folder: Path) -> None:
    ran = launched(folder, 3, "compute", *INPUTS, "--shard", "batch")
    assert ran.stderr.count("error: 3 processes but only 2 batch elements to divide") == 1


def test_processes_that_see_different_files(folder: Path) -> None:
    for rank in range(2):
        (folder / str(rank)).mkdir()
        for name in "qkv":
            array = np.load(folder / f"{name}.npy")
            np.save(folder / str(rank) / f"{name}.npy", array + (rank if name == "v" else 0))
    inner = f"cd $RANK && {sys.executable} -m attncli compute {' '.join(INPUTS)} --shard keys"
    command = [*LAUNCH, "2", "--no-python", "bash", "-c", inner]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240,
                         check=False)  # fmt: skip
    assert ran.returncode != 0
    assert ran.stderr.count("error: processes see different problems: value float32") == 1


def test_without_torchrun(folder: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, "-m", "attncli", "compute", *INPUTS, "--shard", "keys"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env,
                         timeout=240, check=False)  # fmt: skip
    assert ran.returncode == 2
    assert "torchrun --nproc-per-node 2 -m attncli" in ran.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal")
def test_a_process_that_is_killed_ends_the_others(folder: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(folder / "long.npy", rng.normal(size=(4, 30000, 64)).astype(np.float32))
    inner = (
        f"echo $$$$ > pid$RANK && exec {sys.executable} -m attncli inspect -q long.npy --causal "
        "--shard keys -o out.npz"
    )
    command = [*LAUNCH, "2", "--no-python", "bash", "-c", inner]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as ran:
        started = time.monotonic()
        while not (folder / "pid1").exists() and time.monotonic() < started + 120:
            time.sleep(0.2)
        time.sleep(8)  # both have met, and compute
        os.kill(int((folder / "pid1").read_text()), signal.SIGKILL)
        killed = time.monotonic()
        _, err = ran.communicate(timeout=120)
        assert time.monotonic() - killed < 60
    assert ran.returncode != 0
    assert not (folder / "out.npz").exists()
    assert not list(folder.glob(".attncli-*"))
    assert "internal error" not in err
    ours = [line for line in err.splitlines() if line.startswith("error: ")]
    assert all("has lost the others" in line for line in ours)
