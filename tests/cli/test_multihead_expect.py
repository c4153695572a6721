"""``attncli multihead --expect``: what a layer computed elsewhere is told, and how it exits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.faults_layers import FAULTS, QWEN, LayerFault, answer, checkpoint, states
from tests.support.program import Door, assert_bad

CALL = ("multihead", "x.npy", "-w", "ckpt", "--layer", "1")
OPTIONS = [f for f in FAULTS if f.said.startswith("--") and len(f.switches) == 1]
OPTIONS = [f for f in OPTIONS if f.world == "qwen"]


def fault(name: str) -> LayerFault:
    return next(one for one in FAULTS if one.name == name)


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ckpt").mkdir()
    save_file(checkpoint(), tmp_path / "ckpt" / "model.safetensors")
    (tmp_path / "ckpt" / "config.json").write_text(json.dumps(QWEN))
    np.save("x.npy", states())
    np.save("good.npy", answer(LayerFault("right", {}, "")))
    np.save("wrong.npy", answer(fault("no RoPE")))


# -- what it says -----------------------------------------------------------------------------


def test_a_right_layer(door: Door) -> None:
    ran = door(*CALL, "--expect", "good.npy")
    assert (ran.code, ran.err) == (0, "")
    assert "good.npy is right: largest error" in ran.out
    assert "Projected output" not in ran.out and "looks at" not in ran.out
    both = door(*CALL, "--expect", "good.npy", "--heatmap")
    assert "good.npy is right" in both.out and "looks at" in both.out


def test_a_wrong_layer_exits_1_and_says_why(door: Door) -> None:
    ran = door(*CALL, "--expect", "wrong.npy")
    assert (ran.code, ran.err) == (1, "")
    assert "wrong.npy differs: 72 of 74 rows" in ran.out.replace("\n  ", " ")
    assert "--rope none" in ran.out
    assert "error by row" in ran.out and "error by head" not in ran.out


@pytest.mark.parametrize("one", OPTIONS, ids=lambda one: one.name)
def test_options_that_are_said_reproduce_it(door: Door, one: LayerFault) -> None:
    np.save("mine.npy", answer(one))
    found = door(*CALL, "--expect", "mine.npy", "--json").data["expect"]
    assert found["verdict"] == "explained"
    options = found["explanations"][0]["options"]
    ran = door(*CALL, *options, "--expect", "mine.npy")
    if "--layer" in options:
        ran = door(*CALL[:-2], *options, "--expect", "mine.npy")
    assert ran.code == 0, ran.out


def test_for_programs(door: Door) -> None:
    ran = door(*CALL, "--expect", "wrong.npy", "--json")
    found = ran.data["expect"]
    assert ran.code == 1
    assert (found["passed"], found["stage"], found["verdict"]) == (False, "output", "explained")
    assert found["explanations"][0]["options"] == ["--rope", "none"]
    assert found["output"]["bad_rows"] == 72 and "by_head" not in found["output"]
    rows = door(*CALL, "--expect", "wrong.npy", "--format", "csv").out.splitlines()
    assert rows[0].startswith("stage,batch,head,passed") and rows[1].startswith("output,0,,")


def test_stages_of_the_attention(door: Door) -> None:
    ours = door(*CALL, "-o", "ours.npz", "--include", "output,weights,lse,scores")
    assert ours.code == 0
    for flag in ("--expect-weights", "--expect-lse", "--expect-scores"):
        ran = door(*CALL, flag, "ours.npz", "--json")
        stage = flag.rpartition("-")[2]
        assert ran.code == 0 and ran.data["expect"][stage]["passed"]
        assert len(np.shape(ran.data["expect"][stage]["by_head"])) == 2
    whole = door(*CALL, "--expect", "ours.npz", "--json").data["expect"]
    assert {"output", "weights", "lse", "scores"} <= set(whole)
    other = door(*CALL, "--rope", "none", "--expect", "ours.npz", "--json")
    assert (other.code, other.data["expect"]["stage"]) == (1, "scores")
    assert other.data["expect"]["explanations"][0]["options"] == ["--rope", "half"]


def test_our_own_result_is_judged_without_a_word_of_what_else_it_holds(door: Door) -> None:
    door(*CALL, "-o", "ours.json", "--include", "output,heads")
    Path("said.json").write_text(door(*CALL, "--json", "--include", "output").out)
    for name in ("ours.json", "said.json"):
        ran = door(*CALL, "--expect", name)
        assert (ran.code, ran.err) == (0, "")


# -- bundles and lines ------------------------------------------------------------------------


def test_a_bundle_that_holds_what_is_expected_needs_no_option(door: Door) -> None:
    np.savez("both.npz", x=states(), expected=np.load("good.npy"))
    ran = door("multihead", "both.npz", *CALL[2:], "--json")
    assert (ran.code, ran.data["expect"]["passed"]) == (0, True)
    over = door("multihead", "both.npz", *CALL[2:], "--expect", "wrong.npy", "--json")
    assert (over.code, over.data["expect"]["passed"]) == (1, False)


def test_lines(door: Door) -> None:
    def line(name: str, **more: Any) -> str:
        return json.dumps({"x": states().tolist(), "expected": np.load(name).tolist(), **more})

    lines = [line("good.npy"), line("wrong.npy"), line("wrong.npy")]
    Path("x.ndjson").write_text("\n".join(lines) + "\n")
    ran = door("multihead", "x.ndjson", *CALL[2:])
    assert ran.code == 1
    found = [one["expect"] for one in ran.lines]
    assert [one["passed"] for one in found] == [True, False, False]
    assert [one["verdict"] for one in found] == ["passed", "explained", "unexplained"]
    every = door("multihead", "x.ndjson", *CALL[2:], "--explain", "all").lines
    assert [one["expect"]["verdict"] for one in every[1:]] == ["explained"] * 2
    none = door("multihead", "x.ndjson", *CALL[2:], "--explain", "none").lines
    assert [one["expect"]["verdict"] for one in none[1:]] == ["unexplained"] * 2


def test_random_weights_are_judged_as_well(door: Door) -> None:
    call = ("multihead", "x.npy", "--random-weights", "0", "--heads", "4")
    assert door(*call, "--causal", "-o", "mine.npy").code == 0
    assert door(*call, "--causal", "--expect", "mine.npy").code == 0
    ran = door(*call, "--expect", "mine.npy", "--json")
    assert ran.code == 1
    assert ran.data["expect"]["explanations"][0]["options"] == ["--mask", "causal"]


def test_a_candidate_in_a_half_type_is_judged_as_such(door: Door) -> None:
    np.save("half.npy", np.load("good.npy").astype(np.float16))
    ran = door(*CALL, "--expect", "half.npy", "--json")
    assert ran.code == 0 and ran.data["expect"]["output"]["dtype"] == "float16"


# -- refusals ---------------------------------------------------------------------------------


def test_a_tolerance(door: Door) -> None:
    np.save("off.npy", np.load("good.npy") + np.float32(0.01))
    assert door(*CALL, "--expect", "off.npy", "--explain", "none").code == 1
    assert door(*CALL, "--expect", "off.npy", "--atol", "0.011").code == 0
    assert_bad(door, *CALL, "--rtol", "0.1", expected="nothing is judged")


def test_what_does_not_fit(door: Door) -> None:
    np.save("heads.npy", np.zeros((2, 4, 37, 16)))
    assert_bad(door, *CALL, "--expect", "heads.npy", expected="after the output projection")
    np.save("short.npy", np.load("good.npy")[:, :5])
    assert_bad(door, *CALL, "--expect", "short.npy", expected="but (2, 37, 64) is needed")
    np.savez("grads.npz", x=states(), expected_grad_query=np.zeros((2, 4, 37, 16)))
    assert_bad(door, "multihead", "grads.npz", *CALL[2:], expected="'grad_query' is not judged")
