"""A mask in the words of other libraries: tensors with their polarity and dtype, or arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attncli.attention.masks import Mask
from attncli.attention.predicates import FAR, Diagonals, Predicate
from attncli.attention.words import DIALECTS
from attncli.errors import MaskError

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Spoken:
    """A mask as a library takes it: ``tensors`` and ``arguments`` by parameter name.

    ``call`` is how to pass them, ``notes`` what to mind.
    """

    dialect: str
    call: str
    tensors: Mapping[str, Array] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def keep_tensor(mask: Mask) -> Array:
    """Return bool ``(B or 1, H or 1, Lq, Lk)``, True = keep; 1 where all are alike."""
    return mask.compact().dense()


def additive_tensor(mask: Mask, dtype: Any = np.float32, hidden: float = -np.inf) -> Array:
    """Return float ``(B or 1, H or 1, Lq, Lk)``: the biases, and ``hidden`` where masked."""
    if not mask.has_bias:
        return mask.compact().tensor(dtype, hidden)
    tensor = mask.tensor(dtype, hidden)
    return tensor[:1] if (tensor == tensor[:1]).all() else tensor


def _reduce(array: Array) -> Array:
    """``(1, 1, Lq, Lk)`` → ``(Lq, Lk)``, others as they are."""
    return array[0, 0] if array.shape[:2] == (1, 1) else array


def _band(mask: Mask) -> tuple[Diagonals | None, list[Predicate]]:
    """Return the one band that the bands among the conjuncts amount to, and the others."""
    parts = [part for part in mask.conjuncts() if not part.everything()]
    bands = [band for part in parts if (band := part.band())]
    if not bands or len({band.offset for band in bands}) > 1:
        return None, parts
    low, high = max(b.low for b in bands), min(b.high for b in bands)
    return Diagonals(low, high, bands[0].offset), [part for part in parts if not part.band()]


def _top_left(band: Diagonals | None) -> bool:
    return band is not None and (band.low, band.high) == (-FAR, 0) and set(band.offset) == {0}


def _sdpa(mask: Mask) -> Spoken:
    band, others = _band(mask)
    if mask.trivial:
        return Spoken("sdpa", "scaled_dot_product_attention(q, k, v)")
    if _top_left(band) and not others and not mask.has_bias:
        return Spoken(
            "sdpa", "scaled_dot_product_attention(q, k, v, is_causal=True)",
            {"attn_mask": _reduce(keep_tensor(mask))}, {"is_causal": True},
            ("is_causal counts from the top left corner; give it or attn_mask, not both",),
        )  # fmt: skip
    call = "scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)"
    if mask.has_bias:
        tensor = _reduce(additive_tensor(mask))
        return Spoken("sdpa", call, {"attn_mask": tensor}, notes=("float: added to the scores",))
    tensor = _reduce(keep_tensor(mask))
    return Spoken("sdpa", call, {"attn_mask": tensor}, notes=("bool: True = takes part",))


def _mha(mask: Mask) -> Spoken:
    if mask.trivial:
        return Spoken("mha", "mha(q, k, v)")
    e = mask.extent
    padding = mask.lengths
    plain = [part for part in mask.conjuncts() if part.padding() is None]
    call, tensors = [], {}
    if padding is not None and not mask.has_bias:
        tensors["key_padding_mask"] = np.arange(e.keys) >= np.asarray(padding)[:, None]
        call.append("key_padding_mask=key_padding_mask")
        rest = Mask(e)
        for part in plain:
            rest = rest & Mask(e, part)
    else:
        rest = mask
    if not rest.trivial:
        array = additive_tensor(rest) if rest.has_bias else ~keep_tensor(rest)
        if array.shape[:2] == (1, 1):
            array = array[0, 0]
        else:
            array = np.broadcast_to(array, (e.batch, e.heads, *array.shape[2:]))
            array = array.reshape(-1, *array.shape[2:])  # (B·H, Lq, Lk)
        tensors["attn_mask"] = array
        call.insert(0, "attn_mask=attn_mask")
    note = "bool: True = NOT allowed, the opposite of scaled_dot_product_attention"
    if rest.has_bias:
        note = "float: added to the scores, −inf = not allowed"
    return Spoken("mha", f"mha(q, k, v, {', '.join(call)})", tensors, notes=(note,))


def _onnx(mask: Mask) -> Spoken:
    band, others = _band(mask)
    e = mask.extent
    causal = band is not None and (band.low, band.high) == (-FAR, 0)
    tensors: dict[str, Array] = {}
    arguments: dict[str, Any] = {}
    notes: tuple[str, ...] = ()
    lengths = [part for part in others if part.padding() is not None]
    if mask.trivial:
        return Spoken("onnx", "Attention(Q, K, V)")
    standard = band is not None and band.offset == _onnx_offset(mask)
    if causal and standard and len(lengths) == len(others) and not mask.has_bias:
        arguments["is_causal"] = 1
        notes = ("is_causal is aligned top left, after past_key and by nonpad_kv_seqlen",)
    elif len(lengths) != len(others) or band is not None or mask.has_bias:
        tensor = additive_tensor(mask) if mask.has_bias else keep_tensor(mask)
        kind = "float: added to the scores" if mask.has_bias else "bool: True = takes part"
        return Spoken(
            "onnx", "Attention(Q, K, V, attn_mask)", {"attn_mask": _reduce(tensor)}, notes=(kind,)
        )
    if lengths and mask.lengths is not None:
        tensors["nonpad_kv_seqlen"] = np.asarray(mask.lengths, np.int64)
        notes += ("nonpad_kv_seqlen needs opset 24",)
    inputs = ", '', '', '', nonpad_kv_seqlen" if tensors else ""
    attributes = ", is_causal=1" if arguments else ""
    assert e.batch or not tensors
    return Spoken("onnx", f"Attention(Q, K, V{inputs}{attributes})", tensors, arguments, notes)


def _onnx_offset(mask: Mask) -> tuple[int, ...]:
    e = mask.extent
    if e.past is not None:
        return (e.past,) * e.batch
    if mask.lengths is not None:
        return tuple(n - e.queries for n in mask.lengths)
    return (0,) * e.batch


def _hf(mask: Mask) -> Spoken:
    e = mask.extent
    if mask.trivial:
        return Spoken("hf", "model(input_ids)")
    if mask.lengths is not None and not mask.has_bias and len(mask.conjuncts()) == 1:
        valid = np.arange(e.keys) < np.asarray(mask.lengths)[:, None]
        return Spoken(
            "hf", "model(input_ids, attention_mask=attention_mask)",
            {"attention_mask": valid.astype(np.int64)}, notes=("int64: 1 = a real token",),
        )  # fmt: skip
    low = float(np.finfo(np.float32).min)
    tensor = additive_tensor(mask, hidden=low)
    return Spoken(
        "hf", "model(input_ids, attention_mask=attention_mask)", {"attention_mask": tensor},
        notes=(
            f"float32 of 4 dimensions, {low:.4g} where hidden: finite, as transformers writes it, "
            "so a row that sees nothing becomes a mean",
        ),
    )  # fmt: skip


def _flash(mask: Mask) -> Spoken:
    band, others = _band(mask)
    e = mask.extent
    arguments: dict[str, Any] = {}
    tensors: dict[str, Array] = {}
    notes: list[str] = []
    lengths = mask.lengths or (e.keys,) * e.batch
    function = "flash_attn_func"
    for part in others:
        ids = part.segments()
        if part.padding() is not None:
            function = "flash_attn_with_kvcache"
            tensors["cache_seqlens"] = np.asarray(mask.lengths, np.int32)
        elif ids is not None and len(others) == 1:
            function = "flash_attn_varlen_func"
            tensors["cu_seqlens"] = _cumulative(ids, e.keys)
            notes.append(
                "one cu_seqlens for cu_seqlens_q and cu_seqlens_k, batches laid end to end"
            )
        else:
            raise MaskError(
                f"flash-attention cannot say {mask.words}",
                "it takes causal, window, padding, contiguous segments and alibi, joined with &; "
                "use --for sdpa for a mask tensor",
            )
    if band is not None:
        corner = tuple(n - e.queries for n in lengths)
        if band.offset != corner:
            raise MaskError(
                "flash-attention counts causal and window from the bottom right corner: query 0 "
                f"stands at key {corner[0]}, here at {band.offset[0]}",
                "write causal(bottom_right), or use --for sdpa",
            )
        if (band.low, band.high) == (-FAR, 0):
            arguments["causal"] = True
        elif band.low > 0 or band.high < 0:
            raise MaskError(
                f"flash-attention has no window that leaves out its own position: {mask.words}"
            )
        else:
            left = -1 if band.low == -FAR else -band.low
            right = -1 if band.high == FAR else band.high
            arguments["window_size"] = (left, right)
    slopes = [bias.alibi() for bias in mask.biases]
    if None in slopes or len(slopes) > 1:
        raise MaskError(
            "flash-attention takes no bias but alibi slopes", "use --for sdpa for a float tensor"
        )
    for slope in slopes:
        tensors["alibi_slopes"] = np.asarray(slope, np.float32)
    words = [f"{name}={value}" for name, value in arguments.items()]
    words += [f"{name}={name}" for name in tensors]
    return Spoken(
        "flash", f"{function}({', '.join(['q, k, v', *words])})", tensors, arguments, tuple(notes)
    )


def _cumulative(ids: Array, keys: int) -> Array:
    """Return int32 start of each contiguous segment and the end, batches laid end to end."""
    starts = [0]
    for b, row in enumerate(ids):
        cuts = np.flatnonzero(np.diff(row)) + 1
        if len(np.unique(row)) != len(cuts) + 1 and keys:
            raise MaskError(
                "flash-attention needs contiguous segments, but an id comes back later",
                "sort the documents, or use --for sdpa",
            )
        starts += [*(b * keys + cuts).tolist(), (b + 1) * keys]
    return np.asarray(starts, np.int32)


_SPEAKERS: dict[str, Callable[[Mask], Spoken]] = dict(
    zip(DIALECTS, (_sdpa, _mha, _onnx, _hf, _flash), strict=True)
)


def speak(mask: Mask, dialect: str) -> Spoken:
    """Return the mask as a library takes it; MaskError when it cannot say it, with the reason."""
    if dialect not in DIALECTS:
        raise MaskError(f"unknown dialect '{dialect}'", f"it must be one of {', '.join(DIALECTS)}")
    return _SPEAKERS[dialect](mask)
