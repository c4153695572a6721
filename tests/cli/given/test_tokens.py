"""Labels: which go where, and how many there must be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attncli.cli.given.attention import gather
from attncli.cli.groups import Problem as Flags
from attncli.errors import FileError, InputError
from tests.support.given import QKV, X, bundle, labels


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


def test_typed_tokens_win_over_labels_of_the_file() -> None:
    x = np.ones((2, 2)).tolist()
    own = bundle(x=x, query_tokens=["a", "b"], key_tokens=["c", "d"])
    assert labels(gather(own, Flags(tokens="e f"))) == ((("e", "f"),), (("e", "f"),))
    assert labels(gather(own, Flags(tokens="e f", key_tokens="g h"))) == (
        (("e", "f"),), (("g", "h"),)
    )  # fmt: skip


def test_tokens_that_label_nothing_are_refused() -> None:
    x, both = np.ones((2, 2)).tolist(), {"query_tokens": "a b", "key_tokens": "c d"}
    for given in (
        gather(bundle(x=x), Flags(tokens="e f", **both)),
        gather(bundle(x=x, tokens="e f", **both), Flags()),
    ):
        with pytest.raises(InputError, match="tokens labels nothing"):
            labels(given)


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


def test_tokens_in_json_are_split_like_the_flag() -> None:
    assert labels(gather(bundle(query=X, tokens="the  cat"), Flags()))[0] == (("the", "cat"),)


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
