"""Tensors in and out of files: every format, every way in which a file can be wrong."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import textwrap
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attncli import files
from attncli.errors import AttnError, FileError, InputError, Unavailable
from attncli.files.bundle import Lazy

PLAIN = [
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
    "float16", "float32", "float64",
]  # fmt: skip
FUZZ = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def sample(dtype: str, shape: tuple[int, ...] = (2, 3, 4)) -> np.ndarray:
    numbers = np.random.default_rng(0).integers(0, 5, shape)
    if dtype.startswith(("bfloat", "float8")):
        return numbers.astype(getattr(ml_dtypes, dtype))
    return numbers.astype(dtype)


def same(found: np.ndarray, wanted: np.ndarray) -> None:
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    assert found.tobytes() == wanted.tobytes()


def put(path: Path, data: bytes | str) -> str:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def refused(ref: str, *fragments: str) -> FileError:
    """Reading everything at ``ref`` must fail with these fragments in the message."""
    with pytest.raises(FileError) as caught:
        list(files.read(ref).tensors.values())
    text = str(caught.value)
    assert [f for f in fragments if f not in text] == [], text
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


def use_stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    stream = io.BufferedReader(io.BytesIO(data))  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=stream))


def npy(array: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, **options)
    return stream.getvalue()


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


# -- round trips


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


@pytest.mark.parametrize("dtype", [*PLAIN, "bfloat16", "float8_e5m2"])
def test_json_round_trip(tmp_path: Path, dtype: str) -> None:
    path, array = str(tmp_path / "x.json"), sample(dtype)
    files.write(path, {"query": array}, extra={"tokens": ["a", "ü"], "scale": 0.5})
    bundle = files.read(path)
    found = bundle.tensors["query"]
    assert found.dtype == {"b": bool, "i": np.int64, "u": np.int64}.get(array.dtype.kind, float)
    assert (found == array.astype(found.dtype)).all()
    assert dict(bundle.options) == {"tokens": ["a", "ü"], "scale": 0.5}


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


# -- references, names, roles


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


@pytest.mark.parametrize(
    ("name", "role"),
    [("Q", "query"), ("KEY", "key"), ("v", "value"), ("mask", "attn_mask"), ("X", "hidden_states"),
     ("sinks", "sink"), ("dO", "grad_output"), ("slopes", "slopes")],
)  # fmt: skip
def test_roles(tmp_path: Path, name: str, role: str) -> None:
    bundle = files.read(put(tmp_path / "x.json", json.dumps({name: [[1.5]], "other": [2.5]})))
    found = files.find(bundle, role)
    assert found is not None and found[0] == name
    assert found[1].tolist() == [[1.5]]
    assert files.find(bundle, "past_key") is None


def test_two_candidates_for_a_role(tmp_path: Path) -> None:
    bundle = files.read(put(tmp_path / "x.json", '{"q": [1.5], "Query": [2.5]}'))
    with pytest.raises(FileError, match="'q' and 'Query': which is the query"):
        files.find(bundle, "query")


# -- JSON


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("[[1, 2], [3, 4]]", np.array([[1, 2], [3, 4]])),
        ("[[1, 2.5]]", np.array([[1, 2.5]])),
        ("[true, false]", np.array([True, False])),
        ("[]", np.zeros(0)),
        ("[[], []]", np.zeros((2, 0))),
        ("[[[[[0.5]]]]]", np.full((1, 1, 1, 1, 1), 0.5)),
        ('[NaN, "NaN", Infinity, "Infinity", -Infinity, "-Infinity", 1]',
         np.array([np.nan, np.nan, np.inf, np.inf, -np.inf, -np.inf, 1])),
        ("[9223372036854775807, -9223372036854775808]", np.array([2**63 - 1, -(2**63)])),
        ("[9223372036854775808, 1]", np.array([2.0**63, 1])),
        ("[1000000000000000000000000000000]", np.array([1e30])),
        ("\ufeff[0.5]", np.array([0.5])),
        ("\n\n [\n0.5\n]\n\n", np.array([0.5])),
    ],
)  # fmt: skip
def test_json_arrays(tmp_path: Path, text: str, wanted: np.ndarray) -> None:
    for document in (text, json.dumps({"o": ["NaN, Infinity"]})[:-1] + f', "q": {text.strip()}}}'):
        bundle = files.read(put(tmp_path / "x.json", document.replace(', "q": \ufeff', ', "q": ')))
        found = bundle.tensors["q" if "q" in bundle.tensors else ""]
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted, strict=True)
    assert bundle.options["o"] == ["NaN, Infinity"]


def test_json_options_and_laziness(tmp_path: Path) -> None:
    members = {
        "query": [[1.0, 2.0]], "mask": "causal", "scale": 0.5, "tokens": ["a", "b:c"],
        "heads": [{"head": 0, "x": [1]}], "nothing": None, "broken": [[1], [1, 2]],
    }  # fmt: skip
    bundle = files.read(put(tmp_path / "x.json", json.dumps(members, indent=1)))
    assert list(bundle.tensors) == ["query", "broken"]
    assert {**bundle.options} == {n: v for n, v in members.items() if n not in ("query", "broken")}
    assert bundle.header("query") == files.Header((1, 2), "float64", 16)
    assert bundle.tensors["query"] is bundle.tensors["query"]
    with pytest.raises(FileError, match=r"broken\[1\] has 2 numbers but broken\[0\] has 1"):
        bundle.tensors["broken"]


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ('{"q": [[1,2,3],[1,2,3],[1,2,3],[1,2]]}',
         ["q[3] has 2 numbers but q[0] has 3 (ragged)"]),
        ('{"q": [[[1],[2]],[[1]]]}', ["q[1] has 1 row but q[0] has 2"]),
        ('{"q": [[1],[2,"abc"]]}', ["q[1] has 2 numbers but q[0] has 1"]),
        ('{"q": [[1,2],[2,"abc"]]}', ['q[1][1] is "abc" (a string)', "expected a number"]),
        ('{"q": [[1,2],[2,"1"]]}', ['q[1][1] is "1" (a string)']),
        ('{"q": [1, null]}', ["q[1] is null"]),
        ('{"q": [null, 1]}', ["q[0] is null"]),
        ('{"q": [1.5, true]}', ["q[1] is true (a bool)"]),
        ('{"q": [1.5, false, 2.5]}', ["q[1] is false (a bool)"]),
        ('{"q": [true, 1]}', ["q[1] is 1 (a number)", "expected true or false"]),
        ('{"q": [1, [2]]}', ["q[1] is a list"]),
        ('{"q": [[1], 2]}', ["q[1] is 2 (a number) but q[0] is a list"]),
        ('{"q": [1, {}]}', ["q[1] is an object"]),
        ("[[1, 2], [3]]", ["[1] has 1 number but [0] has 2"]),
        ('{"q": [1], "q": [2]}', ["two members named 'q'"]),
        ('{"q": [1], "\\u0071": [2]}', ["two members named 'q'"]),
        ('{"o": {"a": 1, "a": 2}}', ["two members named 'a'"]),
        ('{"q": [1]} x', ["no valid JSON", "at column 12"]),
        ('{"q": [1],\n "k": [1,]}', ["no valid JSON", "line 2 column 9"]),
        ('{"q": [1', ["no valid JSON"]),
        ("[" * 100_000, ["no valid JSON", "depth"]),
        ("[NaN," * 5_000, ["nested too deep"]),
        ("[" * 50 + "1" + "]" * 50, ["nested more than"]),
        ("[1" + "0" * 400 + "]", ["no valid JSON"]),
        ("[NaN, 1" + "0" * 5000 + "]", ["no valid JSON"]),
        ('["NaN", 1' + "0" * 400 + "]", ["an integer beyond float64"]),
        (b'{"q\xff": [1]}', ["no valid JSON"]),
        ("", ["is empty"]),
        (" \n \t\n", ["is empty", "blanks"]),
        ("3.5", ["is JSON, but 3.5 (a number)", "expected an array or an object"]),
        ("null", ["is JSON, but null", "expected an array or an object"]),
        ('"hi"', ['is JSON, but "hi" (a string)', "expected an array or an object"]),
        ("3.5 or so", ["no known format", "begins with b'3.5 or so'"]),
        ('{"q": [1]}'.encode("utf-16"), ["UTF-16", "iconv"]),
        ('{"q": [1]}'.encode("utf-16-le"), ["UTF-16", "iconv"]),
        ('{"q": [1]}\n{"q": [2]}\n', ["several JSON documents", "one a line"]),
    ],
)  # fmt: skip
def test_bad_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | bytes, fragments: list[str]
) -> None:
    path = put(tmp_path / "x.json", text)
    refused(path, *fragments)
    use_stdin(monkeypatch, Path(path).read_bytes())
    refused("-", *fragments)


def test_bare_array_errors_name_the_position(tmp_path: Path) -> None:
    refused(put(tmp_path / "x.json", "[[1, 2], [3]]"), "x.json: [1] has 1")


# -- standard input and NDJSON


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".json"])
def test_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str) -> None:
    files.write(str(tmp_path / f"x{suffix}"), {"query": sample("float64")})
    use_stdin(monkeypatch, (tmp_path / f"x{suffix}").read_bytes())
    for ref in ("-", "-" if suffix == ".npy" else "-::query"):
        same(files.read_tensor(ref), sample("float64"))


def test_torch_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    stream = io.BytesIO()
    torch.save({"a": torch.ones(2)}, stream)
    use_stdin(monkeypatch, stream.getvalue())
    same(files.read_tensor("-::a"), np.ones(2, np.float32))


def test_closed_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    refused("-", "closed")


@pytest.mark.parametrize("length", [10, 32, 123, 91])
def test_safetensors_whose_length_looks_like_text(
    monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    data = safetensors(b"{}" + b" " * (length - 2))
    use_stdin(monkeypatch, data)
    assert files.read("-").kind == "safetensors"


NDJSON = b'\n{"q": [1.5]}\n\n{"q": [1,}\n[2.5]\nnonsense\n{"q": [3.5]}'


def outcomes(found: Any) -> list[Any]:
    assert isinstance(found, files.Records)
    return [
        str(item) if isinstance(item, AttnError) else next(iter(item.tensors.values())).tolist()
        for item in found
    ]


def test_ndjson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "x", NDJSON)
    use_stdin(monkeypatch, NDJSON)
    for found in (
        files.read_many(path),
        files.read_many("-"),
        files.read_lines(io.BytesIO(NDJSON)),
    ):
        first, bad, second, nonsense, third = outcomes(found)
        assert (first, second, third) == ([1.5], [2.5], [3.5])
        assert "line 4 is no valid JSON" in bad
        assert "line 6 is no valid JSON" in nonsense


def test_ndjson_may_begin_with_a_bad_line(tmp_path: Path) -> None:
    path = put(tmp_path / "x", b'{"q": [1, 2\n{"q": [1.5]}\n')
    bad, good = outcomes(files.read_many(path))
    assert "line 1 is no valid JSON" in bad and good == [1.5]


@pytest.mark.parametrize(
    "text",
    ['{"q": [1.5]}', '{"q": [1.5]}\n', '{"q": [1.5]}\n\n  \n', '{\n"q":\n[1.5]\n}\n',
     '{"a": {"b": 1}\n, "q": [1.5]}', '{"q": [1.5]\n}', '{"a":\n{"b": 1},\n"q": [1.5]}'],
)  # fmt: skip
def test_one_json_document_is_not_ndjson(tmp_path: Path, text: str) -> None:
    bundle = files.read_many(put(tmp_path / "x", text))
    assert isinstance(bundle, files.Bundle)
    assert bundle.tensors["q"].tolist() == [1.5]


def test_ndjson_streams() -> None:
    """A result comes out before the next line goes in."""
    program = textwrap.dedent("""
        from attncli import files
        for item in files.read_many("-"):
            print(item.tensors["q"].tolist(), flush=True)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b'{"q": [0.5]}\n')
        for number in range(1, 4):
            process.stdin.write(b'{"q": [%d.5]}\n' % number)
            process.stdin.flush()
            assert process.stdout.readline() == b"[%d.5]\n" % (number - 1)
        process.stdin.close()
        assert process.stdout.read() == b"[3.5]\n"
        assert process.wait() == 0


