"""Masks as faulty programs apply them do to the logits what their words say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from attncli.attention.language import masker
from attncli.attention.masks import Mask
from attncli.attention.pose import pose
from attncli.studies.compare.cells import Added01, HiddenAt, Times, Transposed

TEXTS = (
    "causal & padding(5, 3)", "causal + alibi(0.5, 2)",
    "window(1, 0) + alibi(1, 2) + alibi(3, 0.5)",
)  # fmt: skip


@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("text", TEXTS)
def test_hidden_keys_have_the_logit_whatever_their_score(text: str, softcap: float | None) -> None:
    q, k, v = np.random.default_rng(4).normal(size=(3, 2, 2, 5, 4))
    p = pose(q, k, v, mask=masker(text), softcap=softcap)
    shown = Mask(p.mask.extent, biases=(*p.mask.biases, HiddenAt(p, -7.0)))
    scores = q @ k.swapaxes(2, 3) * p.scale
    capped = scores if softcap is None else softcap * np.tanh(scores / softcap)
    keep = p.mask.dense()
    added = np.stack([[_bias(p.mask, b, h) for h in range(2)] for b in range(2)])
    logits = capped + shown.tensor()
    np.testing.assert_allclose(logits[~keep], -7.0, rtol=1e-12)
    np.testing.assert_allclose(logits[keep], (capped + added)[keep], rtol=1e-12)


def _bias(mask: Mask, b: int, h: int) -> np.ndarray:
    own = mask.bias(b, h, 0, 5, 0, 5)
    return np.zeros((5, 5)) if own is None else own


@pytest.mark.parametrize("text", TEXTS)
def test_a_mask_transposed_added_and_a_bias_multiplied(text: str) -> None:
    mask = masker(text)(pose(*np.ones((3, 2, 2, 5, 4))).mask.extent)
    other = replace(mask, predicate=Transposed(mask.predicate))
    np.testing.assert_array_equal(other.dense(), mask.dense().swapaxes(2, 3))
    added = Mask(mask.extent, biases=(Added01(mask, 3.0, -2.0),)).tensor()
    np.testing.assert_array_equal(added, np.where(mask.dense(), 3.0, -2.0))
    for bias in mask.biases:
        one, twice = (Mask(mask.extent, biases=(own,)) for own in (bias, Times(bias, 2.5)))
        np.testing.assert_array_equal(twice.tensor(), 2.5 * one.tensor())
