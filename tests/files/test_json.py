"""JSON into arrays and back, and where it is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attncli import files
from attncli.errors import FileError, InputError
from tests.support.files import FUZZ, PLAIN, consume, put, refused, sample, use_stdin


@pytest.mark.parametrize("dtype", [*PLAIN, "bfloat16", "float8_e5m2"])
def test_json_round_trip(tmp_path: Path, dtype: str) -> None:
    path, array = str(tmp_path / "x.json"), sample(dtype)
    files.write(path, {"query": array}, extra={"tokens": ["a", "ü"], "scale": 0.5})
    bundle = files.read(path)
    found = bundle.tensors["query"]
    assert found.dtype == {"b": bool, "i": np.int64, "u": np.int64}.get(array.dtype.kind, float)
    assert (found == array.astype(found.dtype)).all()
    assert dict(bundle.options) == {"tokens": ["a", "ü"], "scale": 0.5}


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
    assert list(bundle.tensors) == ["query", "heads.0.x", "broken"]
    assert {**bundle.options} == {
        "mask": "causal", "scale": 0.5, "tokens": ["a", "b:c"], "heads.0.head": 0, "nothing": None,
    }  # fmt: skip
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


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"o": {"i": {"a": 1, "b": 2, "a": 3}}}', "a"),
        ('{"o": [1, [{"a": 1}, {"b": {"c": 1, "c": 2}}]]}', "c"),
        ('{"q": [1, {"a": 1, "a": 2}]}', "a"),
        (r'{"a\"b": 1, "a\"b": 2}', 'a"b'),
        (r'{"a\\": 1, "a\u005c": 2}', "a\\"),
        ('{"a:b": 1, "a:b": 2, "c": "::"}', "a:b"),
        (r'{"a": 1, "a": 2, "b": "an escaped \u003a"}', "a"),
        (r'{"a": "\":", "\"a\":": 1, "a" : 2}', "a"),
        ('{"q": [NaN], "q": [1]}', "q"),
    ],
)
def test_two_members_of_one_name(tmp_path: Path, text: str, name: str) -> None:
    refused(put(tmp_path / "x.json", text), f"two members named '{name}'", "keep one of them")


@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"a": {"a": 1}}, "b": [{"a": 1}, {"a": 2}]}',
        r'{"a\"": 1, "a\\": 2, "a": 3}',
        '{"a": "b: c, d: e", "f:g": ["::", ":"], "h": {":": ":"}}',
        r'{"a": "\u003a\u003A", "\u003a": "\":", "b": "\"a\": 1"}',
        '{"q": [NaN, Infinity], "c": "d: e"}',
        '{"a" : "b" , "c"\t:\n"d"}',
    ],
)
def test_colons_and_quotes_are_no_members(tmp_path: Path, text: str) -> None:
    bundle = files.read(put(tmp_path / "x.json", text))
    assert {*bundle.tensors, *bundle.options} == json.loads(text).keys()


def test_bare_array_errors_name_the_position(tmp_path: Path) -> None:
    refused(put(tmp_path / "x.json", "[[1, 2], [3]]"), "x.json: [1] has 1")


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
