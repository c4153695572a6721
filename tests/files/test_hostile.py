"""Files that want more than to be read: bombs, devices, pipes, names that stand twice."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attncli import files
from attncli.cli.given.elsewhere import anchored
from attncli.errors import FileError
from attncli.files.formats import npz
from tests.conftest import Ran
from tests.support.files import put, refused, use_stdin

Run = Callable[..., Ran]


def header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode()


def zipped(path: Path, member: str, data: bytes) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, data)
    return str(path)


# -- zip files


def test_a_member_is_no_longer_than_its_header_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = zipped(tmp_path / "x.npz", "query.npy", header("(2, 2)") + bytes(1 << 24))
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was unpacked"))
    refused(path, "::query holds 16777216 bytes of data where its header says 16")
    use_stdin(monkeypatch, Path(path).read_bytes())
    refused("-", "::query holds 16777216 bytes of data")


def test_a_member_that_memory_cannot_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zipped(tmp_path / "x.npz", "query.npy", header("(1024, 1024)") + bytes(1 << 22))
    assert files.read_tensor(path).shape == (1024, 1024)
    monkeypatch.setattr(npz, "available_memory", lambda: 1 << 20)
    refused(path, "unpacks to 4", "are free")


def test_a_torch_file_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    stream = io.BytesIO()
    torch.save({"q": torch.zeros(1 << 20)}, stream)
    with (
        zipfile.ZipFile(stream) as plain,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    refused(str(tmp_path / "x.pt"), "would unpack to", "torch.save")


# -- names


def test_names_that_stand_twice_in_safetensors(tmp_path: Path) -> None:
    one = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    for text, name in (
        (f'{{"q":{one},"q":{one}}}', "q"),
        (f'{{"q":{one},"\\u0071":{one}}}', "q"),
        (f'{{"q":{one},"__metadata__":{{"scale":"1","scale":"2"}}}}', "scale"),
    ):
        data = len(text).to_bytes(8, "little") + text.encode() + bytes(4)
        refused(put(tmp_path / "x.safetensors", data), f"two members named '{name}'")


# -- what is no file


@pytest.fixture
def pipe(tmp_path: Path) -> str:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(tmp_path / "pipe")
    return str(tmp_path / "pipe")


def test_a_device_is_refused(door: Run, tmp_path: Path) -> None:
    if not os.path.exists("/dev/zero"):
        pytest.skip("no devices here")
    refused("/dev/zero", "/dev/zero is a device", "expected a regular file")
    put(tmp_path / "x.json", '{"query": [[1, 0]]}')
    for options in (
        ["-k", "/dev/zero"], ["-m", "file('/dev/zero')"], ["-m", "padding('/dev/zero')"],
        ["--tokens", "@/dev/zero"], ["--attn-mask", "/dev/zero"], ["--kv-lengths", "/dev/zero"],
    ):  # fmt: skip
        ran = door("compute", "x.json", *options)
        assert (ran.code, "/dev/zero is a device" in ran.err) == (2, True), options


def test_shards_are_regular_files(tmp_path: Path, pipe: str) -> None:
    index = put(tmp_path / "x.json", '{"weight_map": {"q": "pipe"}}')
    refused(index, "pipe is a named pipe")
    os.mkdir(tmp_path / "folder")
    refused(put(tmp_path / "y.json", '{"weight_map": {"q": "folder"}}'), "folder is a folder")


def test_a_typed_mask_opens_regular_files(door: Run, tmp_path: Path, pipe: str) -> None:
    put(tmp_path / "x.json", '{"query": [[1, 0]]}')
    for name, kind in (("pipe", "a named pipe"), (".", "a folder")):
        ran = door("compute", "x.json", "-m", f"file('{name}')")
        assert (ran.code, f"{name} is {kind}" in ran.err) == (2, True)
    os.mkdir(tmp_path / "sub")
    np.save(tmp_path / "sub" / "m.npy", np.ones((1, 1), bool))
    assert door("compute", "x.json", "-m", f"file('{tmp_path}/sub/m.npy')").code == 0


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "../m.npy", "sub/m.npy", "-", "", ".", "..", "pipe", "sub", "away.npy",
     "none.npy", "m.npy::/../../x", "./m.npy"],
)  # fmt: skip
@pytest.mark.parametrize("call", ["file('{}')", "causal & padding('{}')", "file('{}', 'q')"])
def test_a_mask_from_elsewhere_stays_beside_its_bundle(
    door: Run, tmp_path: Path, pipe: str, path: str, call: str
) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    np.save(tmp_path / "m.npy", np.ones((1, 1), bool))
    os.rename(pipe, tmp_path / "in" / "pipe")
    os.symlink("/etc/passwd", tmp_path / "in" / "away.npy")
    text = json.dumps({"query": [[1, 0]], "mask": call.format(path)})
    for command in ("compute", "inspect"):
        ran = door(command, put(tmp_path / "in" / "x.json", text))
        assert (ran.code, "root:" in ran.err) == (2, False), ran.err


def test_a_mask_beside_its_bundle_is_read_from_there(door: Run, tmp_path: Path) -> None:
    os.mkdir(tmp_path / "in")
    np.save(tmp_path / "in" / "m.npy", np.array([[True, False], [True, True]]))
    np.save(tmp_path / "in" / "n.npy", np.array([1]))
    members = {"query": [[1, 0], [0, 1]], "mask": "file('m.npy') & padding('n.npy')"}
    put(tmp_path / "in" / "x.json", json.dumps(members))
    ran = door("compute", "in/x.json", "--json")
    assert ran.data["weights"] == [[1.0, 0.0], [1.0, 0.0]]
    assert ran.data["mask"] == "file('in/m.npy') & padding('in/n.npy')"


def test_a_mask_that_cannot_be_read_is_left_to_the_language(tmp_path: Path) -> None:
    source = str(tmp_path / "x.json")
    for text in ("causal &", "(" * 500, "causal & window(2)", "f'{open}'", "x.y(1)(2)"):
        assert anchored(text, source) == text
    with pytest.raises(FileError, match="no such file"):
        anchored("x.y('a')(1)", source)


# -- numbers


@pytest.mark.parametrize(
    "arguments",
    [
        ["multihead", "x.json", "--random-weights", 0, "--heads", 3, "--head-dim", 10**20],
        ["multihead", "x.json", "--random-weights", 0, "--heads", 3, "--head-dim", 2**31 - 1],
        ["mask", "window(1, 1) + alibi", "--length", 5, "--heads", 10**20],
        ["mask", "window(1, 1) + alibi", "--length", 5, "--heads", 2**31 - 1],
        ["mask", "causal", "--length", 10**20],
        ["compute", "x.json", "--threads", 10**20],
        ["compute", "x.json", "--top", 10**20],
        ["compute", "x.json", "--kv-lengths", 10**20],
        ["compute", "heads.json"],
    ],
    ids=str,
)
def test_numbers_of_twenty_digits_are_refused_at_once(
    door: Run, tmp_path: Path, arguments: list[object]
) -> None:
    put(tmp_path / "x.json", '{"x": [[1, 2, 3], [3, 2, 1]]}')
    put(tmp_path / "heads.json", '{"query": [[1, 2]], "heads": 99999999999999999999}')
    ran = door(*arguments)
    assert ran.code == 2, ran.err
    assert "internal" not in ran.err and "Warning" not in ran.err


def test_a_folder_or_a_pipe_where_a_bundle_is_typed(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="it holds nothing"):
        files.read(str(tmp_path))
