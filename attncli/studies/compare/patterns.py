"""Where a candidate is wrong, and what the error looks like, when nothing explains all of it.

Everything said here is a fact about the errors, in words; nothing is guessed from a fact alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.errors import counted, listed
from attncli.measures.budget import eps
from attncli.studies.compare.judged import Judged
from attncli.studies.compare.theory import Candidate, Theory, Unit, outputs_of

Array = np.ndarray[Any, np.dtype[Any]]

TILES = (256, 128, 64, 32, 16, 8)
HALF = 65504.0
AGREE = 0.98  # the part of all rows that must agree
LARGEST = 1 << 22  # cells of a head that are looked at for an overflow
DENSE = 0.8  # the part of a range that must be wrong for the range to be named


@dataclass(frozen=True)
class Place:
    """Some batch elements, heads, rows and channels; None where all are meant."""

    batches: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    rows: tuple[int, int] | None = None
    channels: tuple[int, int] | None = None
    rest: str = ""

    def __bool__(self) -> bool:
        return any(x is not None for x in (self.batches, self.heads, self.rows, self.channels)) or (
            bool(self.rest)
        )

    @property
    def words(self) -> str:
        """Where that is: 'head 3, rows 128 to 191 (tile 2 of 64 queries)'."""
        parts = []
        if self.batches is not None:
            parts.append(_named("batch element", self.batches))
        if self.heads is not None:
            parts.append(_named("head", self.heads))
        if self.rows is not None:
            parts.append(self.rest or _range("row", *self.rows))
        elif self.rest:
            parts.append(self.rest)
        if self.channels is not None:
            parts.append(_range("channel", *self.channels))
        return ", ".join(parts)


def _named(what: str, which: tuple[int, ...]) -> str:
    return f"{what}{'s' if len(which) > 1 else ''} {listed(map(str, which), 8)}"


def _range(what: str, start: int, stop: int) -> str:
    return f"{what} {start}" if stop - start == 1 else f"{what}s {start} to {stop - 1}"


def place(one: Judged) -> Place:
    """Return where a stage is wrong, as a whole or not at all."""
    bad = one.bad  # (B, H, L)
    by_batch, by_head = (np.asarray(bad.any(over)) for over in ((1, 2), (0, 2)))
    batches = _subset(by_batch)
    heads = _subset(by_head)
    inside = bad[np.flatnonzero(by_batch)][:, np.flatnonzero(by_head)]
    lines = np.asarray(inside.any((0, 1)))  # (L,)
    rows, rest = _rows(lines, "key" if one.name in ("grad_key", "grad_value") else "query")
    channels = None
    if one.name not in ("scores", "weights", "lse") and len(one.across) > 1:
        wrong = np.flatnonzero(one.across > 1)
        start, stop = int(wrong[0]), int(wrong[-1]) + 1
        whole = stop - start == len(one.across)
        channels = None if whole or len(wrong) < DENSE * (stop - start) else (start, stop)
    return Place(batches, heads, rows, channels, rest)


def _subset(wrong: Array) -> tuple[int, ...] | None:
    found = tuple(int(n) for n in np.flatnonzero(wrong))
    return None if len(found) == len(wrong) else found


def _rows(wrong: Array, what: str) -> tuple[tuple[int, int] | None, str]:
    """Return the range of wrong rows, if that is what they are, and what to call it."""
    at = np.flatnonzero(wrong)
    if not len(at) or len(at) == len(wrong):
        return None, ""
    start, stop = int(at[0]), int(at[-1]) + 1
    many = {"query": "queries", "key": "keys"}[what]
    if len(at) >= DENSE * (stop - start) and stop - start < len(wrong):
        words = _range("row", start, stop)
        tiles = [t for t in TILES if stop - start == t and start % t == 0]
        last = [t for t in TILES if stop == len(wrong) and start % t == 0 and stop - start < t]
        if tiles:
            words += f" (tile {start // tiles[0]} of {tiles[0]} {many})"
        elif last:
            sizes = " or ".join(map(str, sorted(last)[:3]))
            words += f" (a last, partial tile of {sizes} {many})"
        elif stop == len(wrong):
            words = f"rows from {start} on"
        elif start == 0:
            words = f"rows before {stop}"
        return (start, stop), words
    for tile in TILES:
        for offset, said in ((0, "the first"), (tile - 1, "the last")):
            if (at % tile == offset).all() and len(at) > 2:
                return None, f"{said} row of every tile of {tile} {many}"
    return None, ""


def _overflowed(p: Problem, odd: Array) -> str:
    """Say so where the rows that are no numbers are those with a score beyond float16's largest."""
    if odd.shape != (p.batch, p.heads, p.queries) or p.queries * p.keys > LARGEST:
        return ""
    for words, scale in (("q·k", 1.0), ("the scaled score", p.scale)):
        agree = []
        for b, h in np.ndindex(odd.shape[:2]):
            with np.errstate(all="ignore"):
                q, k = (a.astype(np.float64) for a in (p.query[b, h], p.key[b, p.group(h)]))
                scores = np.where(
                    p.mask.keep(b, h, 0, p.queries, 0, p.keys), np.abs(q @ k.T) * abs(scale), 0
                )
            agree.append((scores.max(1, initial=0) > HALF) == odd[b, h])
        if np.mean(agree) > AGREE:
            return f": those in which {words} passes 65504, the largest float16"
    return ""