# -- bad files


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
        (b"GGUF\x03\x00", ["GGUF"]),
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


# -- folders and shards


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
    [("model.pkl", ["is a Python pickle", "save it as .npz or .safetensors"]),
     ("llama.gguf", ["is a GGUF file", "readable are .npy"])],
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


# -- fuzz

VALID = [
    npy(sample("float32")),
    npy(np.asfortranarray(sample("bfloat16"))),
    npz(a=sample("float32"), b=sample("int8")),
    safetensors({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"12345678"),
    b'{"q": [[1.5, "NaN"], [-Infinity, 2]], "tokens": ["a", "b"]}',
    b'{"q": [[1, 2]]}\n{"k": [true, false]}\n',
]


def consume(path: str) -> None:
    """Everything that can be asked of a file; only AttnError may come out of it."""
    try:
        found = files.read_many(path)
        for item in [found] if isinstance(found, files.Bundle) else found:
            if isinstance(item, files.Bundle):
                for name in item.tensors:
                    item.header(name)
                    np.asarray(item.tensors[name]).tobytes()
    except AttnError:
        pass


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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@FUZZ
@given(JSON)
def test_any_json(tmp_path: Path, value: Any) -> None:
    consume(put(tmp_path / "x", json.dumps(value)))
    consume(put(tmp_path / "x", json.dumps({"query": value})))


# -- writing


@pytest.mark.parametrize("path", ["x", "x.pt", "x.txt", "x.json.gz"])
def test_unknown_suffix(tmp_path: Path, path: str) -> None:
    with pytest.raises(FileError, match=r"\.npz, \.safetensors, \.json, \.npy"):
        files.write(str(tmp_path / path), {"a": np.ones(1)})


def test_npy_takes_one_array(tmp_path: Path) -> None:
    for arrays in ({}, {"a": np.ones(1), "b": np.ones(1)}):
        with pytest.raises(FileError, match="exactly one array"):
            files.write(str(tmp_path / "x.npy"), arrays)
    assert os.listdir(tmp_path) == []


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(FileError, match="is a folder"):
        files.write(str(tmp_path / "folder.npz"), {"a": np.ones(1)})
    with pytest.raises(FileError, match="no such folder"):
        files.write(str(tmp_path / "nowhere" / "x.npz"), {"a": np.ones(1)})
    with pytest.raises(FileError, match="NUL"):
        files.write(str(tmp_path / "a\0.npz"), {"a": np.ones(1)})
    assert os.listdir(tmp_path) == ["folder.npz"]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".npy", ".json"])
