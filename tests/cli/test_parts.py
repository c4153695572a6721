"""Parts and their merge through the door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.program import Door


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("qkv.npz", **{n: rng.normal(size=(2, 20, 4)).astype(np.float32) for n in "qkv"})
    return "compute qkv.npz --causal --sink 0.5"


def both(door: Door, inputs: str, *, parts: int = 2) -> list[str]:
    paths = []
    for part in range(1, parts + 1):
        paths.append(f"part{part}.safetensors")
        ran = door(*inputs.split(), "--part", f"{part}/{parts}", "-o", paths[-1])
        assert ran.code == 0, ran.err
        assert f"wrote {paths[-1]}" in ran.err
    return paths


def test_all_parts_give_the_whole(door: Door, inputs: str) -> None:
    paths = both(door, inputs, parts=3)
    ran = door("compute", "--merge", *paths[::-1], "--json", "--include", "output,lse")
    ours = json.loads(ran.out)
    whole = json.loads(door(*inputs.split(), "--json", "--include", "output,lse").out)
    for name in ("output", "lse"):
        np.testing.assert_allclose(ours[name], whole[name], rtol=1e-5, atol=1e-6)
    assert ours["parts"] == 3
    for a, b in zip(ours["heads"], whole["heads"], strict=True):
        for name, value in b["statistics"].items():
            mine: Any = a["statistics"][name]
            values = value if isinstance(value, dict) else {"": value}
            for key, number in values.items():
                found = mine[key] if key else mine
                assert found == pytest.approx(number, rel=1e-4, abs=1e-5), (name, key)
    table = door("compute", "--merge", *paths)
    assert "mask causal · 3 parts" in " ".join(table.out.split())


def test_what_is_saved_is_the_whole(door: Door, inputs: str) -> None:
    paths = both(door, inputs)
    saved = "output,lse,row_statistics"
    ran = door("compute", "--merge", *paths, "--include", saved, "-o", "all.npz", "--quiet")
    assert ran.code == 0, ran.err
    door(*inputs.split(), "--include", saved, "-o", "whole.npz", "--quiet")
    ours, whole = np.load("all.npz"), np.load("whole.npz")
    assert {*ours} == {*whole}
    for name in whole:
        np.testing.assert_allclose(ours[name], whole[name], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--part", "3/2"), "expected the second of eight as 2/8"),
        (("--part", "x"), "expected the second of eight as 2/8"),
        (("--part", "1/2"), "add -o part1.safetensors"),
        (("--part", "1/2", "-o", "p.npz"), ".npz holds arrays alone"),
        (("--part", "1/99", "-o", "p.json"), "there are only 20 keys"),
        (("--part", "1/2", "-o", "p.json", "--softmax-dtype", "float16"), "has no use"),
        (("--part", "1/2", "-o", "p.json", "--grad-output", "ones"), "has no use"),
    ],
)
def test_bad_parts(door: Door, inputs: str, arguments: tuple[str, ...], said: str) -> None:
    ran = door(*inputs.split(), *arguments)
    assert ran.code == 2
    assert said in " ".join(ran.err.split())
    assert not list(Path().glob("p.*"))


def test_a_part_never_overwrites_its_input(door: Door, inputs: str) -> None:
    (path, _) = both(door, inputs)
    ran = door("compute", "--merge", path, "-o", path)
    assert ran.code == 2
    assert "would overwrite an input" in ran.err
