"""Turns arrays of any shape family into a Problem, or says what does not fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from attncli.attention.masks import Extent, Mask
from attncli.attention.problem import FLOATS, Family, Masker, Problem, Scale, float_dtype
from attncli.attention.words import LAYOUTS
from attncli.errors import InputError

if TYPE_CHECKING:
    from attncli.attention.rope import Rope


Array = np.ndarray[Any, np.dtype[Any]]


def pose(
    query: Any,
    key: Any = None,
    value: Any = None,
    *,
    mask: Masker | Sequence[Masker] = (),
    past_key: Any = None,
    past_value: Any = None,
    kv_lengths: Any = None,
    scale: Scale = "auto",
    scale_source: str = "given",
    softcap: float | None = None,
    sink: Any = None,
    rope: Rope | None = None,
    dtype: str | None = None,
    softmax_dtype: str | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    layout: str = "bhld",
    family: Family | None = None,
) -> Problem:
    """Validate and bring into canonical shape.

    query ``(L, D)``, ``(H, L, D)`` or ``(B, H, L, D)``; with ``layout="blhd"`` ``(B, L, H, D)``;
    with ``heads`` ``(L, H·D)`` or ``(B, L, H·D)``. A missing value is the key, a missing key the
    query. ``mask`` are functions that bind to the problem's Extent. ``kv_lengths`` ``(B,)``.
    ``past_key``, ``past_value`` also come as ``(B, G, P, D)`` where the others are packed. ``rope``
    turns the query and the new keys, not the past (see ``Rope.apply`` for where they stand).
    With ``family`` query, key and value are ``(B, H, L, D)`` already, and it is what results (and
    caches) come in.
    Raises InputError for anything that does not fit, with the shapes and a guess at the cause.
    """
    given = {
        "query": query,
        "key": query if key is None else key,
        "value": (query if key is None else key) if value is None else value,
    }
    arrays = {name: _numeric(name, array) for name, array in given.items()}
    if kv_heads is not None and heads is None:
        raise InputError("--kv-heads is given without --heads", "add --heads, the query heads")
    counts = {"query": heads, "key": kv_heads or heads, "value": kv_heads or heads}
    if kv_heads and key is None:
        raise InputError(
            f"kv_heads {kv_heads} needs a key of its own: without one the key is the query",
            "give the key, or leave kv_heads out",
        )
    if family is None:
        family = _family(arrays["query"], heads, layout)
        q, k, v = (canonical(name, a, family, counts[name]) for name, a in arrays.items())
    else:
        q, k, v = arrays.values()
    if (past_key is None) != (past_value is None):
        have, miss = ("key", "value") if past_value is None else ("value", "key")
        raise InputError(f"past_{have} is given without past_{miss}", f"give past_{miss} as well")
    _check_against_query(arrays, q, k, v, family)
    new = int(k.shape[2])
    if past_key is not None:
        if kv_lengths is not None:
            raise InputError(
                "past_key and kv_lengths are given: two ways to say where the queries stand",
                "put the cache before the keys yourself, or leave kv_lengths out and hide keys "
                "with --mask 'padding(…)'",
            )
        k, v = _after_past(past_key, past_value, k, v, family, kv_heads or heads)
    past = int(k.shape[2]) - new
    batch, h = q.shape[:2]
    lengths = None if kv_lengths is None else _lengths(kv_lengths, int(batch), int(k.shape[2]))
    extent = Extent(
        int(batch), int(h), int(q.shape[2]), int(k.shape[2]),
        past=past if past_key is not None else None, lengths=lengths,
    )  # fmt: skip
    bound = _bind(mask, extent)
    if lengths is not None:
        from attncli.attention.patterns import KeysBelow

        bound = bound & Mask(extent, KeysBelow(lengths))
    arithmetic, result, (q, k, v) = _dtypes((q, k, v), dtype)
    unturned = None if rope is None else (q, k)
    if rope is not None:
        q, k = turn(rope, q, k, bound, past, arithmetic)
    number, source = _scale(scale, scale_source, int(q.shape[3]))
    if softcap is not None and not (math.isfinite(softcap) and softcap > 0):
        raise InputError(f"softcap is {softcap:g}", "it must be a positive number, such as 50")
    return Problem(
        query=q, key=k, value=v, mask=bound, scale=number, scale_source=source, softcap=softcap,
        sink=None if sink is None else _sink(sink, int(h)),
        dtype=arithmetic, result_dtype=result,
        softmax_dtype=None if softmax_dtype is None else float_dtype(softmax_dtype),
        family=family, past=past, rope=rope,
        warnings=(*bound.notes, *_scale_warnings(number, int(q.shape[3]))),
        cache=_cache_family(np.ndim(past_key), family), unturned=unturned,
    )  # fmt: skip


def _after_past(
    past_key: Any, past_value: Any, key: Array, value: Array, family: Family, heads: int | None
) -> tuple[Array, Array]:
    """Return the cache and the new keys ``(B, G, P + Lk, D)``, values ``(B, G, P + Lk, Dv)``."""
    caches = {
        name: _numeric(name, array)
        for name, array in (("past_key", past_key), ("past_value", past_value))
    }
    pk, pv = (_cache(name, array, family, heads) for name, array in caches.items())
    _check_past(caches, pk, pv, key, value)
    return (
        np.concatenate([pk, key.astype(np.result_type(pk, key), copy=False)], axis=2),
        np.concatenate([pv, value.astype(np.result_type(pv, value), copy=False)], axis=2),
    )


def turn(
    rope: Rope, query: Array, key: Array, mask: Mask, past: int, dtype: Any
) -> tuple[Array, Array]:
    """Return query and key turned by RoPE, the queries standing where the mask says they do."""
    e = mask.extent
    offsets = mask.offsets() if e.past is None and e.lengths is None else None
    return rope.apply(query, key, past=past, lengths=e.lengths, offsets=offsets, dtype=dtype)


def _numeric(name: str, array: Any) -> Array:
    array = np.asanyarray(array)
    if array.dtype.kind == "c":
        raise InputError(
            f"{name} is complex ({array.dtype})", "attention needs real numbers: take .real first"
        )
    if array.dtype.kind in "biu":
        return np.asarray(array.astype(np.float64))
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise InputError(
            f"{name} has dtype {array.dtype}", f"expected numbers: {', '.join(FLOATS)} or integers"
        )
    return np.asarray(array)


def _family(query: Array, heads: int | None, layout: str) -> Family:
    if layout not in LAYOUTS:
        raise InputError(f"unknown layout '{layout}'", f"it must be {' or '.join(LAYOUTS)}")
    if heads is None:
        if not 2 <= query.ndim <= 4:
            raise InputError(
                f"query has {query.ndim} dimensions, {query.shape}",
                "expected (L, D), (H, L, D) or (B, H, L, D)"
                + ("; write one vector as [[…]], one row" if query.ndim == 1 else ""),
            )
        return Family(query.ndim, blhd=layout == "blhd" and query.ndim > 2)
    if heads < 1:
        raise InputError(f"heads is {heads}", "it must be at least 1")
    if query.ndim == 4 or query.ndim < 2:
        raise InputError(
            f"heads is {heads} but query is {query.shape}",
            "heads unpacks (L, H·D) or (B, L, H·D); leave it out where heads are a dimension",
        )
    return Family(query.ndim, packed=True)


def canonical(name: str, array: Array, family: Family, heads: int | None) -> Array:
    """Bring to ``(B, H, L, D)``; a view where possible."""
    if array.ndim != family.rank:
        raise InputError(
            f"{name} has {array.ndim} dimensions, {array.shape}, but query has {family.rank}",
            "give all tensors the same number of dimensions",
        )
    if family.packed:
        assert heads is not None
        if heads < 1:
            raise InputError(f"kv_heads is {heads}", "it must be at least 1")
        if array.shape[-1] % heads:
            flag = "heads" if name == "query" else "kv_heads"
            raise InputError(
                f"{name} is {array.shape}: its width {array.shape[-1]} does not divide into "
                f"{heads} heads",
                f"{flag} must divide {array.shape[-1]}",
            )
        array = array if array.ndim == 3 else array[None]  # (B, L, H·D)
        array = array.reshape(*array.shape[:2], heads, array.shape[-1] // heads)  # (B, L, H, D)
        return array.swapaxes(1, 2)  # (B, H, L, D)
    if family.rank == 2:
        return array[None, None]
    if family.rank == 3:
        array = array[None]
    return array.swapaxes(1, 2) if family.blhd else array


def _cache(name: str, array: Array, family: Family, heads: int | None) -> Array:
    """As ``canonical``; a cache may keep its heads apart where new keys come packed, as in ONNX."""
    if family.packed and array.ndim == family.rank + 1:
        return array if array.ndim == 4 else array[None]
    return canonical(name, array, family, heads)


def _cache_family(rank: int, family: Family) -> Family | None:
    """Return the family of a cache of this rank, or None where it is the query's."""
    return Family(rank) if family.packed and rank == family.rank + 1 else None