@pytest.mark.parametrize("dtype", ["complex128", "object", "U3", "longdouble"])
def test_what_no_format_holds(tmp_path: Path, suffix: str, dtype: str) -> None:
    target = put(tmp_path / f"x{suffix}", "old")
    array = np.ones(2).astype(dtype)
    if (suffix in (".npz", ".npy") and dtype == "complex128") or (
        suffix == ".json" and dtype == "U3"
    ):
        files.write(target, {"a": array})
        assert Path(target).read_bytes() != b"old"
    else:
        with pytest.raises(AttnError, match="hold"):
            files.write(target, {"a": array})
        assert Path(target).read_bytes() == b"old"
    assert os.listdir(tmp_path) == [f"x{suffix}"]


@pytest.mark.parametrize("trouble", [OSError(28, "No space left"), KeyboardInterrupt(), KeyError()])
def test_failure_in_the_middle(tmp_path: Path, trouble: BaseException) -> None:
    target = put(tmp_path / "x.txt", "old")
    wanted = FileError if isinstance(trouble, OSError) else type(trouble)

    def write_half() -> None:
        with files.atomic(target) as stream:
            stream.write(b"half")
            assert len(os.listdir(tmp_path)) == 2
            raise trouble

    with pytest.raises(wanted) as caught:
        write_half()
    if isinstance(trouble, OSError):
        assert "no space left" in str(caught.value)
    assert os.listdir(tmp_path) == ["x.txt"]
    assert Path(target).read_bytes() == b"old"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no space left"), files.atomic("/dev/full") as stream:
        stream.write(b"x")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


