"""``--layer`` of a report on many layers takes numbers, and whole parts of names."""

from __future__ import annotations

import pytest

from attncli.errors import InputError
from attncli.reports.selection import with_numbers

NAMES = [
    ("decoder.0.0.SelfAttention", "decoder.block.0.layer.0.SelfAttention"),
    ("decoder.0.1.EncDecAttention", "decoder.block.0.layer.1.EncDecAttention"),
    ("decoder.10.0.SelfAttention", "decoder.block.10.layer.0.SelfAttention"),
    ("encoder.0.0.SelfAttention", "encoder.block.0.layer.0.SelfAttention"),
]


def chosen(text: str, what: str = "layer") -> list[int]:
    return with_numbers(what, range(4), range(4), text, NAMES)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("encoder", [3]), ("decoder", [0, 1, 2]), ("decoder.0", [0, 1]), ("decoder.1", []),
        ("SelfAttention", [0, 2, 3]), ("encoder, decoder.0.1", [1, 3]), ("block.10", [2]),
        ("decoder.block.0.layer.1.EncDecAttention", [1]), ("0:2", [0, 1]), ("-1", [3]),
        ("decod", []), ("encoder,3", []),
    ],
)  # fmt: skip
def test_by_a_part_of_a_name(text: str, found: list[int]) -> None:
    if found:
        assert chosen(text) == found
    else:
        with pytest.raises(InputError, match="no layer is called") as caught:
            chosen(text)
        assert "decoder.0.1.EncDecAttention" in str(caught.value)


def test_where_there_are_no_names_it_is_a_selection_of_numbers() -> None:
    with pytest.raises(InputError, match="is no selection"):
        with_numbers("head", range(4), range(4), "encoder")