def _shapes(arrays: dict[str, Array], *names: str) -> str:
    return ", ".join(f"{name} {arrays[name].shape}" for name in names)


def _check_against_query(
    arrays: dict[str, Array], q: Array, k: Array, v: Array, family: Family
) -> None:
    if k.shape[3] != q.shape[3]:
        hint = "their last dimensions must match"
        if k.shape[2] == q.shape[3]:
            hint += "; if key is stored as (width, length), transpose it first"
        elif family.packed and arrays["query"].shape[-1] != arrays["key"].shape[-1]:
            hint += "; if key has fewer heads than query, say how many with --kv-heads"
        elif not family.packed and q.shape[3] and k.shape[3] and q.shape[3] % k.shape[3] == 0:
            hint += f"; if {q.shape[3] // k.shape[3]} heads lie side by side in query, use --heads"
        raise InputError(
            f"key has width {k.shape[3]} but query has width {q.shape[3]} "
            f"({_shapes(arrays, 'key', 'query')})",
            hint,
        )
    if k.shape[2] != v.shape[2]:
        hint = "each key needs one value"
        if k.shape[2] == v.shape[3]:
            hint += "; if value is stored as (width, length), transpose it first"
        raise InputError(
            f"value has length {v.shape[2]} but key has length {k.shape[2]} "
            f"({_shapes(arrays, 'value', 'key')})",
            hint,
        )
    for name, array in (("key", k), ("value", v)):
        if array.shape[0] != q.shape[0]:
            raise InputError(
                f"{name} has batch {array.shape[0]} but query has batch {q.shape[0]} "
                f"({_shapes(arrays, name, 'query')})",
                "their first dimensions must match",
            )
    if k.shape[1] != v.shape[1]:
        raise InputError(
            f"value has {v.shape[1]} heads but key has {k.shape[1]} "
            f"({_shapes(arrays, 'value', 'key')})",
            "key and value must have the same heads",
        )
    if (k.shape[1] == 0) != (q.shape[1] == 0) or (k.shape[1] and q.shape[1] % k.shape[1]):
        hint = "query heads must be a multiple of key/value heads"
        if family.rank >= 3 and q.shape[2] == k.shape[2]:
            hint += "; if the length comes before the heads, use --layout blhd"
        raise InputError(
            f"query has {q.shape[1]} heads but key has {k.shape[1]} "
            f"({_shapes(arrays, 'query', 'key')})",
            hint,
        )