def test_killed_in_the_middle(tmp_path: Path) -> None:
    target = put(tmp_path / "x.txt", "old")
    program = textwrap.dedent("""
        import sys
        from attncli import files
        with files.atomic(sys.argv[1]) as stream:
            stream.write(b"half"); stream.flush()
            print("written", flush=True); sys.stdin.read()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stdout.readline() == b"written\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert Path(target).read_bytes() == b"old"


def test_modes_and_links(tmp_path: Path) -> None:
    target, link = tmp_path / "x.npy", tmp_path / "link.npy"
    before = os.umask(0o027)
    try:
        files.write(str(target), {"a": np.ones(1)})
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    target.chmod(0o606)
    link.symlink_to(target)
    files.write(str(link), {"a": np.zeros(1)})
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o606
    assert files.read_tensor(str(target)).tolist() == [0.0]


def test_a_file_may_be_replaced_while_it_is_mapped(tmp_path: Path) -> None:
    path = str(tmp_path / "x.npy")
    files.write(path, {"": np.arange(3.0)})
    array = files.read_tensor(path)
    files.write(path, {"": array + 1})
    assert array.tolist() == [0, 1, 2]
    assert files.read_tensor(path).tolist() == [1, 2, 3]


def test_standard_output(capfdbinary: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".json", ".npz", ".npy", ".safetensors"):
        files.write("-", {"a": sample("float64")}, format=suffix)
        use_stdin(monkeypatch, capfdbinary.readouterr().out)
        same(files.read_tensor("-"), sample("float64"))


@pytest.mark.parametrize(
    ("trouble", "wanted"),
    [(BrokenPipeError(), BrokenPipeError), (OSError(28, "No space left"), FileError)],
)
def test_standard_output_that_fails(
    monkeypatch: pytest.MonkeyPatch, trouble: OSError, wanted: type[Exception]
) -> None:
    def write(_: bytes) -> None:
        raise trouble

    stream = SimpleNamespace(write=write, flush=lambda: None)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=stream, flush=lambda: None))
    with pytest.raises(wanted):
        files.write("-", {"a": np.ones(1)}, format=".json")


def test_binary_is_refused_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(FileError, match="terminal"):
        files.write("-", {"a": np.ones(1)}, format=".npz")


# -- dumps


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.array([[1.5, np.nan], [np.inf, -np.inf]]), '[[1.5,"NaN"],["Infinity","-Infinity"]]'),
        (np.array([np.nan, 0.1], np.float32), '["NaN",0.1]'),
        (np.array([0.5, -np.inf], np.float16), '[0.5,"-Infinity"]'),
        (np.array([0.5, np.inf], ml_dtypes.bfloat16), '[0.5,"Infinity"]'),
        (np.array(np.nan), '"NaN"'),
        (np.array(2), "2"),
        (np.array([True]), "[true]"),
        (np.arange(4).reshape(2, 2).T, "[[0,2],[1,3]]"),
        (np.array([1.5], ">f8"), "[1.5]"),
        (np.float32(0.1), "0.1"),
        (ml_dtypes.bfloat16(0.5), "0.5"),
        (np.zeros((2, 0)), "[[],[]]"),
        ({"a": (1, None, "ü"), "b": [float("nan"), -float("inf")]},
         '{"a":[1,null,"ü"],"b":["NaN","-Infinity"]}'),
        (np.array(["a"]), '["a"]'),
        (10**30, "1" + "0" * 30),
        ("\udcff", '"?"'),
        ({1: np.int8(3)}, '{"1":3}'),
    ],
)  # fmt: skip
def test_dumps(value: Any, text: str) -> None:
    assert files.dumps(value).decode() == text


def test_dumps_pretty_and_refusals() -> None:
    assert json.loads(files.dumps({"a": np.ones(2), "b": [1]}, pretty=True)) == {
        "a": [1.0, 1.0], "b": [1],
    }  # fmt: skip
    with pytest.raises(InputError, match="complex"):
        files.dumps(np.ones(2, complex))
    with pytest.raises(TypeError):
        files.dumps(object())


@FUZZ
@given(st.lists(st.floats(width=64), max_size=20))
def test_floats_survive_json(tmp_path: Path, numbers: list[float]) -> None:
    path = str(tmp_path / "x.json")
    files.write(path, {"a": np.array(numbers, float)})
    json.loads(Path(path).read_bytes(), parse_constant=pytest.fail)
    np.testing.assert_array_equal(files.read_tensor(path), np.array(numbers, float))


# -- start-up


def test_small_json_imports_nothing_heavy(tmp_path: Path) -> None:
    path = put(tmp_path / "x.json", '{"q": [[1.5, "NaN"]]}')
    program = textwrap.dedent("""
        import sys
        from attncli import files
        files.read(sys.argv[1]).tensors["q"]
        print(*sorted({"ml_dtypes", "safetensors", "torch", "zipfile"} & sys.modules.keys()))
    """)
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, check=True)
    assert done.stdout.strip() == b""


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


def test_a_name_for_an_unnamed_tensor(tmp_path: Path) -> None:
    np.save(tmp_path / "ok.npy", np.ones(2))
    refused(f"{tmp_path / 'ok.npy'}::query", "one unnamed tensor: '::query' names nothing")


def test_a_folder_that_takes_no_files() -> None:
    if not os.path.isdir("/proc/self"):
        pytest.skip("no /proc")
    with pytest.raises(FileError) as caught:
        files.write("/proc/x.npz", {"x": np.ones(2)})
    assert "no such file" not in str(caught.value)


def test_explicit_lines_need_no_second(tmp_path: Path) -> None:
    path = put(tmp_path / "x.ndjson", '{"q": [1]}\n')
    assert isinstance(files.read_many(path), files.Bundle)
    records = files.read_many(path, lines=True)
    assert isinstance(records, files.Records)
    (only,) = records
    assert isinstance(only, files.Bundle)
    assert only.tensors["q"].tolist() == [1]
