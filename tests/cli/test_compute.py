"""``attncli compute`` through its door: what it prints, and that options reach the mathematics."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.program import Door, array

RNG = np.random.default_rng(7)
X = RNG.normal(size=(4, 3))


def softmax(z: Any) -> Any:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# -- the table --------------------------------------------------------------------------------


def test_fruit(attncli: Door, fruit: Path) -> None:
    ran = attncli("compute", fruit)
    lines = ran.out.splitlines()
    assert ran.code == 0
    assert lines[0].startswith("1 query × 3 keys, width 2, values of width 1 · scale 1 (from file)")
    rows = {line.split()[0]: line.split()[1:] for line in lines if line}
    assert rows["Weights"] == ["apple", "banana", "chair"]
    assert [line.split()[1:] for line in lines if line.startswith("fruit")] == [
        ["0.600", "0.400", "0.000"],
        ["8.000"],
    ]
    assert "\x1b" not in ran.out


def test_everything_fits_80_columns(door: Door, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RNG.normal(size=(2, 12, 40, 16)))
    steps = ["--steps", "--batch", 0, "--head", 0, "--rows", 0, "--keys", "0:4"]
    for options in ([], ["--heatmap"], ["--top", 3], ["--time"], ["--rows", "0:9"], steps):
        ran = door("compute", "x.npy", *options)
        assert (ran.code, ran.err) == (0, "")
        assert max(map(len, ran.out.splitlines())) <= 80, options


def test_color_only_when_asked(door: Door, fruit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[" in door("compute", fruit, "--heatmap", "--color", "always").out
    for options in ([], ["--color", "auto"], ["--color", "always", "--no-color"]):
        assert "\x1b" not in door("compute", fruit, "--heatmap", *options).out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in door("compute", fruit, "--heatmap").out


def test_ascii_only_terminal(attncli: Door, fruit: Path) -> None:
    ran = attncli("compute", fruit, PYTHONUTF8="0", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert ran.code == 0
    assert ran.out.startswith("1 query x 3 keys")
    ran = attncli("mask", "causal", "-l", 2, PYTHONUTF8="0", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert [line.split()[1:] for line in ran.out.splitlines()[-2:]] == [["#", "."], ["#", "#"]]


def test_top_and_heatmap_are_both_shown(door: Door, fruit: Path) -> None:
    ran = door("compute", fruit, "--top", 2, "--heatmap")
    assert ran.code == 0
    assert "largest 0.600" in ran.out
    assert "Top 2 keys" in ran.out


@pytest.mark.parametrize("to", ["out.npz", "-"])
def test_time_is_said_where_no_report_is_printed(
    door: Door, fruit: Path, tmp_path: Path, to: str
) -> None:
    target = tmp_path / to if to != "-" else to
    quiet = ["--quiet"] if to != "-" else []
    ran = door("compute", fruit, "--time", "--backend", "reference", "-o", target, *quiet)
    assert ran.code == 0
    line = next(line for line in ran.err.splitlines() if line.startswith("reference"))
    assert " s, " in line and "GFLOP/s" in line


def test_time_says_what_ran(door: Door, fruit: Path) -> None:
    ran = door("compute", fruit, "--time", "--backend", "reference", "--threads", 1)
    assert ran.code == 0
    assert "GFLOP/s" in ran.out
    assert "reference" in ran.out


# -- options reach the mathematics ------------------------------------------------------------


def test_the_options_change_the_result_as_they_say(door: Door, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "mask.npy", np.tri(4, dtype=bool).T)
    scores = X @ X.T / np.sqrt(3)
    lower, upper = np.tri(4, dtype=bool), np.tri(4, dtype=bool).T

    def hidden(keep: Any) -> Any:
        return softmax(np.where(keep, scores, -np.inf)) @ X

    cases: list[tuple[list[object], Any]] = [
        ([], softmax(scores) @ X),
        (["--backend", "reference"], softmax(scores) @ X),
        (["--scale", "none"], softmax(X @ X.T) @ X),
        (["--scale", "-0.5"], softmax(-0.5 * X @ X.T) @ X),
        (["--softcap", "0.5"], softmax(0.5 * np.tanh(scores / 0.5)) @ X),
        (["--causal"], hidden(lower)),
        (["-m", "causal", "-m", "~prefix(1) | global_rows(1)"],
         hidden(lower & ((np.arange(4) >= 1) | (np.arange(4) < 1)[:, None]))),
        (["--attn-mask", "mask.npy"], hidden(upper)),
        (["--attn-mask", "mask.npy", "--mask-polarity", "ignore", "-m", "prefix(4)"],
         np.vstack([np.zeros(3), hidden(~upper | (np.arange(4) == 0)[:, None])[1:]])),
        (["--kv-lengths", "2"], hidden(np.arange(4) < 2)),
    ]  # fmt: skip
    for options, expected in cases:
        ran = door("compute", "x.npy", "--json", *options)
        np.testing.assert_allclose(array(ran), expected, rtol=0, atol=1e-12, err_msg=str(options))


def test_sink_dtype_and_heads(door: Door, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    e = np.exp(X @ X.T / np.sqrt(3))
    weights = e / (e.sum(-1, keepdims=True) + 1)
    np.testing.assert_allclose(
        array(door("compute", "x.npy", "--json", "--sink", 0)), weights @ X, atol=1e-12
    )
    ran = door("compute", "x.npy", "--json", "--dtype", "float32")
    assert ran.data["engine"]["dtype"] == "float32"
    ran = door("compute", "x.npy", "--json", "--heads", 3)
    parts = [softmax(np.outer(c, c)) @ c for c in X.T]
    np.testing.assert_allclose(array(ran), np.stack(parts, -1), atol=1e-12)
    assert len(ran.data["heads"]) == 3


def test_past_makes_the_last_row_of_causal(door: Door, tmp_path: Path) -> None:
    np.savez(tmp_path / "step.npz", q=X[3:], k=X[3:], v=X[3:], past_key=X[:3], past_value=X[:3])
    np.save(tmp_path / "x.npy", X)
    whole = array(door("compute", "x.npy", "--causal", "--json"))
    step = array(door("compute", "step.npz", "--causal", "--json"))
    np.testing.assert_allclose(step[0], whole[3], atol=1e-12)


# -- data in, data out ------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["json", "npy", "npz", "safetensors"])
def test_standard_input_by_content(attncli: Door, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"in.{suffix}"
    writers: dict[str, Callable[[], Any]] = {
        "json": lambda: path.write_text(json.dumps({"x": X.tolist()})),
        "npy": lambda: np.save(path, X),
        "npz": lambda: np.savez(path, x=X),
        "safetensors": lambda: save_file({"x": X}, path),
    }
    writers[suffix]()
    ran = attncli("compute", "-", "--json", stdin=path.read_bytes())
    np.testing.assert_allclose(array(ran), softmax(X @ X.T / np.sqrt(3)) @ X, atol=1e-12)
    assert ran.err == ""


def test_tensors_of_standard_input_by_name(attncli: Door) -> None:
    text = json.dumps({"a": [[1.0]], "b": [[2.0]]})
    ran = attncli("compute", "-q", "-::a", "-v", "-::b", "--json", stdin=text)
    assert array(ran).tolist() == [[2.0]]


def test_json_has_the_skeleton_and_is_itself_a_bundle(
    door: Door, fruit: Path, tmp_path: Path
) -> None:
    ran = door("compute", fruit, "--json", "--include", "query,key,value,output")
    data = ran.data
    assert ran.err == ""
    assert data["schema"] == "attncli.compute/1"
    assert data["command"] == "compute"
    assert data["engine"]["backend"] == "numpy"
    assert data["scale"] == 1
    assert data["heads"][0]["statistics"]["max_weight"]["max"] == pytest.approx(0.6)
    (tmp_path / "again.json").write_text(ran.out)
    assert array(door("compute", "again.json", "--json")).item() == pytest.approx(8)


def test_a_result_is_a_bundle_or_says_how_to_write_one(attncli: Door, fruit: Path) -> None:
    whole = attncli("compute", fruit, "--json", "--include", "query,key,value").out
    again = attncli("compute", "-", "--json", stdin=whole)
    assert (again.code, again.err) == (0, "")
    assert again.data["output"] == [[pytest.approx(8.0)]]
    again = attncli("compute", "-", stdin=attncli("compute", fruit, "--json").out)
    assert again.code == 2
    assert "it holds output, weights" in again.err
    assert "--include query,key,value" in again.err


def test_csv_and_markdown(door: Door, fruit: Path) -> None:
    table = list(csv.reader(door("compute", fruit, "--format", "csv").out.splitlines()))
    assert len({len(row) for row in table}) == 1
    assert len(table) > 1
    assert "| apple" in door("compute", fruit, "--format", "markdown").out


def test_csv_keeps_labels_as_they_are(door: Door, tmp_path: Path) -> None:
    tokens = ["a\nb", " c\t", "\x1b[1m"]
    x = np.eye(3).tolist()
    (tmp_path / "x.json").write_text(json.dumps({"query": x, "tokens": tokens}))
    ran = door("compute", "x.json", "--format", "csv", "--include", "output")
    rows = list(csv.DictReader(io.StringIO(ran.out, newline="")))
    assert [rows[n]["query_token"] for n in (0, 3, 6)] == ["a\nb", " c\t", "\\x1b[1m"]


# -- odd input that has an answer -------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [(0, 3), (2, 0), (0, 0), (0, 2, 3), (2, 0, 3), (0, 1, 2, 3), (1, 0, 2, 3), (1, 1, 0, 0)],
)
def test_zero_length_dimensions(door: Door, tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "x.npy", np.ones(shape))
    for options in ([], ["--causal"], ["--top", 2], ["--heatmap"], ["--format", "csv"]):
        ran = door("compute", "x.npy", *options)
        assert (ran.code, ran.err) == (0, ""), options
    ran = door("compute", "x.npy", "--json", "--include", "output")
    assert ran.code == 0
    assert np.array(ran.data["output"]).size == np.prod(shape)


def test_no_keys_at_all(door: Door, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", q=np.ones((2, 3)), k=np.ones((0, 3)), v=np.ones((0, 4)))
    ran = door("compute", "x.npz", "--json")
    assert ran.code == 0
    assert ran.data["output"] == [[0.0] * 4] * 2
    assert len(ran.data["warnings"]) == 1


def test_nothing_to_show(door: Door, tmp_path: Path) -> None:
    for shape in ((0, 2, 3), (0, 1, 2, 3)):
        np.save(tmp_path / "x.npy", np.ones(shape))
        for options in ([], ["--top", 2], ["--heatmap"]):
            assert "nothing to show" in door("compute", "x.npy", *options).out
    np.save(tmp_path / "x.npy", np.ones((0, 3)))
    stability = door("compute", "x.npy").out.splitlines()[-2].split()
    assert {*stability[2:]} == {"–"}


def test_non_finite_values_are_computed_counted_and_warned_about(
    attncli: Door, tmp_path: Path
) -> None:
    (tmp_path / "x.json").write_text('{"x": [[1, NaN], [2, "Infinity"], [3, 4]]}')
    ran = attncli("compute", "x.json", "-m", "causal & ~prefix(2) | prefix(1) & global_rows(1)")
    assert ran.code == 0
    assert "warning: query has 2 values that are NaN or infinite" in ran.err
    ran = attncli("compute", "x.json", "--json")
    assert ran.data["output"][0] == ["NaN", "NaN"]
    assert any("NaN or infinite" in w for w in ran.data["warnings"])


def test_rows_that_see_nothing_are_warned_about_on_stderr_alone(door: Door, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    ran = door("compute", "x.npy", "-m", "~prefix(4)")
    assert ran.code == 0
    assert ran.err.startswith("warning: 4 of 4 rows see no key")
    assert "warning" not in ran.out


def test_integers_are_announced(door: Door, tmp_path: Path) -> None:
    for dtype in (np.int32, np.uint8, bool):
        np.save(tmp_path / "x.npy", np.eye(2, dtype=dtype))
        ran = door("compute", "x.npy")
        assert ran.code == 0
        assert f"query converted from {np.dtype(dtype)}" in ran.out + ran.err
