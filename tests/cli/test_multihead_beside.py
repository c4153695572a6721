"""``attncli multihead X``: weights that stand beside the hidden states, in one file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.program import Door, array

RNG = np.random.default_rng(7)
X = RNG.normal(size=(3, 4))
WEIGHTS = {name: RNG.normal(size=(4, 4)) for name in ("wq", "wk", "wv", "wo")}
TOKENS = ["my", "dog", "eats"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("both.json", hidden_states=X, **WEIGHTS, tokens=TOKENS, heads=2)
    write("x.json", hidden_states=X)
    write("w.json", **WEIGHTS)


def write(name: str, **members: Any) -> None:
    plain = {n: m.tolist() if isinstance(m, np.ndarray) else m for n, m in members.items()}
    Path(name).write_text(json.dumps(plain))


def by_hand() -> np.ndarray:
    """The layer as a textbook has it, two heads of width 2, weights (out, in)."""
    q, k, v = (X @ WEIGHTS[name].T for name in ("wq", "wk", "wv"))
    parts = []
    for own in (slice(0, 2), slice(2, 4)):
        e = np.exp(q[:, own] @ k[:, own].T / np.sqrt(2))
        parts.append(e / e.sum(1, keepdims=True) @ v[:, own])
    return np.concatenate(parts, 1) @ WEIGHTS["wo"].T


@pytest.mark.parametrize("said", [(), ("-w", "both.json")])
def test_weights_beside_x_are_used_and_nothing_is_said_to_be_unread(
    door: Door, said: tuple[str, ...]
) -> None:
    ran = door("multihead", "both.json", *said, "--json")
    assert ran.code == 0 and ran.err == ""
    assert np.allclose(array(ran, "output"), by_hand(), rtol=1e-12)
    assert json.loads(ran.out)["tokens"] == TOKENS
    assert json.loads(ran.out)["warnings"] == []


def test_a_file_of_its_own_wins_over_weights_beside_x(door: Door) -> None:
    write("other.json", **{name: 2 * w for name, w in WEIGHTS.items()})
    own, other = (
        array(door("multihead", "both.json", *said, "--json"), "output")
        for said in ((), ("-w", "other.json"))
    )
    assert not np.allclose(own, other)


def test_each_line_has_weights_of_its_own(door: Door) -> None:
    one = {"hidden_states": X.tolist(), "heads": 2}
    first = one | {name: w.tolist() for name, w in WEIGHTS.items()}
    second = one | {name: (2 * w).tolist() for name, w in WEIGHTS.items()}
    Path("lines.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n")
    answers = [json.loads(line) for line in door("multihead", "lines.jsonl").out.splitlines()]
    assert np.allclose(answers[0]["output"], by_hand(), rtol=1e-12)
    assert not np.allclose(answers[1]["output"], by_hand())


def test_what_nothing_reads_beside_them_is_said_once(door: Door) -> None:
    write("more.json", hidden_states=X, **WEIGHTS, heads=2, bias=[1.0])
    ran = door("multihead", "more.json")
    assert ran.code == 0 and ran.err.count("'bias' is not read") == 1


def test_random_weights_are_written_and_read_again(door: Door) -> None:
    told = ("multihead", "x.json", "--random-weights", "0", "--heads", "2")
    first = door(*told, "-o", "r.json", "--include", "output,wq,wk,wv,wo")
    assert first.code == 0
    again = door("multihead", "x.json", "-w", "r.json", "--heads", "2", "--json")
    assert again.err == "" and json.loads(again.out)["warnings"] == []
    written = json.loads(Path("r.json").read_text())
    assert np.allclose(array(again, "output"), written["output"], rtol=1e-6)


def test_weights_that_are_not_there_are_not_written(door: Door) -> None:
    write("no.json", **{name: w for name, w in WEIGHTS.items() if name != "wo"})
    ran = door("multihead", "x.json", "-w", "no.json", "--heads", "2", "-o", "r.npz",
               "--include", "wo")  # fmt: skip
    assert ran.code == 2 and "the layer has no wo" in ran.err and not Path("r.npz").exists()


def test_without_weights_anywhere_it_says_where_they_may_be(door: Door) -> None:
    ran = door("multihead", "x.json", "--heads", "2")
    assert ran.code == 2
    assert "no --weights, and no wq, wk, wv in x.json" in ran.err
    assert "--random-weights 0" in ran.err


def test_a_layer_without_a_name_is_no_array(door: Door) -> None:
    ran = door("multihead", "x.json", "-w", "w.json")
    assert ran.code == 2 and "the layer: nothing says how many heads" in ran.err
