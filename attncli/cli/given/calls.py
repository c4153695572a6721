"""Calls of other libraries: packed and paged tensors, caches, sequences end to end.

What a file says in the words of flash-attention, transformers, ONNX or TransformerLens becomes
query, key, value and masks here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from attncli.attention.masks import Extent, Mask
from attncli.attention.problem import Masker
from attncli.cli import groups
from attncli.cli.given import sequences
from attncli.cli.given.reader import Array, Reader, is_count, is_number, is_truth, is_word
from attncli.cli.given.sequences import Call
from attncli.errors import InputError
from attncli.files.bundle import DUMP

#: Names that say which order the dimensions have.
BLHD = ("hook_q", "hook_k", "hook_v")
#: Names of a cache to which nothing is appended where there is no new key.
CACHES = ("k_cache", "key_cache", "v_cache", "value_cache")
#: Names of flash-attention's own calls, whose causal is aligned at the end.
FLASH = (
    "cache_seqlens", "seqused_k", "seqused_q", "block_table", "block_tables", "page_table",
    "cu_seqlens", "cu_seqlens_q", "cu_seqlens_k",
)  # fmt: skip


def read(
    reader: Reader,
    flags: groups.Posed,
    query: Callable[[Reader], Array],
    kv_lengths: Any,
) -> Call:
    """Find the tensors of a call; ``query`` finds the query where nothing is packed.

    Raises InputError for what is ambiguous or does not fit.
    """
    layout = reader.pick("layout", is_word)
    heads, kv_heads = (reader.pick(name, is_count) for name in ("heads", "kv_heads"))
    parts: dict[str, Array] = {}
    for role, names in (("qkv", ("query", "key", "value")), ("kv", ("key", "value"))):
        found = reader.tensor(role)
        if found:
            own = [name for name in names if name in reader.spelt or reader.flag(name)]
            if own:
                raise InputError(
                    f"{reader.sources[0]} holds '{reader.spelt[role]}', and {own[0]} is given too",
                    "leave one of them out",
                )
            beside = None if role == "qkv" else query(reader)
            split, said = sequences.split(reader, role, *found, heads, kv_heads, beside)
            if said and layout not in (None, said):
                raise InputError(
                    f"'{reader.spelt[role]}' {found[0].shape} is {said}, not {layout}",
                    f"--layout {said}",
                )
            layout = layout or said
            parts |= dict(zip(names, split, strict=True))
    for name in ("key", "value", "past_key", "past_value"):
        array = parts.get(name, reader.floats(name))
        if array is not None:
            parts[name] = array
    if "query" not in parts:
        parts["query"] = query(reader)
    call = Call(
        flags, **{name: parts.get(name) for name in
                  ("query", "key", "value", "past_key", "past_value")},  # type: ignore[arg-type]
        kv_lengths=kv_lengths, layout=layout, heads=heads, kv_heads=kv_heads,
    )  # fmt: skip
    _demand_heads(reader, call)
    table = reader.tensor("block_table")
    if table:
        sequences.gather_pages(call, table[0])
    if layout is None:
        call.layout = _layout(reader, call)
    _check_heads(reader, call)
    _cache(reader, call)
    _masks(reader, call)
    return call


def _demand_heads(reader: Reader, call: Call) -> None:
    """Raise InputError for rows of a dump, ``(L, H·D)``, of which nobody says how many heads."""
    dumped = reader.bundle is not None and reader.bundle.kind == DUMP
    if dumped and call.query.ndim == 2 and call.heads is None:
        raise InputError(
            f"{reader.sources[0]}: the query is {call.query.shape}, and a dump does not say how "
            "many heads that is",
            "add --heads H and --kv-heads G, those of one rank",
        )


def _layout(reader: Reader, call: Call) -> str | None:
    """Return the order of the dimensions that the words of the call imply, and say so."""
    query = call.query
    lens = reader.says(*BLHD)
    keys = next((a for a in (call.past_key, call.key) if a is not None), None)
    starts, rows = reader.tensor("cu_seqlens_q"), _query_lengths(reader)
    if call.heads is not None and query.ndim < 4:
        return None
    if lens and query.ndim == 4:
        reader.notes.append("layout blhd, as TransformerLens has it")
        return "blhd"
    flash = reader.says(*FLASH) or (call.past_key is not None and reader.says(*CACHES))
    if not flash or query.ndim < 3 or (keys is not None and keys.ndim != query.ndim):
        return None
    fits = []
    for layout, axis in (("blhd", query.ndim - 2), ("bhld", query.ndim - 3)):
        length = query.shape[axis - 1 if layout == "blhd" else axis + 1]
        reach = length if keys is None else keys.shape[axis - 1 if layout == "blhd" else axis + 1]
        good = keys is None or (keys.shape[axis] and query.shape[axis] % keys.shape[axis] == 0)
        ends = starts is None or not starts[0].size or starts[0].ravel()[-1] == length
        fit = good and ends and _most(call.kv_lengths) <= reach and _most(rows) <= length
        fits += [layout] if fit else []
    if "blhd" not in fits:
        return None
    if len(fits) > 1 and not reader.says(*FLASH):
        reader.notes.append("layout bhld; --layout blhd fits, too")
        return None
    reader.notes.append("layout blhd, as flash-attention has it")
    return "blhd"


def _most(lengths: Any) -> float:
    """Return the largest of some lengths, 0 where there are none."""
    array = np.asarray(0 if lengths is None else lengths)
    return float(array.max()) if array.size and array.dtype.kind in "iuf" else 0.0


def _check_heads(reader: Reader, call: Call) -> None:
    """Let a file say how many heads there are where they are a dimension; they must be as many."""
    for name, array in (("heads", call.query), ("kv_heads", call.key)):
        said = getattr(call, name)
        if said is None or array is None or array.ndim != 4 or reader.flag(name) is not None:
            continue
        there = array.shape[2 if call.layout == "blhd" else 1]
        if said != there:
            raise InputError(
                f"{reader.sources[0]}: '{reader.spelt[name]}' is {said}, but {array.shape} has "
                f"{there} heads",
                "if the length comes before the heads, add --layout blhd"
                if call.layout is None else "leave it out where heads are a dimension",
            )  # fmt: skip
        setattr(call, name, None)


def _cache(reader: Reader, call: Call) -> None:
    """A cache of a library's own call: all of it is attended to, new keys are written into it."""
    cached = {"past_key": call.past_key, "past_value": call.past_value}
    if call.past_key is None or call.past_value is None or not reader.says(*CACHES):
        return
    if call.key is None and call.value is None:
        call.key, call.value = call.past_key, call.past_value
        if call.kv_lengths is None:  # the last query stands at the last key
            call.kv_lengths = [call.length(call.key)]
        reader.notes.append("no new key: the cache alone is attended to")
    elif call.kv_lengths is not None and call.key is not None:
        value = call.key if call.value is None else call.value
        lengths, new = call.kv_lengths, {"past_key": call.key, "past_value": value}
        for name, cache in cached.items():
            assert cache is not None
            filled = sequences.appended(cache, new[name], lengths, call.axis(cache.ndim))
            setattr(call, name.removeprefix("past_"), filled)
        call.kv_lengths = np.atleast_1d(np.asarray(lengths)) + call.length(new["past_key"])
        reader.notes.append("the new keys are written into the cache behind its lengths")
    else:
        return
    call.past_key = call.past_value = None


