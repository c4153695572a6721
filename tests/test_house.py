"""The map of the house, attncli/README.md, is true: rooms, names, and what a change costs."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module

import pytest

from tests.support.program import ROOT

HOUSE = ROOT / "attncli"
MAP = (HOUSE / "README.md").read_text()
SOURCES = {p.relative_to(HOUSE).as_posix(): p.read_text() for p in sorted(HOUSE.rglob("*.py"))}
EXAMPLES = re.findall(r"\| `([^`]+)`: ((?:`[^`]+`(?:, )?)+) \|$", MAP, re.MULTILINE)


def test_rooms_are_those_of_the_contract() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    floors = contracts["contracts"][0]["layers"]
    drawn = [room for floor in floors[1:] for room in floor.split(" | ")]
    told = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", MAP, re.MULTILINE)
    there = {path.removesuffix(".py").split("/")[0] for path in SOURCES} - {"__init__", "__main__"}
    assert told == drawn and set(told) == there


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(attncli\.[\w.]+)`", MAP))))
def test_the_way_of_a_value_names_what_there_is(name: str) -> None:
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return
    pytest.fail(f"nothing is called {name}")


@pytest.mark.parametrize(("text", "files"), EXAMPLES, ids=[text for text, _ in EXAMPLES])
def test_what_is_added_touches_these_files_and_no_other(text: str, files: str) -> None:
    assert [path for path, source in SOURCES.items() if text in source] == re.findall(
        r"`([^`]+)`", files
    )


def test_each_kind_of_addition_has_an_example() -> None:
    rows = re.findall(r"^\| (?:a|an|another) .*\|$", MAP, re.MULTILINE)
    assert len(rows) == len(EXAMPLES) == 25


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", MAP))))
def test_paths_exist(path: str) -> None:
    assert (HOUSE / path).exists()


def test_no_file_is_too_long_to_read() -> None:
    long = {path: n for path, source in SOURCES.items() if (n := source.count("\n")) > 450}
    assert not long
