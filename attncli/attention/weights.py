"""Attention weights alone: a Problem that gives them back, whose scores nobody knows.

Scores of 0 and a bias ln p are a softmax of p itself, so that whatever reads problems reads weights
as they stream. A sink takes what the rows lack of 1 (gpt-oss): beside a sink of 0, ln p − ln r with
the rest r = 1 − Σp.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_
from typing import Any

import numpy as np

from attncli.attention.cells import Cells
from attncli.attention.language import masker
from attncli.attention.masks import Extent, Mask
from attncli.attention.padding import Padding, padding_text
from attncli.attention.predicates import And, Bias, Varies
from attncli.attention.problem import Family, Masker, Problem
from attncli.errors import InputError, counted

Array = np.ndarray[Any, np.dtype[Any]]

SHAPES = "(queries, keys), (heads, queries, keys) or (batch, heads, queries, keys)"
CLOSE = 4e-3  # of a sum to 1: two roundings to bfloat16
SCATTER = 0.2  # of the mean sum of rows from 1 that dropout leaves
LARGEST = 4.0  # weight that dropout leaves: of a rate of 0.75
#: Of the cells of a pattern: 0 in every head by underflow, and in float16 that comes close to it.
FEW, MORE = 0.05, 0.25
TINY = 2.0**-20
LEAST = 1e-30  # what a sink takes of a row that lacks nothing
HIDDEN = -1e3  # in place of ln 0: its exponential is 0, and no number is infinite


@dataclass(frozen=True, eq=False)
class LogWeights(Bias):
    """ln p, less ln r for each row where a sink takes the rest r.

    weights ``(B, H, Lq, Lk)``, as they came; rest ``(B, H, Lq)`` or None.
    """

    weights: Array
    rest: Array | None

    def at(self, b: int, h: int, i: Array, j: Array) -> Array:
        return self._log(self.weights[b, h][i, j], b, h, i)

    def block(self, b: int, h: int, i0: int, i1: int, j0: int, j1: int) -> Array:
        rows = np.arange(i0, i1)[:, None]
        return self._log(self.weights[b, h, i0:i1, j0:j1], b, h, rows)

    def _log(self, weights: Array, b: int, h: int, i: Array) -> Array:
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.log(weights.astype(np.float64))
        z = np.where(z == -np.inf, HIDDEN, z)
        return z if self.rest is None else z - np.log(self.rest[b, h][i])

    def varies(self) -> Varies:
        return Varies(batch=len(self.weights) > 1, head=self.weights.shape[1] > 1)

    def words(self) -> str:
        return "the logarithm of the weights"


@dataclass(frozen=True)
class Found:
    """What one look at all weights finds.

    sums ``(B, H, Lq)``; seen: bool ``(B, Lq, Lk)``, cells with weight in any head; even: bool
    ``(B, Lq)``, rows that weigh all keys alike in every head, where not every row weighs alike what
    it sees; ``low``, ``high``: the smallest and the largest number that is finite; ``few``: the
    share of what is seen that may be 0 in every head all the same.
    """

    sums: Array
    seen: Array
    even: Array
    low: float
    high: float
    few: float


def of_weights(
    weights: Any, masks: Sequence[Masker] = (), *, name: str = "weights", recognise: bool = True,
    apart: bool = False,
) -> tuple[Problem, list[str]]:  # fmt: skip
    """Return the problem whose weights these are, and what was recognised, in words.

    weights ``(Lq, Lk)``, ``(H, Lq, Lk)`` or ``(B, H, Lq, Lk)``: rows of a softmax, or with a sink
    of less than 1. ``masks`` say what they were made with; where they say nothing but padding and
    ``recognise``, cells that are 0 in every head are hidden, by a mask that is called by its name
    if it has one. ``apart``: queries and keys are two sequences. Raises InputError for what are no
    weights, or none of such a mask.
    """
    array, family = _canonical(weights, name)
    batch, heads, queries, keys = array.shape
    extent = Extent(batch, heads, queries, keys, apart=apart)
    found = _look(array)
    _refuse_scores(found, name)
    said = reduce(and_, (one(extent) for one in masks), Mask(extent))
    if said.has_bias:
        raise InputError(
            f"the mask {said.words} adds to scores, and {name} hold what it added",
            "leave it out, or give a mask that hides keys alone",
        )
    notes: list[str] = []
    padded = all(part.padding() is not None for part in said.conjuncts())
    if recognise and (padded or said.predicate.everything()):
        said = _recognised(found, said, notes)
    _check_mask(array, found, said, name)
    real = np.broadcast_to(~said.padding_rows()[:, None], found.sums.shape)
    lost = real & (found.sums == 0)
    anywhere = np.any(found.seen, axis=-1, keepdims=True).swapaxes(1, 2)  # (B, 1, Lq)
    if (lost & anywhere).any():  # such a head sees nothing there
        said = replace(said, predicate=And(said.predicate, Cells(~lost[..., None])))
    rest = _rest(
        array, replace(found, sums=np.where(real & ~lost, found.sums, np.nan)), name, notes
    )
    query, key = (np.zeros((batch, heads, n, 1), np.float32) for n in (queries, keys))
    dtype = np.dtype(np.float64 if array.dtype.itemsize > 4 else np.float32)
    problem = Problem(
        query, key, key, mask=replace(said, biases=(LogWeights(array, rest),)), scale=1.0,
        scale_source="attention weights alone", softcap=None,
        sink=None if rest is None else np.zeros(heads), dtype=dtype, result_dtype=array.dtype,
        softmax_dtype=None, family=family, scored=False,
    )  # fmt: skip
    return problem, notes


def _canonical(weights: Any, name: str) -> tuple[Array, Family]:
    """Return ``(B, H, Lq, Lk)`` and the family; InputError for another rank, or no numbers."""
    array = np.asanyarray(weights)
    if not 2 <= array.ndim <= 4:
        raise InputError(f"{name} {array.shape} has {array.ndim} dimensions", f"expected {SHAPES}")
    if 0 in array.shape:
        raise InputError(f"{name} {array.shape} is empty", f"expected {SHAPES}")
    if array.dtype.kind == "c":
        raise InputError(f"{name} holds {array.dtype}", "weights are real numbers, 0 to 1")
    if array.dtype.kind in "biu":
        array = array.astype(np.float64)
    return array.reshape((1,) * (4 - array.ndim) + array.shape), Family(array.ndim)


def _look(array: Array) -> Found:
    batch, heads, queries, keys = array.shape
    sums = np.empty((batch, heads, queries))
    seen = np.zeros((batch, queries, keys), bool)
    even, flat = np.ones((batch, queries), bool), np.ones(batch, bool)
    low, high, least = np.inf, -np.inf, np.inf
    for b, h in np.ndindex(batch, heads):
        plane = array[b, h].astype(np.float64)
        with np.errstate(invalid="ignore"):
            sums[b, h] = plane.sum(-1)
        seen[b] |= plane != 0
        even[b] &= (plane == plane[:, :1]).all(-1) & (plane[:, 0] > 0)
        flat[b] &= ((plane == 0) | (plane == plane.max(-1, keepdims=True))).all()
        finite = plane[np.isfinite(plane)]
        low, high = min(low, finite.min(initial=low)), max(high, finite.max(initial=high))
        least = min(least, plane[plane > 0].min(initial=least))
    few = MORE if array.dtype == np.float16 and least < TINY else FEW
    even &= ~flat[:, None]  # where every row weighs alike what it sees, one more says nothing
    return Found(sums, seen, even, float(low), float(high), few)


# -- what are no weights ----------------------------------------------------------------------


def _refuse_scores(found: Found, name: str) -> None:
    if found.low < 0:
        raise InputError(
            f"{name} hold negative numbers, down to {found.low:.4g}: these look like scores",
            "weights are their softmax over the last dimension; or give query and key, which "
            "say more",
        )


def _rest(array: Array, found: Found, name: str, notes: list[str]) -> Array | None:
    """Return what a sink takes of each row ``(B, H, Lq)``, or None where the rows sum to 1.

    The sums of rows that do not count are NaN. Raises InputError for rows of no softmax.
    """
    sums = found.sums
    known = sums[np.isfinite(sums)]
    if not known.size:
        return None
    low, high, mean = float(known.min()), float(known.max()), float(known.mean())
    off = int((np.abs(known - 1) > CLOSE).sum())
    some = f"{off} of {counted(known.size, 'row')} of {name}"
    if high > 1 + CLOSE:
        _refuse_transposed(array, name)
        scattered = abs(mean - 1) <= SCATTER and low < 1 - CLOSE and found.high <= LARGEST
        if not scattered:
            raise InputError(
                f"{some} do not sum to 1: {low:.4g} to {high:.4g}. These look like scores or "
                "other numbers before a softmax",
                "expected the weights after it, whose rows sum to 1",
            )
        notes.append(
            f"{some} do not sum to 1 but scatter about it ({low:.4g} to {high:.4g}), as with "
            "dropout left on (model.eval() turns it off): each row is divided by its sum, and "
            "what dropout set to 0 is lost"
        )
        return None
    if low < 1 - CLOSE:
        _refuse_transposed(array, name)
        notes.append(
            f"{some} sum to less than 1 (the least to {low:.4g}): what they lack is counted as a "
            "sink's, one more outcome that is no key"
        )
        return np.asarray(np.maximum(1 - np.where(np.isfinite(sums), sums, 1), LEAST))
    return None


def _refuse_transposed(array: Array, name: str) -> None:
    """Raise InputError where columns sum to 1 in place of rows."""
    sums = array[0, 0].astype(np.float64).sum(0)
    if (np.abs(sums - 1) <= CLOSE).all():
        raise InputError(
            f"the columns of {name} sum to 1 and its rows do not: it is transposed",
            "swap its last two dimensions, so that a row is a query's: (…, queries, keys)",
        )


def _check_mask(array: Array, found: Found, mask: Mask, name: str) -> None:
    """Raise InputError where keys that the mask hides have weight in rows that count."""
    padding = mask.padding_rows()
    heads = range(array.shape[1]) if len(mask.distinct()[1]) > 1 else (None,)
    for b in range(len(array)):
        for h in heads:
            keep = mask.keep(b, h or 0, 0, array.shape[2], 0, array.shape[3])
            seen = found.seen[b] if h is None else array[b, h] != 0
            wrong = seen & ~keep & ~padding[b][:, None]
            if wrong.any():
                i, j = (int(n) for n in np.argwhere(wrong)[0])
                most = float(array[b, :, i, j].max())
                raise InputError(
                    f"{name} were not made with the mask {mask.words}: query {i} gives {most:.4g} "
                    f"to key {j}, which it hides (batch element {b})",
                    "leave the mask out, and it is recognised from the zeros",
                )


# -- which mask they were made with -----------------------------------------------------------


def _recognised(found: Found, said: Mask, notes: list[str]) -> Mask:
    """Return the mask that the zeros show, with the padding that ``said`` says or they show."""
    extent, seen = said.extent, found.seen
    real = said.said_real
    if real is None and not extent.apart and extent.queries == extent.keys:
        real = _real_keys(found)
    if real is None:
        real = np.ones((extent.batch, extent.keys), bool)
    rows = real if extent.queries == extent.keys and not extent.apart else None
    counted_rows = np.ones(seen.shape[:2], bool) if rows is None else rows
    seen = seen & counted_rows[..., None]
    padding = _padding(extent, real)
    for text in _patterns(extent, seen):
        pattern = masker(text)(extent) if text else Mask(extent)
        keep = np.stack(
            [pattern.keep(b, 0, 0, extent.queries, 0, extent.keys) for b in range(extent.batch)]
        )
        keep = keep & real[:, None] & counted_rows[..., None]
        empty = keep & ~seen
        if not (seen & ~keep).any() and empty.sum() <= found.few * keep.sum():
            mask = pattern & padding if padding else pattern
            if text or (padding and said.said_real is None):
                notes.append(f"the zeros look like the mask {mask.text} (--mask says another)")
            if empty.any():
                notes.append(
                    f"{int(empty.sum())} of {int(keep.sum())} cells that it shows are 0 in every "
                    "head: taken as too small for their type, not as hidden"
                )
            return mask
    share = float(seen.mean())
    notes.append(
        f"{100 * (1 - share):.0f} % of the cells are 0 in every head and taken as hidden (--mask "
        "says another mask)"
    )
    cells = Mask(extent, Cells(found.seen[:, None]), text=f"of the zeros {found.seen.shape}")
    return cells & padding if padding else cells


def _padding(extent: Extent, real: Array) -> Mask | None:
    if real.all():
        return None
    return Mask(extent, Padding(real), text=padding_text(real) or "padding")


def _real_keys(found: Found) -> Array | None:
    """Return which keys are no padding, ``(B, Lk)``: all but those at one end that no row sees.

    A padded row itself may weigh all keys alike, as where every score is the same sentinel.
    """
    real = np.ones(found.seen.shape[::2], bool)
    for b, seen in enumerate(found.seen):
        hidden = ~seen[~found.even[b]].any(0)
        for order in (slice(None), slice(None, None, -1)):
            ends = np.logical_and.accumulate(hidden[order])[order]
            if (hidden == ends).all() and not hidden.all():
                real[b] = ~hidden
                break
    return None if real.all() else real


def _patterns(extent: Extent, seen: Array) -> list[str]:
    """Return expressions of masks that show at least what is ``seen``, the widest first."""
    if extent.apart or not seen.any():
        return [""]
    square = extent.queries == extent.keys
    corner = "" if square else "(bottom_right)"
    offset = extent.keys - extent.queries
    b, i = np.nonzero(seen.any(-1))
    first, last = seen.argmax(-1), extent.keys - 1 - seen[..., ::-1].argmax(-1)  # (B, Lq)
    left = int((i + offset - first[b, i]).max())
    right = int((last[b, i] - i - offset).max())
    texts = ["", f"causal{corner}"]
    if left >= 0 and right >= 0 and min(left, right) < extent.keys - 1:
        texts.append(f"window({left}, {right}{'' if square else ', bottom_right'})")
    return texts if offset >= 0 else [""]
