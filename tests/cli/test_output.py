"""Where results go: which arrays, into which files, and never over what is read."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.program import Door, assert_bad, environment

X = np.random.default_rng(7).normal(size=(4, 3))


def test_output_alone_unless_told(door: Door, fruit: Path, tmp_path: Path) -> None:
    ran = door("compute", fruit, "-o", "out.npz")
    assert (ran.code, ran.err) == (0, "wrote out.npz (output)\n")
    assert "Weights" in ran.out
    with np.load(tmp_path / "out.npz") as saved:
        assert list(saved) == ["output"]
        assert saved["output"].item() == pytest.approx(8)


def test_every_name_can_be_saved(door: Door, tmp_path: Path) -> None:
    from attncli.reports.words import INCLUDABLE

    np.save(tmp_path / "x.npy", X)
    every = ("--include", ",".join(INCLUDABLE), "--grad-output", "ones")
    assert door("compute", "x.npy", "-o", "all.safetensors", *every).code == 0
    saved = load_file(tmp_path / "all.safetensors")
    for name in INCLUDABLE:
        assert any(n == name or n.startswith(name + ".") for n in saved), name
    np.testing.assert_allclose(saved["scores"], X @ X.T / np.sqrt(3), atol=1e-12)
    np.testing.assert_allclose(saved["weights"].sum(-1), 1)
    np.testing.assert_allclose(saved["query"], X)


def test_standard_output_as_a_file(attncli: Door, fruit: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "attncli", "compute", str(fruit), "-o", "-.npy"],
        capture_output=True, env=environment(), check=True,
    )  # fmt: skip
    assert np.load(io.BytesIO(ran.stdout)).item() == pytest.approx(8)
    for options in (["-o", "-.json"], ["-o", "-", "--json"]):
        ran2 = attncli("compute", fruit, *options)
        assert ran2.data["output"] == [[pytest.approx(8)]]
        assert ran2.data["key_tokens"] == ["apple", "banana", "chair"]


def test_standard_output_as_json_takes_the_reports_place(door: Door, fruit: Path) -> None:
    for options in (["-o", "-", "--json"], ["-o", "-.json"]):
        ran = door("compute", fruit, *options)
        assert (ran.code, ran.err) == (0, "")
        assert {*ran.data} >= {"output", "query_tokens", "key_tokens"}
        assert "heads" not in ran.data


def test_what_is_saved_can_be_read_again(door: Door, fruit: Path) -> None:
    door("compute", fruit, "-o", "again.json", "--include", "query,key,value")
    ran = door("compute", "again.json", "--scale", 1)
    assert "apple" in ran.out
    assert "8.000" in ran.out


def test_a_selection_does_not_limit_what_is_saved(door: Door, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    assert door("compute", "x.npy", "--rows", 0, "-o", "o.npy").code == 0
    assert np.load(tmp_path / "o.npy").shape == X.shape


@pytest.mark.parametrize("how", ["same", "link", "hard", "other spelling"])
def test_output_over_an_input(door: Door, fruit: Path, tmp_path: Path, how: str) -> None:
    target = tmp_path / "alias.json"
    if how == "link":
        target.symlink_to(fruit)
    elif how == "hard":
        target.hardlink_to(fruit)
    else:
        target = fruit if how == "same" else tmp_path / "." / "x" / ".." / "fruit.json"
        (tmp_path / "x").mkdir()
    before = fruit.read_bytes()
    ran = door("compute", fruit, "-o", target)
    assert ran.code == 2
    assert "would overwrite an input" in ran.err
    assert fruit.read_bytes() == before


def test_labels_and_flags_are_inputs_too(door: Door, fruit: Path, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('["a", "b", "c"]')
    np.save(tmp_path / "v.npy", np.ones((3, 1)))
    ran = door("compute", fruit, "--key-tokens", "@t.json", "-o", "t.json")
    assert "would overwrite an input" in ran.err
    ran = door("compute", fruit, "-v", "v.npy", "-o", "v.npy")
    assert "would overwrite an input" in ran.err


def test_output_onto_a_file_that_a_mask_names(door: Door, tmp_path: Path) -> None:
    for name, array in (("x", X), ("lengths", np.array([4])), ("bias", np.zeros(7))):
        np.save(tmp_path / f"{name}.npy", array)
    before = (tmp_path / "lengths.npy").read_bytes()
    for expression, target in (
        ("padding('lengths.npy')", "lengths.npy"),
        ("causal & segments('bias.npy')", "./bias.npy"),
        ("file('bias.npy', '')", "bias.npy"),
    ):
        for command in (["compute", "x.npy", "-m"], ["mask", "-l", 7]):
            ran = door(*command, expression, "-o", target)
            assert ran.code == 2
    assert_bad(door, "compute", "x.npy", "-m", "padding('lengths.npy')", "-o", "lengths.npy",
               expected="would overwrite an input", code="bad_file")  # fmt: skip
    assert_bad(door, "mask", "padding('lengths.npy')", "-l", 4, "-o", "lengths.npy",
               expected="would overwrite an input", code="bad_file")  # fmt: skip
    assert (tmp_path / "lengths.npy").read_bytes() == before


def test_a_bad_target_is_found_before_anything_is_read(door: Door) -> None:
    for target in ("nowhere/out.npz", "out.txt", "out", "."):
        ran = door("compute", "does-not-exist.npz", "-o", target)
        assert ran.code == 2
        assert "does-not-exist" not in ran.err, target


@pytest.mark.skipif(os.name == "nt", reason="links and folders in use")
def test_where_output_cannot_go(attncli: Door, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "dangling.npz").symlink_to(tmp_path / "nowhere" / "o.npz")
    for target, expected in (
        ("nodir/o.npz", "make it first: mkdir -p nodir"),
        ("dangling.npz", "dangling.npz is a link into a folder that is not there: "),
        ("/proc/o.npz", "/proc"),
    ):
        ran = attncli("compute", "x.npy", "-o", target)
        assert (ran.code, ran.out) == (2, "") or target.startswith("/proc")
        assert ran.code == 2
        assert expected in ran.err
        assert "no such file" not in ran.err
    done = subprocess.run(
        ["sh", "-c", f"mkdir gone && cd gone && rmdir ../gone && exec {sys.executable} -m attncli "
         f"compute {tmp_path}/x.npy -o o.npz"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "o.npz cannot be written: the current folder was deleted" in done.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_unwritable_output(door: Door, fruit: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert_bad(door, "compute", fruit, "-o", "locked/o.npz", expected="no permission to write")
