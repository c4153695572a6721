"""GGUF as the package gguf writes it, and every way in which its header can be wrong."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attncli import files
from attncli.errors import Unavailable
from attncli.files.formats.gguf import KINDS
from tests.support.files import FUZZ, consume, put, refused

gguf = pytest.importorskip("gguf")

PLAIN = {"F32": "float32", "F16": "float16", "F64": "float64", "I8": "int8", "I64": "int64"}


def written(path: Path, kind: str = "F32", shape: tuple[int, ...] = (3, 512), **keys: Any) -> str:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_token_list([f"word {n}" for n in range(5000)])
    writer.add_token_scores([0.5] * 5000)
    writer.add_array("llama.some", [True, False])
    for key, value in keys.items():
        writer.add_uint32(key, value)
    array = np.random.default_rng(0).normal(size=shape)
    if kind in PLAIN:
        writer.add_tensor("t", array.astype(PLAIN[kind]))
    else:
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor("t", gguf.quants.quantize(array.astype(np.float32), number),
                          raw_dtype=number)  # fmt: skip
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


QUANTISED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "TQ1_0", "TQ2_0", "MXFP4"]


@pytest.mark.parametrize("kind", [*PLAIN, *QUANTISED])
def test_tensors_are_what_the_package_reads(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / "x.gguf", kind)
    (theirs,) = gguf.GGUFReader(path).tensors
    bundle = files.read(path)
    header, array = bundle.header("t"), bundle.tensors["t"]
    assert (bundle.kind, header.shape, array.shape) == ("gguf", (3, 512), (3, 512))
    assert header.nbytes == theirs.n_bytes
    assert header.dtype == {**PLAIN, "BF16": "bfloat16"}.get(kind, kind)
    whole = gguf.quants.dequantize(theirs.data, theirs.tensor_type) if kind in QUANTISED else None
    np.testing.assert_array_equal(array, theirs.data if whole is None else whole)


def test_every_type_has_the_packages_size() -> None:
    for number, kind in KINDS.items():
        theirs = gguf.GGMLQuantizationType(number)
        assert (theirs.name, gguf.GGML_QUANT_SIZES[theirs]) == (
            kind.name,
            (kind.numbers, kind.size),
        )


def test_the_keys_are_there_without_the_vocabulary(tmp_path: Path) -> None:
    options = files.read(written(tmp_path / "x.gguf")).options
    assert options["general.architecture"] == "llama" and options["llama.some"] == [True, False]
    assert options["llama.attention.layer_norm_rms_epsilon"] == 1e-6
    assert not {"tokenizer.ggml.tokens", "tokenizer.ggml.scores"} & options.keys()


def test_without_the_package_headers_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "x.gguf", "Q8_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    bundle = files.read(path)
    assert bundle.header("t").dtype == "Q8_0"
    with pytest.raises(Unavailable, match="dequantises it, is not installed") as caught:
        bundle.tensors["t"]
    assert caught.value.hint == "pip install 'attncli[gguf]'"


def header(*parts: bytes, tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)


def word(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def tensor(name: str, *dims: int, kind: int = 0, offset: int = 0) -> bytes:
    return word(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


BAD = {
    "a version": (header(version=9), ["version 9", "2 and 3"]),
    "big-endian": (header(version=0x03000000), ["little-endian"]),
    "half a header": (header(keys=1), ["truncated"]),
    "a long name": (header(struct.pack("<Q", 1 << 60), keys=1), ["truncated"]),
    "a type of values": (header(word("a"), struct.pack("<I", 99), keys=1), ["a value of type 99"]),
    "a type of arrays": (
        header(word("a"), struct.pack("<IIQ", 9, 9, 1), keys=1), ["an array of type 9"],
    ),
    "a long array": (header(word("a"), struct.pack("<IIQ", 9, 4, 1 << 60), keys=1), ["truncated"]),
    "a type of tensors": (
        header(tensor("a", 32, kind=4), tensors=1), ["type 4, which is not known", "Q8_0"],
    ),
    "five dimensions": (header(tensor("a", 1, 1, 1, 1, 1), tensors=1), ["5 dimensions"]),
    "half a block": (header(tensor("a", 33, kind=8), tensors=1), ["blocks have 32 numbers"]),
    "no data": (header(tensor("a", 32), tensors=1), ["truncated", "'a' ends at byte"]),
    "two of a name": (
        header(tensor("a", 0), tensor("a", 0), bytes(64), tensors=2), ["two tensors named 'a'"],
    ),
    "an alignment": (
        header(word("general.alignment"), struct.pack("<II", 4, 0), keys=1), ["alignment is 0"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_headers_are_said(what: str, tmp_path: Path) -> None:
    data, fragments = BAD[what]
    refused(put(tmp_path / "x.gguf", data), *fragments)


@FUZZ
@given(data=st.data())
def test_no_damage_escapes(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "whole.gguf"
    if not path.exists():
        written(path, "Q8_0", (2, 32))
    whole = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, 400))
    whole[at : at + 8] = data.draw(st.binary(min_size=8, max_size=8))
    consume(put(tmp_path / "x.gguf", bytes(whole[: data.draw(st.integers(20, len(whole)))])))
