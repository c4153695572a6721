"""The formats: every one by its content, every way in which its bytes can be wrong."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attncli import files
from attncli.errors import FileError, Unavailable
from attncli.files import formats, sniffing
from attncli.files.bundle import Lazy
from attncli.files.formats.entry import Entry
from tests.support.files import (
    FUZZ,
    PLAIN,
    consume,
    npy,
    npz,
    put,
    refused,
    safetensors,
    same,
    sample,
    use_stdin,
)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".npy"])
@pytest.mark.parametrize("dtype", [*PLAIN, "bfloat16", "complex64"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (), (0, 3), (5,)])
def test_binary_round_trip(tmp_path: Path, suffix: str, dtype: str, shape: tuple[int, ...]) -> None:
    path, array = str(tmp_path / f"x{suffix}"), sample(dtype, shape)
    files.write(path, {"query": array})
    bundle = files.read(path)
    name = "" if suffix == ".npy" else "query"
    assert list(bundle.tensors) == [name]
    assert bundle.kind == suffix[1:]
    assert bundle.header(name) == files.Header(shape, dtype, array.nbytes)
    same(bundle.tensors[name], array)
    same(files.read_tensor(path), array)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_lives_in_safetensors_only(tmp_path: Path, dtype: str) -> None:
    path, array = str(tmp_path / "x.safetensors"), sample(dtype)
    files.write(path, {"query": array})
    same(files.read_tensor(path), array)
    with pytest.raises(FileError, match=r"cannot hold float8(.|\n)*safetensors"):
        files.write(str(tmp_path / "x.npz"), {"query": array})
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_other_programs_read_what_is_written(tmp_path: Path) -> None:
    import safetensors.numpy

    arrays = {"a": sample("float32"), "b": sample("int8", (3,)), "c": sample("float64").T}
    files.write(str(tmp_path / "x.safetensors"), arrays, extra={"tokens": "x y", "scale": 0.5})
    files.write(str(tmp_path / "x.npz"), {**arrays, "file": sample("bool")})
    read = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    with safetensors.safe_open(tmp_path / "x.safetensors", "np") as opened:
        assert opened.metadata() == {"tokens": "x y", "scale": "0.5"}
    with np.load(tmp_path / "x.npz") as members:
        same(members["file"], sample("bool"))
        for name, array in arrays.items():
            same(read[name], np.ascontiguousarray(array))
            same(members[name], np.ascontiguousarray(array))


def test_what_other_programs_write_is_read(tmp_path: Path) -> None:
    import safetensors.numpy

    arrays = {"a": sample("float32"), "b": sample("bfloat16"), "c": sample("bool", (3,))}
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    for file in ("x.safetensors", "x.npz"):
        bundle = files.read(str(tmp_path / file))
        for name, array in arrays.items():
            same(bundle.tensors[name], array)


def test_npy_is_mapped_native_and_keeps_fortran_order(tmp_path: Path) -> None:
    array = np.arange(12.0).reshape(3, 4)
    fortran = files.read_tensor(put(tmp_path / "f.npy", npy(np.asfortranarray(array))))
    assert fortran.flags.f_contiguous and not fortran.flags.owndata
    assert not fortran.flags.writeable
    same(fortran, array)
    swapped = files.read_tensor(put(tmp_path / "s.npy", npy(array.astype(">f8"))))
    assert swapped.dtype.isnative
    same(swapped, array)


def test_suffix_does_not_matter(tmp_path: Path) -> None:
    same(files.read_tensor(put(tmp_path / "x.json", npy(sample("int8")))), sample("int8"))
    assert files.read(put(tmp_path / "y.npy", "[1, 2]")).kind == "json"


@pytest.mark.parametrize("dtype", [*PLAIN, "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("legacy", [False, True])
def test_torch(tmp_path: Path, dtype: str, legacy: bool) -> None:
    torch = pytest.importorskip("torch")
    if legacy and dtype in ("uint16", "uint32", "uint64", "float8_e4m3fn"):
        pytest.skip("the old format never had it")
    tensor = torch.from_numpy(sample(dtype).astype(np.float32)).to(getattr(torch, dtype))
    path = str(tmp_path / "x.pt")
    state = {"layer": {"q": tensor.transpose(0, 1), "list": [tensor]}, "epoch": 3}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    bundle = files.read(path)
    assert bundle.kind == "torch"
    assert list(bundle.tensors) == ["layer.q", "layer.list.0"]
    assert bundle.header("layer.q") == files.Header((3, 2, 4), dtype, sample(dtype).nbytes)
    same(bundle.tensors["layer.q"], np.ascontiguousarray(sample(dtype).transpose(1, 0, 2)))


def test_bare_torch_tensor_and_refusal_of_code(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = str(tmp_path / "x.pt")
    torch.save(torch.nn.Parameter(torch.ones(2)), path)
    same(files.read_tensor(path), np.ones(2, np.float32))
    torch.save({"a": SimpleNamespace()}, path)
    refused(path, "holds more than plain tensors", "it asks for types.SimpleNamespace")
    with pytest.raises(FileError) as caught:
        files.read(path)
    assert "weights_only" not in str(caught.value)


def test_without_torch_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("x/data.pkl", b"")
    path = put(tmp_path / "x.pt", archive.getvalue())
    with pytest.raises(Unavailable, match=r"attncli\[torch\]"):
        files.read(path)


@pytest.mark.parametrize("length", [10, 32, 123, 91])
def test_safetensors_whose_length_looks_like_text(
    monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    data = safetensors(b"{}" + b" " * (length - 2))
    use_stdin(monkeypatch, data)
    assert files.read("-").kind == "safetensors"


@pytest.mark.parametrize(
    ("data", "fragments"),
    [
        (npy(np.ones(16))[:-28], ["truncated", "128 bytes", "100"]),
        (npy(np.ones(16)) + b"more", ["132 bytes", "128"]),
        (npy(np.ones(16))[:40], ["damaged .npy"]),
        (npy(np.array([{}], object), allow_pickle=True), ["pickled", "never loaded"]),
        (npy(np.array(["a"])), ["holds <U1", "expected numbers"]),
        (npy(np.zeros(1, [("a", "f4")])), ["expected numbers"]),
        (b"\x93NUMPY\x09\x00" + npy(np.ones(1))[8:], ["version 9.0"]),
        (npy(np.ones(16)).replace(b"(16,)", b"(-1,)"), ["damaged .npy", "shape"]),
        (npy(np.ones(16)).replace(b"(16,)", b"9**9,"), ["damaged .npy"]),
        (npz(a=np.ones(16))[:-30], ["truncated or damaged zip"]),
        (npz(a=np.array([{}], object)), ["::a", "pickled", "never loaded"]),
        (npz(a=np.ones(16)).replace(b"(16,)", b"(99,)"), ["damaged zip member", "CRC"]),
        (safetensors({}, b"")[:-1] + b"!", ["damaged safetensors"]),
        (safetensors({"a": 1}), ["'a' is described as 1"]),
        (safetensors({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}), ["'a'"]),
        (safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234"),
         ["truncated", "8 bytes", "4 are there"]),
        (safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
         ["::a", "8 bytes", "4"]),
        (safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"12345678"),
         ["hole or an overlap"]),
        (safetensors({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"},
                     b"1234"), ["hole or an overlap"]),
        (safetensors({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"1"),
         ["dtype F4", "BF16"]),
        (safetensors({})[:8] + b"{", ["truncated", "2 bytes", "1 are there"]),
        (safetensors([]).replace(b"[]", b"{]"), ["damaged safetensors"]),
        (pickle.dumps({"a": 1}), ["pickle", "never loaded"]),
        (gzip.compress(b"{}", mtime=0), ["gzip", "gunzip"]),
        (b"GGUF\x03\x00", ["truncated", "GGUF"]),
        (b"\x00\x01\x02", ["no known format", r"b'\x00\x01\x02'"]),
        (b"PK\x03\x04", ["zip"]),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.", ["PyTorch"]),
    ],
)  # fmt: skip
def test_bad_binaries(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, fragments: list[str]
) -> None:
    refused(put(tmp_path / "x", data), *fragments)
    use_stdin(monkeypatch, data)
    refused("-", *fragments)


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    for number, data in enumerate(
        (pickle.dumps(Evil()), npy(np.array([Evil()], object)), npz(a=np.array([Evil()], object)))
    ):
        refused(put(tmp_path / str(number), data), "never loaded")
    assert not (tmp_path / "ran").exists()


def test_a_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("readme.txt", "")
    refused(str(tmp_path / "x.npz"), "readme.txt", "expected .npy members")


def test_headers_tell_of_what_cannot_be_loaded(tmp_path: Path) -> None:
    data = safetensors({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"1")
    bundle = files.read(put(tmp_path / "x.safetensors", data))
    assert bundle.header("a") == files.Header((2,), "F4", 1)
    bundle = files.read(put(tmp_path / "x.npz", npz(a=np.ones(3), b=np.array([{}], object))))
    assert bundle.header("a") == files.Header((3,), "float64", 24)
    assert bundle.header("b").dtype == "object"
    same(bundle.tensors["a"], np.ones(3))


def test_headers_read_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".npz", ".safetensors"):
        files.write(str(tmp_path / f"x{suffix}"), {"a": sample("float32")})
        bundle = files.read(str(tmp_path / f"x{suffix}"))
        monkeypatch.setattr(Lazy, "__getitem__", lambda *_: pytest.fail("data was read"))
        assert bundle.header("a") == files.Header((2, 3, 4), "float32", 96)
        monkeypatch.undo()


VALID = [
    npy(sample("float32")),
    npy(np.asfortranarray(sample("bfloat16"))),
    npz(a=sample("float32"), b=sample("int8")),
    safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"12345678"),
    b'{"q": [[1.5, "NaN"], [-Infinity, 2]], "tokens": ["a", "b"]}',
    b'{"q": [[1, 2]]}\n{"k": [true, false]}\n',
]


@FUZZ
@given(st.binary(max_size=300))
def test_random_bytes(tmp_path: Path, data: bytes) -> None:
    for start in (
        b"",
        b"\x93NUMPY\x01\x00",
        b"PK\x03\x04",
        b"{",
        b"[1",
        b"\x05" + b"\0" * 7 + b"{",
    ):
        consume(put(tmp_path / "x", start + data))


@FUZZ
@given(st.sampled_from(VALID), st.data())
def test_truncated_and_mutated_files(tmp_path: Path, valid: bytes, data: st.DataObject) -> None:
    changed = bytearray(valid)
    for _ in range(data.draw(st.integers(0, 4))):
        changed[data.draw(st.integers(0, len(valid) - 1))] = data.draw(st.integers(0, 255))
    consume(put(tmp_path / "x", bytes(changed[: data.draw(st.integers(0, len(valid)))])))


def test_an_npz_with_two_members_of_one_name(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones(2))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.write(tmp_path / "x.npy", "q.npy")
    refused(str(tmp_path / "x.npz"), "two members named 'q.npy'", "keep one of them")


def test_a_safetensors_header_longer_than_the_file(tmp_path: Path) -> None:
    for length in (100, 10**9, 10**11):
        path = put(tmp_path / "x.safetensors", length.to_bytes(8, "little") + b'{"a": 1}')
        refused(path, "is truncated: its safetensors header has", f"{length} bytes, 8 are there")


# -- the table


def test_a_row_and_its_module_say_the_same() -> None:
    for row in formats.FORMATS:
        module = import_module(f"attncli.files.formats.{row.name}")
        assert callable(module.read)
        assert hasattr(module, "write") == row.writes
        assert row.suffixes and all(s.startswith(".") for s in row.suffixes)
    assert len(set(formats.SUFFIXES)) == len(formats.SUFFIXES)


def test_what_messages_say_of_the_table() -> None:
    assert formats.READABLE == (
        "readable are .npy, .npz, .safetensors, JSON, NDJSON, PyTorch files, CSV, "
        "HTML of BertViz, ONNX tensors and GGUF"
    )
    assert tuple(formats.WRITABLE) == (".npz", ".safetensors", ".json", ".npy")
    assert formats.SEVERAL == ".npz, .safetensors or .json"


@pytest.mark.parametrize("suffix", formats.WRITABLE)
def test_a_row_says_what_its_format_keeps(tmp_path: Path, suffix: str) -> None:
    row, path = formats.WRITABLE[suffix], str(tmp_path / f"x{suffix}")
    files.write(path, {"a": sample("float64")}, extra={"scale": 0.5})
    bundle = files.read(path)
    assert bundle.kind == row.name
    assert list(bundle.tensors) == (["a"] if row.many else [""])
    assert dict(bundle.options) == ({"scale": 0.5} if row.options else {})
    assert row.binary or b"\0" not in Path(path).read_bytes()


def test_a_format_is_a_module_and_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("attncli.files.formats.toy")
    module.read = lambda data, source, path: (
        {"a": Entry(lambda: np.frombuffer(bytes(data[4:]), np.uint8))},
        {},
    )
    row = formats.Format("toy", "toys", (".toy",), lambda head, _: head[:4] == b"TOY!")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sniffing, "FORMATS", (*formats.FORMATS, row))
    for data in (b"TOY!\1\2", b"TOY!{["):
        path = put(tmp_path / "x", data)
        assert files.read(path).kind == "toy"
        assert files.read_tensor(path).tolist() == list(data[4:])
        use_stdin(monkeypatch, data)
        assert files.read_tensor("-").tolist() == list(data[4:])


def test_the_table_loads_no_numpy() -> None:
    program = "import sys; from attncli.files import formats; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"