def _masks(reader: Reader, call: Call) -> None:
    """Find the masks that a call says in other words than a mask expression."""
    texts = _windows(reader)
    slopes = reader.tensor("alibi_slopes")
    if slopes:
        if slopes[0].ndim != 1:
            raise InputError(
                f"{reader.sources[0]}: 'alibi_slopes' is {slopes[0].shape}", "expected one per head"
            )
        texts.append(f"alibi({', '.join(repr(float(s)) for s in slopes[0])})")
    packed = sequences.packed(reader, call)
    at_the_end = packed is None and reader.says(*FLASH, *CACHES) and not call.flags.expressions
    if at_the_end and reader.checked("causal", is_truth):
        del reader.options["causal"]
        texts.insert(0, "causal")
    if texts and call.flags.expressions:
        reader.warnings.append(
            f"-m replaces the file's {' & '.join(texts)}; to keep it add "
            + " ".join(f"-m '{text}'" for text in texts)
        )
        texts = []
    if texts and packed and not packed.alike:
        raise InputError(
            f"{reader.sources[0]}: {texts[0]} beside cu_seqlens of queries and keys that differ",
            "give each sequence as a problem of its own",
        )
    call.masks += [_at_the_end(text) for text in texts]
    if packed:
        call.masks.append(sequences.from_tensor(packed.masker, "cu_seqlens"))
        call.flags = packed.flags
    rows = _query_lengths(reader)
    if rows is not None:
        call.masks.append(sequences.rows_of(rows))


def _query_lengths(reader: Reader) -> Any:
    """Return how many queries of each batch element are no padding, or None."""
    said = reader.checked("query_lengths", is_number)
    tensor = reader.tensor("query_lengths")
    return tensor[0] if tensor else said


def _windows(reader: Reader) -> list[str]:
    """Return the windows that the file says, as mask expressions; −1 is an open side."""
    found: list[tuple[int, int]] = []
    pair = reader.tensor("window")
    if pair:
        if pair[0].shape != (2,) or pair[0].dtype.kind not in "iu":
            raise InputError(
                f"{reader.sources[0]}: '{reader.spelt['window']}' is {pair[0].tolist()}",
                "expected two integers [left, right], -1 is open",
            )
        found.append((int(pair[0][0]), int(pair[0][1])))
    left, right = (reader.checked(f"window_{side}", _is_side) for side in ("left", "right"))
    if left is not None or right is not None:
        found.append((-1 if left is None else left, -1 if right is None else right))
    size = reader.checked("sliding_window", is_count)
    if size is not None:
        ahead = size - 1 if reader.options.get("causal") is False else 0
        reader.notes.append(
            f"{reader.spelt['sliding_window']} {size}: {size} keys with the query's own, as in "
            "transformers"
        )
        found.append((size - 1, ahead))
    sides = [["inf" if n < 0 else str(n) for n in one] for one in found if one != (-1, -1)]
    return [f"window({', '.join(one)})" for one in sides]


def _is_side(value: Any) -> bool:
    whole = type(value) is int or (type(value) is float and value.is_integer())
    return whole and value >= -1


def _at_the_end(text: str) -> Masker:
    """Bind an expression so that, where nothing else says it, the last query is at the last key."""
    from attncli.attention.language import masker

    name, _, arguments = text.partition("(")
    cornered = f"{name}({arguments[:-1]}{', ' if arguments else ''}bottom_right)"

    def bind(extent: Extent) -> Mask:
        told = extent.past is not None or extent.lengths is not None
        plain = told or extent.queries == extent.keys
        return masker(text if plain else cornered)(extent)

    return bind
