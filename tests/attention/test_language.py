"""The mask language refuses what it does not know and points at the place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attncli.attention.language import BUILDERS, DEEPEST, masker, tensor_masker
from attncli.attention.masks import Extent
from attncli.attention.words import MASKS
from attncli.errors import AttnError, MaskError

EXTENT = Extent(2, 2, 4, 4)


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("causall", "did you mean 'causal'?"),
        ("causal(", "'(' was never closed"),
        ("causal)", "unmatched ')'"),
        ("", "empty"),
        ("   ", "empty"),
        ("window()", "0 arguments"),
        ("window(1, 2, 3)", "3 arguments"),
        ("window(-1)", "at least 0"),
        ("window(1.5)", "whole number"),
        ("window(True)", "not a number"),
        ("window(2, 0, middle)", "unknown word 'middle'"),
        ("prefix(inf)", "whole number"),
        ("prefix('a')", "whole number"),
        ("prefix(top_left)", "unknown word 'top_left'"),
        ("padding(5)", "outside 0…4"),
        ("padding(-1)", "at least 0"),
        ("padding(1, 2, 3)", "3 lengths for a batch of 2"),
        ("segments(0, 1)", "2 ids for 4 keys"),
        ("random(2)", "probability"),
        ("blocks(0)", "at least 1"),
        ("alibi(1, 2, 3)", "3 slopes for 2 heads"),
        ("file(1)", "file name in quotes"),
        ("causal.real", "not a mask"),
        ("causal[0]", "not a mask"),
        ("__import__('os').system('true')", "not a mask"),
        ("(lambda: causal)()", "not a mask"),
        ("prefix(n=3)", "named argument"),
        ("prefix(*[3])", "not a number"),
        ("causal and prefix(1)", "write & instead of and"),
        ("not causal", "write ~ instead of not"),
        ("causal - prefix(1)", "unknown operator"),
        ("causal + prefix(1)", "+ without a bias"),
        ("alibi | causal", "a bias under |"),
        ("~alibi", "a bias under ~"),
        ("1", "not a mask"),
        ("'causal'", "not a mask"),
        ("causal\x00", "null"),
        ("x" * 100_000, "100000 characters"),
        ("(" * 1000 + "causal" + ")" * 1000, "nested"),
        ("~" * 5000 + "causal", "nested"),
        ("padding(99999999999999999999999)", "so large a number"),
        ("random(0.5, " + "9" * 400 + ")", "finite numbers"),
        ("alibi(" + "9" * 400 + ")", "finite numbers"),
        ("alibi(inf)", "finite numbers"),
        ("CAUSAL", "did you mean 'causal'?"),
        ("causal &", "invalid syntax"),
    ],
)
def test_bad_expressions_are_refused_in_words(text: str, fragment: str) -> None:
    with pytest.raises(MaskError) as caught:
        masker(text)(EXTENT)
    assert fragment in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "text", ["causall", "causal & windo(3)", "é & causall", " causal & " * 20 + "nope"]
)
def test_carets_stand_under_the_place(text: str) -> None:
    with pytest.raises(MaskError) as caught:
        masker(text)(EXTENT)
    message, hint = caught.value.message, caught.value.hint or ""
    start, count = hint.index("^"), hint.count("^")
    name = message.split("'")[1]
    assert message[start : start + count] == name


def test_a_long_chain_is_one_level_deep() -> None:
    dense = masker("causal")(EXTENT).dense()
    assert (masker("causal" + " & causal" * 1500)(EXTENT).dense() == dense).all()
    assert (masker("causal" + " | causal" * 1500)(EXTENT).dense() == dense).all()


def test_a_corner_holds_for_the_whole_expression() -> None:
    wide = Extent(1, 1, 2, 4)
    both = masker("alibi(1) & causal(bottom_right)")(wide)
    bias = both.bias(0, 0, 0, 2, 0, 4)
    assert bias is not None
    assert bias.tolist() == [[-2, -1, 0, -1], [-3, -2, -1, 0]]
    with pytest.raises(MaskError, match="ambiguous"):
        masker("causal(top_left) & window(1, 0, bottom_right) & blocks(2)")(wide)


def test_every_mask_says_how_it_is_written() -> None:
    assert set(BUILDERS) == set(MASKS)
    for name, word in MASKS.items():
        assert word.forms.startswith(name)
        assert word.usual.startswith(name)
        assert word.meaning


def test_masks_from_files(tmp_path: Path) -> None:
    np.save(tmp_path / "keep.npy", np.tril(np.ones((4, 4), bool)))
    np.save(tmp_path / "lengths.npy", np.array([2, 3]))
    np.save(tmp_path / "table.npy", np.arange(5.0))
    np.save(tmp_path / "ids.npy", np.array([[0, 0, 1, 1], [0, 1, 1, 1]]))
    here = tmp_path.as_posix()
    keep = masker(f"file('{here}/keep.npy')")(EXTENT)
    assert (keep.dense() == masker("causal")(EXTENT).dense()).all()
    assert masker(f"padding('{here}/lengths.npy')")(EXTENT).lengths == (2, 3)
    ids = masker(f"segments('{here}/ids.npy')")(EXTENT).dense()
    assert ids[1, 0].sum(1).tolist() == [1, 3, 3, 3]
    bias = masker(f"relative('{here}/table.npy')")(EXTENT).bias(0, 0, 0, 2, 0, 4)
    assert bias is not None
    assert bias.tolist() == [[2, 3, 4, 4], [1, 2, 3, 4]]
    with pytest.raises(AttnError, match="no such file"):
        masker(f"file('{here}/none.npy')")(EXTENT)


def test_blanks_in_names_of_files_stay(tmp_path: Path) -> None:
    np.save(tmp_path / "two  blanks.npy", np.tri(4, dtype=bool))
    text = f"  file('{tmp_path}/two  blanks.npy')\n&\tcausal "
    found = masker(text)(EXTENT)
    assert found.text == f"file('{tmp_path}/two  blanks.npy') & causal"
    assert (found.dense() == np.tri(4, dtype=bool)).all()
    with pytest.raises(MaskError, match="goes into --attn-mask"):
        masker("file('\udcff.npy')")


@pytest.mark.parametrize(
    ("tensor", "fragment"),
    [
        (np.full((4, 4), 2), "must be 0 and 1"),
        (np.zeros((3, 4), bool), "does not broadcast"),
        (np.zeros((2, 4), bool), "key padding is (2, 1, 1, 4)"),
        (np.zeros(5, bool), "does not broadcast"),
        (np.zeros((1, 1, 1, 4, 4), bool), "5 dimensions"),
        (np.zeros((), bool), "0 dimensions"),
        (np.zeros((4, 4), complex), "complex"),
        (np.array([["a"]]), "expected bool"),
    ],
)
def test_bad_tensors_are_refused_in_words(tensor: np.ndarray, fragment: str) -> None:
    with pytest.raises(MaskError) as caught:
        tensor_masker(tensor)(EXTENT)
    assert fragment in str(caught.value)


def test_polarity() -> None:
    keep = np.tril(np.ones((4, 4), bool))
    assert (tensor_masker(~keep, "ignore")(EXTENT).dense() == keep).all()
    assert (tensor_masker(keep.astype(np.int8))(EXTENT).dense() == keep).all()
    with pytest.raises(MaskError, match="polarity speaks of bool"):
        tensor_masker(np.zeros((4, 4)), "ignore")
    with pytest.raises(MaskError, match="keep or ignore"):
        tensor_masker(keep, "drop")


def test_a_short_last_dimension_masks_the_rest() -> None:
    dense = tensor_masker(np.ones((1, 3), bool))(EXTENT).dense()
    assert dense[0, 0, 0].tolist() == [True, True, True, False]
    assert not tensor_masker(np.ones((4, 0), bool))(EXTENT).dense().any()


def test_levels_are_counted_and_a_chain_is_one() -> None:
    extent = Extent(1, 1, 3, 3)
    most = DEEPEST - 2  # the name is a level, and what it is read for
    assert most % 2 == 0
    causal = masker("causal")(extent).dense()
    np.testing.assert_array_equal(masker("~" * most + "causal")(extent).dense(), causal)
    with pytest.raises(MaskError, match=f"nested more than {DEEPEST} levels"):
        masker("~" * (most + 1) + "causal")(extent)
    chain = " & ".join(["causal"] * 3 * DEEPEST)
    np.testing.assert_array_equal(masker(chain)(extent).dense(), causal)
