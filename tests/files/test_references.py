"""Tensors that JSON names in files beside it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.errors import AttnError, FileError
from attncli.files import references
from attncli.files.vocabulary import ROLES, TENSOR, WORDS
from tests.support.program import Door

RNG = np.random.default_rng(5)
QKV = {name: RNG.normal(size=(4, 3)).astype(np.float32) for name in ("query", "key", "value")}
KEEP = np.tri(4, dtype=bool)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files in a folder, and a secret beside it."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    os.mkfifo(tmp_path / "in" / "pipe.npy")
    (tmp_path / "in" / "away.npy").symlink_to(tmp_path / "secret.npy")
    np.save(tmp_path / "secret.npy", QKV["key"])
    np.save(tmp_path / "in" / "sub" / "key.npy", QKV["key"])
    np.save(tmp_path / "in" / "keep.npy", KEEP)
    np.savez(tmp_path / "in" / "all.npz", **QKV)
    files.write(
        str(tmp_path / "in" / "cases.safetensors"),
        {f"tile.{name}": array for name, array in QKV.items()},
    )
    return tmp_path / "in"


def put(folder: Path, *lines: dict[str, Any], name: str = "x.json") -> str:
    (folder / name).write_text("\n".join(map(json.dumps, lines)))
    return str(folder / name)


@pytest.mark.parametrize(
    "text", ["cases.safetensors::tile.key", "sub/key.npy", "all.npz::key", "all.npz", "./all.npz"]
)
def test_a_member_names_a_tensor(folder: Path, text: str) -> None:
    bundle = files.read(put(folder, {"query": [[1, 0, 0]], "key": text, "scale": 2}))
    assert dict(bundle.options) == {"scale": 2}
    assert bundle.header("key").shape == (4, 3)
    np.testing.assert_array_equal(bundle.tensors["key"], QKV["key"])


def test_every_role_of_a_tensor_takes_a_reference() -> None:
    taken = {
        r for r, row in ROLES.items() if any(references.is_reference(n, "a.npy") for n in row.names)
    }
    assert {"query", "past_value", "attn_mask", "sink", "kv_lengths", "rope_cos"} <= taken
    for role, row in ROLES.items():
        if TENSOR in row.kinds and WORDS not in row.kinds:
            assert all(references.is_reference(name, "f.bin::x") for name in row.names), role


@pytest.mark.parametrize(
    "text", ["causal", "file('m.npy')", "file('m.npz::mask')", "padding('n.npy') & causal"]
)
def test_a_mask_expression_is_none(text: str) -> None:
    assert not references.is_reference("mask", text)
    assert not references.is_reference("scale", "auto.npy")
    assert not references.is_reference("tokens", "std::vector")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("../secret.npy", "its own folder"), ("/etc/passwd::x", "its own folder"),
     ("sub/../../secret.npy", "its own folder"), ("-::query", "its own folder"),
     ("away.npy", "a link that leads elsewhere"), ("pipe.npy", "named pipe"),
     ("sub::x", "a folder"), ("none.npy", "no such file"), ("keep.npy::mask", "unnamed tensor"),
     ("all.npz::quary", "did you mean 'query'"), ("a\0.npy", "its own folder"),
     ("cases.safetensors", "no tensor 'key'")],
)  # fmt: skip
def test_what_it_cannot_name_is_refused(folder: Path, door: Door, text: str, expected: str) -> None:
    ran = door("compute", put(folder, {"query": [[1, 0, 0]], "key": text}), "--json")
    assert ran.code == 2
    error = ran.data["error"]
    assert expected in error["message"] + (error["hint"] or "")


def test_what_is_named_names_nothing_in_turn(folder: Path) -> None:
    put(folder, {"key": "all.npz::key"}, name="y.json")
    bundle = files.read(put(folder, {"query": [[1, 0, 0]], "key": "y.json::key"}))
    with pytest.raises(FileError, match="no tensor 'key'"):
        bundle.tensors["key"]


@pytest.mark.parametrize("command", ["compute", "inspect"])
def test_the_answer_is_that_of_the_numbers(folder: Path, door: Door, command: str) -> None:
    written = {name: array.tolist() for name, array in QKV.items()}
    named = {name: f"cases.safetensors::tile.{name}" for name in QKV}
    answers = [
        door(command, put(folder, {**tensors, "attn_mask": mask, "dtype": "float32"}), "--json")
        for tensors, mask in ((written, KEEP.tolist()), (named, "keep.npy"))
    ]
    assert [a.code for a in answers] == [0, 0], answers[1].err
    assert answers[0].data["heads"] == answers[1].data["heads"]


def test_multihead_takes_them(folder: Path, door: Door) -> None:
    np.save(folder / "x.npy", RNG.normal(size=(4, 8)))
    named = put(folder, {"x": "x.npy"})
    options = ("--random-weights", 0, "--heads", 2, "--json", "--include", "output")
    one, other = (door("multihead", ref, *options) for ref in (named, folder / "x.npy"))
    assert one.code == 0, one.err
    assert one.data["output"] == other.data["output"]


def test_a_prefix_and_a_name_keep_references(folder: Path, door: Door) -> None:
    path = put(folder, {"data": {"query": [[1, 0, 0]], "key": "sub/key.npy"}})
    assert door("compute", path, "--json").data["shapes"]["key"] == [4, 3]
    ran = door("compute", "-q", f"{folder}/all.npz::query", "-k", f"{path}::data.key", "--json")
    assert ran.data["shapes"]["key"] == [4, 3]


def test_a_file_that_is_named_is_not_overwritten(folder: Path, door: Door) -> None:
    path = put(folder, {"query": "all.npz"})
    ran = door("compute", path, "-o", folder / "all.npz")
    assert (ran.code, "would overwrite an input" in ran.err) == (2, True)


def test_lines_open_a_file_once_and_a_bad_one_keeps_its_id(
    folder: Path, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    read = references.read_whole
    monkeypatch.setattr(references, "read_whole", lambda *a: (opened.append(a[1]), read(*a))[1])
    good = {name: f"cases.safetensors::tile.{name}" for name in QKV}
    path = put(folder, *[{"id": n, **good} for n in range(4)], {"id": 4, **good, "key": "../x.npy"})
    ran = door("compute", path)
    assert [(line["id"], "error" in line) for line in ran.lines] == [
        (0, False), (1, False), (2, False), (3, False), (4, True),
    ]  # fmt: skip
    assert opened == [str(folder / "cases.safetensors")]


def test_a_file_that_changed_is_read_anew(folder: Path) -> None:
    path = put(folder, {"query": "sub/key.npy"})
    files.read(path).tensors["query"]
    files.write(str(folder / "sub" / "key.npy"), {"": QKV["value"]})
    np.testing.assert_array_equal(files.read(path).tensors["query"], QKV["value"])


def test_standard_input_names_files_of_the_current_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (line,) = files.read_lines(io.BytesIO(b'{"query": "keep.npy"}'))
    assert not isinstance(line, AttnError)
    np.testing.assert_array_equal(line.tensors["query"], KEEP)
