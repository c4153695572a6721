"""Where a candidate is wrong, and what the error looks like, when nothing explains all of it.

Everything said here is a fact about the errors, in words; nothing is guessed from a fact alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.attention.problem import Problem, float_dtype
from attncli.errors import counted, listed
from attncli.measures import budget
from attncli.measures.budget import Way, eps
from attncli.studies.compare.judged import Judged
from attncli.studies.compare.theory import Candidate, Theory, Unit

Array = np.ndarray[Any, np.dtype[Any]]

TILES = (256, 128, 64, 32, 16, 8)
DENSE = 0.8  # the part of a range that must be wrong for the range to be named
DROPPED = 0.02  # noise by weight above which no rounding makes it
EVEN = 0.5  # how much the noise of rows may differ, as a share of it
LOW = (0.1, 40.0)  # errors as multiples of what a half type makes


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
        return f"{whole} NaN throughout"
    if np.isnan(wide).any(1).all():
        return f"{whole} with NaN"
    if (one.odd[one.bad] > 0).all():
        return f"{whole} with NaN or infinity"
    if (wide == 0).all():
        return f"{whole} all zero: never written"
    first = wide[0, 0]
    if (wide == first).all():
        return f"{whole} all {first:g}: never written"
    return None


def noise(theory: Theory, candidate: Candidate, units: Sequence[Unit]) -> Iterator[str]:
    """Say what the errors of the output are where they look like chance: dropout, low precision.

    Dropout multiplies each weight by 0 or 1/(1 − p): errors of Σ p²v² · p/(1 − p), in every row
    alike. Rounding to a half type makes errors of the size that a plain implementation in it makes.
    """
    if "output" not in candidate.stages or theory.view or theory.after:
        return
    p = theory.problem
    shares: list[float] = []
    ratios: dict[str, list[float]] = {"float16": [], "bfloat16": []}
    lean, errors = 0.0, 0.0
    for b, h, rows in units:
        keys = slice(0, p.keys)
        arrays = theory.block(b, h, rows, None, keys).arrays
        right = arrays["output"]
        error = candidate.stages["output"][b, h][rows].astype(np.float64) - right
        if not np.isfinite(error).all():
            return
        value = np.where(np.isfinite(p.value[b, p.group(h)]), p.value[b, p.group(h)], 0)
        spread = np.sqrt((arrays["weights"] ** 2) @ value**2)  # (n, Dv)
        busy = (arrays["weights"] > 0).sum(1) > 8
        with np.errstate(all="ignore"):
            share = np.sqrt(np.mean((error / spread) ** 2, axis=1))[busy]
        shares += share[np.isfinite(share)].tolist()
        lean += float(np.sum(error * right) / np.sqrt(np.sum(right**2) or 1.0))
        errors += float(np.sum(error**2))
        for name, found in ratios.items():
            low = float_dtype(name)
            given = budget.as_own(p, low)
            plains = [budget.plain(given, b, h, rows, Way(low=low, tile=t)) for t in (None, p.keys)]
            usual = np.max([np.abs(one["output"] - right).max(1) for one in plains], 0)
            with np.errstate(all="ignore"):
                ratio = np.abs(error).max(1) / usual
            found += ratio[np.isfinite(ratio)].tolist()
    if len(shares) < 4 or not errors:
        return
    chance = abs(lean) < 3 * np.sqrt(errors) / np.sqrt(max(len(units), 1))
    middle = float(np.median(shares))
    even = float(np.std(np.log(np.array(shares)[np.array(shares) > 0]))) < EVEN
    if middle > DROPPED and even and chance:
        rate = middle**2 / (1 + middle**2)
        yield (
            f"the errors look like chance, and are alike in all rows: dropout of about {rate:.0%} "
            "left on would make them"
        )
        return
    step = eps(candidate.own)
    for name in ("float16", "bfloat16"):
        ratio = float(np.median(ratios[name])) if ratios[name] else np.inf
        finer = eps(float_dtype(name)) < step
        inside = LOW[0] < ratio < (2.0 if name == "float16" else LOW[1])
        if inside and not finer and middle < 20 * DROPPED:
            yield (
                f"low precision: the errors are {ratio:.2g} times those of a program that keeps "
                f"scores and weights in {name}; look at the type of the softmax, of the weights "
                "and of the accumulator"
            )
            return
