"""Every dialect, run in its library, gives the very mask that is shown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncli.attention.dialects import speak
from attncli.attention.language import masker, tensor_masker
from attncli.attention.masks import Extent, Mask
from attncli.attention.tensors import padding_masker
from attncli.errors import MaskError
from tests.support import dialects
from tests.support.dialects import expected, heard
from tests.support.problems import mask_expressions

SQUARE = Extent(2, 2, 4, 4)
PAST = Extent(2, 2, 3, 5, past=2)
WIDE = Extent(2, 2, 3, 5)
CACHE = Extent(2, 2, 2, 5, lengths=(5, 3))
EXTENTS = {"square": SQUARE, "past": PAST, "wide": WIDE, "cache": CACHE}


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    """Draw a mask: any expression, or a join of what kernels have words for."""
    extent = draw(st.sampled_from([SQUARE, PAST, WIDE, CACHE]))
    if draw(st.booleans()):
        text = draw(mask_expressions(extent.batch, extent.queries, extent.keys))
        return masker(text)(extent)
    corner = "" if extent is not WIDE else draw(st.sampled_from(["top_left", "bottom_right"]))
    last = f", {corner}" if corner else ""
    n = [draw(st.integers(0, extent.keys)) for _ in range(2)]
    side = draw(st.sampled_from(["left", "right"]))
    parts = [
        draw(st.sampled_from([f"causal({corner})", f"window(2, 1{last})", f"window(1{last})"])),
        f"padding({n[0]}, {n[1]}, {side})",
    ]
    if extent in (SQUARE, PAST):
        ids = sorted(draw(st.integers(0, 2)) for _ in range(extent.keys))
        parts.append(f"segments({', '.join(map(str, ids))})")
    parts.append(f"alibi(0.5, 0.25{last})")
    chosen = draw(st.sets(st.sampled_from(parts), min_size=1))
    return masker(" & ".join(part for part in parts if part in chosen))(extent)


@pytest.mark.parametrize("dialect", ["sdpa", "mha", "onnx"])
@given(mask=masks())
@settings(max_examples=40, deadline=None)
def test_libraries_give_the_weights_of_the_mask(dialect: str, mask: Mask) -> None:
    pytest.importorskip("onnx" if dialect == "onnx" else "torch")
    weights = getattr(dialects, dialect)(speak(mask, dialect), mask)
    if dialect == "sdpa" and mask.has_bias:  # torch's own kernel of a blind row of -inf
        weights = np.nan_to_num(weights)
    np.testing.assert_allclose(weights, expected(mask), atol=1e-6)


@given(mask=masks())
@settings(max_examples=40, deadline=None)
def test_flex_attention_makes_the_mask_of_its_code(mask: Mask) -> None:
    pytest.importorskip("torch")
    keep, added = dialects.flex(speak(mask, "flex"), mask)
    assert (keep == mask.dense()).all()
    whole = np.where(keep, added, -np.inf)
    np.testing.assert_allclose(whole, mask.tensor(np.float64), rtol=1e-6)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("text", ["causal & padding(3, 2, left)", "chunks(2) + alibi"])
def test_flex_attention_runs_the_printed_call(text: str) -> None:
    torch = pytest.importorskip("torch")
    from torch.nn.attention import flex_attention as library

    mask = masker(text)(SQUARE)
    said = speak(mask, "flex")
    names: dict[str, Any] = {n: torch.from_numpy(np.array(t)) for n, t in said.tensors.items()}
    names |= dict(zip("qkv", torch.zeros(3, 2, 2, 4, 4), strict=True))
    names["v"] = torch.eye(4).expand(2, 2, 4, 4)
    names["flex_attention"] = library.flex_attention
    names["create_block_mask"] = library.create_block_mask
    exec(said.code, names)
    weights = eval(said.call, names).numpy()
    np.testing.assert_allclose(weights, expected(mask), atol=1e-6)


@pytest.mark.parametrize("dialect", ["flash", "flashinfer", "xformers"])
@given(mask=masks())
@settings(max_examples=80, deadline=None)
def test_kernels_are_told_the_mask_or_why_not(dialect: str, mask: Mask) -> None:
    try:
        said = speak(mask, dialect)
    except MaskError:
        said = None
    if said is None:
        assert dialect != "xformers"
        with pytest.raises(MaskError, match="sdpa"):  # what to do instead
            speak(mask, dialect)
        return
    keep, rows = heard(said, mask)
    assert (keep == mask.dense())[np.broadcast_to(rows[:, None], keep.shape[:3])].all()
    assert (rows | mask.padding_rows()).all()
    if "attn_bias" in said.tensors:
        np.testing.assert_array_equal(said.tensors["attn_bias"], mask.tensor(np.float32))


@pytest.mark.parametrize(
    ("text", "extent", "call"),
    [
        ("causal & padding(4, 2)", SQUARE, "flash_attn_varlen_func"),
        ("causal & padding(4, 2, left)", SQUARE, "flash_attn_varlen_func"),
        ("padding(4, 2)", SQUARE, "flash_attn_with_kvcache"),
        ("causal", CACHE, "flash_attn_with_kvcache"),
        ("causal(bottom_right)", WIDE, "flash_attn_func"),
        ("causal", PAST, "flash_attn_func"),
        ("segments((0, 0, 1), (0, 1, 1, 1, 1))", WIDE, "flash_attn_varlen_func"),
        ("causal & segments(0, 0, 1, 1) & padding(4, 3)", SQUARE, "flash_attn_varlen_func"),
    ],
)
def test_flash_attention_has_a_function_for_it(text: str, extent: Extent, call: str) -> None:
    said = speak(masker(text)(extent), "flash")
    assert said.call.startswith(f"{call}(")


def test_a_padded_causal_batch_is_sequences_laid_end_to_end() -> None:
    said = speak(masker("causal & padding(3, 2)")(Extent(2, 1, 4, 4)), "flash")
    assert said.arguments == {"max_seqlen_q": 3, "max_seqlen_k": 3, "causal": True}
    assert said.tensors["cu_seqlens_q"].tolist() == [0, 3, 5]
    assert said.tensors["cu_seqlens_k"].tolist() == [0, 3, 5]


def test_the_hint_of_flash_attention_works() -> None:
    extent = Extent(2, 1, 2, 4)
    with pytest.raises(MaskError, match="bottom right") as caught:
        speak(masker("causal(top_left)")(extent), "flash")
    assert "causal(bottom_right)" in str(caught.value.hint)
    assert speak(masker("causal(bottom_right)")(extent), "flash").arguments == {"causal": True}
    with pytest.raises(MaskError, match="bottom right") as caught:
        speak(masker("causal(top_left) & padding(3, 2)")(extent), "flash")
    assert "--kv-lengths 3,2" in str(caught.value.hint)
    cache = Extent(2, 1, 2, 4, lengths=(3, 2))
    said = speak(masker("causal & padding(3, 2)")(cache), "flash")
    assert said.tensors["cache_seqlens"].tolist() == [3, 2]


def test_onnx_takes_a_tensor_where_its_corner_is_another() -> None:
    both = masker("causal & padding(6)")(Extent(1, 1, 4, 8, past=4))
    assert speak(both, "onnx").call == "Attention(Q, K, V, attn_mask, past_key, past_value)"
    past = masker("causal")(Extent(1, 1, 4, 8, past=4))
    said = speak(past, "onnx")
    assert said.call == "Attention(Q, K, V, '', past_key, past_value, is_causal=1)"
    cache = speak(masker("causal")(CACHE), "onnx")
    assert cache.tensors["nonpad_kv_seqlen"].tolist() == [5, 3]


@pytest.mark.parametrize("side", ["left", "right"])
def test_transformers_make_the_mask_of_what_they_are_told(side: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers import BertConfig
    from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

    config = BertConfig(attn_implementation="eager")
    x = torch.zeros(2, 4, 8)

    def made(function: Any, text: str) -> Any:
        given = speak(masker(text)(SQUARE), "hf").tensors["attention_mask"]
        more = {"past_key_values": None} if function is create_causal_mask else {}
        return function(
            config=config, inputs_embeds=x, attention_mask=torch.from_numpy(given), **more
        )

    padding = f"padding(3, 2, {side})"
    plain = made(create_bidirectional_mask, padding).numpy()
    keep = masker(padding)(SQUARE).dense()[:, :1]
    assert (np.broadcast_to(plain == 0, keep.shape) == keep).all()
    both = f"causal & {padding}"
    keep = masker(both)(SQUARE).dense()[:, :1]
    for text in (both, padding):  # of four dimensions it is taken as it is; of two a decoder adds
        assert ((made(create_causal_mask, text).numpy() == 0) == keep).all()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_chunks_are_those_of_llama_4(size: int) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.masking_utils import chunked_causal_mask_function

    left = [0, 2]
    theirs = chunked_causal_mask_function(size, torch.tensor(left))
    i, j = torch.arange(7)[:, None], torch.arange(7)[None]
    ours = masker(f"chunks({size}, {left[0]}, {left[1]})")(Extent(2, 1, 7, 7)).dense()
    for b in range(2):
        assert (ours[b, 0] == theirs(b, 0, i, j).numpy()).all()
    plain = masker(f"chunks({size})")(Extent(1, 1, 7, 7)).dense()
    assert (plain[0, 0] == ours[0, 0]).all()
    cached = masker(f"chunks({size})")(Extent(1, 1, 3, 7, past=4)).dense()
    assert (cached[0, 0] == plain[0, 0, 4:]).all()


def test_masks_that_nobody_knows_are_looked_up_in_a_tensor() -> None:
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    for tensor in (rng.random((2, 1, 4, 4)) < 0.5, rng.normal(size=(1, 2, 4, 1))):
        mask = tensor_masker(tensor)(SQUARE)
        keep, added = dialects.flex(speak(mask, "flex"), mask)
        whole = np.where(keep, added, -np.inf)
        np.testing.assert_allclose(whole, mask.tensor(np.float64), rtol=1e-6)


def test_holes_in_padding_are_said_as_they_are() -> None:
    real = np.array([[1, 0, 1, 1], [0, 1, 1, 0]], bool)
    mask = padding_masker(real)(SQUARE)
    assert (speak(mask, "mha").tensors["key_padding_mask"] == ~real).all()
    assert (speak(mask, "hf").tensors["attention_mask"] == real).all()
    assert "nonpad_kv_seqlen" not in speak(mask, "onnx").tensors
    with pytest.raises(MaskError, match="contiguous"):
        speak(mask, "flash")
