"""``inspect CHECKPOINT --composition`` through the door, of the model that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.program import ROOT, Door

TINY = ROOT / "samples" / "tiny"


def test_the_induction_circuit_of_a_trained_model(door: Door) -> None:
    """By weights alone what --probe repeat finds by what the heads do: previous token 0.3 and 0.0,
    induction 1.0 to 1.3.
    """
    pairs = door("inspect", TINY, "--composition", "--json").data["pairs"]
    first = [(p["kind"], p["from"], p["to"]) for p in pairs[:8]]
    assert {one[0] for one in first} == {"K"} and {one[1] for one in first} == {"0.3", "0.0"}
    assert {one[2] for one in first} == {"1.0", "1.1", "1.2", "1.3"}
    assert [one[1] for one in first] == ["0.3"] * 4 + ["0.0"] * 4
    assert pairs[7]["deviations"] > 2 * pairs[8]["deviations"]
    ran = door("inspect", TINY, "--composition", "--filter", "kind=='K' & score>0.3")
    assert ran.code == 0 and ran.out.startswith("4 of 48 pairs of heads · 8 heads in 2")


def test_what_the_heads_copy(door: Door) -> None:
    heads = door("inspect", TINY, "--json").data["heads"]
    copying = {(h["layer"].split(".")[2], h["head"]): h["statistics"]["copying"] for h in heads}
    assert all(copying["1", n] > 0.85 for n in range(4))
    assert all(copying["0", n] < 0 for n in range(4))
    ran = door("inspect", TINY, "--sort", "copying", "--filter", "copying>0.9")
    assert ran.code == 0 and "3 heads of 8" in ran.out and "tied" in ran.out


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (("{tiny}", "{tiny}", "--composition"), "for one checkpoint, and there are 2 inputs"),
        (("two.npz", "--composition"), "holds no attention layer"),
        (("{tiny}", "--composition", "--text", "a"), "--text has no use in the composition"),
        (("{tiny}", "--composition", "--fail-on", "watch"), "--fail-on has no use"),
        (("{tiny}", "--composition", "--sort", "entropy"), "unknown name 'entropy' in --sort"),
        (("{tiny}", "--composition", "--map", "kind"), "unknown name 'kind' in --map"),
        (("{tiny}", "--composition", "--filter", "kind=='Z'"), "no kind is 'Z'"),
        (("{tiny}", "--composition", "--filter", "verdict=='ok'"), "unknown name 'verdict'"),
        (("{tiny}", "--composition", "--layer", "5"), "5 is out of range"),
    ],
)
def test_what_is_refused(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: tuple[str, ...],
    message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    np.savez("two.npz", a=np.ones(3), b=np.ones(2))
    ran = door("inspect", *(word.format(tiny=TINY) for word in typed))
    assert ran.code == 2 and message in " ".join(ran.err.split()) and ran.out == ""


def test_broken_checkpoints(door: Door, tmp_path: Path) -> None:
    whole = load_file(TINY / "model.safetensors")
    (tmp_path / "config.json").write_text((TINY / "config.json").read_text())

    def ran(**change: np.ndarray | None) -> Any:
        tensors = {**whole, **change}
        save_file({n: a for n, a in tensors.items() if a is not None},
                  tmp_path / "model.safetensors")  # fmt: skip
        return door("inspect", tmp_path, "--composition")

    place = "model.layers.1.self_attn.{}_proj.weight".format
    missing = ran(**{place("k"): None})
    assert missing.code == 2 and "no two attention layers" in missing.err
    odd = ran(**{place("v"): np.ones((63, 64), np.float32)})
    assert odd.code == 2 and "no two attention layers" in odd.err
    nan = ran(**{place("q"): np.full((64, 64), np.nan, np.float32)})
    assert nan.code == 0 and nan.out.startswith("0 pairs of heads")
    assert "no score, weights that are 0 or not finite: 0.0, 0.1" in nan.err
