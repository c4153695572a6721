"""What is installed says the truth of itself: version, extras, manual page."""

from __future__ import annotations

import re
import tomllib

import attncli as package
from attncli.engines.fused import VARIABLE
from attncli.models.families import COMPOSITES, FAMILIES
from tests.support.program import ROOT, Door

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
MANUAL = (ROOT / "attncli/cli/attncli.1").read_text("utf-8").replace("\\-", "-")
SOURCES = "".join(path.read_text("utf-8") for path in (ROOT / "attncli").rglob("*.py"))
README = (ROOT / "README.md").read_text("utf-8")


def headings(section: str) -> list[str]:
    """What a section of the manual page lists."""
    text = re.split(rf"^\.SH {section}$", MANUAL, flags=re.MULTILINE)[1].split("\n.SH ")[0]
    return re.findall(r"^\.TP\n\.BR? (.*)$", text, re.MULTILINE)


def test_the_version_is_the_same_everywhere(attncli: Door) -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    released = re.findall(r"^## \[(\d[^\]]*)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert "## [Unreleased]" in changelog
    assert released[0] == package.__version__
    assert attncli("--version").out.split() == ["attncli", package.__version__]
    assert f'"attncli {package.__version__}"' in MANUAL
    assert f"version = {{{package.__version__}}}" in README


def test_the_readme_says_what_each_extra_gives() -> None:
    section = README.split("| extra | gives | brings |")[1].split("\n\n")[0]
    told = re.findall(r"^\| `(\w+)` \| \w", section, re.MULTILINE)
    assert sorted(told) == sorted(PROJECT["optional-dependencies"])


def test_the_manual_page_names_every_command_and_exit_code(attncli: Door) -> None:
    shown = attncli("--help").out.split("Commands:")[1]
    assert headings("DESCRIPTION") == re.findall(r"^  (\w+) {2,}\S", shown, re.MULTILINE)
    assert headings("EXIT STATUS") == ["0", "1", "2", "3", "130"]


def test_the_manual_page_names_the_variables_that_are_read() -> None:
    read = {VARIABLE, *re.findall(r"environ\.get\(\"([A-Z_]+)\"", SOURCES)}
    by_torchrun = {name for name in read if name.endswith(("RANK", "WORLD_SIZE"))}
    told = {name for heading in headings("ENVIRONMENT") for name in re.findall(r"\w+", heading)}
    assert told == read - by_torchrun


def test_the_readme_counts_model_types_truly() -> None:
    (told,) = re.findall(r"more than (\d+) model types", README)
    assert 0 < len(FAMILIES.keys() | COMPOSITES) - int(told) < 40
