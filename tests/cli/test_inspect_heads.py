"""``inspect`` picks heads (--layer, --head, --sort, --filter, --map) and places queries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.program import ROOT, Door

SAMPLE = ROOT / "samples" / "minilm.safetensors"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    tensors = {
        f"model.layers.{n}.self_attn.{role}_proj.weight": rng.normal(size=(16, 16))
        for n in range(3)
        for role in "qkvo"
    }
    np.savez(tmp_path / "weights.npz", **tensors)
    return tmp_path / "weights.npz"


def heads(data: Any) -> list[tuple[int, int]]:
    return [(head["batch"], head["head"]) for head in data["heads"]]


def test_heads_of_a_bundle_are_filtered_and_sorted(door: Door) -> None:
    every = door("inspect", SAMPLE, "--json").data["heads"]
    some = [
        one for one in every
        if one["statistics"]["max_weight"]["median"] > 0.7 and one["head"] > 2
    ]  # fmt: skip
    some.sort(key=lambda one: -one["statistics"]["entropy"]["p95"])
    asked = ("--filter", "max_weight>0.7 & head>2", "--sort", "entropy_p95")
    data = door("inspect", SAMPLE, *asked, "--json").data
    assert data["heads"] == some and data["summary"]["ok"] == len(some)
    ran = door("inspect", SAMPLE, *asked)
    assert f"{len(some)} heads of 36" in ran.out and "batch/head" in ran.out
    lines = door("inspect", SAMPLE, *asked, "--format", "csv").out.splitlines()
    assert [tuple(map(int, line.split(",")[:2])) for line in lines[1:]] == heads(data)


def test_no_head_may_pass(door: Door) -> None:
    ran = door("inspect", SAMPLE, "--filter", "entropy<0", "--fail-on", "watch")
    assert ran.code == 0 and "0 heads of 36" in ran.out
    assert "no head passes --filter" in ran.err


def test_scale_and_what_if_are_of_the_heads_asked_for(door: Door) -> None:
    asked = ("--what-if", "softcap=5", "--json")
    whole = door("inspect", SAMPLE, *asked).data
    some = door("inspect", SAMPLE, *asked, "--head", "4", "--batch", "1").data
    picked = door("inspect", SAMPLE, *asked, "--filter", "head==4 & batch==1").data
    for name in ("scale_effect", "what_if"):
        for all_, one, other in zip(whole[name], some[name], picked[name], strict=True):
            (head,) = (h for h in all_["heads"] if (h["batch"], h["head"]) == (1, 4))
            assert one["heads"] == other["heads"] == [head]
            assert one["statistics"] == pytest.approx(other["statistics"])
            entropy = head["statistics"]["entropy"]["median"]
            assert one["statistics"]["entropy"] == pytest.approx(entropy)
            assert one["statistics"] != all_["statistics"]
            assert one["output_change"] == pytest.approx(head["output_change"])


def test_a_map_of_a_bundle(door: Door) -> None:
    data = door("inspect", SAMPLE, "--map", "logit_max", "--json").data
    found = data["map"]
    assert (found["statistic"], found["rows"]) == ("logit_max", "batch")
    assert found["values"][2][5] == data["heads"][29]["statistics"]["logit_max"]
    lines = door("inspect", SAMPLE, "--map", "entropy", "--format", "csv").out.splitlines()
    assert len(lines) == 4 and lines[0] == "batch," + ",".join(map(str, range(12)))
    assert "entropy median (nats)" in door("inspect", SAMPLE, "--map", "entropy").out


def test_tensors_are_still_filtered_and_sorted(door: Door) -> None:
    assert "Tensors" in door("inspect", SAMPLE, "--filter", "*e*").out
    assert "Tensors" in door("inspect", SAMPLE, "--sort", "-max").out
    ran = door("inspect", SAMPLE, "--sort", "max", "--filter", "entropy<1")
    assert ran.code == 2 and "no name of 3 tensors matches 'entropy<1'" in ran.err
    ran = door("inspect", SAMPLE, "--sort", "stdd")
    assert ran.code == 2 and "did you mean 'std'?" in ran.err
    ran = door("inspect", SAMPLE, "--map", "entropi")
    assert ran.code == 2 and "did you mean 'entropy'?" in ran.err


def test_lines_are_picked_too(door: Door, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).tolist()
    (tmp_path / "x.ndjson").write_text(f"{json.dumps({'query': x})}\n" * 2)
    ran = door("inspect", tmp_path / "x.ndjson", "--filter", "head!=1", "--sort", "-head")
    for line in ran.out.splitlines():
        assert heads(json.loads(line)) == [(0, 0), (0, 2)]


def test_heads_of_a_checkpoint(door: Door, checkpoint: Path) -> None:
    ran = door("inspect", checkpoint)
    assert ran.code == 2 and "--head-dim" in ran.err and "--config" in ran.err
    whole = door("inspect", checkpoint, "--head-dim", "4", "--arch", "llama", "--json").data
    assert len(whole["heads"]) == 12
    (checkpoint.parent / "other.json").write_text(
        '{"model_type": "llama", "num_attention_heads": 2, "hidden_size": 16}'
    )
    other = door("inspect", checkpoint, "--config", "other.json", "--json").data
    assert len(other["heads"]) == 6
    asked = ("--head-dim", "4", "--arch", "llama", "--layer", "1:", "--head", "0,3")
    data = door("inspect", checkpoint, *asked, "--sort", "-qk_rank", "--json").data
    some = [
        one for one in whole["heads"]
        if one["head"] in (0, 3) and not one["layer"].startswith("model.layers.0.")
    ]  # fmt: skip
    assert data["heads"] == sorted(some, key=lambda one: one["statistics"]["qk_rank"])
    found = door("inspect", checkpoint, *asked, "--map", "ov_norm", "--json").data["map"]
    assert found["labels"] == ["1", "2"] and found["values"][0][1] is None
    ran = door("inspect", checkpoint, *asked[:4], "--filter", "layer==2 & ov_norm>0")
    assert "4 heads of 12" in ran.out and "layer/head" in ran.out
    ran = door("inspect", checkpoint, *asked[:4], "--layer", "7")
    assert ran.code == 2 and "expected 0 to 2" in ran.err
    ran = door("inspect", SAMPLE, "--layer", "0")
    assert ran.code == 2 and "--layer has no use in" in ran.err


def test_a_chunk_of_queries_is_placed(door: Door, tmp_path: Path) -> None:
    length, rng = 40, np.random.default_rng(0)
    query = 100 * np.eye(length, k=-2)[20:30]
    np.savez(
        tmp_path / "chunk.npz", query=query, key=np.eye(length), value=rng.normal(size=(40, 4))
    )
    roles = door("inspect", "chunk.npz", "--json").data["heads"][0]["roles"]
    assert not [role for role in roles if "offset" in role["role"]]
    ran = door("inspect", "chunk.npz", "--query-start", "20", "--json")
    assert ran.data["heads"][0]["roles"][0]["role"] == "offset -2"
    ran = door("inspect", "chunk.npz", "--query-start", "31")
    assert ran.code == 2 and "end past the 40 keys" in ran.err and "is 30" in ran.err
    asked = ("inspect", "chunk.npz", "-m", "causal(bottom_right)", "--query-start")
    assert door(*asked, "30").code == 0
    ran = door(*asked, "20")
    assert ran.code == 2 and "stands at key 30, not at 20" in ran.err
