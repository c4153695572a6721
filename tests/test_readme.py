"""The README shows what the commands really print, and its samples tell the article's story."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from attncli.files.reading import read
from tests.support.program import ROOT
from tests.support.readme import (
    BLOCK,
    MARKED,
    README,
    TABLES,
    WALKTHROUGHS,
    can_run,
    rounded_alike,
    run,
    workshop,
)  # fmt: skip

GITHUB = sorted((ROOT / ".github").glob("*.md"))
BLOCKS = BLOCK.findall(README.read_text("utf-8"))


def named(document: Path) -> str:
    """A document by its place in the project."""
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize(("command", "shown"), BLOCKS, ids=[command for command, _ in BLOCKS])
def test_console_blocks_are_what_is_printed(command: str, shown: str) -> None:
    printed = run(command)
    assert printed == shown or ("--expect " in command and rounded_alike(printed, shown))


@pytest.mark.slow
@pytest.mark.parametrize("document", WALKTHROUGHS, ids=named)
def test_walkthroughs_go_as_they_are_told(document: Path) -> None:
    with workshop() as folder:
        for command, shown in BLOCK.findall(document.read_text("utf-8")):
            if can_run(command):
                printed = run(command, folder)
                assert printed == shown or rounded_alike(printed, shown), command


def test_outputs_are_alike_but_for_rounding_errors() -> None:
    shown = "off by 0.303 (budget\n  1.28e-06)  ▁▁▅█"
    assert rounded_alike(shown, "off by 0.303 (budget 9.1e-07)  ▁▁▆█")
    for wrong in ("off by 0.5 (budget", "off by 0.303 (limit", "off by 0.303 by 2 (budget"):
        assert not rounded_alike(shown, shown.replace("off by 0.303 (budget", wrong))
    assert not rounded_alike(shown, shown.replace("1.28e-06", "1.28e-04"))
    assert not rounded_alike(shown, shown.replace("▁▁▅█", "▅▁▁█"))


@pytest.mark.parametrize("document", [README, *WALKTHROUGHS, *GITHUB], ids=named)
def test_links_lead_to_files(document: Path) -> None:
    text = document.read_text("utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)", text) + re.findall(r'src="([^"]+)"', text)
    assert not [link for link in links if not (document.parent / link).exists()]


@pytest.mark.parametrize("document", [README, *WALKTHROUGHS], ids=named)
def test_lines_fit_the_page(document: Path) -> None:
    for command, shown in BLOCK.findall(document.read_text("utf-8")):
        if not {"json", "python", "pytest"} & set(re.findall(r"\w+", command)):
            assert max(map(len, shown.splitlines()), default=0) <= 80, command


@pytest.mark.parametrize("document", [README, *WALKTHROUGHS, *GITHUB], ids=named)
def test_links_into_a_page_lead_to_its_headings(document: Path) -> None:
    for path, place in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", document.read_text("utf-8")):
        target = (document.parent / path) if path else document
        headings = re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE)
        places = {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}
        assert place in places, (path, place)


def answer(name: str) -> dict[str, np.ndarray]:
    """Weights and output of a sample through the command."""
    found = json.loads(run(f"attncli compute samples/{name} --json"))
    return {key: np.array(found[key]) for key in ("weights", "output")}


def test_the_fruit_dictionary() -> None:
    found = answer("fruit.json")
    np.testing.assert_allclose(found["weights"], [[0.6, 0.4, 0.0]], atol=5e-4)
    np.testing.assert_allclose(found["output"], [[8.0]], atol=5e-4)


def test_bos_i_like_you() -> None:
    weights = answer("causal.json")["weights"]
    assert (np.triu(weights, 1) == 0).all()
    assert weights[0].tolist() == [1, 0, 0, 0]
    assert (np.tril(weights)[np.tril_indices(4)] > 0).all()


def test_cross_attention_finds_the_translation() -> None:
    bundle = read(str(ROOT / "samples/translation.json"))
    best = answer("translation.json")["weights"].argmax(1)
    assert [bundle.options["key_tokens"][j] for j in best] == ["I", "like", "you"]


def test_self_attention_of_a_sentence() -> None:
    weights = answer("sentence.json")["weights"]
    assert weights.shape == (5, 5)
    np.testing.assert_allclose(weights[0], weights[3])  # the same word, the same row


def test_the_tables_are_made_of_the_registry_and_the_policy() -> None:
    found = MARKED.findall((ROOT / "samples/statistics.md").read_text("utf-8"))
    assert found == [(name, table()) for name, table in TABLES.items()]
