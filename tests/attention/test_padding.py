"""Padding on either side, said or seen, in masks as people hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attncli
from attncli.attention.language import masker, told
from attncli.attention.masks import Extent, Mask
from attncli.attention.tensors import attention_masker, padding_masker, tensor_masker
from attncli.errors import MaskError
from attncli.measures.masks import mask_facts

EXTENT = Extent(2, 2, 4, 4)
REAL = {
    "right": np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool),
    "left": np.array([[0, 1, 1, 1], [0, 0, 1, 1]], bool),
    "both": np.array([[0, 1, 1, 0], [1, 1, 1, 1]], bool),
    "holes": np.array([[1, 0, 1, 1], [0, 1, 0, 1]], bool),
}
CAUSAL = np.tri(4, dtype=bool)


@pytest.mark.parametrize("side", REAL)
@pytest.mark.parametrize("dtype", [bool, np.int64, np.float32])
def test_key_padding_hides_keys_and_takes_their_rows_out(side: str, dtype: Any) -> None:
    real = REAL[side]
    for polarity, tensor in (("keep", real), ("ignore", ~real)):
        mask = padding_masker(tensor.astype(dtype), polarity)(EXTENT)
        assert (mask.dense() == real[:, None, None]).all()
        assert (mask.padding() == ~real).all()
        assert (mask.padding_rows() == ~real).all()
        assert not mask.has_bias
    if side in ("left", "right"):
        assert mask.text == ("padding(3, 2, left)" if side == "left" else "padding(3, 2)")
    again = masker(mask.text)(EXTENT)
    assert (again.dense() == mask.dense()).all()
    assert (again.padding() == mask.padding()).all()


@pytest.mark.parametrize("side", REAL)
def test_minus_infinity_is_padding_and_other_floats_are_added(side: str) -> None:
    real = REAL[side]
    mask = padding_masker(np.where(real, 0, -np.inf))(EXTENT)
    assert (mask.padding() == ~real).all() and not mask.has_bias
    mask = padding_masker(np.where(real, 0.5, -np.inf))(EXTENT)
    assert (mask.padding() == ~real).all()
    assert (mask.tensor() == np.where(real, 0.5, -np.inf)[:, None, None]).all()


@pytest.mark.parametrize("side", REAL)
@pytest.mark.parametrize("shape", ["keys", "cells"])
def test_padding_is_seen_in_tensors_whose_rows_are_blind(side: str, shape: str) -> None:
    real = REAL[side]
    if shape == "cells":  # as transformers makes them: no padded query sees anything
        keep = real[:, None, None] & real[:, None, :, None] & CAUSAL
        mask = tensor_masker(np.where(keep, 0, -np.inf))(EXTENT)
    else:
        mask = masker("causal")(EXTENT) & tensor_masker(real[:, None, None])(EXTENT)
    blind = ~mask.dense().any((1, 3))
    assert (mask.padding_rows() == (blind & ~real)).all()
    facts = mask_facts(mask)
    assert facts.padding_rows == 2 * (blind & ~real).sum()
    assert facts.empty_rows == 0


def test_a_sequence_that_sees_nothing_is_no_padding() -> None:
    mask = tensor_masker(np.zeros((4, 4), bool))(EXTENT)
    assert not mask.padding().any()
    assert mask_facts(mask).empty_rows == 16
    strict = tensor_masker(np.tri(4, k=-1, dtype=bool))(EXTENT)
    assert not strict.padding().any()  # key 3 is hidden from all, but query 3 sees keys


def test_a_key_hidden_in_one_head_alone_is_no_padding() -> None:
    keep = np.ones((1, 2, 4, 4), bool)
    keep[0, 0, 0], keep[0, 0, :, 0] = False, False
    assert not tensor_masker(keep)(EXTENT).padding().any()
    keep[0, 1, 0], keep[0, 1, :, 0] = False, False
    assert tensor_masker(keep)(EXTENT).padding_rows()[:, 0].all()


def test_after_a_cache_rows_are_those_of_their_own_keys() -> None:
    extent = Extent(2, 1, 2, 5, past=3)
    mask = masker("causal & padding(5, 2, left)")(extent)
    assert mask.padding().sum(1).tolist() == [0, 3]
    assert not mask.padding_rows().any()
    assert masker("padding(4, 5)")(extent).padding_rows().tolist() == [[False, True], [False] * 2]


def test_a_left_padded_batch_is_healthy() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 2, 4, 8))
    result = attncli.attend(q, k, v, mask="causal", key_padding_mask=REAL["left"])
    assert result.warnings == ()
    keep = torch.from_numpy(REAL["left"][:, None, None] & CAUSAL)
    truth = torch.nn.functional.scaled_dot_product_attention(
        *map(torch.from_numpy, (q, k, v)), attn_mask=keep
    )
    np.testing.assert_allclose(result.output, np.nan_to_num(truth.numpy()), atol=1e-12)
    seen = attncli.attend(q, k, v, attn_mask=keep.numpy())
    assert seen.warnings == ()


def test_attention_mask_is_padding_where_it_may_be_and_says_so() -> None:
    square = np.tri(4, dtype=np.int64)
    four = Extent(4, 1, 4, 4)
    mask = attention_masker(square, "keep", "attention_mask")(four)
    assert mask.padding().sum(1).tolist() == [3, 2, 1, 0]
    assert "(1, 1, 4, 4)" in mask.notes[0]
    other = attention_masker(square, "keep", "attention_mask")(EXTENT)
    assert (other.dense() == CAUSAL).all() and not other.notes
    assert not attention_masker(REAL["left"], "keep", "attention_mask")(EXTENT).notes


def test_torch_s_mask_of_batch_times_heads() -> None:
    rng = np.random.default_rng(0)
    keep = rng.random((2, 3, 4, 5)) < 0.5
    extent = Extent(2, 3, 4, 5)
    mask = tensor_masker(keep.reshape(6, 4, 5))(extent)
    assert (mask.dense() == keep).all() and not mask.notes
    assert (tensor_masker(keep[0])(extent).dense() == keep[0]).all()  # one for each head
    alike = tensor_masker(keep[:, 0])(Extent(2, 2, 4, 5))
    assert "(heads, queries, keys)" in alike.notes[0]
    assert (alike.dense() == keep[:, 0]).all()
    with pytest.raises(MaskError) as caught:
        tensor_masker(keep[:, 0])(extent)
    assert "transposed" not in str(caught.value)


def test_segments_have_ids_of_queries_and_of_keys(tmp_path: Path) -> None:
    wide = Extent(2, 1, 3, 5)
    mask = masker("segments((0, 0, 1), (0, 0, 1, 1, 2))")(wide)
    assert mask.dense()[0, 0].tolist() == [
        [True, True, False, False, False],
        [True, True, False, False, False],
        [False, False, True, True, False],
    ]
    by_batch = masker("segments([[0, 0, 1], [1, 1, 1]], [0, 0, 1, 1, 2])")(wide).dense()
    assert by_batch[1, 0].sum(1).tolist() == [2, 2, 2]
    np.save(tmp_path / "q.npy", [[0, 0, 1], [1, 1, 1]])
    np.save(tmp_path / "k.npy", [0, 0, 1, 1, 2])
    files = f"segments('{tmp_path.as_posix()}/q.npy', '{tmp_path.as_posix()}/k.npy')"
    assert (masker(files)(wide).dense() == by_batch).all()
    assert told(files) == {"batch": 2, "queries": 3, "keys": 5}


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("segments((0, 1), (0, 0, 1, 1))", "2 ids for 4 queries"),
        ("segments((0, 0, 1, 1), (0, 1))", "2 ids for 4 keys"),
        ("segments((0, 0, 1, 1), (0, 0, 1, 1), top_left)", "no use"),
        ("segments((0, 1, 1, 1), (0, 1, 1, 1), (0, 1, 1, 1))", "3 lists"),
        ("segments((0, 1, 1, 1), 2)", "beside lists"),
        ("segments((0, (1, 2), 1, 1))", "one length"),
        ("segments((0.5, 1, 1, 1))", "whole numbers"),
        ("segments((0, 99999999999999999999, 1, 1))", "whole numbers"),
        ("padding(1, 2, middle)", "unknown word 'middle'"),
        ("padding((1, 2), (1, 2))", "2 lists"),
        ("causal(left)", "unknown word 'left'"),
        ("window(-1, 0)", "inf here"),
        ("chunks()", "0 arguments"),
        ("chunks(0)", "at least 1"),
        ("chunks(2, 1, 1, 1)", "3 starts for a batch of 2"),
    ],
)
def test_bad_lists_are_refused_in_words(text: str, fragment: str) -> None:
    with pytest.raises(MaskError) as caught:
        masker(text)(EXTENT)
    assert fragment in str(caught.value)


def test_padding_from_files(tmp_path: Path) -> None:
    np.save(tmp_path / "real.npy", REAL["holes"])
    np.save(tmp_path / "lengths.npy", [3, 2])
    here = tmp_path.as_posix()
    held = masker(f"padding('{here}/real.npy')")(EXTENT)
    assert (held.padding() == ~REAL["holes"]).all()
    left = masker(f"padding('{here}/lengths.npy', left)")(EXTENT)
    assert (left.padding() == ~REAL["left"]).all()
    assert told(f"causal & padding('{here}/lengths.npy')") == {"batch": 2}
    assert told(f"padding('{here}/real.npy')") == {"batch": 2, "keys": 4}


@pytest.mark.parametrize("text", ["chunks(3)", "chunks(2, 1, 0)", "padding(3, 1, left)"])
def test_tiles_and_spans_never_lie(text: str) -> None:
    extent = Extent(2, 1, 7, 7)
    mask, edges = masker(text)(extent), np.array([0, 2, 5, 7])
    dense = mask.dense()
    for b in range(2):
        for i0, i1 in ((0, 2), (1, 6), (3, 7)):
            block = dense[b, 0, i0:i1]
            fills = mask.tiles(b, 0, i0, i1, edges)
            for fill, j0, j1 in zip(fills, edges[:-1], edges[1:], strict=True):
                part = block[:, j0:j1]
                assert fill == 1 or part.all() == (fill == 2) != (not part.any())
            seen = np.zeros(7, bool)
            for start, stop in mask.spans(b, 0, i0, i1):
                seen[start:stop] = True
            assert not block[:, ~seen].any()


def test_rows_that_are_empty_do_not_see_the_future() -> None:
    facts = mask_facts(masker("causal(bottom_right)")(Extent(1, 1, 6, 2)))
    assert (facts.empty_rows, facts.future_rows, facts.first_future) == (4, 0, None)
    ahead = mask_facts(masker("window(0, 1, bottom_right)")(Extent(1, 1, 6, 2)))
    assert (ahead.future_rows, ahead.first_future) == (2, (0, 0, 3, 0))


def test_notes_of_masks_are_kept_when_they_are_joined() -> None:
    four = Extent(4, 1, 4, 4)
    note = attention_masker(np.tri(4), "keep", "attention_mask")(four)
    both = masker("causal")(four) & note
    assert isinstance(both, Mask) and both.notes == note.notes