def unwritten(candidate: Candidate, one: Judged) -> Array | None:
    """Return the wrong rows that are zero throughout, bool ``(B, H, L)``, or None for none."""
    array = candidate.stages[one.name]
    if array.ndim == 3:
        return None
    empty = np.asarray(one.bad & (array == 0).all(-1))
    return empty if empty.any() else None


def replace_bad(one: Judged, bad: Array) -> Judged:
    """Return the judgement as if these rows, bool ``(B, H, L)``, were the wrong ones."""
    other = copy(one)
    other.excess = np.where(bad, 2.0, 0.0)
    other.across = np.full_like(one.across, 2.0)
    return other


def units_of(one: Judged) -> list[Unit]:
    """Return the rows that are wrong."""
    return [
        Unit(int(b), int(h), np.flatnonzero(one.bad[b, h])) for b, h in np.argwhere(one.bad.any(-1))
    ]


def appearance(problem: Problem, candidate: Candidate, one: Judged) -> str | None:
    """Return what the wrong rows are, if that can be seen at once: zeros, NaN, one number."""
    array = candidate.stages[one.name]
    if array.ndim == 3:
        array = array[..., None]
    wide = np.asarray(array[one.bad]).astype(np.float64)  # (n, c)
    if not wide.size:
        return None
    whole = counted(len(wide), "row")
    if np.isnan(wide).all():
        return f"{whole} NaN throughout" + _overflowed(problem, one.odd > 0)
    odd = one.odd > 0
    if odd.any():
        some = counted(int(odd.sum()), "row")
        return f"{some} with NaN or infinity" + _overflowed(problem, odd)
    first = wide[0, 0]
    if (wide == first).all():
        return f"{whole} all {first:g}: never written"
    return None


def denominators(theory: Theory, candidate: Candidate, units: Sequence[Unit]) -> Iterator[str]:
    """Say so where each row is right but for a factor of its own: what it is divided by."""
    factors: list[float] = []
    rows = 0
    for unit in units:
        for arrays, wanted in outputs_of(theory, candidate, unit):
            right = arrays["output"]
            with np.errstate(all="ignore"):
                factor = np.vecdot(wanted, right) / np.vecdot(right, right)
                rest = np.linalg.norm(wanted - factor[:, None] * right, axis=1)
                size = np.linalg.norm(wanted, axis=1)
            moved = np.abs(factor - 1) > 64 * eps(candidate.own)
            rows += int(moved.sum())
            alike = moved & (rest <= 16 * eps(candidate.own) * size) & (size > 0)
            factors += factor[alike].tolist()
    if rows < 3 or len(factors) < 0.95 * rows or theory.problem.value_width < 2:
        return
    low, high = min(factors), max(factors)
    if high - low > 1e-3 * abs(high):
        yield (
            f"each row is right but for a factor of its own, {low:.4g} to {high:.4g}: the "
            "denominator of the softmax is another"
        )


def dropout(theory: Theory, candidate: Candidate, units: Sequence[Unit]) -> Iterator[str]:
    """Say so where weights are 0 or 1/(1 − p) times what they should be.

    The weights are those given, or those that the output betrays: rows with fewer visible keys than
    channels are solved for theirs.
    """
    if theory.view or theory.after:
        return
    p, ratios = theory.problem, []
    for b, h, rows in units:
        arrays = theory.block(b, h, rows, None, slice(0, p.keys)).arrays
        for n, row in enumerate(rows.tolist()):
            seen = np.flatnonzero(arrays["weights"][n] > 1e-3)
            if "weights" in candidate.stages:
                found = candidate.stages["weights"][b, h, row, seen].astype(np.float64)
            elif "output" in candidate.stages and 2 <= (
                count := int((arrays["weights"][n] > 0).sum())
            ) <= min(p.value_width, 24):
                seen = np.flatnonzero(arrays["weights"][n] > 0)
                wanted = candidate.stages["output"][b, h, row].astype(np.float64)
                value = p.value[b, p.group(h)][seen].astype(np.float64)  # (n, Dv)
                if not (np.isfinite(wanted).all() and np.isfinite(value).all()):
                    continue
                found, _, rank, _ = np.linalg.lstsq(value.T, wanted, rcond=None)
                off = np.linalg.norm(value.T @ found - wanted)
                if rank < count or off > 1e-2 * np.linalg.norm(wanted):
                    continue
                clear = arrays["weights"][n][seen] > 0.02
                seen, found = seen[clear], found[clear]
            else:
                continue
            ratios += (found / arrays["weights"][n][seen]).tolist()
    if len(ratios) < 16:
        return
    ratio = np.array(ratios)
    gone = np.abs(ratio) < 0.02
    share = float(gone.mean())
    rest = ratio[~gone]
    if not 0.01 < share < 0.7 or not len(rest):
        return
    scale = float(np.median(rest))
    if np.mean(np.abs(rest - scale) < 0.05 * scale) > 0.95 and scale > 0.9:
        rate = 1 - 1 / scale if scale > 1.005 else share
        yield (
            f"dropout is left on: {share:.0%} of the weights are 0 and the others {scale:.3g} "
            f"times what they should be (p about {rate:.2g})"
        )
