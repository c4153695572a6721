"""CSV of numbers and ONNX's tensors: read by content, refused where they are damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attncli import files
from tests.conftest import Ran
from tests.support.files import FUZZ, consume, put, refused, same, sample, use_stdin

Run = Callable[..., Ran]

# -- CSV


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,2,3\n4,5,6\n", [[1, 2, 3], [4, 5, 6]]),
        ("1 2\n3 4", [[1, 2], [3, 4]]),
        ("1.5\t-2e-3\r\n.5\t+4\r\n", [[1.5, -0.002], [0.5, 4]]),
        ("0.1, 0.2\n0.3, 0.4\n", [[0.1, 0.2], [0.3, 0.4]]),
        ("1;2\n", [[1, 2]]),
        ("1\n2\n3\n", [[1], [2], [3]]),
        ("nan,1\n-inf,2\n", [[np.nan, 1], [-np.inf, 2]]),
        ("\ufeff1,2\n", [[1, 2]]),
    ],
)
def test_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, numbers: list[list[float]]
) -> None:
    path = put(tmp_path / "x", text)
    assert files.read(path).kind == "csv"
    same(files.read_tensor(path), np.array(numbers, float))
    use_stdin(monkeypatch, text.encode())
    same(files.read_tensor("-"), np.array(numbers, float))


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("1,2\n3\n", ["no CSV of numbers", "from 2 to 1 at row 2"]),
        ("1,2\n3,x\n", ["no CSV of numbers", "'x'"]),
        ("1,2\n3,\n", ["no CSV of numbers"]),
        ("a,b\n1,2\n", ["no known format", "CSV"]),
        ("5", ["is JSON, but 5"]),
    ],
)
def test_text_that_is_no_csv(tmp_path: Path, text: str, fragments: list[str]) -> None:
    refused(put(tmp_path / "x.csv", text), *fragments)


def test_csv_is_a_query(door: Run, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(4, 3))
    np.savetxt(tmp_path / "x.csv", x, delimiter=",")
    np.save(tmp_path / "x.npy", x)
    one, other = (door("compute", f"x.{suffix}", "--json").data for suffix in ("csv", "npy"))
    np.testing.assert_allclose(one["output"], other["output"], rtol=1e-15)


# -- ONNX

TYPES = [
    "bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16",
    "float32", "float64", "bfloat16",
]  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(2, 3), (300, 2), (1, 2, 3, 4), (0, 3), ()])
@pytest.mark.parametrize("raw", [True, False])
def test_onnx_tensors(tmp_path: Path, dtype: str, shape: tuple[int, ...], raw: bool) -> None:
    onnx = pytest.importorskip("onnx")
    array = sample(dtype, shape)
    if dtype[0] in "fib":
        array = (array.astype(np.float64) - (0 if dtype == "bool" else 2)).astype(array.dtype)
    code = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    values = array.tobytes() if raw else array.ravel()
    tensor = onnx.helper.make_tensor("query", code, shape, values, raw=raw)
    data = tensor.SerializeToString()
    same(files.read_tensor(put(tmp_path / "x.pb", data)), array)


def test_onnx_tensors_that_cannot_be_read(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    whole = onnx.numpy_helper.from_array(np.ones((2, 3), np.float32)).SerializeToString()
    refused(put(tmp_path / "x", whole[:-1]), "truncated")
    text = onnx.helper.make_tensor("t", onnx.TensorProto.STRING, [1], [b"a"]).SerializeToString()
    refused(put(tmp_path / "x", text), "data type 8")
    apart = onnx.TensorProto(dims=[2], data_type=1, data_location=1)
    apart.external_data.add(key="location", value="elsewhere.bin")
    refused(put(tmp_path / "x", apart.SerializeToString()), "in another file", "onnx.save_tensor")


@FUZZ
@given(st.binary(max_size=60))
def test_damaged_text_and_tensors(tmp_path: Path, data: bytes) -> None:
    for start in (b"\x08\x02\x10\x01", b"\x08\x02\x10\x01\x22\x08", b"1,2\n", b"\x10\x0b\x52"):
        consume(put(tmp_path / "x", start + data))
