"""``--heatmap`` through the door: in a real terminal, in a pipe, and where it is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from attncli.render.cells import wide
from tests.support.model import write_model
from tests.support.program import Door, assert_bad
from tests.support.terminal import in_terminal

COLOR = re.compile(r"\x1b\[[\d;]*m")
HOSTILE = ["\x1b[31mred", "שלום עולם", "漢字漢字漢字漢字", "\u202eevil", "a\nb", "x" * 5000]


@pytest.fixture(autouse=True)
def _files(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    qkv = {name: rng.normal(size=(4, 6, 8)) for name in ("query", "key", "value")}
    np.savez(tmp_path / "qkv.npz", **qkv)
    long = {name: rng.normal(size=(2, 300, 8)) for name in ("query", "key", "value")}
    np.savez(tmp_path / "long.npz", **long)
    ill = {name: array.copy() for name, array in qkv.items()}
    ill["query"][2] *= 300  # saturated
    np.savez(tmp_path / "ill.npz", **ill)
    np.savez(
        tmp_path / "layers.npz", **{f"layers.{n}.{k}": v for n in (0, 1) for k, v in qkv.items()}
    )
    np.save(tmp_path / "x.npy", rng.normal(size=(6, 8)))
    labelled = {name: array.tolist() for name, array in qkv.items()} | {"tokens": HOSTILE}
    (tmp_path / "hostile.json").write_text(json.dumps(labelled))


@pytest.mark.skipif("sys.platform == 'win32'", reason="there are no such terminals")
@pytest.mark.parametrize(
    ("more", "sign"),
    [
        ({"COLORTERM": "truecolor"}, "8;2;253;231;37"),
        ({}, "8;5;220"),
        ({"NO_COLOR": "1"}, "█"),
        ({"TERM": "dumb"}, "█"),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        "compute hostile.json --causal --head 0:4 --heatmap",
        "compute long.npz --causal --heatmap",
        "compute long.npz --causal --head 0:2 --heatmap --scale-by log",
        "inspect hostile.json --causal --heatmap",
        "multihead x.npy --random-weights 0 --heads 4 --causal --head 0:4 --heatmap",
        "mask causal -l 300 --heatmap",
    ],
)
def test_a_terminal_of_80_columns(
    tmp_path: Path, command: str, more: dict[str, str], sign: str
) -> None:
    code, text = in_terminal(tmp_path, *command.split(), **more)
    assert code == 0
    assert sign in text
    assert ("\x1b" in text) == (not {"NO_COLOR", "TERM"} & more.keys())
    bare = COLOR.sub("", text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e]", bare)
    assert max(map(wide, bare.splitlines())) <= 80
    assert "· hidden by the mask" in bare
    assert re.search(r"(√|log|linear) scale", bare)


def test_a_pipe_is_plain(attncli: Door) -> None:
    ran = attncli("compute", "qkv.npz", "--causal", "--head", "0:2", "--heatmap")
    assert ran.code == 0
    lines = ran.out.splitlines()
    at = lines.index("Weights")
    assert lines[at + 1].split() == ["head", "0", "head", "1"]
    assert [line.count("·") for line in lines[at + 3 : at + 9]] == [10, 8, 6, 4, 2, 0]
    assert "\x1b" not in ran.out


def test_signs_of_ascii_are_told_apart(attncli: Door) -> None:
    ran = attncli(
        "compute", "qkv.npz", "--causal", "--heatmap", PYTHONUTF8="0", PYTHONIOENCODING="ascii",
        LC_ALL="C",
    )  # fmt: skip
    assert ran.out.isascii()
    assert ": from 0.0" in ran.out and ". hidden by the mask" in ran.out


@pytest.mark.parametrize("scale", ["row", "matrix", "log"])
def test_scales(door: Door, scale: str) -> None:
    ran = door("compute", "qkv.npz", "--heatmap", "--scale-by", scale)
    assert ran.code == 0
    assert {"row": "√ scale, by row", "matrix": "√ scale\n", "log": "log scale"}[scale] in ran.out


def test_a_long_causal_map_is_scaled_by_row_unless_told(door: Door) -> None:
    said = "each line has a scale of its own"
    long = ("compute", "long.npz", "--heatmap")
    assert said in door(*long, "--causal").out
    assert said not in door(*long).out
    assert said not in door(*long, "--causal", "--scale-by", "row").out
    other = door(*long, "--causal", "--scale-by", "matrix").out
    assert said not in other and "by row" not in other


@pytest.mark.parametrize(
    "command",
    ["compute qkv.npz", "inspect qkv.npz", "multihead x.npy --random-weights 0 --heads 2"],
)
def test_what_has_no_place_is_refused(door: Door, command: str) -> None:
    words = command.split()
    assert_bad(door, *words, "--scale-by", "row", expected="no use without --heatmap")
    assert_bad(door, *words, "--heatmap", "--scale-by", "rows", expected="did you mean 'row'?")
    ran = door(*words, "--heatmap", "--json")
    assert ran.code == 2 and "for people to look at: json has no place" in ran.out


def test_inspect_draws_the_worst_heads(door: Door) -> None:
    ran = door("inspect", "ill.npz", "--heatmap")
    at = ran.out.splitlines().index("Weights")
    assert ran.out.splitlines()[at + 1].split()[:2] == ["head", "2"]
    ran = door("inspect", "ill.npz", "--heatmap", "--head", "1,3")
    at = ran.out.splitlines().index("Weights")
    assert ran.out.splitlines()[at + 1].split() == ["head", "1", "head", "3"]
    assert "maps of" not in ran.out


def test_inspect_says_how_many_heads_it_draws(door: Door, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "nine.npz", **{n: rng.normal(size=(9, 5, 4)) for n in "qkv"})
    ran = door("inspect", "nine.npz", "--heatmap")
    assert "maps of 6 of 9 heads" in ran.out
    assert len(re.findall(r"head \d", ran.out[ran.out.index("Weights") :].split("from")[0])) == 6
    for more in ("--full", "--head=0:9"):
        assert "maps of" not in door("inspect", "nine.npz", "--heatmap", more).out


def test_inspect_draws_weights_that_are_given(door: Door, tmp_path: Path) -> None:
    weights = np.tri(5) * np.arange(1, 6)
    weights /= weights.sum(1, keepdims=True)
    np.save(tmp_path / "weights.npy", weights[None].repeat(2, 0))
    ran = door("inspect", "weights.npy", "--heatmap")
    lines = ran.out.splitlines()
    at = lines.index("Weights")
    assert [line.count("·") for line in lines[at + 3 : at + 8]] == [8, 6, 4, 2, 0]
    assert lines[at + 3].startswith("0  ██·")


def test_many_layers_have_a_map_of_heads_and_say_how_to_see_weights(door: Door) -> None:
    ran = door("inspect", "layers.npz", "--heatmap")
    assert ran.code == 2
    assert "--map" in ran.err
    hint = re.search(r"attncli (compute .*--heatmap)", ran.err)
    assert hint
    shown = door(*hint[1].replace("FILE", "layers.npz").replace("--layer N", "--layer 1").split())
    assert shown.code == 0 and "largest" in shown.out


def test_a_model_says_how_to_see_weights(door: Door, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    write_model(tmp_path / "llama")
    np.save(tmp_path / "ids.npy", np.arange(4) + 3)
    ran = door("inspect", "llama", "--ids", "ids.npy", "--heatmap")
    assert ran.code == 2 and "--layer N --heatmap" in ran.err
    shown = door("compute", "llama", "--ids", "ids.npy", "--layer", "1", "--heatmap")
    assert shown.code == 0 and "· hidden by the mask" in shown.out


def test_the_map_of_heads_has_the_same_legend(tmp_path: Path, door: Door) -> None:
    if not hasattr(__import__("os"), "openpty"):
        pytest.skip("there are no such terminals")
    typed = ("inspect", "layers.npz", "--map", "entropy")
    _, text = in_terminal(tmp_path, *typed, COLORTERM="truecolor")
    assert "linear scale" in text
    values = [[float(n) for n in COLOR.sub("", line).split()[2:]]
              for line in text.splitlines() if line.startswith("layer ")]  # fmt: skip
    largest = f"{max(max(row) for row in values):.3f}"
    assert f"48;2;253;231;37m{largest}" in text.replace(" ", "")
    assert "scale" not in door(*typed).out.split("layer.head")[0]  # no colours: numbers alone


def test_mask_draws_shares_and_what_is_added(door: Door) -> None:
    ran = door("mask", "causal & window(40)", "-l", 200, "--heatmap")
    assert "each cell is the mean of" in ran.out and "linear scale" in ran.out
    row = next(line for line in ran.out.splitlines() if line.startswith("0–"))
    assert "·" in row and "█" not in row.replace("█", "", 1)
    ran = door("mask", "causal + alibi", "-l", 6, "--heads", 2, "--head", "0:2", "--heatmap")
    lines = ran.out.splitlines()
    at = lines.index("Added to the scores")
    assert [line.count("·") for line in lines[at + 3 : at + 9]] == [10, 8, 6, 4, 2, 0]
    assert "blank from -" in ran.out and "largest 0" in ran.out


def test_mask_keeps_the_largest_that_is_added(door: Door, tmp_path: Path) -> None:
    bias = np.zeros((600, 600))
    bias[431, 77] = 5
    np.save(tmp_path / "bias.npy", bias)
    ran = door("mask", "file('bias.npy')", "-l", 600, "--heatmap")
    (row,) = (line for line in ran.out.splitlines() if "█" in line and "from" not in line)
    first, last = map(int, row.split()[0].split("–"))
    assert first <= 431 <= last and row.count("█") == 1


def test_mask_refuses(door: Door) -> None:
    assert_bad(door, "mask", "causal", "-l", 4, "--heatmap", "--view", "tokens",
               expected="two ways to draw")  # fmt: skip
    assert_bad(door, "mask", "causal", "-l", 4, "--heatmap", "--scale-by", "row",
               expected="--scale-by")  # fmt: skip
    assert door("mask", "causal", "-l", 4, "--heatmap", "--json").code == 2
    ran = door("mask", "alibi", "-l", 40000, "--heads", 2, "--heatmap")
    assert ran.code == 2 and "too many for a map of what is added" in ran.err
