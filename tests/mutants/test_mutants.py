"""Mutants of a toy: what its tests hold is killed, what they do not hold survives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.__main__ import Place, attacked
from tests.mutants.mutate import chosen, mutants
from tests.mutants.running import in_children, traced

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


def test_what_no_test_holds_survives(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.mutants.__main__.PATIENCE", 1.0)
    [(_, known)] = in_children([(0, lambda: traced(Path("test_toy.py"), toy.parent))], 1)
    assert list(known) == ["test_toy.py::test_ends", "test_toy.py::test_upward"]
    kinds = {
        "x <= low",
        "max(x, high)",
        "x - 1",
        "while (not (x < 9))",
        "pass",
        "high: int = (9 + 1)",
    }
    every = [(Place(toy, TOY, m, toy.parent), m.lines(TOY)[1]) for m in mutants(TOY)]
    places = [place for place, line in every if any(kind in line for kind in kinds)]
    became = {
        place.mutant.lines(TOY)[1]: found["killer"]
        for place, found in attacked(places, known, [], 60.0, 2)
    }
    assert became == {
        "def clipped(x: int, low: int = 0, high: int = (9 + 1)) -> int:": "test_toy.py::test_ends",
        "if x <= low:": "test_toy.py::test_ends",
        "pass": "",
        "return max(x, high)": "test_toy.py::test_ends",
        "while (not (x < 9)):": "test_toy.py::test_upward",
        "x = x - 1": "it hangs, or dies",
        "return x - 1": "",
    }
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