def _check_past(caches: dict[str, Array], pk: Array, pv: Array, k: Array, v: Array) -> None:
    if pk.shape[2] != pv.shape[2]:
        raise InputError(
            f"past_key and past_value differ in length ({_shapes(caches, *caches)})",
            "each cached key needs one value",
        )
    for name, old, new in (("key", pk, k), ("value", pv, v)):
        if old.shape[:2] + old.shape[3:] != new.shape[:2] + new.shape[3:]:
            raise InputError(
                f"past_{name} {caches['past_' + name].shape} does not go before {name}: as "
                f"(batch, heads, length, width) they are {old.shape} and {new.shape}",
                "only their lengths may differ",
            )


def _lengths(lengths: Any, batch: int, keys: int) -> tuple[int, ...]:
    array = np.atleast_1d(np.asarray(lengths))
    if array.dtype.kind == "f" and np.all(array == np.floor(array)):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise InputError(
            f"kv_lengths is {array.dtype} {array.shape}", "expected one integer per batch element"
        )
    if len(array) == 1:
        array = np.repeat(array, batch)
    if len(array) != batch:
        raise InputError(
            f"kv_lengths has {len(array)} numbers but the batch has {batch}",
            "give one length per batch element, or one for all",
        )
    for b, n in enumerate(array):
        if not 0 <= n <= keys:
            raise InputError(
                f"kv_lengths[{b}] is {n} but there are {keys} keys", f"expected 0 to {keys}"
            )
    return tuple(int(n) for n in array)


def _bind(masks: Masker | Sequence[Masker], extent: Extent) -> Mask:
    bound = Mask(extent)
    for masker in [masks] if callable(masks) else masks:
        bound = bound & masker(extent)
    return bound


def _dtypes(
    arrays: tuple[Array, ...], dtype: str | None
) -> tuple[np.dtype[Any], np.dtype[Any], tuple[Array, ...]]:
    """Return the arithmetic's dtype, the results' dtype and the arrays rounded to it."""
    if dtype is not None:
        result = float_dtype(dtype)
        with np.errstate(over="ignore"):
            arrays = tuple(a.astype(result, copy=False) for a in arrays)
    else:
        kinds = {a.dtype for a in arrays}
        names = {d.name for d in kinds}
        # float16 and bfloat16 have no common half: float32 holds both
        result = (
            next(iter(kinds))
            if len(kinds) == 1
            else np.dtype(np.float64 if "float64" in names else np.float32)
        )
        if not result.isnative:
            result = result.newbyteorder("=")
    wide = result.itemsize > 4
    return np.dtype(np.float64 if wide else np.float32), result, arrays


def _scale(scale: Scale, source: str, width: int) -> tuple[float, str]:
    if scale == "auto":
        return (1 / math.sqrt(width), f"1/√{width}") if width else (1.0, "width 0")
    if scale == "none":
        return 1.0, "no scale"
    if not math.isfinite(scale):
        raise InputError(f"scale is {scale}", "it must be a finite number, auto or none")
    return float(scale), source


def _scale_warnings(scale: float, width: int) -> tuple[str, ...]:
    if scale > 0:
        return ()
    sign = "0: every visible key gets the same weight"
    if scale < 0:
        sign = "negative: the keys least like the query get most weight"
    return (f"the scale is {sign}; auto is 1/√{width}",)


def _sink(sink: Any, heads: int) -> Array:
    array = np.asarray(sink, np.float64)
    if array.ndim > 1 or array.size not in (1, heads):
        raise InputError(
            f"sink has shape {array.shape} but there are {heads} heads",
            "give one logit, or one per head",
        )
    if np.isnan(array).any() or np.isposinf(array).any():
        raise InputError("sink is not finite", "give finite logits (-Infinity: no sink)")
    return np.broadcast_to(array.reshape(-1), (heads,))
