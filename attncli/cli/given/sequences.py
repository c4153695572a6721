"""The shapes of other libraries' calls: split, gathered, appended, laid end to end."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.masks import Extent, Mask
from attncli.attention.problem import Masker
from attncli.cli import groups
from attncli.cli.given.reader import Array, Reader, is_truth
from attncli.errors import InputError, counted

LONGEST = 4096  # ids of segments that are written out as an expression


@dataclass
class Call:
    """The tensors of one call, and what else it says; ``flags`` are those left to be read."""

    flags: groups.Posed
    query: Array
    key: Array | None
    value: Array | None
    past_key: Array | None
    past_value: Array | None
    kv_lengths: Any
    layout: str | None
    heads: int | None
    kv_heads: int | None
    masks: list[Masker] = field(default_factory=list)

    def arguments(self) -> dict[str, Any]:
        """Return what ``pose`` takes, but for the masks."""
        names = (
            "query", "key", "value", "past_key", "past_value", "kv_lengths", "heads", "kv_heads"
        )  # fmt: skip
        return {name: getattr(self, name) for name in names} | {"layout": self.layout or "bhld"}

    def length(self, array: Array) -> int:
        """Return how many positions a tensor of this call has."""
        return int(array.shape[self.axis(array.ndim)])

    def axis(self, rank: int) -> int:
        """Return which dimension is the length."""
        if rank == 2 or (self.heads is not None and rank == 3):
            return rank - 2
        return rank - 3 if self.layout == "blhd" else rank - 2


def split(
    reader: Reader,
    role: str,
    array: Array,
    kind: str,
    heads: int | None,
    kv_heads: int | None,
    beside: Array | None = None,
) -> tuple[list[Array], str | None]:
    """Return query, key and value of ``qkv``, or key and value of ``kv``, and their layout.

    array: ``(…, L, n, H, D)`` as flash-attention has it, n stacked before all as ``(n, …)``, or
    side by side ``(…, L, n·H·D)`` where heads are known. Raises InputError where two of these fit,
    or none. Beside a query of its own the parts must have its batch and width.
    """
    array = reader.noted(role, array, kind)
    n, shape, name = len(role), array.shape, reader.spelt[role]
    inner = array.ndim - 3
    stacked = array.ndim >= 3 and shape[0] == n and _goes_with(beside, shape[1:])
    between = array.ndim >= 4 and shape[inner] == n
    between = between and _goes_with(beside, shape[:inner] + shape[inner + 1 :])
    width = _side_by_side(role, shape[-1], heads, kv_heads) if array.ndim in (2, 3) else None
    if stacked + between + (width is not None) != 1:
        fits = "more than one reading fits" if stacked + between else "nothing says how to split it"
        raise InputError(
            f"{reader.sources[0]}: '{name}' is {shape}: {fits}",
            f"expected (…, {n}, H, D) or ({n}, …), or (…, {n}·H·D) with --heads; or give "
            f"{'query, ' if n == 3 else ''}key and value apart",
        )
    if width is not None:
        cuts = np.cumsum(width)[:-1]
        reader.notes.append(f"{name} {shape} is cut into widths {', '.join(map(str, width))}")
        return np.split(array, cuts, axis=-1), None
    axis = inner if between else 0
    reader.notes.append(f"{name} {shape} is split along dimension {axis}")
    return list(np.moveaxis(array, axis, 0)), "blhd" if between else None


def _goes_with(query: Array | None, shape: tuple[int, ...]) -> bool:
    """Whether keys of this shape may go with the query, if there is one."""
    if query is None:
        return True
    same = query.ndim == len(shape) and query.shape[-1] == shape[-1]
    return same and (len(shape) < 4 or query.shape[0] == shape[0])


def _side_by_side(
    role: str, width: int, heads: int | None, kv_heads: int | None
) -> list[int] | None:
    """Return the widths of the parts of a last dimension, or None where they do not divide it."""
    own = kv_heads or heads
    if heads is None or own is None:
        return None
    counts = [heads, own, own] if role == "qkv" else [own, own]
    each, rest = divmod(width, sum(counts))
    return None if rest or not each else [count * each for count in counts]


def gather_pages(call: Call, table: Array) -> None:
    """Put the pages of a cache in the order of their table, in place.

    Caches ``(N, page, G, D)`` and table ``(B, n)`` become ``(B, n·page, G, D)``. Raises InputError
    for a page that is read and is not there.
    """
    if call.past_key is None or call.past_value is None:
        raise InputError("a block table is given without k_cache and v_cache", "give the cache")
    if call.past_key.ndim != 4 or table.ndim != 2 or table.dtype.kind not in "iu":
        raise InputError(
            f"the block table is {table.dtype} {table.shape} for a cache {call.past_key.shape}",
            "expected integers (B, pages) and a cache (N, page, G, D)",
        )
    if call.kv_lengths is None:
        raise InputError("a block table is given without lengths", "give cache_seqlens")
    count, page = call.past_key.shape[:2]
    lengths = batched(call.kv_lengths, len(table), "cache_seqlens")
    used = np.arange(table.shape[1]) * page < lengths[:, None]  # (B, n)
    absent = (table < 0) | (table >= count)
    if (absent & used).any():
        b, place = (int(x) for x in np.argwhere(absent & used)[0])
        raise InputError(
            f"the block table names page {table[b, place]} for batch element {b}",
            f"there are pages 0 to {count - 1}",
        )
    pages = np.where(absent, 0, table)
    for name in ("past_key", "past_value"):
        cache = getattr(call, name)
        found = cache[pages]  # (B, n, page, G, D)
        setattr(call, name, found.reshape(len(table), -1, *cache.shape[2:]))  # (B, n·page, G, D)
    call.layout = "blhd"


def appended(cache: Array, new: Array, lengths: Any, axis: int) -> Array:
    """Return the cache with the new keys written behind the valid ones of each batch element.

    cache, new: alike but for their length, which is dimension ``axis``. Raises InputError where
    they do not fit.
    """
    starts = batched(lengths, cache.shape[0] if cache.ndim == 4 else 1, "cache_seqlens")
    count, room = new.shape[axis], cache.shape[axis]
    alike = [n for at, n in enumerate(new.shape) if at != axis]
    if new.ndim != cache.ndim or alike != [n for at, n in enumerate(cache.shape) if at != axis]:
        raise InputError(
            f"the new keys {new.shape} do not go into the cache {cache.shape}",
            "only their lengths may differ",
        )
    if (starts + count > room).any():
        raise InputError(
            f"the cache has room for {counted(room, 'key')}, but {int(starts.max())} are there and "
            f"{count} are new",
            "give a longer cache",
        )
    filled = cache.astype(np.result_type(cache, new))
    for b, start in enumerate(starts):
        one = filled[b] if cache.ndim == 4 else filled
        own = new[b] if cache.ndim == 4 else new
        at = axis - 1 if cache.ndim == 4 else axis
        one[(slice(None),) * at + (slice(int(start), int(start) + count),)] = own
    return filled


def batched(numbers: Any, batch: int, name: str) -> Array:
    """Return lengths ``(B,)``; one stands for all."""
    array = np.atleast_1d(np.asarray(numbers))
    if array.ndim != 1 or len(array) not in (1, batch) or array.dtype.kind not in "iu":
        raise InputError(
            f"{name} is {array.dtype} {array.shape} for a batch of {batch}",
            "expected one integer per batch element",
        )
    if (array < 0).any():
        raise InputError(f"{name} holds {array.min()}", "lengths are 0 or more")
    return np.broadcast_to(array, (batch,))


def rows_of(lengths: Any) -> Masker:
    """Return the mask of rows that are no padding, by the lengths of the queries."""
    from attncli.attention.packed import RowsOf

    def bind(extent: Extent) -> Mask:
        own = batched(lengths, extent.batch, "query lengths")
        return Mask(extent, RowsOf(tuple(int(n) for n in own)))

    return bind


class EndToEnd(NamedTuple):
    """Several sequences in one: their mask, the flags left, whether queries and keys lie alike."""

    masker: Masker
    flags: groups.Posed
    alike: bool


def packed(reader: Reader, call: Call) -> EndToEnd | None:
    """Return what cu_seqlens, or position_ids that begin anew, say of sequences end to end."""
    queries = reader.tensor("cu_seqlens_q")
    keys = reader.tensor("cu_seqlens_k")
    if not queries and not keys:
        ids = _restarts(reader, call)
        return EndToEnd(_segments(ids), call.flags, True) if ids is not None else None
    array = call.query if call.key is None else call.key
    starts = [
        _starts(reader, f"cu_seqlens_{side}", found[0], call.length(tensor))
        for side, found, tensor in (
            ("q", queries or keys, call.query), ("k", keys or queries, array)
        )
        if found
    ]  # fmt: skip
    if len(starts[0]) != len(starts[1]):
        raise InputError(
            f"{reader.sources[0]}: cu_seqlens are {len(starts[0]) - 1} sequences of queries and "
            f"{len(starts[1]) - 1} of keys",
            "each sequence needs both",
        )
    if np.array_equal(starts[0], starts[1]):
        ids = np.repeat(np.arange(len(starts[0]) - 1), np.diff(starts[0]))
        return EndToEnd(_segments(ids), call.flags, True)
    return _apart(reader, call.flags, *starts)


def _apart(reader: Reader, flags: groups.Posed, queries: Array, keys: Array) -> EndToEnd:
    """Queries and keys of other lengths: causal is each sequence's own, as flash aligns it."""
    texts = set(flags.expressions)
    causal = "causal" in texts or (not texts and bool(reader.checked("causal", is_truth)))
    own = reader.options.get("mask") if not texts else None
    others = sorted(texts - {"causal"}) + ([own] if own else [])
    if others:
        raise InputError(
            f"{reader.sources[0]}: {others[0]} beside cu_seqlens of queries and keys that differ",
            "causal is each sequence's own there; give others as a problem of their own",
        )
    reader.options.pop("causal", None)
    from attncli.attention.packed import Packed

    mask = Packed(queries, keys, causal)
    return EndToEnd(lambda extent: Mask(extent, mask), flags.but(mask=None, causal=False), False)


