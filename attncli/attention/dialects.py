"""A mask in the words of other libraries: tensors with their polarity and dtype, or arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attncli.attention.masks import Mask
from attncli.attention.predicates import (
    FAR,
    Alibi,
    Band,
    Everything,
    Padding,
    Predicate,
    SameSegment,
)
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
    batches, heads = mask.distinct()
    e = mask.extent
    keep = np.zeros((len(batches), len(heads), e.queries, e.keys), bool)
    for b, h in np.ndindex(keep.shape[:2]):
        keep[b, h] = mask.keep(b, h, 0, e.queries, 0, e.keys)
    return keep


def additive_tensor(mask: Mask, dtype: Any = np.float32, hidden: float = -np.inf) -> Array:
    """Return float ``(B or 1, H or 1, Lq, Lk)``: the biases, and ``hidden`` where masked."""
    e = mask.extent
    keep = keep_tensor(mask)
    if mask.has_bias:
        keep = np.broadcast_to(keep, (e.batch, e.heads, e.queries, e.keys))
    added = np.zeros(keep.shape, dtype)
    for b, h in np.ndindex(keep.shape[:2]):
        bias = mask.bias(b, h, 0, e.queries, 0, e.keys)
        if bias is not None:
            added[b, h] = bias
    if mask.has_bias and (added == added[:1]).all():
        added, keep = added[:1], keep[:1]
    added[~keep] = hidden
    return added


def _reduce(array: Array) -> Array:
    """``(1, 1, Lq, Lk)`` → ``(Lq, Lk)``, others as they are."""
    return array[0, 0] if array.shape[:2] == (1, 1) else array


def _band(mask: Mask) -> tuple[Band | None, list[Predicate]]:
    """Return the one band that the bands among the conjuncts amount to, and the others."""
    bands = [node for node in mask.conjuncts() if isinstance(node, Band)]
    others = [n for n in mask.conjuncts() if not isinstance(n, Band | Everything)]
    if not bands or len({band.offset for band in bands}) > 1:
        return None, [*others, *bands]
    low, high = max(b.low for b in bands), min(b.high for b in bands)
    return Band(low, high, bands[0].offset), others


def _top_left(band: Band | None) -> bool:
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
    plain = [n for n in mask.conjuncts() if not isinstance(n, Padding)]
    call, tensors = [], {}
    if padding is not None and not mask.has_bias:
        tensors["key_padding_mask"] = np.arange(e.keys) >= np.asarray(padding)[:, None]
        call.append("key_padding_mask=key_padding_mask")
        rest = Mask(e)
        for node in plain:
            rest = rest & Mask(e, node)
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
    lengths = [n for n in others if isinstance(n, Padding)]
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
    for node in others:
        if isinstance(node, Padding):
            function = "flash_attn_with_kvcache"
            tensors["cache_seqlens"] = np.asarray(mask.lengths, np.int32)
        elif isinstance(node, SameSegment) and len(others) == 1 and e.queries == e.keys:
            function = "flash_attn_varlen_func"
            tensors["cu_seqlens"] = _cumulative(node, e.keys)
            notes.append(
                "one cu_seqlens for cu_seqlens_q and cu_seqlens_k, batches laid end to end"
            )
        else:
            raise MaskError(
                f"flash-attention cannot say {mask.text}",
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
                f"flash-attention has no window that leaves out its own position: {mask.text}"
            )
        else:
            left = -1 if band.low == -FAR else -band.low
            right = -1 if band.high == FAR else band.high
            arguments["window_size"] = (left, right)
    if any(not isinstance(bias, Alibi) for bias in mask.biases) or len(mask.biases) > 1:
        raise MaskError(
            "flash-attention takes no bias but alibi slopes", "use --for sdpa for a float tensor"
        )
    for bias in mask.biases:
        assert isinstance(bias, Alibi)
        tensors["alibi_slopes"] = np.asarray(bias.slopes, np.float32)
    words = [f"{name}={value}" for name, value in arguments.items()]
    words += [f"{name}={name}" for name in tensors]
    return Spoken(
        "flash", f"{function}({', '.join(['q, k, v', *words])})", tensors, arguments, tuple(notes)
    )


def _cumulative(node: SameSegment, keys: int) -> Array:
    """Return int32 start of each contiguous segment and the end, batches laid end to end."""
    starts = [0]
    for b, ids in enumerate(node.key_ids):
        cuts = np.flatnonzero(np.diff(ids)) + 1
        if len(np.unique(ids)) != len(cuts) + 1 and keys:
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
