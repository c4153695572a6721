"""The README's table of speed has the form that the benchmarks write, and says what is missed."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.__main__ import PARTS, main
from tests.benchmarks.table import HEAD, MARKED, README, markdown, rows, write
from tests.benchmarks.timing import Line, ratio

FAST = Line("P1", "output", "8×512", "torch", 1.5, 1.6, 1.1, True)
SLOW = replace(FAST, cell="1×8192", figure=0.96)
REPORT: dict[str, Any] = {
    "cpu": True, "quick": False, "threads": 1, "versions": {"numpy": "2.4"}, "auto": "numpy",
    "unmeasured": {"P9": "no GPU"}, "lines": [asdict(FAST), asdict(SLOW)],
}  # fmt: skip


def table(text: str) -> list[list[str]]:
    """The rows of a table of speed, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert lines[0] == HEAD and set(lines[1]) <= set("| -:")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_readme_has_the_table() -> None:
    (text,) = MARKED.findall(README.read_text("utf-8"))
    assert text.startswith("Measured: ")
    found = table(text)
    for part, what, against, figure, worst, target, met in found:
        assert part in PARTS and what and against and worst
        assert re.fullmatch(r"[\d.]+(e[+-]\d+)?(×| MiB| s)", figure)
        assert bool(target) == bool(met), what
        assert all(re.fullmatch(r"[≥≤] [\d.]+(×|MiB|s)", one) for one in target.split(", ") if one)
        assert re.fullmatch(r"(yes|no|\d+ of \d+)?", met)
    missing = set(re.findall(r"^(P\d+) was not measured: \S", text, re.MULTILINE))
    assert {row[0] for row in found} | missing == set(PARTS)


def test_what_is_met_is_on_the_right_side_of_its_target() -> None:
    assert FAST.met is True and SLOW.met is False
    assert replace(SLOW, more=False).met is True and replace(FAST, more=False).met is False
    assert replace(FAST, figure=1.1).met is True and replace(FAST, target=None).met is None


def test_a_row_says_the_mean_the_worst_and_how_many_are_met() -> None:
    assert rows([FAST, SLOW]) == [
        "| P1 | output | torch | 1.2× | 0.96 (1×8192) | ≥ 1.1× | 1 of 2 |"
    ]
    assert rows([FAST]) == ["| P1 | output | torch | 1.5× | 8×512 | ≥ 1.1× | yes |"]
    assert rows([SLOW])[0].endswith("| no |")
    assert rows([replace(SLOW, target=None)])[0].endswith("| 1×8192 |  |  |")
    least = [replace(line, more=False) for line in (FAST, SLOW)]
    assert "| 1.5 (8×512) | ≤ 1.1× | 1 of 2 |" in rows(least)[0]
    later = replace(FAST, part="P10")
    assert [row[2:5] for row in rows([later, replace(FAST, part="P2")])] == ["P2 ", "P10"]


def test_ratios_are_of_each_round() -> None:
    """A machine that is ten times slower in a round changes nothing."""
    assert ratio({"a": [2, 20, 2], "b": [1, 10, 1]}, "a", "b") == (2, 2)


def test_the_table_is_written_between_its_marks_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- speed -->\nold\n<!-- end -->\nafter <!-- end -->\n", "utf-8")
    write(REPORT, readme)
    expected = f"before\n<!-- speed -->\n{markdown(REPORT)}<!-- end -->\nafter <!-- end -->\n"
    assert readme.read_text("utf-8") == expected
    assert "CPU time of one thread" in expected and "P9 was not measured: no GPU." in expected
    assert len(table(expected)) == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["P1", "P99"], "no such part: P99"),
        (["--readme", "--cpu"], "--readme measures nothing"),
        (["--readme", "-o", "nowhere.json"], "nowhere.json: No such file"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and told in capsys.readouterr().err


def test_a_part_is_measured_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "speed.json"
    monkeypatch.setattr(sys, "argv", ["benchmarks", "P8", "--quick", "--cpu", "-o", str(target)])
    main()
    report = json.loads(target.read_text())
    assert [line["what"] for line in report["lines"]] == ["JSON in", "JSON out"]
    assert all(line["figure"] > 0 for line in report["lines"])
    assert "JSON out: 200,000 numbers, against json.dumps" in capsys.readouterr().out
