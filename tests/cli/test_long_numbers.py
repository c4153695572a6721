"""Numbers of more digits than Python makes of a text: each is an error of what was typed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.program import Door

LONG = "9" * 5000


@pytest.fixture(autouse=True)
def long_files(tmp_path: Path) -> None:
    rows = np.eye(4).tolist()
    (tmp_path / "x.json").write_text(json.dumps({"query": rows}))
    names = {f"layers.{n}.query": rows for n in (LONG, "1")}
    (tmp_path / "names.json").write_text(json.dumps(names))
    limits = {"decimal": LONG, "hexadecimal": f"0x{'f' * 6000}", "wide": f"1{'0' * 400}"}
    for name, limit in limits.items():
        (tmp_path / f"{name}.toml").write_text(f"[saturated]\nwatch = {limit}\n")
    (tmp_path / "deep.toml").write_text(f"a = {'[' * 5000}")
    np.savez(tmp_path / "layer.npz", **dict.fromkeys(("wq", "wk", "wv", "wo"), np.eye(4)))


@pytest.mark.parametrize(
    "typed",
    [["compute", "x.json", "--grad-output", f"random:{LONG}"],
     ["inspect", "--sweep-dim", LONG],
     ["inspect", ".", "--text", "a", "--probe", f"repeat:{LONG}"],
     ["inspect", "names.json", "--layer", LONG],
     ["compute", "names.json", "--layer", LONG],
     ["multihead", "names.json::layers.1", "-w", "layer.npz", "--layer", LONG],
     ["multihead", "names.json::layers.1", "-w", "layer.npz", "--layer", "²"],
     *(["inspect", "x.json", "--policy", f"{name}.toml"]
       for name in ("decimal", "hexadecimal", "wide", "deep"))],
    ids=lambda typed: " ".join(word[:12] for word in typed),
)  # fmt: skip
def test_they_are_refused(door: Door, typed: list[str]) -> None:
    ran = door(*typed)
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert ran.err.startswith("error: ") and "\n       " in ran.err


def test_in_a_name_they_are_a_word(door: Door) -> None:
    assert door("inspect", "names.json").code == 0


def test_a_terminal_is_not_that_wide(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = door("compute", "x.json").out
    for wide in (LONG, "x", "-5", "²"):
        monkeypatch.setenv("COLUMNS", wide)
        monkeypatch.setenv("LINES", wide)
        wider = door("compute", "x.json").out
        assert wider.split()[:20] == usual.split()[:20]
