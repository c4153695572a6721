"""Which tensor plays which role, which option wins, and which labels go where."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.attention.problem import Problem
from attncli.cli.given.attention import Inputs, gather
from attncli.cli.given.view import selection, view
from attncli.cli.groups import Part
from attncli.cli.groups import Problem as Flags
from attncli.errors import AttnError, FileError, InputError

Q, K, V = np.full((2, 3), 1.0), np.full((4, 3), 2.0), np.full((4, 5), 3.0)
QKV = {"query": Q.tolist(), "key": K.tolist(), "value": V.tolist()}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def bundle(**members: Any) -> files.Bundle:
    Path("b.json").write_text(json.dumps(members))
    return files.read("b.json")


def posed(flags: Flags = Flags(), **members: Any) -> Problem:  # noqa: B008 (frozen)
    return gather(bundle(**members), flags).pose()


def labels(given: Inputs) -> tuple[Any, Any]:
    found = given.labels(given.pose())
    return found.query, found.key


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


def test_no_query_lists_what_is_there() -> None:
    with pytest.raises(InputError, match=r"no tensor named query.*it holds key, value"):
        posed(key=K.tolist(), value=V.tolist())
    with pytest.raises(InputError, match=r"-q b\.json::foo"):
        posed(foo=K.tolist(), bar=V.tolist())
    with pytest.raises(InputError, match=r"no tensors\b"):
        posed(mask="causal")


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


def test_sink_by_reference() -> None:
    np.save("sink.npy", np.array([0.0, 1.0]))
    problem = posed(Flags(sink="sink.npy"), x=np.ones((2, 3, 4)).tolist())
    assert problem.sink is not None
    assert problem.sink.tolist() == [0, 1]


# -- masks ------------------------------------------------------------------------------------


def dense(flags: Flags = Flags(), **members: Any) -> list[list[bool]]:  # noqa: B008 (frozen)
    mask = posed(flags, x=np.ones((2, 2)).tolist(), **members).mask
    found: list[list[bool]] = mask.dense()[0, 0].tolist()
    return found


def test_mask_of_the_file_is_an_expression_or_a_tensor() -> None:
    assert dense(mask="causal") == [[True, False], [True, True]]
    assert dense(mask=[[False, True], [True, True]]) == [[False, True], [True, True]]
    assert dense(attn_mask=[[1, 0], [0, 1]]) == [[True, False], [False, True]]
    assert dense(attn_mask=[["-Infinity", 0.5], [0, 0]]) == [[False, True], [True, True]]
    assert dense(attn_mask=[[True, False], [False, True]], mask_polarity="ignore") == [
        [False, True],
        [True, False],
    ]


def test_masks_of_flags_replace_the_file_and_must_all_allow() -> None:
    assert dense(Flags(mask=["prefix(1)"]), mask="causal") == [[True, False], [True, False]]
    assert dense(Flags(mask=["causal", "~prefix(1)"])) == [[False, False], [False, True]]
    np.save("m.npy", np.array([[False, True], [False, True]]))
    assert dense(Flags(attn_mask="m.npy"), attn_mask=[[1, 1], [1, 1]]) == [[False, True]] * 2
    assert dense(Flags(attn_mask="m.npy", mask_polarity="ignore")) == [[True, False]] * 2
    assert dense(Flags(mask=["causal"]), attn_mask=[[1, 1], [0, 1]]) == [
        [True, False],
        [False, True],
    ]


def test_polarity_without_a_tensor() -> None:
    with pytest.raises(InputError, match="no mask tensor"):
        posed(Flags(mask_polarity="ignore"), **QKV)


# -- labels -----------------------------------------------------------------------------------


def test_tokens_label_both_where_they_can() -> None:
    x = np.ones((2, 2)).tolist()
    both = (("a", "b"),)
    assert labels(gather(bundle(x=x), Flags(tokens=" a  b "))) == (both, both)
    assert labels(gather(bundle(x=x, tokens=["a", "b"]), Flags())) == (both, both)
    assert labels(gather(bundle(x=x, tokens=["a", "b"]), Flags(tokens="c d")))[0] == (("c", "d"),)
    assert labels(gather(bundle(x=x, tokens=["a", "b"]), Flags(key_tokens="c d"))) == (
        both,
        (("c", "d"),),
    )
    assert labels(gather(bundle(x=x), Flags(key_tokens="c d"))) == (None, (("c", "d"),))


def test_tokens_for_more_keys_than_queries() -> None:
    with pytest.raises(InputError, match="2 queries and 4 keys"):
        labels(gather(bundle(**QKV), Flags(tokens="a b")))
    given = gather(bundle(**QKV), Flags(query_tokens="a b", tokens="c d e f"))
    assert labels(given) == ((("a", "b"),), (("c", "d", "e", "f"),))


@pytest.mark.parametrize("flag", ["a", "a b c"])
def test_wrong_number_of_tokens_says_both_numbers(flag: str) -> None:
    with pytest.raises(InputError, match=f"{len(flag.split())} tokens?.*length 2"):
        labels(gather(bundle(**QKV), Flags(query_tokens=flag)))


def test_one_list_for_each_batch_element() -> None:
    x = np.ones((2, 1, 2, 3)).tolist()
    assert labels(gather(bundle(x=x, tokens=[["a", "b"], ["c", "d"]]), Flags()))[0] == (
        ("a", "b"),
        ("c", "d"),
    )
    with pytest.raises(InputError, match="3 lists but the batch has 2"):
        labels(gather(bundle(x=x, tokens=[["a", "b"]] * 3), Flags()))
    with pytest.raises(InputError, match="1 token for batch element 1"):
        labels(gather(bundle(x=x, tokens=[["a", "b"], ["c"]]), Flags()))


def test_token_ids_are_labels() -> None:
    x = np.ones((2, 2)).tolist()
    assert labels(gather(bundle(x=x, tokens=[101, 102]), Flags()))[0] == (("101", "102"),)


@pytest.mark.parametrize(
    "text",
    ["[CLS]\nb c\n", '["[CLS]", "b c"]', '[["[CLS]", "b c"]]', "[CLS]\r\nb c"],
)
def test_token_files(text: str) -> None:
    Path("t").write_bytes(text.encode())
    given = gather(bundle(x=np.ones((2, 2)).tolist()), Flags(tokens="@t"))
    assert labels(given)[0] == (("[CLS]", "b c"),)


@pytest.mark.parametrize(
    ("content", "expected"),
    [(None, "no such file"), (b"\xff\xfe", "no UTF-8"), (b'[{"a": 1}]', "no list of tokens")],
)
def test_bad_token_files(content: bytes | None, expected: str) -> None:
    if content is not None:
        Path("t").write_bytes(content)
    with pytest.raises(FileError, match=expected):
        gather(bundle(**QKV), Flags(tokens="@t"))


# -- selections -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        (None, None),
        ("3", (3,)),
        ("-1", (9,)),
        ("1,4", (1, 4)),
        ("4,1", (4, 1)),
        ("0:4,9", (0, 1, 2, 3, 9)),
        ("::3", (0, 3, 6, 9)),
        ("7:", (7, 8, 9)),
        (":2", (0, 1)),
        ("-2:", (8, 9)),
        ("8:100", (8, 9)),
        ("::-4", (9, 5, 1)),
        ("2,2,1:3", (2, 1)),
        (" 1 , 2", (1, 2)),
    ],
)
def test_selection(text: str | None, indices: tuple[int, ...] | None) -> None:
    assert selection("--rows", text, 10) == indices


@pytest.mark.parametrize("text", ["", "a", "1,", "1:2:3:4", "1.5", "::0", "1-3", "²"])
def test_no_selection(text: str) -> None:
    with pytest.raises(InputError, match="is no selection"):
        selection("--rows", text, 10)


@pytest.mark.parametrize("text", ["10", "-11", "1,10", "10:", "5:5", "4:2"])
def test_selection_out_of_range(text: str) -> None:
    with pytest.raises(InputError, match="--rows") as caught:
        selection("--rows", text, 10)
    assert "0 to 9" in str(caught.value)


def test_selection_of_nothing() -> None:
    with pytest.raises(InputError, match="there are none"):
        selection("--rows", "0", 0)


def test_view_counts_what_the_problem_has() -> None:
    problem = posed(**QKV)
    found = view(problem, Part(rows="1", keys="-1"), top=3)
    assert (found.rows, found.keys, found.head, found.top) == ((1,), (3,), None, 3)
    with pytest.raises(AttnError, match="--batch"):
        view(problem, Part(batch="1"))


# -- names that nothing reads -----------------------------------------------------------------

X = [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("members", "name", "meant"),
    [
        ({"query": X, "keys": X, "values": X}, "keys", "key"),
        ({"query": X, "key": X, "vlaue": X}, "vlaue", "value"),
        ({"keys": X}, "keys", "key"),
        ({"x": X, "attn_msk": X}, "attn_msk", "attn_mask"),
        ({"query": X, "kv_length": [2]}, "kv_length", "kv_lengths"),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "npz"])
def test_a_misspelt_role_is_refused(
    members: dict[str, Any], name: str, meant: str, suffix: str
) -> None:
    path = f"b.{suffix}"
    if suffix == "json":
        Path(path).write_text(json.dumps(members))
    else:
        np.savez(path, **members)
    with pytest.raises(InputError, match=f"'{name}' is not read; did you mean '{meant}'?"):
        gather(files.read(path), Flags())


def test_no_slip_where_the_role_is_played_otherwise() -> None:
    np.save("k.npy", K)
    given = gather(bundle(query=Q.tolist(), keys=[[1.0]]), Flags(key="k.npy"))
    assert given.warnings == ("b.json: 'keys' is not read",)
    assert gather(bundle(querys=Q.tolist(), key=K.tolist()), Flags()).warnings == ()


def test_what_nothing_reads_is_warned_about_in_one_line() -> None:
    given = gather(bundle(query=X, labels=[1], extra=[2], sclae=3, note="b"), Flags())
    assert given.warnings == (
        "b.json: 'labels', 'extra', 'note' are not read",
        "b.json: 'sclae' is not read; did you mean 'scale'?",
    )
    assert given.pose().warnings == given.warnings
    known = dict.fromkeys(("output", "weights", "lse", "grad_query", "masked", "present_key"), X)
    assert gather(bundle(query=X, **known), Flags()).warnings == ()
    ours = bundle(schema="attncli.compute/1", query=X, extra=X, keys=X, warnings=[])
    assert gather(ours, Flags()).warnings == ()


@pytest.mark.parametrize("name", ["key", "value", "weights", "output", "attn_mask", "lse"])
def test_a_tensor_with_another_role_is_no_query(name: str) -> None:
    with pytest.raises(InputError, match=f"no tensor named query.*it holds {name}"):
        gather(bundle(**{name: X}), Flags())


def test_a_result_without_its_query_says_what_it_holds() -> None:
    found = bundle(schema="attncli.compute/1", output=X, weights=X, warnings=[], heads=[])
    with pytest.raises(
        InputError, match=r"result of attncli compute.*holds output, weights\n.*--in"
    ):
        gather(found, Flags())


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


@pytest.mark.parametrize("name", ["rope_theta", "rope_dim", "rope_cos"])
def test_rope_options_in_the_file_need_rope(name: str) -> None:
    value = [[1.0]] if name == "rope_cos" else 2
    with pytest.raises(InputError, match=f"b.json: '{name}' is given without rope\nadd --rope"):
        gather(bundle(query=X, **{name: value}), Flags())
    assert gather(bundle(query=X, position_ids=[0, 1]), Flags()).warnings == ()


def test_tokens_in_json_are_split_like_the_flag() -> None:
    assert labels(gather(bundle(query=X, tokens="the  cat"), Flags()))[0] == (("the", "cat"),)


def test_a_mask_that_replaces_the_files_is_warned_about() -> None:
    given = gather(bundle(query=X, mask="padding(2)"), Flags(mask=["causal"]))
    assert given.warnings == (
        "-m replaces the file's mask padding(2); to keep both add -m 'padding(2)'",
    )
    for kept in (("causal", "padding(2)"), ("causal & padding( 2 )",), ()):
        assert gather(bundle(query=X, mask="padding(2)"), Flags(mask=kept)).warnings == ()


def test_lists_of_numbers_are_no_files() -> None:
    for text in ("-1,1", "1.5,1", "nan"):
        with pytest.raises(InputError, match=r"--kv-lengths is .*\nexpected numbers of keys"):
            gather(bundle(query=X), Flags(kv_lengths=text))
    heads = np.ones((2, 3, 4)).tolist()
    sink = posed(Flags(sink="1,2"), x=heads).sink
    assert sink is not None
    assert sink.tolist() == [1, 2]


def test_files_in_an_expression_are_sources() -> None:
    np.save("kv.npy", np.array([2]))
    assert "kv.npy" in gather(bundle(query=X), Flags(mask=["padding('kv.npy')"])).sources


@pytest.mark.parametrize(("text", "meant"), [("9:2", "2:9"), ("3:3", "3:4"), ("-1:-3", "-3:-1")])
def test_a_range_that_ends_before_it_begins(text: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"{text} is an empty range\nwrite it as {meant}"):
        selection("--rows", text, 18)
