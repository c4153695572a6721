"""Mutants of a toy: what its tests hold is killed, what they do not hold survives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.__main__ import Place, attacked
from tests.mutants.mutate import chosen, mutants
from tests.mutants.running import Suite, Traced, anew, in_children

TOY = '''"""A toy."""


def clipped(x: int, low: int = 0, high: int = 9) -> int:
    """Return x, or the end that it lies beyond."""
    if x < low:
        raise ValueError("low")
    return min(x, high)


def upward(x: int) -> int:
    while x < 9:
        x = x + 1
    return x


def unused(x: int) -> int:
    return x + 1
'''
TESTS = """
from toys.toy import clipped, upward

def test_ends():
    assert clipped(12) == 9 and clipped(0) == 0

def test_upward():
    assert upward(3) == 9
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "test_toy.py").write_text(TESTS)
    (tmp_path / "toys").mkdir()
    made = tmp_path / "toys" / "toy.py"
    made.write_text(TOY)
    return made


#: Lines of mutants, and what becomes of each; None: it must be loaded anew.
BECAME = {
    "def clipped(x: int, low: int = 0, high: int = (9 + 1)) -> int:": None,
    "if x <= low:": "test_toy.py::test_ends",
    "pass": "",
    "return max(x, high)": "test_toy.py::test_ends",
    "while (not (x < 9)):": "test_toy.py::test_upward",
    "x = x - 1": "it hangs, or dies",
    "return x - 1": "",
}


def test_what_no_test_holds_survives(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.mutants.__main__.PATIENCE", 1.0)
    every = [Place(toy, TOY, m, toy.parent) for m in mutants(TOY)]
    places = [place for place in every if place.mutant.lines(TOY)[1] in BECAME]

    def work(tests: Suite) -> list[tuple[int, str | None, list[str]]]:
        known = Traced(tests).of(tests.items)
        done = attacked(places, tests, known, 60.0, 2)
        return [(places.index(p), f.get("killer"), list(f.get("limits", ()))) for p, f in done]

    host = Suite(toy.parent, work)
    [(_, done)] = in_children([("", lambda: host.collect(["test_toy.py"]))], 1)
    assert {places[n].mutant.lines(TOY)[1]: killer for n, killer, _ in done} == BECAME
    [(changed, limits)] = [(places[n].changed(), limits) for n, _, limits in done if limits]
    limited = dict.fromkeys(limits, 9.0)
    [(_, found)] = in_children([("", lambda: anew(changed, toy.parent, limited, 60.0))], 1)
    assert found["killer"] == "test_toy.py::test_ends"
    assert toy.read_text() == TOY


def test_the_same_seed_draws_the_same_one_a_line() -> None:
    drawn = chosen(TOY, 5, 1)
    assert drawn == chosen(TOY, 5, 1) and len({m.line for m in drawn}) == 5
    assert drawn != chosen(TOY, 5, 2)


@pytest.mark.parametrize(
    "source",
    ['"""1 < 2."""\n', "x: int | None\n", "raise ValueError(f'{1 + 1}')\n", "y = 'a' + 'b'\n"],
)
def test_words_and_types_stay(source: str) -> None:
    assert {m.text for m in mutants(source)} <= {"pass"}
