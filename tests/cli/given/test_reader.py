"""Options of files: which hold, which a flag replaces, which have a wrong type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.cli.given.attention import gather
from attncli.cli.groups import Problem as Flags
from attncli.errors import InputError
from tests.support.given import QKV, Q, X, bundle, posed


def test_options_of_the_file() -> None:
    problem = posed(
        q=np.ones((2, 8)).tolist(), k=np.ones((2, 4)).tolist(), v=np.ones((2, 4)).tolist(),
        heads=4, kv_heads=2, softcap=3, sink=0.5, causal=True, mask="prefix(1)",
    )  # fmt: skip
    assert (problem.heads, problem.kv_heads, problem.softcap) == (4, 2, 3)
    assert problem.sink is not None
    assert (problem.sink == 0.5).all()
    assert problem.mask.dense()[0, 0].tolist() == [[True, False], [True, False]]
    shape = posed(x=np.ones((1, 5, 2, 3)).tolist(), layout="blhd")
    assert (shape.heads, shape.queries) == (2, 5)


def test_flags_win_over_options_of_the_file() -> None:
    problem = posed(
        Flags(heads=3, softcap=7.0, sink="1", layout="bhld"),
        x=np.ones((2, 6)).tolist(), heads=2, softcap=3, sink=0.5, layout="blhd",
    )  # fmt: skip
    assert (problem.heads, problem.softcap) == (3, 7.0)
    assert problem.sink is not None
    assert (problem.sink == 1).all()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("scale", "big", "'scale' is \"big\""),
        ("scale", True, "'scale' is true"),
        ("softcap", "3", "expected a positive number"),
        ("heads", 1.5, "'heads' is 1.5"),
        ("heads", 0, "expected a positive integer"),
        ("kv_heads", "two", "expected a positive integer"),
        ("layout", 3, "bhld or blhd"),
        ("mask", 3, "expected a mask expression"),
        ("mask", {"a": 1}, "expected a mask expression"),
        ("causal", "yes", "expected true or false"),
        ("sink", "0", "expected a number"),
        ("kv_lengths", "3", "expected an integer or a list"),
        ("tokens", ["a", None], "expected a list of strings"),
        ("key_tokens", [["a"], "b"], "expected a list of strings"),
    ],
)
def test_options_of_a_wrong_type_name_file_and_member(name: str, value: Any, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        gather(bundle(query=Q.tolist(), **{name: value}), Flags())
    assert expected in str(caught.value)
    assert f"b.json: '{name}'" in str(caught.value)


def test_null_is_not_given() -> None:
    problem = posed(**QKV, scale=None, mask=None, softcap=None, tokens=None)
    assert problem.softcap is None
    assert problem.mask.trivial


def test_dtypes_are_options_of_json_but_not_of_metadata() -> None:
    asked = posed(query=X, dtype="float16", softmax_dtype="float32")
    assert asked.result_dtype == np.float16
    assert asked.softmax_dtype == np.float32
    assert posed(Flags(dtype="float32"), query=X, dtype="float16").result_dtype == np.float32
    with pytest.raises(InputError, match="unknown dtype 'float31'"):
        posed(query=X, dtype="float31")
    files.write("b.safetensors", {"query": np.eye(2)}, extra={"dtype": "float16"})
    given = gather(files.read("b.safetensors"), Flags())
    assert given.pose().result_dtype == np.float64


def test_a_number_in_npz_is_an_option_too() -> None:
    np.savez("b.npz", query=np.eye(2), scale=0.25, causal=True)
    problem = gather(files.read("b.npz"), Flags()).pose()
    assert problem.scale == 0.25
    assert problem.mask.text == "causal"
    with pytest.raises(InputError, match=r"'scale' has shape \(1,\)\nexpected a number"):
        posed(query=X, scale=[1])
