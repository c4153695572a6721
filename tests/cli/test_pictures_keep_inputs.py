"""No picture is written over what a command reads, whichever command it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.program import Door

CALLS = (
    "compute in.html",
    "compute other.json -k in.html::key",
    "mask in.html::attn_mask",
    "multihead in.html --random-weights 0 --heads 1",
    "inspect in.html",
    "inspect in.html other.json",
    "inspect in.html --compare other.json",
    "inspect other.json --compare in.html",
)


@pytest.mark.parametrize("call", CALLS)
def test_a_page_does_not_take_the_place_of_an_input(door: Door, tmp_path: Path, call: str) -> None:
    rows = [[1.0, 0.0], [0.0, 1.0]]
    held = {"multihead": ["x"], "mask": ["attn_mask"]}
    names = held.get(call.split()[0], ["query", "key", "value"])
    text = json.dumps(dict.fromkeys(names, rows))
    (tmp_path / "in.html").write_text(text)
    (tmp_path / "other.json").write_text(json.dumps({"query": rows, "key": rows}))
    ran = door(*call.split(), "--report", "in.html")
    assert (ran.code, ran.out) == (2, "")
    assert "--report in.html would overwrite an input" in ran.err
    assert (tmp_path / "in.html").read_text() == text
