"""--report through its door: which commands write a page, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.program import ROOT, Door, assert_bad

SAMPLES = ROOT / "samples"
MINILM = SAMPLES / "minilm.safetensors"


def held(path: Path) -> Any:
    text = path.read_text()
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def maps_in(page: dict[str, Any]) -> list[dict[str, Any]]:
    """The maps of heads; there may be others."""
    return [one for one in page["maps"] if one["head"] is not None]


@pytest.mark.parametrize("more", [(), ("--json",), ("--format", "csv")], ids=" ".join)
def test_a_page_is_written_whatever_is_printed(
    door: Door, tmp_path: Path, more: tuple[str, ...]
) -> None:
    ran = door("compute", MINILM, "--report", "page.html", *more)
    assert ran.code == 0 and "wrote page.html" in ran.err
    page = held(tmp_path / "page.html")
    assert [one["head"] for one in maps_in(page)] == list(range(36))
    assert len(page["heads"]["names"]) == 36
    assert page["headline"][0].startswith("3 × 12 heads")
    assert any(block["kind"] == "table" for block in page["blocks"])


def test_only_what_is_selected_is_drawn(door: Door, tmp_path: Path) -> None:
    door("compute", MINILM, "--batch", "1", "--head", "2,5", "--report", "page.html")
    page = held(tmp_path / "page.html")
    assert [page["heads"]["at"][one["head"]][1] for one in maps_in(page)] == [2, 5]


@pytest.mark.parametrize(
    ("asked", "title"),
    [
        (("inspect", MINILM, "--what-if", "scale=none"), "What if"),
        (("inspect", "--sweep-dim", "8,16"), "d"),
        (("inspect", MINILM, "--compare", MINILM), None),
        (("mask", "causal", "--length", "4"), None),
        (("compute", SAMPLES / "fruit.json", "--steps"), "1  scores"),
    ],
    ids=["inspect", "sweep", "compare", "mask", "steps"],
)
def test_what_was_said_stands_on_the_page(
    door: Door, tmp_path: Path, asked: tuple[object, ...], title: str | None
) -> None:
    ran = door(*asked, "--report", "page.html")
    assert ran.code == 0, ran.err
    page = held(tmp_path / "page.html")
    assert page["headline"][0] in ran.out.replace("\n", " ")
    assert title is None or title in [block["title"] for block in page["blocks"]]


def test_layers_of_one_file_keep_their_maps(door: Door, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        f"layers.{n}.{name}": rng.standard_normal((3, 6, 4))
        for n in range(2) for name in ("query", "key", "value")
    }  # fmt: skip
    np.savez(tmp_path / "layers.npz", **tensors)
    door("inspect", "layers.npz", "--report", "page.html")
    page = held(tmp_path / "page.html")
    assert page["heads"]["rows"] == ["layer 0", "layer 1"]
    drawn = [page["heads"]["names"][one["head"]] for one in maps_in(page)]
    assert drawn == [f"{n}.{h}" for n in range(2) for h in range(3)]


def test_no_maps_are_made_where_nobody_asked(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attncli.reports.kept.heatmaps", None)
    np.savez(tmp_path / "a.npz", query=np.eye(3))
    np.savez(tmp_path / "b.npz", query=np.eye(3))
    assert door("inspect", "a.npz", "b.npz").code == 0


@pytest.mark.parametrize(
    ("path", "said"),
    [("page.pdf", "--report: page.pdf ends in '.pdf'"), ("page", "page has no suffix"),
     ("no/page.html", "no such folder: no")],
)  # fmt: skip
def test_where_no_page_can_be_written(door: Door, path: str, said: str) -> None:
    assert_bad(door, "compute", SAMPLES / "fruit.json", "--report", path, expected=said)


def test_a_model_that_reads_keeps_the_maps_of_all_its_layers(door: Door, tmp_path: Path) -> None:
    for needed in ("torch", "transformers", "tokenizers"):
        pytest.importorskip(needed)
    from tests.support.model import write_model

    folder = write_model(tmp_path / "llama")
    ran = door("inspect", folder, "--text", "the cat sat", "--layer", "1:", "--report", "page.html")
    assert ran.code == 0, ran.err
    page = held(tmp_path / "page.html")
    drawn = [page["heads"]["names"][one["head"]] for one in maps_in(page)]
    assert drawn == [f"{n}.{h}" for n in (1, 2) for h in range(4)]
    names = page["names"][page["axes"][maps_in(page)[0]["rows"]]["names"]]
    assert [name.strip("␣▁Ġ") for name in names][-3:] == ["the", "cat", "sat"]
