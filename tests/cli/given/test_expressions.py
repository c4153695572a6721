"""Masks of files and flags."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.cli.given.attention import gather
from attncli.cli.groups import Problem as Flags
from attncli.errors import InputError
from tests.support.given import QKV, X, bundle, posed


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


def test_a_mask_that_replaces_the_files_is_warned_about() -> None:
    given = gather(bundle(query=X, mask="padding(2)"), Flags(mask=["causal"]))
    assert given.warnings == (
        "-m replaces the file's mask padding(2); to keep both add -m 'padding(2)'",
    )
    for kept in (("causal", "padding(2)"), ("causal & padding( 2 )",), ()):
        assert gather(bundle(query=X, mask="padding(2)"), Flags(mask=kept)).warnings == ()


def test_polarity_without_a_tensor() -> None:
    with pytest.raises(InputError, match="no mask tensor"):
        posed(Flags(mask_polarity="ignore"), **QKV)


def test_files_in_an_expression_are_sources() -> None:
    np.save("kv.npy", np.array([2]))
    assert "kv.npy" in gather(bundle(query=X), Flags(mask=["padding('kv.npy')"])).sources
