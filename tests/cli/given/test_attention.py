"""Which tensor plays which role, and which option wins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.cli.given.attention import gather
from attncli.cli.groups import Problem as Flags
from attncli.errors import AttnError, FileError, InputError
from tests.support.given import QKV, K, Q, V, X, bundle, posed

# -- roles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("query", "key", "value"), ("q", "k", "v"), ("Q", "K", "V")])
def test_roles_by_name(names: tuple[str, str, str]) -> None:
    problem = posed(**dict(zip(names, QKV.values(), strict=True)), note="ignored", extra=[[1]])
    assert (problem.query[0, 0] == Q).all()
    assert (problem.key[0, 0] == K).all()
    assert (problem.value[0, 0] == V).all()


def test_missing_value_is_the_key_and_missing_key_the_query() -> None:
    problem = posed(query=Q.tolist(), key=K.tolist())
    assert (problem.value == problem.key).all()
    problem = posed(query=Q.tolist())
    assert (problem.key == problem.query).all()


@pytest.mark.parametrize("name", ["x", "hidden_states", "X", "embedding"])
def test_a_single_tensor_is_self_attention(name: str) -> None:
    problem = posed(**{name: Q.tolist()}, tokens=["a", "b"])
    assert (problem.query[0, 0] == Q).all()
    assert (problem.key == problem.query).all()


def test_a_bare_array_is_self_attention() -> None:
    np.save("x.npy", Q)
    problem = gather(files.read("x.npy"), Flags()).pose()
    assert (problem.value[0, 0] == Q).all()


def test_flags_win_over_the_bundle() -> None:
    np.save("q.npy", Q * 7)
    np.savez("other.npz", key=K * 7, unrelated=K)
    problem = posed(Flags(query="q.npy", key="other.npz", value="other.npz::key"), **QKV)
    assert (problem.query == 7).all()
    assert (problem.key == 14).all()
    assert (problem.value == 14).all()


def test_flags_alone() -> None:
    np.savez("all.npz", query=Q, key=K, value=V)
    given = gather(None, Flags(query="all.npz", key="all.npz", value="all.npz::value"))
    assert (given.pose().value[0, 0] == V).all()
    assert given.sources == ("all.npz",)


def test_query_flag_beside_a_bare_array_is_refused() -> None:
    np.save("x.npy", Q)
    with pytest.raises(InputError, match="one unnamed tensor") as caught:
        gather(files.read("x.npy"), Flags(query="x.npy"))
    assert "-k x.npy" in str(caught.value)


def test_two_candidates_for_a_role() -> None:
    with pytest.raises(FileError, match="'query' and 'Q'"):
        posed(query=Q.tolist(), Q=Q.tolist())


def test_integers_are_announced_unless_they_come_from_json() -> None:
    np.savez("int.npz", query=np.ones((2, 3), np.int64), key=np.ones((2, 3), np.uint8))
    given = gather(files.read("int.npz"), Flags())
    assert given.notes == (
        "key converted from uint8", "query converted from int64",
        "value is missing: the key is used",
    )  # fmt: skip
    assert given.pose().query.dtype == np.float64
    assert gather(bundle(**QKV), Flags()).notes == ()
    assert posed(query=[[1, 0]]).query.dtype == np.float64


def test_past_comes_before() -> None:
    problem = posed(**QKV, past_key=K[:1].tolist(), past_value=V[:1].tolist())
    assert problem.past == 1
    assert problem.keys == 5


def test_sources_are_all_files_read() -> None:
    np.save("q.npy", Q)
    Path("t.txt").write_text("a\nb\n")
    given = gather(bundle(**QKV), Flags(query="q.npy", query_tokens="@t.txt"))
    assert given.sources == ("b.json", "q.npy", "t.txt")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([["1", "2"]], r'query\[0\]\[0\] is "1" \(a string\); expected a number'),
        ("the cat", r'query is "the cat" \(a string\); expected numbers'),
        ({"cat": [1, 2]}, r"'query' holds 1 \(query.cat\); expected one tensor\nsay which is"),
        ({"cat": "sat"}, "query is an object; expected numbers"),
        ([1, 2], r"query is a list of 2 numbers; expected rows\nwrite \[\[1, 2\]\], one row a q"),
        ([], "query is an empty list"),
    ],
)
def test_what_is_no_matrix_says_where(value: Any, expected: str) -> None:
    with pytest.raises(AttnError, match=expected):
        gather(bundle(query=value), Flags())


def test_a_list_of_values_says_how_to_write_it() -> None:
    with pytest.raises(InputError, match=r"write \[\[10\], \[20\]\], one row a key"):
        gather(bundle(query=X, value=[10, 20]), Flags())
    with pytest.raises(InputError, match="key is an empty list"):
        gather(bundle(query=X, key=[]), Flags())


# -- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "member", "scale", "source"),
    [
        (None, None, 1 / np.sqrt(3), "1/√3"),
        (None, 2, 2.0, "from file"),
        (None, "none", 1.0, "no scale"),
        ("0.5", 2, 0.5, "given"),
        ("-1", None, -1.0, "given"),
        ("auto", 2, 1 / np.sqrt(3), "1/√3"),
        ("none", 2, 1.0, "no scale"),
    ],
)
def test_scale(flag: str | None, member: Any, scale: float, source: str) -> None:
    problem = posed(Flags(scale=flag), **QKV, scale=member)
    assert problem.scale == pytest.approx(scale)
    assert problem.scale_source == source


def test_scale_that_is_no_number() -> None:
    with pytest.raises(InputError, match="--scale is 'big'"):
        posed(Flags(scale="big"), **QKV)
    with pytest.raises(InputError, match="scale is nan"):
        posed(Flags(scale="nan"), **QKV)


def test_kv_lengths() -> None:
    x = np.ones((2, 1, 3, 2)).tolist()
    assert posed(Flags(kv_lengths="3,1"), x=x).mask.extent.lengths == (3, 1)
    assert posed(Flags(kv_lengths="2"), x=x).mask.extent.lengths == (2, 2)
    np.save("lengths.npy", np.array([1, 2]))
    assert posed(Flags(kv_lengths="lengths.npy"), x=x).mask.extent.lengths == (1, 2)
    assert posed(x=x, kv_lengths=[2, 3]).mask.extent.lengths == (2, 3)
    assert posed(x=x, kv_lengths=2).mask.extent.lengths == (2, 2)
    notes = gather(bundle(x=x, kv_lengths=[2, 3]), Flags()).notes
    assert notes == ("key and value are missing: the query is used",)


def test_lists_of_numbers_are_no_files() -> None:
    for text in ("-1,1", "1.5,1", "nan"):
        with pytest.raises(InputError, match=r"--kv-lengths is .*\nexpected numbers of keys"):
            gather(bundle(query=X), Flags(kv_lengths=text))
    heads = np.ones((2, 3, 4)).tolist()
    sink = posed(Flags(sink="1,2"), x=heads).sink
    assert sink is not None
    assert sink.tolist() == [1, 2]


def test_sink_by_reference() -> None:
    np.save("sink.npy", np.array([0.0, 1.0]))
    problem = posed(Flags(sink="sink.npy"), x=np.ones((2, 3, 4)).tolist())
    assert problem.sink is not None
    assert problem.sink.tolist() == [0, 1]
