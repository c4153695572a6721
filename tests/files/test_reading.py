"""References, and files that are not there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.errors import FileError
from attncli.studies.cases.candidates import Folder
from tests.support.files import npy, put, refused, same, sample


def test_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arrays = {"query": sample("int8"), "a::b": sample("bool"), "l.0.q": sample("float32")}
    files.write("x.npz", arrays)
    for name, array in arrays.items():
        bundle = files.read(f"x.npz::{name}")
        assert list(bundle.tensors) == [name]
        same(bundle.tensors[name], array)
    assert list(files.read("x.npz::l.0").tensors) == ["l.0.q"]
    assert list(files.read("x.npz::l.").tensors) == ["l.0.q"]
    os.rename("x.npz", "odd::name.npz")
    assert len(files.read("odd::name.npz").tensors) == 3
    same(files.read_tensor("odd::name.npz::query"), arrays["query"])
    refused("odd::name.npz::", "lacks the name after")
    refused("::query", "lacks the path before")
    refused("odd::name.npz::qeury", "no tensor 'qeury'", "3 (query, a::b", "did you mean 'query'")
    with pytest.raises(FileError, match=r"expected one tensor(.|\n)*odd::name.npz::query"):
        files.read_tensor("odd::name.npz")
    with pytest.raises(FileError, match="no tensor 'nope'"):
        files.read("odd::name.npz").header("nope")


def test_many_names_are_cut(tmp_path: Path) -> None:
    path = str(tmp_path / "x.npz")
    files.write(path, {f"t{i}": np.ones(1) for i in range(50)})
    error = refused(path + "::zzz", "50 (t0, t1,", "t19, …")
    assert "t20" not in str(error)


def test_missing_files(tmp_path: Path) -> None:
    put(tmp_path / "query.npy", npy(sample("int8")))
    refused(str(tmp_path / "qeury.npy"), "no such file", "did you mean", "query.npy")
    refused(str(tmp_path / "nowhere" / "x.npy"), "no such folder")
    refused(str(tmp_path / "query.npy" / "x"), "no such folder")
    refused("a\0b", "null")
    refused("x" * 5000, "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = put(tmp_path / "x.npy", npy(sample("int8")))
    os.chmod(path, 0)
    refused(path, "no permission to read")


def test_permission_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    path = put(tmp_path / "x.npy", npy(sample("int8")))
    monkeypatch.setattr("builtins.open", denied)
    refused(path, "no permission to read")


def test_a_folder_whose_names_nobody_may_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is not there has no neighbours then; answers cannot be found."""

    def denied(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", denied)
    refused(str(tmp_path / "x.npy"), "no such file")
    with pytest.raises(FileError, match="no permission to read"):
        Folder(str(tmp_path))


def test_a_name_for_an_unnamed_tensor(tmp_path: Path) -> None:
    np.save(tmp_path / "ok.npy", np.ones(2))
    refused(f"{tmp_path / 'ok.npy'}::query", "one unnamed tensor: '::query' names nothing")
