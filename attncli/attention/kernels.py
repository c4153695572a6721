"""A mask in the words of kernels that take no mask tensor, or only as a last resort.

flash-attention, FlashInfer and xFormers take sequences of different lengths laid end to end
(``Run``), and count causal and window from the bottom right corner of each: its last query stands
at its last key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.masks import Mask
from attncli.attention.predicates import FAR, Diagonals, PerBatch
from attncli.attention.spoken import CAUSAL, Spoken, additive_tensor, keep_tensor, split
from attncli.errors import MaskError

Array = np.ndarray[Any, np.dtype[Any]]


class Run(NamedTuple):
    """``queries`` queries from ``query`` on, that see ``keys`` keys from ``key`` on."""

    batch: int
    query: int
    queries: int
    key: int
    keys: int

    @property
    def corner(self) -> int:
        """The key at which query 0 of the batch element stands, counted from the bottom right."""
        return self.key + self.keys - self.query - self.queries


class Runs(NamedTuple):
    """A mask as sequences laid end to end, besides its band and ALiBi; ``real``: padding left out.

    ``lengths`` are the keys of each batch element where a run is just that, from key 0 on.
    """

    band: Diagonals | None
    runs: tuple[Run, ...]
    real: bool
    lengths: PerBatch | None

    def starts(self, name: str) -> Array:
        """Return where each run begins, and the end, of ``queries`` or ``keys``: int32."""
        counts = [getattr(run, name) for run in self.runs]
        return np.cumsum([0, *counts], dtype=np.int32)

    def longest(self, name: str) -> int:
        """Return the most ``queries`` or ``keys`` of a run."""
        return max((getattr(run, name) for run in self.runs), default=0)


def flash(mask: Mask) -> Spoken:
    """Return flash-attention's arguments; MaskError where it has none for this mask."""
    found = _runs(mask, "flash-attention")
    band, e = found.band, mask.extent
    arguments: dict[str, Any] = {}
    tensors: dict[str, Array] = {}
    notes: tuple[str, ...] = ()
    function = "flash_attn_func"
    if found.lengths is None:
        function = "flash_attn_varlen_func"
        tensors["cu_seqlens_q"] = found.starts("queries")
        tensors["cu_seqlens_k"] = found.starts("keys")
        arguments["max_seqlen_q"] = found.longest("queries")
        arguments["max_seqlen_k"] = found.longest("keys")
        notes = _laid(found)
    elif set(found.lengths) - {e.keys}:
        function = "flash_attn_with_kvcache"
        tensors["cache_seqlens"] = np.asarray(found.lengths, np.int32)
    if band is not None and band[:2] == CAUSAL:
        arguments["causal"] = True
    elif band is not None:
        arguments["window_size"] = _sides(band, mask)
    for bias in mask.biases:
        slopes = bias.alibi()
        if slopes is None or len(mask.biases) > 1:
            raise MaskError(
                "flash-attention takes no bias but alibi slopes",
                "use --for sdpa for a float tensor",
            )
        tensors["alibi_slopes"] = np.asarray(slopes.slopes, np.float32)
    words = [f"{name}={value}" for name, value in arguments.items()]
    words = [*(f"{name}={name}" for name in tensors), *words]
    return Spoken(
        "flash", f"{function}({', '.join(['q, k, v', *words])})", tensors, arguments, notes
    )


def _laid(found: Runs) -> tuple[str, ...]:
    left_out = ", padding left out" if found.real else ""
    return (f"q, k, v: batch elements laid end to end, as long as these say{left_out}",)


def _sides(band: Diagonals, mask: Mask) -> tuple[int, int]:
    """Return how far a window reaches to the left and to the right, -1 where it is open."""
    if band.low > 0 or band.high < 0:
        raise MaskError(
            f"flash-attention has no window that leaves out its own position: {mask.words}",
            "use --for sdpa for a mask tensor",
        )
    return -1 if band.low == -FAR else -band.low, -1 if band.high == FAR else band.high


def flashinfer(mask: Mask) -> Spoken:
    """Return FlashInfer's arguments, or its ``custom_mask``; MaskError for biases and heads."""
    if mask.has_bias or mask.keep_varies.head:
        raise MaskError(
            f"FlashInfer cannot say {mask.words}",
            "its masks are the same for all heads and nothing is added; use --for sdpa",
        )
    e = mask.extent
    try:
        found = _runs(mask, "FlashInfer")
    except MaskError:
        return _custom(mask)
    arguments = _left(found.band)
    if arguments is None:
        return _custom(mask)
    words = [f"{name}={value}" for name, value in arguments.items()]
    whole = found.lengths is not None and set(found.lengths) == {e.keys}
    if whole:
        call = f"single_prefill_with_kv_cache({', '.join(['q, k, v', *words])})"
        notes = ("one call for each batch element",) if e.batch > 1 else ()
        return Spoken("flashinfer", call, {}, arguments, notes)
    tensors = {"qo_indptr": found.starts("queries"), "kv_indptr": found.starts("keys")}
    return Spoken("flashinfer", _plan(words), tensors, arguments, _laid(found))


