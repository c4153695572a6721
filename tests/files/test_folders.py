"""Folders of weights and their shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import files
from tests.support.files import put, refused, same, sample, use_stdin


def shards(folder: Path, **where: Any) -> str:
    for number in (1, 2):
        files.write(str(folder / f"s{number}.safetensors"), {f"t{number}": np.full(2, number)})
    index = {"metadata": {}, "weight_map": {"t1": "s1.safetensors", "t2": "s2.safetensors"} | where}
    return put(folder / "model.safetensors.index.json", json.dumps(index))


def test_shards(tmp_path: Path) -> None:
    path = shards(tmp_path)
    for ref in (path, str(tmp_path)):
        bundle = files.read(ref)
        assert bundle.kind == "safetensors" and list(bundle.tensors) == ["t1", "t2"]
        assert bundle.header("t2") == files.Header((2,), "int64", 16)
        assert bundle.tensors["t2"].tolist() == [2, 2]
    assert files.read_tensor(f"{tmp_path}::t1").tolist() == [1, 1]


@pytest.mark.parametrize(
    ("file", "fragment"),
    [("../x.safetensors", "expected a file beside it"), ("/etc/passwd", "beside it"), (3, "beside"),
     ("s9.safetensors", "the index names s9.safetensors, which is not there"),
     ("s1.safetensors", "it is not there")],
)  # fmt: skip
def test_bad_shards(tmp_path: Path, file: Any, fragment: str) -> None:
    refused(shards(tmp_path, t2=file), fragment)


def test_a_shard_index_that_points_to_itself(tmp_path: Path) -> None:
    refused(shards(tmp_path, t2="model.safetensors.index.json"), "model.safetensors.index.json")


def test_a_shard_index_on_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_stdin(monkeypatch, Path(shards(tmp_path)).read_bytes())
    refused("-", "shard index")


def test_folders(tmp_path: Path) -> None:
    refused(str(tmp_path), "it holds nothing")
    put(tmp_path / "a.txt", "")
    refused(str(tmp_path), "a.txt")
    files.write(str(tmp_path / "one.safetensors"), {"a": sample("int8")})
    same(files.read_tensor(str(tmp_path)), sample("int8"))
    files.write(str(tmp_path / "model.safetensors"), {"b": sample("int8")})
    assert list(files.read(str(tmp_path)).tensors) == ["b"]


@pytest.mark.parametrize(
    ("name", "fragments"),
    [("model.pkl", ["is a Python pickle", "save it as .npz or .safetensors"])],
)  # fmt: skip
def test_a_folder_of_weights_that_are_not_read(
    tmp_path: Path, name: str, fragments: list[str]
) -> None:
    put(tmp_path / "config.json", "{}")
    put(tmp_path / name, "x")
    refused(str(tmp_path), name, *fragments)
    put(tmp_path / "model.pt", "x")
    refused(str(tmp_path), f"name a file: {tmp_path / 'model.pt'}")
    files.write(str(tmp_path / "one.safetensors"), {"a": sample("int8")})
    same(files.read_tensor(str(tmp_path)), sample("int8"))
