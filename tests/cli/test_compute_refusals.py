"""What ``attncli compute`` refuses: exit 2, one clear message, as text and as JSON."""

from __future__ import annotations

import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.files import npy, npz
from tests.support.program import Door, assert_bad


class Trap:
    """Unpickling it would leave a mark."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("unpickled",)


HEADER = b'{"x":{"dtype":"F64","shape":[2,2],"data_offsets":[0,32]}}'
ONES = np.ones((2, 3))
BAD_FILES: dict[str, tuple[bytes | str, str]] = {
    "empty": (b"", "is empty"),
    "blank": (b" \n", "empty"),
    "unknown format": (b"hello world", "no known format"),
    "truncated npy": (npy(ONES)[:-8], "truncated"),
    "npy header only": (npy(ONES)[:40], "damaged"),
    "npy magic only": (b"\x93NUMPY", "damaged"),
    "truncated npz": (npz(x=ONES)[:-30], "damaged"),
    "safetensors header too long": (struct.pack("<Q", 9999) + HEADER, "truncated"),
    "safetensors data too short": (struct.pack("<Q", len(HEADER)) + HEADER + bytes(8), "truncated"),
    "safetensors data too long": (struct.pack("<Q", len(HEADER)) + HEADER + bytes(99), "99"),
    "object npy": (npy(np.array([Trap()], object)), "never loaded"),
    "pickle": (pickle.dumps([Trap()]), "never loaded"),
    "ragged": ('{"x": [[1, 2], [3]]}', "x[1] has 1 number but x[0] has 2"),
    "ragged depth": ('{"x": [[1, 2], 3]}', "x[1]"),
    "string inside": ('{"x": [[1, 2], [3, "four"]]}', "x[1][1]"),
    "null inside": ('{"x": [[1, null], [3, 4]]}', "x[0][1] is null"),
    "nested deep": ("[" * 100_000 + "]" * 100_000, "depth"),
    "broken JSON": ('{"x": [[1, 2]', "no valid JSON"),
    "number": ("3", "is JSON, but 3 (a number)"),
    "null": ("null", "is JSON, but null"),
    "string": ('"hi"', 'is JSON, but "hi" (a string)'),
    "no tensors": ('{"mask": "causal"}', "no tensors"),
    "0-d": (npy(np.float64(3)), "0 dimensions"),
    "1-d": (npy(np.ones(3)), "[[…]]"),
    "5-d": (npy(np.ones((1, 1, 1, 2, 3))), "5 dimensions"),
    "complex": (npy(np.ones((2, 3), complex)), "complex128"),
    "text": (npy(np.array([["a", "b"]])), "expected numbers"),
    "widths": (npz(q=ONES, k=np.ones((2, 4))), "key has width 4 but query has width 3"),
    "transposed key": (npz(q=np.ones((4, 3)), k=np.ones((3, 5))), "transpose it first"),
    "lengths": (npz(q=ONES, k=ONES, v=np.ones((5, 3))), "value has length 5"),
    "heads": (npz(q=np.ones((4, 2, 3)), k=np.ones((3, 2, 3))), "multiple of key/value heads"),
    "value heads": (npz(q=np.ones((4, 2, 3)), k=np.ones((2, 2, 3)), v=np.ones((4, 2, 3))), "heads"),
    "batch": (npz(q=np.ones((2, 1, 2, 3)), k=np.ones((3, 1, 2, 3))), "batch 3"),
    "ranks": (npz(q=ONES, k=np.ones((1, 2, 3))), "dimensions"),
    "two queries": (npz(q=ONES, Q=ONES), "'q' and 'Q'"),
    "no query": (npz(key=ONES, value=ONES), "no tensor named query"),
    "past without value": (npz(q=ONES, past_key=ONES), "past_value"),
    "mask too wide": (npz(q=ONES, mask=np.ones((2, 5), bool)), "does not broadcast"),
    "mask rank": (npz(q=ONES, mask=np.ones((1,) * 5, bool)), "5 dimensions"),
    "integer mask": (npz(q=ONES, mask=np.array([[0, 2], [1, 1]])), "must be 0 and 1"),
    "option type": ('{"x": [[1, 2]], "heads": "two"}', "'heads' is \"two\""),
    "mask in file": ('{"x": [[1, 2]], "mask": "causall"}', "did you mean 'causal'"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(door: Door, tmp_path: Path, name: str) -> None:
    content, expected = BAD_FILES[name]
    (tmp_path / "bad").write_bytes(content.encode() if isinstance(content, str) else content)
    assert_bad(door, "compute", "bad", expected=expected)
    assert not (tmp_path / "unpickled").exists()


BAD_OPTIONS: list[tuple[list[object], str, str]] = [
    (["nope.json"], "no such file: nope.json", "bad_file"),
    (["x.jsn"], "did you mean x.json?", "bad_file"),
    (["nowhere/x.json"], "no such folder: nowhere", "bad_file"),
    (["."], "is a folder", "bad_file"),
    (["qkv.npz::weights"], "it holds", "bad_file"),
    (["qkv.npz", "-q", "qkv.npz::quer"], "did you mean", "bad_file"),
    ([], "no BUNDLE and no --query", "bad_input"),
    (["x.json", "y.json"], "unexpected", "usage"),
    (["x.json", "--cuasal"], "did you mean --causal?", "usage"),
    (["x.json", "--threads", "two"], "'--threads'", "usage"),
    (["x.json", "--threads", "0"], "at least 1", "bad_input"),
    (["x.json", "--top", "0"], "at least 1", "bad_input"),
    (["x.json", "--heads", "0"], "at least 1", "bad_input"),
    (["x.json", "--heads", "4"], "does not divide into 4 heads", "bad_input"),
    (["x.json", "--kv-heads", "1"], "--heads", "bad_input"),
    (["x.json", "--backend", "nunpy"], "did you mean 'numpy'?", "bad_input"),
    (["x.json", "--dtype", "float31"], "did you mean 'float32'?", "bad_input"),
    (["x.json", "--softmax-dtype", "int8"], "float64", "bad_input"),
    (["x.json", "--layout", "hbld"], "bhld, blhd", "bad_input"),
    (["x.json", "--format", "xml"], "table, json, csv, markdown", "bad_input"),
    (["x.json", "--color", "pink"], "auto, always, never", "bad_input"),
    (["x.json", "--mask-polarity", "keep"], "no mask tensor", "bad_input"),
    (["x.json", "--scale", "big"], "expected a number, auto or none", "bad_input"),
    (["x.json", "--scale", "inf"], "finite", "bad_input"),
    (["x.json", "--softcap", "-1"], "positive", "bad_input"),
    (["x.json", "--softcap", "many"], "'--softcap'", "usage"),
    (["x.json", "--sink", "nan"], "not finite", "bad_input"),
    (["x.json", "--sink", "q3.npy"], "sink has shape", "bad_input"),
    (["x.json", "--kv-lengths", "9"], "there are 2 keys", "bad_input"),
    (["x.json", "--kv-lengths", "1,1"], "the batch has 1", "bad_input"),
    (["x.json", "-m", "causall"], "did you mean 'causal'?", "bad_mask"),
    (["x.json", "-m", "causal &"], "causal &", "bad_mask"),
    (["x.json", "-m", "__import__('os')"], "__import__", "bad_mask"),
    (["-q", "x.json", "-k", "q3.npy", "--causal"], "causal(bottom_right)", "bad_mask"),
    (["x.json", "--attn-mask", "q3.npy"], "does not broadcast", "bad_mask"),
    (["x.json", "--attn-mask", "qkv.npz"], "expected one tensor", "bad_file"),
    (["x.json", "--past-key", "x.json"], "without past_value", "bad_input"),
    (["x.json", "--past-key", "x.json", "--past-value", "q3.npy"], "in length", "bad_input"),
    (["x.json", "--tokens", "a b c"], "3 tokens", "bad_input"),
    (["x.json", "--tokens", "@nope"], "no such file", "bad_file"),
    (["x.json", "--rows", "2"], "out of range", "bad_input"),
    (["x.json", "--keys", "one"], "is no selection", "bad_input"),
    (["x.json", "--batch", "1"], "out of range", "bad_input"),
    (["x.json", "--head", "-2"], "out of range", "bad_input"),
    (["x.json", "--include", "wieghts"], "did you mean 'weights'?", "bad_input"),
    (["x.json", "--include", ","], "names nothing", "bad_input"),
    (["x.json", "-o", "out.txt"], ".npz, .safetensors, .json, .npy", "bad_file"),
    (["x.json", "-o", "out"], "no suffix", "bad_file"),
    (["x.json", "-o", "nowhere/out.npz"], "no such folder: nowhere", "bad_file"),
    (["x.json", "-o", "folder.npz"], "is a folder", "bad_file"),
    (["x.json", "-o", "x.json"], "would overwrite an input", "bad_file"),
    (["x.json", "-o", "o.npy", "--include", "output,lse"], "exactly one array", "bad_file"),
    (["lines.ndjson", "-o", "o.npz"], "NDJSON", "bad_input"),
    (["x.json", "-q", "lines.ndjson"], "one a line", "bad_file"),
    (["long.npy", "--include", "weights", "-o", "w.npy"], "--include", "too_large"),
    (["long.npy", "--backend", "reference"], "--backend numpy", "too_large"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "expected", "code"),
    BAD_OPTIONS,
    ids=[" ".join(map(str, o[0])) for o in BAD_OPTIONS],
)
def test_bad_options(
    door: Door, tmp_path: Path, arguments: list[object], expected: str, code: str
) -> None:
    (tmp_path / "x.json").write_text("[[1, 0, 2], [0, 1, 2]]")
    (tmp_path / "lines.ndjson").write_text("[[1]]\n[[2]]\n")
    (tmp_path / "folder.npz").mkdir()
    np.savez(tmp_path / "qkv.npz", query=ONES, key=ONES, value=ONES)
    np.save(tmp_path / "q3.npy", np.ones((3, 3)))
    if "long.npy" in arguments:
        np.save(tmp_path / "long.npy", np.zeros((3_000_000, 1), np.float16))
    assert_bad(door, "compute", *arguments, expected=expected, code=code)
    assert not (tmp_path / "o.npy").exists()


def test_contradicting_formats(door: Door, fruit: Path) -> None:
    ran = door("compute", fruit, "--json", "--format", "csv")
    assert ran.code == 2
    assert "contradict" in ran.data["error"]["message"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--heatmap", "--json"], "json has no place for it"),
        (["--steps", "--format", "json"], "json has no place for it"),
        (["--heatmap", "--format", "csv"], "csv has no place for it"),
        (["--steps", "--format", "ndjson"], "ndjson has no place for it"),
        (["--steps", "--heatmap"], "--steps and --heatmap are two ways"),
        (["--steps", "--top", 2], "--steps and --top are two ways"),
    ],
)
def test_ways_to_show_that_exclude_each_other(
    door: Door, fruit: Path, options: list[object], expected: str
) -> None:
    ran = door("compute", fruit, *options)
    assert ran.code == 2
    assert expected in ran.out + ran.err