def _left(band: Diagonals | None) -> dict[str, Any] | None:
    """Return ``causal`` and ``window_left``; None for a band that they cannot say."""
    if band is None:
        return {}
    if band.high not in (0, FAR) or band.low > 0:
        return None
    arguments: dict[str, Any] = {"causal": True} if band.high == 0 else {}
    return arguments | ({} if band.low == -FAR else {"window_left": -band.low})


def _plan(words: Sequence[str]) -> str:
    given = ", ".join(["qo_indptr, kv_indptr, …", *words])
    return f"BatchPrefillWithRaggedKVCacheWrapper.plan({given})"


def _custom(mask: Mask) -> Spoken:
    """Return the mask tensor, flat for a batch: one request after the other."""
    e = mask.extent
    keep = keep_tensor(mask)[:, 0]
    if e.batch == 1:
        call = "single_prefill_with_kv_cache(q, k, v, custom_mask=custom_mask)"
        return Spoken("flashinfer", call, {"custom_mask": keep[0]}, notes=("bool: True = seen",))
    flat = np.broadcast_to(keep, (e.batch, e.queries, e.keys)).reshape(-1)
    tensors = {
        "qo_indptr": np.arange(e.batch + 1, dtype=np.int32) * e.queries,
        "kv_indptr": np.arange(e.batch + 1, dtype=np.int32) * e.keys,
        "custom_mask": flat,
    }
    notes = ("bool: True = seen, batch elements laid end to end",)
    return Spoken("flashinfer", _plan(["custom_mask=custom_mask"]), tensors, notes=notes)


def xformers(mask: Mask) -> Spoken:
    """Return an ``attn_bias`` of xFormers, or a float tensor."""
    if mask.trivial:
        return Spoken("xformers", "memory_efficient_attention(q, k, v)")
    call = "memory_efficient_attention(q, k, v, attn_bias=attn_bias)"
    named = None if mask.has_bias else _attn_bias(mask)
    if named is None:
        e = mask.extent
        tensor = np.broadcast_to(additive_tensor(mask), (e.batch, e.heads, e.queries, e.keys))
        notes = ("float: added to the scores, -inf = hidden, never broadcast; in the dtype of q",)
        return Spoken("xformers", call, {"attn_bias": tensor}, notes=notes)
    return Spoken("xformers", call, {}, {"attn_bias": named[0]}, named[1])


def _attn_bias(mask: Mask) -> tuple[str, tuple[str, ...]] | None:
    """Return the class of ``xformers.ops.fmha.attn_bias`` that says the mask, and notes."""
    band, others = split(mask)
    causal = band is not None and band[:2] == CAUSAL
    if causal and band is not None and not others and not any(band.offset):
        return "LowerTriangularMask()", ()
    try:
        found = _runs(mask, "xFormers")
    except MaskError:
        return None
    whole = found.lengths is not None and set(found.lengths) <= {mask.extent.keys}
    if band is not None and not causal:
        return _local(band) if whole else None
    if causal and any(run.keys < run.queries for run in found.runs):
        return None  # its classes demand at least as many keys as queries
    if causal and whole:
        return "LowerTriangularFromBottomRightMask()", ()
    kind = "BlockDiagonalCausalFromBottomRightMask" if causal else "BlockDiagonalMask"
    sizes = [[getattr(run, name) for run in found.runs] for name in ("queries", "keys")]
    words = f"{kind}.from_seqlens(q_seqlen={sizes[0]}, kv_seqlen={sizes[1]})"
    return words, _laid(found)


def _local(band: Diagonals) -> tuple[str, tuple[str, ...]] | None:
    """Return the class for a window that is open on no side and holds its own position."""
    if not -FAR < band.low <= 0 <= band.high < FAR:
        return None
    sides = f"window_left={-band.low}, window_right={band.high}"
    return f"LocalAttentionFromBottomRightMask({sides})", ()


# -- sequences laid end to end ----------------------------------------------------------------


