"""What rows and keys are called: seen by eyes, whole for programs."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from attncli.reports.labels import EMPTY, Names
from tests.support.program import Door

TOKENS = ["apple", "", "banana"]


@pytest.fixture(autouse=True)
def _files(tmp_path: Path) -> None:
    given = {"query": [[1, 0], [0, 1], [1, 1]], "tokens": TOKENS}
    (tmp_path / "x.json").write_text(json.dumps(given))


def test_an_empty_token_is_seen() -> None:
    names = Names((("a", ""),), 0, range(3))
    assert [names[0], names[1], names[2]] == names[:] == ["a", EMPTY, "2"]


@pytest.mark.parametrize(
    "more",
    ["", "--heatmap", "--top 2", "--steps", "--format markdown", "--format markdown --top 2"],
)
def test_an_empty_token_is_seen_in_every_drawing(more: str, door: Door) -> None:
    """In Markdown a column without a title would go on with the one before."""
    lines = door("compute", "x.json", *more.split()).out.splitlines()
    assert any(re.match(rf"[ |]*{EMPTY}", line) for line in lines)
    if "--top" not in more:
        assert any(re.search(rf"apple[ |]+{EMPTY}[ |]+banana", line) for line in lines)


def test_an_empty_token_is_seen_on_pages_and_in_pictures(door: Door, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ran = door("compute", "x.json", "--plot", "x.svg", "--report", "x.html", "--quiet")
    assert ran.code == 0
    assert (tmp_path / "x.svg").read_text().count(EMPTY) >= 2  # both sides
    page = (tmp_path / "x.html").read_text()
    assert re.search(r'"names": ?\[\["apple", ?"(∅|\\u2205)", ?"banana"\]\]', page)


def test_programs_get_the_token_as_it_is(door: Door) -> None:
    rows = csv.DictReader(io.StringIO(door("compute", "x.json", "--format", "csv",
                                           "--include", "weights").out))  # fmt: skip
    assert [row["key_token"] for row in rows] == TOKENS * 3
    assert json.loads(door("compute", "x.json", "--json").out)["tokens"] == TOKENS
