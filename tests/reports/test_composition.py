"""Pairs of heads in every format: which are shown, in which order, what is said of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.errors import InputError
from attncli.files.bundle import Bundle
from attncli.measures.composition import PAIRS
from attncli.reports import composition as report_of
from attncli.reports.composition import PLACES, composition_report
from attncli.reports.picking import picking
from tests.support.layers import llama_bundle
from tests.support.lens import CONFIGS, SAVED, bundle_of
from tests.support.reports import printed


def report(bundle: Bundle | None = None, config: Any = None, **asked: Any) -> Any:
    own = {name: asked.pop(name) for name in ("filters", "sort", "map") if name in asked}
    how = {"heads": 4} if bundle is None else {}
    picked = picking(PAIRS, PLACES, word="kind", **own)
    found = llama_bundle(3) if bundle is None else bundle
    return composition_report(found, config, asked=picked, **how, **asked)


def test_pairs_of_a_known_model() -> None:
    made = report(bundle_of("rms"), CONFIGS["rms"], full=True)
    pairs = made.data()["pairs"]
    assert len(pairs) == 3 * 3 * 16 == len(list(made.records().rows))
    above = [one["above_chance"] for one in pairs]
    assert above == sorted(above, reverse=True)
    for one in pairs:
        at = one["from_layer"], one["from_head"], one["to_layer"], one["to_head"]
        assert one["score"] == pytest.approx(SAVED[f"rms/scores.{one['kind']}"][at], rel=2e-5)
        assert one["from"] == f"{at[0]}.{at[1]}" and one["to"] == f"{at[2]}.{at[3]}"
        assert one["above_chance"] == pytest.approx(one["score"] - 15**-0.5, abs=1e-6)
    assert made.data()["streams"][0]["channels"] == 15
    assert "norm gains within" in printed(made) and "biases within" not in printed(made)


def test_what_was_asked_for() -> None:
    every = report(full=True).data()["pairs"]
    some = report(filters=["kind=='K' & from_layer==0 & score>0.25"], full=True).data()["pairs"]
    assert some == [p for p in every
                    if p["kind"] == "K" and p["from_layer"] == 0 and p["score"] > 0.25]  # fmt: skip
    assert 0 < len(some) < len(every)
    by = [p["deviations"] for p in report(sort="-deviations", full=True).data()["pairs"]]
    assert by == sorted(by)
    one = report(layer="1", head="2", full=True).data()["pairs"]
    mine = [p for p in every if "1.2" in (p["from"], p["to"])]
    assert {(p["kind"], p["from"], p["to"]) for p in one} == {
        (p["kind"], p["from"], p["to"]) for p in mine
    }
    assert {p["score"] for p in one} == {p["score"] for p in mine}
    assert report(filters=["score>1"]).warnings[-1] == "no pair passes --filter"
    assert "0 of 144 pairs" in printed(report(filters=["score>1"]))


def test_a_map_is_the_strongest_of_each_head() -> None:
    made = report(map="score")
    pairs = report(full=True).data()["pairs"]
    values = made.data()["map"]["values"]
    for layer, row in enumerate(values):
        for head, value in enumerate(row):
            own = [p["score"] for p in pairs if f"{layer}.{head}" in (p["from"], p["to"])]
            assert value == max(own)
    assert len(made.pictures()) == 1 and made.records().columns[0] == "layer"


def test_many_pairs_are_cut_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_of, "LISTED", 10)
    data = report().data()
    assert len(data["pairs"]) == 10
    assert data["warnings"][-1:] == ["10 of 144 pairs are here (--full, --format csv)"]
    assert "40 of 144 pairs, strongest above chance first" in printed(report())
    assert len(report(full=True).data()["pairs"]) == 144


def test_what_is_within_and_what_is_not_compared() -> None:
    rng = np.random.default_rng(0)
    tensors = {
        f"{stack}.{n}.{kind}.{role}_proj.weight": rng.normal(size=(8, 8))
        for stack, kinds in (("encoder.layers", ("self_attn",)),
                             ("decoder.layers", ("self_attn", "encoder_attn")))
        for n in range(2) for kind in kinds for role in ("q", "k", "v", "out")
    }  # fmt: skip
    tensors |= {
        f"encoder.layers.{n}.{name}_layer_norm.weight": rng.normal(size=8)
        for n in range(2) for name in ("self_attn", "final")
    }  # fmt: skip
    tensors |= {f"adapter.0.attn.{role}_proj.weight": rng.normal(size=(8, 8))
                for role in ("q", "k", "v", "out")}  # fmt: skip
    made = report(Bundle("x", "arrays", tensors), {"model_type": "bart"}, heads=2)
    said = " ".join(made.notes)
    assert "norms on the stream between two layers are within" in said
    assert "compared within each residual stream alone: encoder.layers, decoder.layers" in said
    assert "cross-attention reads its queries here" in said
    assert "no other layer writes where these do, not compared: adapter.0.attn" in said
    ends = {(p["from"], p["to"]) for p in made.data()["pairs"]}
    assert all(one.split(".")[0] == other.split(".")[0] for one, other in ends)


def test_heads_without_a_score_are_named() -> None:
    base = llama_bundle(3)
    name = "layers.1.self_attn.q_proj.weight"
    spoilt = base.tensors[name].copy()
    spoilt[6:12] = np.nan
    made = report(Bundle("x", "arrays", {**base.tensors, name: spoilt}), heads=4)
    assert made.warnings[-1] == "no score, weights that are 0 or not finite: 1.1"
    assert report().warnings == made.warnings[:-1]


def test_nothing_to_compare() -> None:
    with pytest.raises(InputError, match="no two attention layers") as caught:
        report(llama_bundle(1), heads=4)
    assert "leave --composition out" in (caught.value.hint or "")
