"""The report on many layers: what people and programs see of it."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pytest

from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.errors import InputError
from attncli.measures.policy import changed
from attncli.reports.many import TELLING, asked_of_heads, layer_report, many_report
from attncli.studies.many import Many
from tests.support.reports import as_json, printed, problem, tables

LAYERS, HEADS = 4, 5


@pytest.fixture(scope="module")
def many() -> Many:
    found = Many()
    for n in range(LAYERS):
        found.add(f"layers.{n}", problem(1, HEADS, 6 + n, mask="causal"))
    return found


@pytest.fixture(scope="module")
def sick() -> Many:
    """Three layers: head 1 of layer 2 is saturated, head 0 of layer 1 looks one token back."""
    rng, size = np.random.default_rng(0), 12
    found = Many()
    for n in range(3):
        query = 6 * rng.normal(size=(2, size, size))
        if n == 2:
            query[1] = 300 * rng.permutation(np.eye(size))
        if n == 1:
            query[0] = 20 * np.eye(size, k=-1)
        key = np.broadcast_to(np.eye(size), (2, size, size))
        value = rng.normal(size=(2, size, 3))
        found.add(f"layers.{n}", pose(query, key, value, mask=[masker("causal")]))
    return found


def test_a_page(many: Many) -> None:
    text = printed(many_report(many, facts=["made up"]), width=100)
    first, *rest = text.splitlines()
    assert first.startswith("4 layers × 5 heads, 6–9 tokens · made up · numpy float64 · 0 critical")
    assert any(line.startswith("entropy median (nats)") for line in rest)
    assert sum(line.startswith("layer ") for line in rest) == LAYERS
    assert f"{TELLING} of 20 heads, the most telling" in text
    whole = printed(many_report(many, full=True), width=100)
    assert all(f"\n{n}.{h} " in whole for n in range(LAYERS) for h in range(HEADS))
    assert "most telling" not in whole


def test_the_map_is_of_each_head(many: Many) -> None:
    report = many_report(many, asked=asked_of_heads(map="logit_max"))
    table = tables(report)["max logit"]
    assert table.labels == [f"layer {n}" for n in range(LAYERS)]
    for head in many.heads:
        assert table.rows[head.at][head.head] == head.statistics["logit_max"]
    data = as_json(report)["map"]
    assert data["statistic"] == "logit_max" and data["labels"] == ["0", "1", "2", "3"]
    lines = printed(report, "csv").splitlines()
    assert lines[0] == "layer,0,1,2,3,4" and len(lines) == 1 + LAYERS


def test_the_sick_come_first_then_what_looks_at_one_place(sick: Many) -> None:
    table = tables(many_report(sick))["layer.head"]
    assert list(table.labels)[:2] == ["2.1", "1.0"]
    assert [row[0] for row in table.rows][:2] == ["critical", "ok"]
    assert "previous token" in table.rows[1][-1]
    text = printed(many_report(sick), width=100)
    assert "head 2.1 critical: " in text


def test_programs_get_every_head(many: Many) -> None:
    data = as_json(many_report(many, sources=["x.npz"]))
    assert (data["schema"], data["command"]) == ("attncli.inspect/1", "inspect")
    assert data["summary"]["ok"] == LAYERS * HEADS and data["sources"] == ["x.npz"]
    assert [one["layer"] for one in data["layers"]] == [f"layers.{n}" for n in range(LAYERS)]
    for got, head in zip(data["heads"], many.heads, strict=True):
        assert (got["layer"], got["layer_index"], got["head"]) == (
            f"layers.{head.index}", head.index, head.head
        )  # fmt: skip
        assert got["name"] == head.name
        assert got["statistics"]["entropy"]["p05"] == head.statistics["entropy"]["p05"]
    rows = list(csv.DictReader(io.StringIO(printed(many_report(many), "csv"))))
    for row, head in zip(rows, many.heads, strict=True):
        assert (row["layer"], row["head"]) == (head.layer.name, str(head.head))
        assert float(row["max_weight_p95"]) == head.statistics["max_weight"]["p95"]
    assert "| 3.4 |" in printed(many_report(many, full=True), "markdown")


def names(report: Any) -> list[str]:
    return [head["name"] for head in as_json(report)["heads"]]


def test_heads_are_picked(many: Many) -> None:
    want = [
        head for head in many.heads if head.index > 1 and head.statistics["entropy"]["median"] < 1.2
    ]
    want.sort(key=lambda head: head.statistics["max_weight"]["median"])
    assert 0 < len(want) < 10
    asked = asked_of_heads(filters=["entropy<1.2 & layer>1"], sort="-max_weight")
    assert names(many_report(many, asked=asked)) == [head.name for head in want]
    assert names(many_report(many, layer="1:3", head="-1")) == ["1.4", "2.4"]
    assert "2 heads of 20" in printed(many_report(many, layer="1:3", head="-1"))
    with pytest.raises(InputError, match="--layer: 9 is out of range"):
        many_report(many, layer="9")
    nothing = many_report(many, asked=asked_of_heads(filters=["layer>7"]))
    assert nothing.warnings == ["no head passes --filter"]
    assert printed(nothing).startswith("4 layers × 5 heads")
    with pytest.raises(InputError, match="unknown name 'entrop'"):
        asked_of_heads(sort="entrop")


def test_numbers_that_no_layer_has() -> None:
    found = Many()
    for n in (2, 11):
        found.add(f"layers.{n}", problem(1, 1, 3))
    with pytest.raises(InputError, match="no layer has the number 5") as error:
        many_report(found, layer="5")
    assert error.value.hint == "there are 2, 11"


def test_the_exit_code_is_that_of_the_heads_shown(sick: Many) -> None:
    assert many_report(sick, fail_on="critical").exit_code == 1
    assert many_report(sick, fail_on="critical", layer="0:2").exit_code == 0
    assert many_report(sick).exit_code == 0


def test_a_policy_is_read() -> None:
    strict = changed({"large_logits": {"hint": False, "watch": 0.1, "critical": 0.2}})
    found = Many(policy=strict)
    found.add("layers.0", problem(2, 2, 5))
    assert {head.verdict.level for head in found.heads} == {"critical"}


def test_warnings_say_which_layers_they_are_about() -> None:
    found = Many()
    found.add("layers.0", problem(1, 1, 3))
    found.add("layers.1", problem(1, 1, 1))
    found.add("layers.2", problem(1, 1, 3, scale=0.0))
    warnings = many_report(found).warnings
    assert any(text.startswith("layers.2: the scale is 0") for text in warnings)
    assert any("no row that sees two keys or more" in text for text in warnings)


def test_a_layer_alone_is_a_line(many: Many) -> None:
    report = layer_report(many.layers[2], "2", 2, head="1:3")
    data = as_json(report)
    assert data["layer"] == "layers.2" and data["shapes"]["query"] == [1, HEADS, 8, 3]
    assert [head["name"] for head in data["heads"]] == ["2.1", "2.2"]
    assert data["summary"] == {"ok": 2, "watch": 0, "critical": 0}


def test_batch_elements_are_named() -> None:
    found = Many()
    for n in range(2):
        found.add(f"layers.{n}", problem(3, 2, 5), batches=[0, 2])
    report = many_report(found, full=True)
    assert list(tables(report)["batch/layer.head"].labels)[:3] == ["0/0.0", "0/0.1", "2/0.0"]
    assert list(tables(report)["entropy median (nats)"].labels) == [
        "layer 0/0", "layer 0/1", "layer 2/0", "layer 2/1",
    ]  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(printed(report, "csv"))))
    assert [row["batch"] for row in rows[:3]] == ["0", "0", "2"]
