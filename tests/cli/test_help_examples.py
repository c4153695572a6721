"""The examples that each help ends with are run, in their order, on files of these names."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from attncli.cli import COMMANDS
from tests.support.layers import LLAMA
from tests.support.model import WORDS, write_model
from tests.support.program import ROOT, Door

pytestmark = pytest.mark.slow
RNG = np.random.default_rng(0)
LAYERS, WIDTH = 10, 32


def examples(command: str) -> list[str]:
    """The lines of a command's help below 'Examples:'."""
    text = getattr(import_module(f"attncli.cli.{command}"), command).__doc__
    found = [line.strip() for line in text.partition("Examples:")[2].splitlines() if line.strip()]
    assert found and all("attncli " in line for line in found)
    return found


def _normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def _qkv(start: str = "", change: float = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        f"{start}{name}": (rng.normal(size=(4, 6, 8)) + change).astype(np.float32)
        for name in ("query", "key", "value")
    }


def _checkpoint(folder: Path) -> dict[str, np.ndarray]:
    folder.mkdir()
    tensors = {
        f"model.layers.{n}.self_attn.{role}_proj.weight": _normal(*shape)
        for n in range(LAYERS)
        for role, shape in zip("qkvo", [(128, WIDTH), (32, WIDTH), (32, WIDTH), (WIDTH, 128)],
                               strict=True)
    }  # fmt: skip
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return tensors


def _compute(folder: Path, door: Door) -> None:
    np.savez(folder / "qkv.npz", **_qkv())
    for name, array in _qkv().items():
        np.save(folder / f"{name[0]}.npy", array)
    (folder / "x.json").write_text(json.dumps({"query": _normal(3, 4).tolist()}))
    assert door("compute", "qkv.npz", "--causal", "-o", "mine.npy").code == 0
    write_model(folder / "MiniLM")
    for name, copy in (("tiled.py", "my_kernel.py"), ("wire.py", "wire.py")):
        shutil.copy(ROOT / "samples/kernels" / name, folder / copy)


def _mask(folder: Path, door: Door) -> None:
    distance = np.subtract.outer(np.arange(200), np.arange(200))
    np.save(folder / "mask.npy", (distance >= 0) & (distance <= 128))


def _multihead(folder: Path, door: Door) -> None:
    transformers = pytest.importorskip("transformers")
    _checkpoint(folder / "checkpoint")
    shutil.copytree(folder / "checkpoint", folder / "ckpt")
    sizes = dict(d_model=WIDTH, d_kv=8, d_ff=8, num_layers=1, num_heads=4, vocab_size=9)
    transformers.T5Model(transformers.T5Config(**sizes)).save_pretrained(folder / "t5")
    for name in ("hidden", "x", "y"):
        np.save(folder / f"{name}.npy", _normal(5, WIDTH))
    made = door(
        "multihead", "hidden.npy", "-w", "checkpoint/", "--layer", "0", "-o", "mine.npy"
    )  # fmt: skip
    assert made.code == 0


def _inspect(folder: Path, door: Door) -> None:
    for name, change in (("qkv", 0), ("before", 0), ("after", 1e-4)):
        np.savez(folder / f"{name}.npz", **_qkv(change=change))
    (folder / "limits.toml").write_text("[saturated]\nwatch = 0.2\n")
    capture = {}
    for n in range(6):
        capture |= _qkv(f"layers.{n}.", n / 9)
    save_file(capture, folder / "capture.safetensors")
    save_file(_checkpoint(folder / "checkpoint"), folder / "model.safetensors")
    write_model(folder / "MiniLM")
    words = [*WORDS, *(f"word{n}" for n in range(60))]
    write_model(folder / "SmolLM2", words, max_position_embeddings=99)


def test_the_walkthroughs_that_the_help_names_are_there(door: Door) -> None:
    named = re.findall(r"\w+\.md", door("--help").out)
    assert named and all((ROOT / "samples" / name).is_file() for name in named)


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_run(command: str, tmp_path: Path, door: Door, attncli: Door) -> None:
    pytest.importorskip("transformers")
    files = {"compute": _compute, "mask": _mask, "multihead": _multihead, "inspect": _inspect}
    files[command](tmp_path, door)
    for line in examples(command):
        given, _, call = line.rpartition(" | ") if line.startswith("echo") else ("", "", line)
        words = [sys.executable if word == "python3" else word for word in shlex.split(call)]
        assert words[:2] == ["attncli", command]
        if given:
            echo, text = shlex.split(given)
            assert echo == "echo"
            ran = attncli(*words[1:], stdin=text + "\n")
        else:
            ran = door(*words[1:])
        assert (ran.code, ran.out != "" or "-o" in words) == (0, True), f"{line}\n{ran.err}"
        assert not re.search("^error", ran.err), line
        if "--cases" in words:  # the first of them are enough for the next example
            some = (tmp_path / "tests.jsonl").read_text().splitlines(keepends=True)[:3]
            (tmp_path / "tests.jsonl").write_text("".join(some))
