"""--plot on the command line: in every command that can draw, and refused before it computes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import typer

from attncli import render
from attncli.cli.groups import Printed
from attncli.cli.output import Page, finish, keep_inputs
from attncli.errors import FileError
from attncli.reports.blocks import Curve, Figure, Report
from tests.support.program import Door, assert_bad

pytest.importorskip("matplotlib")


def texts(path: Path) -> list[str]:
    root = ElementTree.fromstring(path.read_bytes())
    return ["".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.fixture(autouse=True)
def qkv(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=(2, 2, 4, 4)) for name in ("query", "key", "value")}
    np.savez(tmp_path / "qkv.npz", **arrays)
    layers = {f"layers.{n}.{k}": a * (n + 1) for n in range(2) for k, a in arrays.items()}
    np.savez(tmp_path / "layers.npz", **layers)
    np.save(tmp_path / "x.npy", rng.normal(size=(2, 4, 8)))
    np.save(tmp_path / "weights.npy", np.full((2, 3, 3), 1 / 3))
    np.save(tmp_path / "mine.npy", np.zeros((2, 2, 4, 4)))
    line = json.dumps({name: array.tolist() for name, array in arrays.items()})
    (tmp_path / "qkv.ndjson").write_text(f"{line}\n{line}\n")


CALLS = {
    "compute qkv.npz": "weight, √ scale",
    "compute qkv.npz --expect mine.npy": "budget",
    "multihead x.npy --random-weights 0 --heads 2": "weight, √ scale",
    "inspect qkv.npz": "logit std",
    "inspect weights.npy": "weight, √ scale",
    "inspect layers.npz": "sink mass",
    "inspect --sweep-dim 4,8": "not scaled",
    "mask causal -l 4": "hidden",
    "mask causal+alibi -l 4": "Added to the scores",
}


@pytest.mark.parametrize("call", CALLS)
def test_every_command_draws_and_prints_what_it_printed(
    call: str, door: Door, tmp_path: Path
) -> None:
    plain = door(*call.split())
    ran = door(*call.split(), "--plot", "out.svg")
    assert (ran.code, ran.out) == (plain.code, plain.out)
    assert ran.err == plain.err + "wrote out.svg\n"
    assert CALLS[call] in texts(tmp_path / "out.svg")


@pytest.mark.parametrize("call", CALLS)
def test_json_stays_whole(call: str, door: Door) -> None:
    ran = door(*call.split(), "--json", "--plot", "out.pdf")
    assert ran.data["command"] == call.split()[0] and ran.err.endswith("wrote out.pdf\n")


@pytest.mark.parametrize("call", [call for call in CALLS if "sweep" not in call])
def test_drawing_says_how_far_it_is(call: str, door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, float]] = []

    @contextmanager
    def progress(label: str = "attention") -> Iterator[Callable[[float], None]]:
        yield lambda share: said.append((label, share))

    monkeypatch.setattr(render, "progress", progress)
    ran = door(*call.split(), "--plot", "out.svg", "--report", "out.html")
    assert ran.err.endswith("wrote out.svg\nwrote out.html\n")
    shares = [share for label, share in said if label == "pictures"]
    assert shares == sorted(shares) and shares[-2:] == [0.75, 1]
    heads = "layers" not in call and ("mask" not in call or "alibi" in call)
    assert heads == (shares[0] <= 0.5)  # those of layers were made on the way


def test_what_a_plot_and_a_page_show_is_made_once(tmp_path: Path) -> None:
    made: list[Any] = []

    def pictures(progress: Any = None) -> list[Any]:
        made.append(progress)
        return [Figure("entropy", "d", "nats", [Curve("", [1, 2], [3, 4])])]

    report = Report("test", ["fact"], [], dict, pictures=pictures)
    kinds = {"plot": str(tmp_path / "out.svg"), "report": str(tmp_path / "out.html")}
    with pytest.raises(typer.Exit):
        finish(report, Page("table", quiet=True, pictures=kinds), Printed())
    assert len(made) == 1
    assert "entropy" in texts(tmp_path / "out.svg")
    assert "entropy" in (tmp_path / "out.html").read_text()


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "PNG"])
def test_the_suffix_says_the_format(suffix: str, door: Door, tmp_path: Path) -> None:
    assert door("compute", "qkv.npz", "--plot", f"a.{suffix}").code == 0
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF-"}[suffix.lower()]
    assert (tmp_path / f"a.{suffix}").read_bytes().startswith(start)


def test_quiet_leaves_out_the_table(door: Door) -> None:
    ran = door("compute", "qkv.npz", "--plot", "a.png", "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "wrote a.png\n")


def test_what_is_selected_is_drawn(door: Door, tmp_path: Path) -> None:
    door("compute", "qkv.npz", "--plot", "a.svg", "--batch", "1", "--head", "1", "--rows", "1:3")
    found = texts(tmp_path / "a.svg")
    assert "Weights · batch 1 · head 1" in found
    assert found[:7] == ["0", "1", "2", "3", "key", "1", "2"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a.gif", "--plot: a.gif ends in '.gif'"),
        ("a", "--plot: a has no suffix"),
        ("no/a.png", "no such folder: no"),
        ("folder.png", "folder.png is a folder"),
    ],
)
def test_where_nothing_can_be_written(path: str, expected: str, door: Door, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    assert_bad(door, "compute", "missing.npz", "--plot", path, expected=expected, code="bad_file")


def test_nothing_to_draw(door: Door, tmp_path: Path) -> None:
    np.savez(tmp_path / "none.npz", query=np.zeros((1, 0, 4, 4)))
    ran = door("compute", "none.npz", "--plot", "a.png")
    assert ran.code == 2 and "nothing to draw" in ran.err and not (tmp_path / "a.png").exists()


def test_lines_have_no_picture(door: Door, tmp_path: Path) -> None:
    for call in ("compute qkv.ndjson", "inspect qkv.ndjson", "inspect layers.npz --format ndjson"):
        ran = door(*call.split(), "--plot", "a.png")
        assert ran.code == 2 and "--plot" in ran.out + ran.err, call
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize(
    "call", ["inspect qkv.npz --header", "mask causal -l 4 --for sdpa", "compute --cases a.jsonl"]
)
def test_what_cannot_be_drawn_is_refused(call: str, door: Door) -> None:
    ran = door(*call.split(), "--plot", "a.png")
    assert ran.code == 2 and "--plot has no use in" in ran.err


def test_without_matplotlib(door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ran = door("compute", "missing.npz", "--plot", "a.png")
    assert ran.code == 3 and "pip install 'attncli[plot]'" in ran.err
    assert not (tmp_path / "a.png").exists()
    assert door("compute", "qkv.npz", "--heatmap").code == 0


def test_in_a_process_of_its_own_without_a_display(attncli: Door, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    ran = attncli(
        "compute", "qkv.npz", "--plot", "a.svg", "--quiet", HOME=str(home), DISPLAY="",
        MPLBACKEND="TkAgg", MPLCONFIGDIR=str(home / "no"),
    )  # fmt: skip
    assert (ran.code, ran.out, ran.err) == (0, "", "wrote a.svg\n")
    again = attncli("compute", "qkv.npz", "--plot", "b.svg", "--quiet", PYTHONHASHSEED="7")
    assert again.code == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_no_picture_takes_the_place_of_what_was_read(tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    image.write_bytes(b"mine")
    (tmp_path / "link.png").symlink_to(image)
    for path in (image, tmp_path / "link.png"):
        with pytest.raises(FileError, match=f"--plot {path} would overwrite an input"):
            keep_inputs(Page("table", pictures={"plot": str(path)}), [str(image)])
    keep_inputs(Page("table", pictures={"plot": str(tmp_path / "other.png")}), [str(image)])
