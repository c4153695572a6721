"""Selections of rows, keys and heads."""

from __future__ import annotations

import pytest

from attncli.cli.given.view import selection, view
from attncli.cli.groups import Part
from attncli.errors import AttnError, InputError
from tests.support.given import QKV, posed


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


def test_a_head_by_the_name_of_the_tables() -> None:
    with pytest.raises(InputError, match="--layer 1 --head 2"):
        selection("--head", "1.2", 10)
    with pytest.raises(InputError, match="write an index"):
        selection("--rows", "1.2", 10)


@pytest.mark.parametrize("text", ["10", "-11", "1,10", "10:", "5:5", "4:2"])
def test_selection_out_of_range(text: str) -> None:
    with pytest.raises(InputError, match="--rows") as caught:
        selection("--rows", text, 10)
    assert "0 to 9" in str(caught.value)


def test_selection_of_nothing() -> None:
    with pytest.raises(InputError, match="there are none"):
        selection("--rows", "0", 0)


@pytest.mark.parametrize(("text", "meant"), [("9:2", "2:9"), ("3:3", "3:4"), ("-1:-3", "-3:-1")])
def test_a_range_that_ends_before_it_begins(text: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"{text} is an empty range\nwrite it as {meant}"):
        selection("--rows", text, 18)


def test_view_counts_what_the_problem_has() -> None:
    problem = posed(**QKV)
    found = view(problem, Part(rows="1", keys="-1"), top=3)
    assert (found.rows, found.keys, found.head, found.top) == ((1,), (3,), None, 3)
    with pytest.raises(AttnError, match="--batch"):
        view(problem, Part(batch="1"))
