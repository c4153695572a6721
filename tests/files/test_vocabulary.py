"""The table of names: what it holds, what it tells apart, what is nearly in it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.cli import groups
from attncli.errors import FileError
from attncli.files.vocabulary import BYSTANDERS, PLAYED, ROLES, expected_of, role_of, slips
from tests.support.files import put, refused


def test_every_option_of_a_problem_is_a_role() -> None:
    members = groups.Problem.members | groups.Softmax.members
    assert [name for name in members if name not in ROLES] == []
    assert [name for name, row in ROLES.items() if row.kinds and not row.expected] == []


def test_a_name_and_a_kind_are_one_role() -> None:
    for name, roles in PLAYED.items():
        kinds = [kind for role in roles for kind in ROLES[role].kinds]
        assert len(kinds) == len(set(kinds)), name
        assert name == name.lower() and name not in BYSTANDERS
    assert role_of("MASK", "text") == "mask" and role_of("mask", "tensor") == "attn_mask"
    assert role_of("scale", "truth") is None and role_of("heads", "tensor") == "head_outputs"
    assert expected_of("mask") == 'a mask expression, such as "causal" or a tensor'


def test_slips_are_one_letter_away_and_no_words() -> None:
    near = slips(["value", "key"])
    for slip in ("vlaue", "valu", "values", "valve", "keys", "kye"):
        assert near[slip] in ("value", "key")
    assert {"k", "v", "value", "key", "kv"}.isdisjoint(near)
    assert "vaules2" not in near


def test_the_vocabulary_loads_no_numpy() -> None:
    program = "import sys; from attncli.files import vocabulary; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"False"


# -- names below a prefix


NESTED = {"data": {"query": [[1.0, 2.0]], "scale": 2, "deep": {"note": "x", "extra": [1]}}}


def test_nested_json_is_named_with_dots(tmp_path: Path) -> None:
    path = put(tmp_path / "x.json", json.dumps({**NESTED, "softcap": 3, "meta": {"a": "b"}}))
    bundle = files.read(path)
    assert list(bundle.tensors) == ["data.query", "data.deep.extra"]
    assert dict(bundle.options) == {
        "data.scale": 2, "data.deep.note": "x", "softcap": 3, "meta": {"a": "b"},
    }  # fmt: skip
    short = files.unwrapped(bundle)
    assert list(short.tensors) == ["query", "data.deep.extra"]
    assert (short.options["scale"], short.options["softcap"]) == (2, 3)
    assert short.ref("query") == f"{path}::data.query"
    assert files.read_tensor(short.ref("query")).tolist() == [[1, 2]]


def test_lists_of_objects_are_named_by_their_places(tmp_path: Path) -> None:
    layers = [{"q": [[1.0]], "scale": n} for n in range(2)]
    for text, stem in (({"layers": layers}, "layers."), (layers, "")):
        path = put(tmp_path / "x.json", json.dumps(text))
        assert list(files.read(path).tensors) == [f"{stem}0.q", f"{stem}1.q"]
        second = files.unwrapped(files.read(f"{path}::{stem}1"))
        assert (list(second.tensors), dict(second.options)) == (["q"], {"scale": 1})


def test_two_names_that_become_one_are_refused(tmp_path: Path) -> None:
    refused(put(tmp_path / "x.json", '{"a.q": [1], "a": {"q": [2]}}'), "two members named 'a.q'")
    twice = files.read(put(tmp_path / "y.json", json.dumps({**NESTED, "scale": 3})))
    with pytest.raises(FileError, match="'scale' more than once"):
        files.unwrapped(twice)


def test_deep_nesting_is_no_crash(tmp_path: Path) -> None:
    refused(put(tmp_path / "x.json", '{"a":' * 1000 + "[1]" + "}" * 1000), "nested too deep")
    few = files.read(put(tmp_path / "y.json", '{"a":' * 30 + "[1]" + "}" * 30))
    assert list(few.tensors) == [".".join("a" * 30)]


@pytest.mark.parametrize("value", ["-inf", "inf", "nan", "NAN", "-Infinity", "+inf", "Inf"])
def test_non_finite_numbers_as_others_write_them(tmp_path: Path, value: str) -> None:
    for row in ([value, 0], [0, value]):
        found = files.read_tensor(put(tmp_path / "x.json", json.dumps([row])))
        np.testing.assert_array_equal(found, [[float(x) for x in row]])


def test_other_words_in_numbers_are_refused_wherever_they_stand(tmp_path: Path) -> None:
    for row in ([0, "minus inf"], [0, "infinite"]):
        refused(put(tmp_path / "x.json", json.dumps({"q": [row]})), "(a string)", "a number")


# -- PyTorch files


def saved(tmp_path: Path, value: Any) -> files.Bundle:
    torch = pytest.importorskip("torch")
    torch.save(value, tmp_path / "x.pt")
    return files.read(str(tmp_path / "x.pt"))


def test_torch_files_keep_what_is_plain(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    bundle = saved(tmp_path, {
        "q": torch.ones(2, 2), "scale": 0.5, "causal": True, "mask": "causal", "none": None,
        "window_size": (-1, 0), "tokens": ["a", "b"], "dtype": torch.float16,
        "layers": [{"k": torch.ones(1)}], "mixed": [torch.zeros(1), 3],
    })  # fmt: skip
    assert list(bundle.tensors) == ["q", "window_size", "layers.0.k", "mixed.0"]
    assert bundle.tensors["window_size"].tolist() == [-1, 0]
    assert dict(bundle.options) == {
        "scale": 0.5, "causal": True, "mask": "causal", "none": None, "tokens": ["a", "b"],
        "dtype": "float16", "mixed.1": 3,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "bool", ">f8"])
def test_numpy_arrays_in_torch_files(tmp_path: Path, dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    bundle = saved(tmp_path, {"q": array, "scale": np.float32(0.5), "kv_lengths": np.int64(3)})
    assert bundle.tensors["q"].dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(bundle.tensors["q"], array)
    assert (bundle.tensors["scale"].item(), bundle.tensors["kv_lengths"].item()) == (0.5, 3)


@pytest.mark.parametrize("kind", [tuple, list])
def test_three_tensors_are_query_key_and_value(tmp_path: Path, kind: Any) -> None:
    torch = pytest.importorskip("torch")
    bundle = files.unwrapped(saved(tmp_path, kind(torch.full((2, 2), float(n)) for n in range(3))))
    assert {n: a[0, 0] for n, a in bundle.tensors.items()} == {"query": 0, "key": 1, "value": 2}
    assert bundle.ref("value").endswith("x.pt::2")
    two = files.unwrapped(saved(tmp_path, kind(torch.ones(2, 2) for _ in range(2))))
    assert list(two.tensors) == ["0", "1"]


# -- many names


@pytest.mark.parametrize("form", ["flat", "nested"])
def test_a_hundred_thousand_names_take_a_moment(tmp_path: Path, form: str) -> None:
    from attncli.cli.given.attention import gather

    members: dict[str, Any] = {f"k{n}xyz": [n] for n in range(10**5)} | {"query": [[1, 0]]}
    path = put(tmp_path / "x.json", json.dumps(members if form == "flat" else {"a": members}))
    start = time.process_time()
    given = gather(files.read(path), groups.Problem())
    assert time.process_time() - start < 5
    assert len(given.warnings) == 1 and given.warnings[0].endswith(", … are not read")
