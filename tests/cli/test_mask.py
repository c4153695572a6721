"""``attncli mask`` through its door."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.program import Door

GRID = """\
4 × 4, 10 of 16 kept (62 %) · no row is empty · no row sees the future

        <BOS>    I    like   you
<BOS>     ■      ·     ·      ·
I         ■      ■     ·      ·
like      ■      ■     ■      ·
you       ■      ■     ■      ■
"""
READER = """\
<BOS>  [MASK] [MASK] [MASK]
<BOS>  I      [MASK] [MASK]
<BOS>  I      like   [MASK]
<BOS>  I      like   you
"""


def test_the_article_s_mask_as_a_grid_and_as_a_reader_meets_it(door: Door) -> None:
    told = ("mask", "causal", "--tokens", "<BOS> I like you")
    assert door(*told).out == GRID
    assert door(*told, "--view", "tokens").out == READER


def test_large_masks_are_shown_in_blocks(door: Door) -> None:
    done = door("mask", "causal & window(1024)", "-l", "65536")
    assert done.code == 0
    assert len(done.out.splitlines()) < 60
    assert max(map(len, done.out.splitlines())) <= 80
    assert "each mark is a block" in done.out
    assert "tiles of 128 × 128: " in done.out


def test_json_is_a_bundle_and_says_what_is_kept(door: Door) -> None:
    found = door("mask", "causal", "-l", "3", "--json").data
    assert found["attn_mask"] == [[True, False, False], [True, True, False], [True, True, True]]
    assert (found["kept"], found["empty_rows"], found["future_rows"]) == (6, 0, 0)


def test_against_exits_with_1_where_masks_differ(door: Door) -> None:
    same = door("mask", "causal", "-l", "8", "--against", "window(inf, 0)")
    assert same.code == 0
    assert "the same cells" in same.out
    other = door("mask", "causal", "-l", "8", "--against", "window(3, 0)")
    assert other.code == 1
    assert "10 of 64 cells differ" in other.out
    assert "query 4, key 0" in other.out


def test_saved_masks_come_back(door: Door, tmp_path: Path) -> None:
    keep, added = tmp_path / "keep.npy", tmp_path / "added.npz"
    assert door("mask", "causal & padding(4, 2)", "-l", "4", "-o", str(keep)).code == 0
    assert np.load(keep).dtype == bool
    assert np.load(keep).shape == (2, 1, 4, 4)
    again = door("mask", str(keep), "--against", "causal & padding(4, 2)")
    assert again.code == 0, again.out
    assert door("mask", "causal", "-l", "4", "--additive", "-o", str(added)).code == 0
    tensor = np.load(added)["attn_mask"]
    assert (tensor[np.triu_indices(4, 1)] == -np.inf).all()
    assert (tensor[np.tril_indices(4)] == 0).all()
    ignore = door("mask", str(keep), "--mask-polarity", "ignore", "--json")
    assert ignore.data["kept"] == 2 * 16 - np.load(keep).sum()


@pytest.mark.parametrize("dialect", ["sdpa", "mha", "onnx", "hf"])
def test_dialects_are_saved(door: Door, tmp_path: Path, dialect: str) -> None:
    target = tmp_path / "mask.npz"
    done = door("mask", "window(1, 0)", "-l", "4", "--for", dialect, "-o", str(target))
    assert done.code == 0, done.err
    assert len(np.load(target).files) == 1


def test_heads_of_a_bias_and_positions_after_a_past(door: Door) -> None:
    found = door("mask", "alibi(0.5, 0.25) & causal", "-l", "3", "--json").data
    assert found["shapes"]["attn_mask"] == [1, 2, 3, 3]
    assert np.array(found["attn_mask"]).shape == (1, 2, 3, 3)
    past = door(
        "mask", "causal", "--query-length", "2", "--key-length", "5", "--past", "3", "--json"
    )
    assert past.data["kept"] == 9
    lengths = door(
        "mask",
        "causal",
        "--query-length",
        "1",
        "--key-length",
        "5",
        "--kv-lengths",
        "2,4",
        "--json",
    )
    assert lengths.data["kept"] == 6


def test_a_file_of_something_else_is_no_mask_unless_it_is_named(
    door: Door, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("q.json").write_text('{"query": [[1, 0], [1, 1]]}')
    done = door("mask", "q.json")
    assert done.code == 2 and "q.json holds no mask; it holds query" in done.err
    assert "q.json::query" in done.err
    assert door("mask", "q.json::query").out.startswith("2 × 2, 3 of 4 kept")
    Path("other.json").write_text('{"my_own": [[1, 0], [1, 1]]}')
    assert door("mask", "other.json").out.startswith("2 × 2, 3 of 4 kept")


@pytest.mark.parametrize("said", ['"mask": "causal"', '"causal": true', '"mask": [[1, 0], [1, 1]]'])
def test_the_mask_of_a_problem_has_its_size_and_its_tokens(
    said: str, door: Door, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    x = "[[1, 0], [0, 1]]"
    Path("p.json").write_text(f'{{"tokens": ["a", "b"], "query": {x}, "value": {x}, {said}}}')
    done = door("mask", "p.json")
    assert (done.code, done.err) == (0, "")
    assert re.findall(r"\w+ +[■·] +[■·]", done.out) == ["a    ■     ·", "b    ■     ■"]
    both = door("mask", "p.json", "prefix(1)")
    assert both.code == 0 and "a    ■     ·" in both.out and "b    ■     ·" in both.out
    if "[[1, 0], [1" not in said:
        assert "3 × 3" in door("mask", "p.json", "-l", "3").out
    Path("wide.json").write_text(f'{{"query": {x}, "key": [[1, 0], [0, 1], [1, 1]], {said}}}')
    wide = door("mask", "wide.json")
    assert "causal(bottom_right)" in wide.err if "causal" in said else wide.out.startswith("2 × 2")


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("causal",), "nothing says how long"),
        (("causall", "-l", "3"), "did you mean 'causal'?"),
        (("causal", "--query-length", "2", "--key-length", "3"), "causal(bottom_right)"),
        (("causal", "-l", "-1"), "at least 0"),
        (("causal", "-l", "3", "--for", "jax"), "unknown --for 'jax'"),
        (("causal | prefix(1)", "-l", "3", "--for", "flash"), "cannot say"),
        (("causal", "-l", "3", "--for", "sdpa", "--additive"), "contradict"),
        (("causal", "-l", "3", "--for", "flash", "-o", "x.npz"), "arguments"),
        (("causal", "-l", "3", "--view", "list"), "unknown --view 'list'"),
        (("causal", "-l", "500", "--view", "tokens"), "too many to read"),
        (("causal", "--tokens", "a b", "-l", "3"), "2 tokens"),
        (("causal", "-l", "3", "--past", "1", "--kv-lengths", "2"), "both given"),
        (("causal", "-l", "3", "--kv-lengths", "9"), "9"),
        (("causal", "-l", "3", "--kv-lengths", "a"), "expected numbers"),
        (("nowhere.npy",), "no such file"),
        (("causal", "-l", "3", "-o", "mask.txt"), ".npz"),
        (("causal", "-l", "300000", "-o", "mask.npy"), "GiB"),
        ((), "missing argument"),
    ],
)
def test_bad_input_is_said(
    door: Door, arguments: tuple[str, ...], fragment: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    done = door("mask", *arguments)
    assert done.code == 2
    assert done.out == ""
    assert fragment in done.err.replace("\n       ", " ")
    assert "Traceback" not in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_mask_for_mha_comes_back_as_it_was(door: Door, tmp_path: Path, suffix: str) -> None:
    """Its True hides, and padding stands beside it: the file says so."""
    told = "causal & padding(2, 3)"
    assert door("mask", told, "-l", 3, "--for", "mha", "-o", f"m{suffix}").code == 0
    ran = door("mask", f"m{suffix}", "--against", told)
    assert (ran.code, ran.err) == (0, "")
