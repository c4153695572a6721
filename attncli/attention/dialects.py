"""A mask in the words of other libraries: tensors with their polarity and dtype, or arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from attncli.attention.flex import flex
from attncli.attention.kernels import flash, flashinfer, xformers
from attncli.attention.masks import Mask
from attncli.attention.predicates import Diagonals, PerBatch
from attncli.attention.spoken import (
    CAUSAL,
    Spoken,
    additive_tensor,
    keep_tensor,
    reduced,
    split,
)
from attncli.attention.words import DIALECTS
from attncli.errors import MaskError


def _top_left(band: Diagonals | None) -> bool:
    return band is not None and band[:2] == CAUSAL and set(band.offset) == {0}


def _sdpa(mask: Mask) -> Spoken:
    band, others = split(mask)
    if mask.trivial:
        return Spoken("sdpa", "scaled_dot_product_attention(q, k, v)")
    if _top_left(band) and not others and not mask.has_bias:
        return Spoken(
            "sdpa", "scaled_dot_product_attention(q, k, v, is_causal=True)",
            {"attn_mask": reduced(keep_tensor(mask))}, {"is_causal": True},
            ("is_causal counts from the top left corner; give it or attn_mask, not both",),
        )  # fmt: skip
    call = "scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)"
    if mask.has_bias:
        tensor = reduced(additive_tensor(mask))
        return Spoken("sdpa", call, {"attn_mask": tensor}, notes=("float: added to the scores",))
    tensor = reduced(keep_tensor(mask))
    return Spoken("sdpa", call, {"attn_mask": tensor}, notes=("bool: True = takes part",))


def _mha(mask: Mask) -> Spoken:
    if mask.trivial:
        return Spoken("mha", "mha(q, k, v)")
    e, real, rest = mask.extent, mask.said_real, mask
    call, tensors = [], {}
    if real is not None and not mask.has_bias:
        tensors["key_padding_mask"] = ~real
        call.append("key_padding_mask=key_padding_mask")
        rest = Mask(e)
        for part in mask.conjuncts():
            rest = rest & Mask(e, part) if part.padding() is None else rest
    if not rest.trivial:
        array = additive_tensor(rest) if rest.has_bias else ~keep_tensor(rest)
        if array.shape[:2] == (1, 1):
            array = array[0, 0]
        else:
            array = np.broadcast_to(array, (e.batch, e.heads, *array.shape[2:]))
            array = array.reshape(-1, *array.shape[2:])  # (B·H, Lq, Lk)
        tensors["attn_mask"] = array
        call.insert(0, "attn_mask=attn_mask")
    notes = ["bool: True = NOT allowed, the opposite of scaled_dot_product_attention"]
    if rest.has_bias:
        notes = ["float: added to the scores, −inf = not allowed"]
    if _hides_rows(rest, None if rest is mask else real):
        notes.append("rows that see nothing become NaN in it; here they would be 0")
    return Spoken("mha", f"mha(q, k, v, {', '.join(call)})", tensors, notes=tuple(notes))


def _hides_rows(mask: Mask, real: np.ndarray[Any, np.dtype[Any]] | None) -> bool:
    """Whether a row sees no key; ``real``: which keys are real besides, ``(B, Lk)``."""
    keep = np.ones((1, 1, 1, mask.extent.keys), bool) if mask.trivial else keep_tensor(mask)
    if real is None:
        return not keep.any(-1).all()
    return not all((keep[b % len(keep)] & one).any(-1).all() for b, one in enumerate(real))


def _onnx(mask: Mask) -> Spoken:
    past = bool(mask.extent.past)
    if mask.trivial:
        return Spoken("onnx", _attention(past=past))
    said = _onnx_arguments(mask)
    if said is None:
        tensor = additive_tensor(mask) if mask.has_bias else keep_tensor(mask)
        kind = "float: added to the scores" if mask.has_bias else "bool: True = takes part"
        return Spoken(
            "onnx", _attention("attn_mask", past=past), {"attn_mask": reduced(tensor)},
            notes=(kind,),
        )  # fmt: skip
    causal, lengths = said
    notes = []
    if causal:
        notes.append("is_causal is aligned top left, after past_key and by nonpad_kv_seqlen")
    if lengths is not None:
        notes.append("nonpad_kv_seqlen needs opset 24")
    return Spoken(
        "onnx",
        _attention(past=past, nonpad=lengths is not None, causal=causal),
        {} if lengths is None else {"nonpad_kv_seqlen": np.asarray(lengths, np.int64)},
        {"is_causal": 1} if causal else {},
        tuple(notes),
    )


def _attention(
    attn_mask: str = "''", *, past: bool, nonpad: bool = False, causal: bool = False
) -> str:
    """Return the call of ONNX's Attention; inputs left out are '' where others follow."""
    cache = ("past_key", "past_value") if past else ("''", "''")
    inputs = ["Q", "K", "V", attn_mask, *cache, "nonpad_kv_seqlen" if nonpad else "''"]
    while inputs[-1] == "''":
        inputs.pop()
    return f"Attention({', '.join(inputs)}{', is_causal=1' if causal else ''})"


def _onnx_arguments(mask: Mask) -> tuple[bool, PerBatch | None] | None:
    """Return is_causal and nonpad_kv_seqlen that say the mask; None: only a tensor does."""
    band, others = split(mask)
    e, lengths = mask.extent, mask.lengths
    padded = any(part.padding() is not None for part in others)
    rest = [part for part in others if part.padding() is None]
    if rest or mask.has_bias or (padded and lengths is None):
        return None
    if lengths is not None and e.past is not None:
        return None  # ONNX takes a past or lengths, not both
    if band is None:
        return False, lengths
    lengths = e.lengths if lengths is None else lengths  # causal hides what follows them
    offset = (e.past or 0,) * e.batch
    if lengths is not None:
        offset = tuple(n - e.queries for n in lengths)
    return (True, lengths) if band[:2] == CAUSAL and band.offset == offset else None


def _hf(mask: Mask) -> Spoken:
    real = mask.said_real
    call = "model(input_ids, attention_mask=attention_mask)"
    if mask.trivial:
        return Spoken("hf", "model(input_ids)")
    if real is not None and not mask.has_bias and all(
        part.padding() is not None or part.everything() for part in mask.conjuncts()
    ):  # fmt: skip
        return Spoken(
            "hf", call, {"attention_mask": real.astype(np.int64)},
            notes=("int64: 1 = a real token; a decoder adds causal by itself",),
        )  # fmt: skip
    low = float(np.finfo(np.float32).min)
    return Spoken(
        "hf", call, {"attention_mask": additive_tensor(mask, hidden=low)},
        notes=(
            f"float32 of 4 dimensions, {low:.4g} where hidden: finite, as transformers writes it, "
            "so a row that sees nothing becomes a mean",
        ),
    )  # fmt: skip


_SPEAKERS: dict[str, Callable[[Mask], Spoken]] = dict(
    zip(DIALECTS, (_sdpa, _mha, _onnx, _hf, flash, flex, flashinfer, xformers), strict=True)
)


def speak(mask: Mask, dialect: str) -> Spoken:
    """Return the mask as a library takes it; MaskError when it cannot say it, with the reason."""
    if dialect not in DIALECTS:
        raise MaskError(f"unknown dialect '{dialect}'", f"it must be one of {', '.join(DIALECTS)}")
    return _SPEAKERS[dialect](mask)