def _starts(reader: Reader, role: str, array: Array, length: int) -> Array:
    """Return where sequences begin ``(S + 1,)``, from 0 to the number of positions."""
    roles = (role, "cu_seqlens_q", "cu_seqlens_k")
    name = next(reader.spelt[one] for one in roles if one in reader.spelt)
    flat = array.ravel()
    good = array.ndim == 1 and array.dtype.kind in "iu" and len(flat) > 1
    if not good or flat[0] != 0 or (np.diff(flat.astype(np.int64)) < 0).any():
        raise InputError(
            f"{reader.sources[0]}: '{name}' is {array.tolist() if array.size < 9 else array.shape}",
            "expected where each sequence begins and the last one ends, as [0, 3, 5]",
        )
    if flat[-1] != length:
        raise InputError(
            f"{reader.sources[0]}: '{name}' ends at {flat[-1]}, but there are "
            f"{counted(length, 'position')}",
            "it must end at their number; if the length comes before the heads: --layout blhd",
        )
    return np.asarray(flat.astype(np.int64))


def _restarts(reader: Reader, call: Call) -> Array | None:
    """Return segments ``(L,)`` or ``(B, L)`` of position_ids that begin anew.

    transformers reads them so where no mask is given. Positions 0, 1, 2, … say nothing new.
    """
    if reader.bundle is None or not reader.says("position_ids") or reader.flag("positions"):
        return None
    found = reader.tensor("positions")
    assert found
    steps = np.diff(np.atleast_2d(found[0]).astype(np.int64), axis=-1)  # (B, L − 1)
    plain = bool((steps == 1).all())
    rope = "rope" in reader.options or reader.flag("rope") is not None
    masked = bool({"attn_mask", "key_padding_mask", "mask"} & {*reader.spelt})
    fits = found[0].ndim <= 2 and found[0].shape[-1] == call.length(call.query)
    if plain or masked or call.past_key is not None or not fits:
        if not rope and (not plain or found[0].ravel()[:1].any()):
            reader.taken.discard(reader.spelt["positions"])  # without RoPE they say nothing
        return None
    starts = np.pad((steps != 1).cumsum(-1), ((0, 0), (1, 0)))  # (B, L)
    reader.notes.append(
        f"position_ids begin anew: {counted(int(starts.max()) + 1, 'sequence')}, apart from each "
        "other"
    )
    return starts


def from_tensor(masker: Masker, name: str) -> Masker:
    """Return a masker whose masks know the tensor that they came as."""
    return lambda extent: replace(masker(extent), source=name)


def _segments(ids: Array) -> Masker:
    """Return the mask of segments, written out where they are few enough."""
    lines = np.atleast_2d(ids)
    if len(lines) == 1 and lines.size <= LONGEST:
        from attncli.attention.language import masker

        return masker(f"segments({', '.join(map(str, lines[0].tolist()))})")

    def bind(extent: Extent) -> Mask:
        from attncli.attention.patterns import SameSegment

        whole = np.broadcast_to(lines, (extent.batch, lines.shape[-1]))
        if whole.shape[-1] != extent.keys or extent.keys != extent.queries:
            raise InputError(
                f"segments of {lines.shape[-1]} positions for {extent.queries} queries and "
                f"{extent.keys} keys",
                "they must be as many",
            )
        return Mask(extent, SameSegment(whole, whole))

    return bind
