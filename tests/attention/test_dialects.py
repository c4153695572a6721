"""A mask in other libraries' words means the same there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncli.attention.dialects import DIALECTS, speak
from attncli.attention.language import masker
from attncli.attention.masks import Extent, Mask
from attncli.errors import MaskError
from tests.support.problems import mask_expressions

EXTENT = Extent(2, 2, 4, 4)


def bound(text: str, extent: Extent = EXTENT) -> Mask:
    return masker(text)(extent)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_sdpa_and_mha_keep_the_same_cells(data: st.DataObject) -> None:
    text = data.draw(mask_expressions(2, 4, 4))
    keep = bound(text).dense()
    said = speak(bound(text), "sdpa").tensors
    ours = np.broadcast_to(said.get("attn_mask", True), keep.shape)
    assert (ours == keep).all()
    said = speak(bound(text), "mha").tensors
    ignored = np.zeros(keep.shape, bool)
    if "attn_mask" in said:
        tensor = said["attn_mask"]
        ignored |= tensor if tensor.ndim == 2 else tensor.reshape(keep.shape)
    if "key_padding_mask" in said:
        ignored |= said["key_padding_mask"][:, None, None, :]
    assert (~ignored == keep).all()


def test_torch_takes_what_is_said_for_mha() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    mha = torch.nn.MultiheadAttention(6, 2, batch_first=True, dtype=torch.float32)
    x = torch.randn(2, 4, 6)
    for text in ("causal & padding(4, 3)", "causal", "causal + alibi", "window(1, 1)"):
        mask = bound(text)
        said = {k: torch.tensor(np.asarray(v)) for k, v in speak(mask, "mha").tensors.items()}
        with torch.no_grad():
            weights = mha(x, x, x, average_attn_weights=False, **said)[1].numpy()
        assert (weights[~mask.dense()] == 0).all()
        assert (weights[mask.dense()] > 0).all()


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("causal", {"causal": True}),
        ("window(2, 0)", {"window_size": (2, 0)}),
        ("window(2)", {"window_size": (2, -1)}),
        ("window(inf, 1)", {"window_size": (-1, 1)}),
        ("causal & window(3)", {"window_size": (3, 0)}),
        ("causal & padding(4, 4)", {"causal": True}),
        ("causal & alibi", {"causal": True}),
        ("segments(0, 0, 1, 1)", {"max_seqlen_q": 2, "max_seqlen_k": 2}),
    ],
)
def test_flash_takes_arguments(text: str, arguments: dict[str, Any]) -> None:
    said = speak(bound(text), "flash")
    assert said.arguments == arguments
    assert "attn_mask" not in said.tensors


def test_flash_names_where_documents_begin() -> None:
    said = speak(bound("segments(0, 0, 1, 2)"), "flash")
    assert said.tensors["cu_seqlens_q"].tolist() == [0, 2, 3, 4, 6, 7, 8]
    assert said.tensors["cu_seqlens_k"].tolist() == [0, 2, 3, 4, 6, 7, 8]


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("causal | prefix(1)", "cannot say"),
        ("prefix(2)", "cannot say"),
        ("segments(0, 1, 0, 1)", "contiguous"),
        ("~causal", "cannot say"),
        ("alibi + alibi(0.5, 0.25)", "no bias but alibi slopes"),
    ],
)
def test_flash_refuses_with_the_reason(text: str, fragment: str) -> None:
    with pytest.raises(MaskError) as caught:
        speak(bound(text), "flash")
    assert fragment in str(caught.value)


def test_flash_says_whether_padding_is_left_out() -> None:
    left = speak(bound("causal & padding(4, 2, left)"), "flash")
    assert left.tensors["cu_seqlens_q"].tolist() == [0, 4, 6]
    assert any("padding left out" in note for note in left.notes)
    whole = speak(bound("causal & segments(0, 0, 1, 1)"), "flash")
    assert not any("padding" in note for note in whole.notes)


def test_onnx_and_hf() -> None:
    assert speak(bound("causal"), "onnx").arguments == {"is_causal": 1}
    lengths = speak(bound("padding(4, 2)"), "onnx").tensors
    assert lengths["nonpad_kv_seqlen"].tolist() == [4, 2]
    tensor = speak(bound("window(1, 0)"), "onnx").tensors["attn_mask"]
    assert (tensor == bound("window(1, 0)").dense()[0, 0]).all()
    mask = speak(bound("padding(4, 2)"), "hf").tensors["attention_mask"]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    four = speak(bound("causal & padding(4, 2)"), "hf").tensors["attention_mask"]
    assert four.shape == (2, 1, 4, 4)
    assert four.dtype == np.float32
    assert ((four == 0) == bound("causal & padding(4, 2)").dense()[:, :1]).all()
    assert four.min() == np.finfo(np.float32).min


def test_every_dialect_says_no_mask_and_unknown_ones_are_refused() -> None:
    for name in DIALECTS:
        said = speak(Mask(EXTENT), name)
        assert not said.tensors
        assert not said.arguments
    with pytest.raises(MaskError, match="it must be one of sdpa"):
        speak(Mask(EXTENT), "jax")


@pytest.mark.parametrize(
    ("text", "hidden"),
    [("causal", False), ("~causal", True), ("padding(4, 6)", False), ("padding(0, 6)", True),
     ("causal & padding(4, 6)", False), ("causal & padding(4, 6, left)", True),
     ("causal & padding(4, 6, left) + alibi", True), ("causal + alibi", False)],
)  # fmt: skip
def test_mha_is_said_to_make_nan_of_rows_that_see_nothing(text: str, hidden: bool) -> None:
    mask = masker(text)(Extent(2, 1, 6, 6))
    assert any("NaN" in note for note in speak(mask, "mha").notes) == hidden
