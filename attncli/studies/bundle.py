"""What a problem needs beside its tensors, so that `compute` and `inspect` give the same again."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.masks import Extent, Mask
from attncli.attention.problem import Problem
from attncli.attention.view import Labels
from attncli.errors import AttnError, InputError, TooLarge

Array = np.ndarray[Any, np.dtype[Any]]

LARGEST = 1 << 24  # cells of a mask tensor that is made
EDGE = 64  # rows at both ends where a larger bias is compared
#: What arrays in a binary file say by themselves, and what is no option.
UNSAID = ("dtype", "rope_applied")
#: The arrays that make a problem.
PROBLEM = ("query", "key", "value")


class Carried(NamedTuple):
    """What goes along with query and key: ``options`` by name and further ``arrays``."""

    options: Mapping[str, Any] = MappingProxyType({})
    arrays: Mapping[str, Array] = MappingProxyType({})

    @property
    def members(self) -> dict[str, Any]:
        """As members of a report's JSON, where ``heads`` are those of the report."""
        options = dict(self.options)
        if "heads" in options:
            options["num_heads"] = options.pop("heads")
        return {**({"mask": None} if options else {}), **options, **self.arrays}


def carried(problem: Problem, names: Collection[str], *, past_apart: bool) -> Carried:
    """Return what has to go along where ``names`` are written; nothing without query and key.

    ``past_apart``: the key is written without the cache, which goes along in the layout in which
    it was given; otherwise the key holds it. A mask that no expression says becomes the array
    ``attn_mask``, ``(1 or B, 1 or H, Lq, Lk)``; the query is turned already, so no RoPE goes along
    but ``rope_applied``, its words. Raises TooLarge for a mask that cannot go along.
    """
    if not {"query", "key"} <= {*names}:
        return Carried()
    p, family = problem, problem.family
    said: dict[str, Any] = {
        "heads": p.heads if family.packed else None,
        "kv_heads": p.kv_heads if family.packed and p.kv_heads != p.heads else None,
        "layout": "blhd" if family.blhd else None,
        "scale": p.scale,
        "softcap": p.softcap,
        "dtype": p.result_dtype.name,
        "softmax_dtype": None if p.softmax_dtype is None else p.softmax_dtype.name,
        "rope_applied": p.rope and p.rope.text,
    }
    arrays = {} if p.sink is None else {"sink": np.array(p.sink)}
    if p.mask.extent.lengths is not None:
        arrays["kv_lengths"] = np.array(p.mask.extent.lengths, np.int64)
    past = p.past if past_apart else 0
    if past:
        for name, array in (("past_key", p.key), ("past_value", p.value)):
            arrays[name] = p.caches.restore(array[:, :, :past])
    text = _expression(p.mask, past or None)
    if text is None:
        arrays["attn_mask"] = _tensor(p)
        text = _padding(p)
    options = {name: value for name, value in said.items() if value is not None}
    return Carried(options | ({"mask": text} if text else {}), arrays)


def tokens_of(labels: Labels) -> dict[str, Any]:
    """Return the labels as the members that a bundle has: tokens, or query_ and key_tokens."""

    def plain(names: tuple[tuple[str, ...], ...]) -> list[Any]:
        return list(names[0]) if len(names) == 1 else [list(own) for own in names]

    if labels.query and labels.query == labels.key:
        return {"tokens": plain(labels.query)}
    found = {"query_tokens": labels.query, "key_tokens": labels.key}
    return {name: plain(names) for name, names in found.items() if names}


def demand_lists(arrays: Mapping[str, Array]) -> None:
    """Raise InputError for an array that lists do not say: of no rows, but some width."""
    for name, array in arrays.items():
        if name in PROBLEM and 0 in array.shape[:-1]:
            raise InputError(
                f"JSON cannot say that {name} is {array.shape}: an empty list has no width",
                "write it with -o FILE.safetensors or FILE.npz",
            )


def flags_of(options: Mapping[str, Any]) -> str:
    """Return the flags of `compute` that say the options, for files that hold none."""
    said = []
    for name, value in options.items():
        if name not in UNSAID:
            text = str(value)
            quoted = f"'{text}'" if set(text) & set(" ()&|~") else text
            said.append(f"--{name.replace('_', '-')} {quoted}")
    return " ".join(said)


def _tensor(problem: Problem) -> Array:
    """Return the mask as a tensor, bool or float, its dimensions of one kind left at 1."""
    mask = problem.mask.compact()
    e = mask.extent
    if e.batch * e.heads * e.queries * e.keys > LARGEST:
        raise TooLarge(
            f"the mask ({mask.words}) is too large to go along with query and key as a tensor",
            "leave query or key out of --include",
        )
    return mask.tensor(problem.dtype) if mask.has_bias else mask.dense()


def _padding(problem: Problem) -> str:
    """Return the expression of which rows are padding, which a tensor does not say."""
    lengths = problem.mask.lengths
    return "" if lengths is None else f"padding({', '.join(map(str, lengths))})"


def _expression(mask: Mask, past: int | None) -> str | None:
    """Return the expression that gives this mask where nothing else is known; '' for none.

    One that names a file would read another file elsewhere.
    """
    if set(mask.text) & set("'\""):
        return None
    from attncli.measures.masks import difference

    e = mask.extent
    extent = Extent(e.batch, e.heads, e.queries, e.keys, past=past, lengths=e.lengths)
    try:
        again = _written(mask.text, extent) if mask.text else Mask(extent)
    except AttnError:
        return None
    if e.lengths is not None:
        from attncli.attention.patterns import KeysBelow

        again = again & Mask(extent, KeysBelow(e.lengths))
    if difference(mask, again).first is not None or not _same_bias(mask, again):
        return None
    return mask.text


def _written(text: str, extent: Extent) -> Mask:
    from attncli.attention import language

    return language.masker(text)(extent)


def _same_bias(one: Mask, other: Mask) -> bool:
    if one.has_bias != other.has_bias:
        return False
    e = one.extent
    ends = [(0, e.queries)]
    if e.batch * e.heads * e.queries * e.keys > LARGEST:
        ends = [(0, min(EDGE, e.queries)), (max(0, e.queries - EDGE), e.queries)]
    return not one.has_bias or all(
        np.array_equal(one.bias(b, h, *rows, 0, e.keys), other.bias(b, h, *rows, 0, e.keys))  # type: ignore[arg-type]
        for b in range(e.batch)
        for h in range(e.heads)
        for rows in ends
    )