def _runs(mask: Mask, who: str) -> Runs:
    """Return the mask as runs: those that are whole batch elements, else padding is left out.

    MaskError where it has another corner than the runs, or is none of causal, window, padding,
    contiguous segments and ALiBi.
    """
    band, others = split(mask)
    parts = [part.segments() for part in others if part.padding() is None]
    ids = [part for part in parts if part is not None]
    if len(ids) < len(parts):
        raise MaskError(
            f"{who} cannot say {mask.words}",
            "it takes causal, window, padding, contiguous segments and alibi, joined with &; "
            "use --for sdpa for a mask tensor",
        )
    slopes = [s for bias in mask.biases if (s := bias.alibi())]
    offsets = [s.offset for s in slopes] + ([band.offset] if band else [])
    real = _real(mask, band)
    padded = mask.padding_rows() & (mask.said_real is not None)
    fits, wrong = [], []
    for left_out in [np.zeros_like(padded), padded] if padded.any() else [padded]:
        runs = tuple(
            run for b in range(mask.extent.batch)
            for run in _of_batch(b, ids, ~left_out[b], real[b], who)
        )  # fmt: skip
        wrong = [
            (run, offset[run.batch]) for run in runs for offset in offsets
            if run.queries and run.keys and offset[run.batch] != run.corner
        ]  # fmt: skip
        if not wrong:
            whole = not ids and not left_out.any() and all(run.key == 0 for run in runs)
            lengths = tuple(run.keys for run in runs) if whole else None
            fits.append(Runs(band, runs, bool(left_out.any()), lengths))
    if not fits:
        raise _other_corner(mask, who, *wrong[0])
    return next((one for one in fits if one.lengths is not None), fits[-1])


def _real(mask: Mask, band: Diagonals | None) -> Array:
    """Return the keys that a kernel is given, bool ``(B, Lk)``."""
    e = mask.extent
    if mask.said_real is not None:
        return mask.said_real
    if e.lengths is not None and band is not None and band.high <= 0:
        return np.arange(e.keys) < np.asarray(e.lengths)[:, None]  # it hides what follows them
    return np.ones((e.batch, e.keys), bool)


def _of_batch(
    b: int, ids: Sequence[tuple[Array, Array]], rows: Array, keys: Array, who: str
) -> list[Run]:
    """Return the runs of one batch element; ``rows``, ``keys``: which are given, bool."""
    queries = np.stack([np.zeros(len(rows), np.int64), *(q[b] for q, _ in ids)])
    against = np.stack([np.zeros(len(keys), np.int64), *(k[b] for _, k in ids)])
    q_runs, k_runs = (
        _cuts(table, there, who) for table, there in ((queries, rows), (against, keys))
    )
    order = list(dict.fromkeys([*k_runs, *q_runs]))
    if [name for name in order if name in q_runs] != list(q_runs) or (
        len(order) > 1 and not set(q_runs) <= set(k_runs)
    ):
        raise MaskError(
            f"{who} takes the segments of queries and of keys in one order",
            "use --for sdpa for a mask tensor",
        )
    none = (0, 0)
    return [Run(b, *q_runs.get(name, none), *k_runs.get(name, none)) for name in order]


def _cuts(table: Array, there: Array, who: str) -> dict[tuple[int, ...], tuple[int, int]]:
    """Return start and length of each segment by its ids, of those that are ``there``."""
    at = np.flatnonzero(there)
    found: dict[tuple[int, ...], tuple[int, int]] = {}
    cuts = np.flatnonzero((np.diff(table[:, at]) != 0).any(0) | (np.diff(at) != 1)) + 1
    for part in np.split(at, cuts) if len(at) else ():
        name = tuple(table[:, part[0]].tolist())
        if name in found:
            raise MaskError(
                f"{who} needs contiguous segments, but an id comes back later",
                "sort the documents, or use --for sdpa",
            )
        found[name] = int(part[0]), len(part)
    return found


def _other_corner(mask: Mask, who: str, run: Run, here: int) -> MaskError:
    e, lengths = mask.extent, mask.lengths
    hint = "use --for sdpa for a mask tensor"
    if mask.said_real is None and run.corner == e.keys - e.queries:
        hint = "write bottom_right, as in causal(bottom_right), or use --for sdpa"
    elif lengths is not None and e.past is None and e.lengths is None:
        hint = (
            f"give --kv-lengths {','.join(map(str, lengths))} and no corner when the queries are "
            f"the last real tokens, or {hint}"
        )
    return MaskError(
        f"{who} counts causal and window from the bottom right corner: query 0 "
        f"stands at key {run.corner}, here at {here}",
        hint,
    )
