"""Rotary position embedding (RoPE, Su et al. 2021): channels turn in pairs with their position.

    angle = position · θ^(−2j/n)  for pair j of n/2       (x, y) → (x cos − y sin, y cos + x sin)

Style ``half`` pairs channels j and j + n/2 (GPT-NeoX, Llama in transformers), ``interleaved`` 2j
and 2j + 1 (GPT-J, Meta's own Llama files). Angles are computed in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from attncli.attention.rope_scaling import (
    check_scaling,
    frequencies,
    is_number,
    kind_of,
    parameters_of,
    scaling_words,
)
from attncli.attention.words import ROPE_STYLES
from attncli.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]
Pair = tuple[Array, Array]  # cos and sin


@dataclass(frozen=True, eq=False)
class Rope:
    """How queries and keys are turned.

    ``dim`` is how many channels turn (None: all), from channel ``start`` on. ``positions`` ``(L)``
    or ``(B, L)`` are those of the L new keys (None: they follow the past, from 0). ``cos`` and
    ``sin`` are given instead of computed: a table by position ``(P, n)``, or rows of the new keys
    ``(L, n)``, ``(B, L, n)``; n = dim/2, or dim with each pair's number twice. ``scaling`` is a
    mapping such as config.json's: ``{"rope_type": "linear", "factor": 2}``; see SCALINGS.
    Raises InputError for what does not fit together.
    """

    style: str = "half"
    theta: float = 10000.0
    dim: int | None = None
    positions: Any = None
    cos: Any = None
    sin: Any = None
    scaling: Mapping[str, Any] | None = None
    start: int = 0

    def __post_init__(self) -> None:
        if self.style not in ROPE_STYLES:
            raise InputError(
                f"unknown RoPE style '{self.style}'", f"it must be {' or '.join(ROPE_STYLES)}"
            )
        if not is_number(self.theta) or self.theta <= 0:
            raise InputError(
                f"the RoPE theta is {self.theta}", "it must be a positive number, such as 10000"
            )
        if self.dim is not None and (not _is_count(self.dim) or self.dim < 2 or self.dim % 2):
            raise InputError(
                f"the RoPE width is {self.dim}", "channels turn in pairs: give an even number"
            )
        if not _is_count(self.start) or self.start < 0:
            raise InputError(f"RoPE starts at {self.start}", "expected the number of a channel")
        if (self.cos is None) != (self.sin is None):
            have, miss = ("cos", "sin") if self.sin is None else ("sin", "cos")
            raise InputError(f"RoPE's {have} is given without {miss}", f"give {miss} as well")
        if self.scaling is not None:
            if self.cos is not None:
                raise InputError(
                    "RoPE's cos and sin are given, and a scaling", "scaled ones need no scaling"
                )
            check_scaling(self.scaling)

    @classmethod
    def of(cls, rope: Rope | str | Mapping[str, Any]) -> Rope:
        """Return a Rope from itself, a style, or a mapping of its fields."""
        if isinstance(rope, Rope):
            return rope
        if isinstance(rope, str):
            return cls(rope)
        names = [f.name for f in fields(cls)]
        for name in rope:
            if name not in names:
                raise InputError(f"RoPE has no option '{name}'", f"it has {', '.join(names)}")
        return cls(**rope)

    @property
    def text(self) -> str:
        """One line for a report: ``half, θ 10000, 64 channels, yarn ×4``."""
        kind = kind_of(self.scaling)
        parts = [
            self.style,
            "given cos and sin" if self.cos is not None else f"θ {self.theta:g}",
            "" if self.dim is None else f"{self.dim} channels",
            f"from channel {self.start}" if self.start else "",
            scaling_words(kind, parameters_of(self.scaling)),
        ]
        return ", ".join(part for part in parts if part)

    def apply(
        self,
        query: Array,
        key: Array,
        *,
        past: int = 0,
        lengths: Sequence[int] | None = None,
        offsets: Sequence[int] | None = None,
        dtype: Any = np.float64,
    ) -> tuple[Array, Array]:
        """Return query ``(B, H, Lq, D)`` and key ``(B, G, past + L, D)`` turned.

        The first ``past`` keys come turned already. As many queries as new keys stand where these
        do. Otherwise ``offsets`` ``(B,)`` say at which key query 0 stands (the mask's corner), or
        the last query stands at the last key (with ``lengths`` ``(B,)``, at the last valid one).
        The arithmetic is ``dtype``, and each array is rounded once to its own.
        Raises InputError where positions, cos or sin do not fit.
        """
        width = self._width(int(query.shape[3]))
        batch, queries, new = int(query.shape[0]), int(query.shape[2]), int(key.shape[2]) - past
        rows = np.arange(queries)[None]  # (1 or B, Lq): the new key that each query stands at
        if queries != new and offsets is not None:
            rows = rows + np.array(offsets, np.int64)[:, None]
        elif queries != new:
            ends = [new] if lengths is None else [n - past for n in lengths]
            rows = rows + np.array(ends, np.int64)[:, None] - queries
        at_key, at_query = self._cos_sin(width, past, batch, new, rows)
        turned = rotate(key[:, :, past:], *_over_heads(at_key, dtype), self.style, self.start)
        if past:
            turned = np.concatenate([key[:, :, :past], turned], axis=2)
        return rotate(query, *_over_heads(at_query, dtype), self.style, self.start), turned

    def pairs(self, width: int) -> tuple[slice, slice]:
        """Return the first and the second channels of all pairs of a head so wide."""
        return _halves(self.style, width if self.dim is None else self.dim, self.start)

    def _cos_sin(
        self, width: int, past: int, batch: int, new: int, rows: Array
    ) -> tuple[Pair, Pair]:
        """Return cos, sin ``(1 or B, L, n/2)`` of the new keys and of the queries at ``rows``."""
        given = self._positions(batch, new)
        tables = None
        if self.cos is not None:
            cos, sin = tables = (self._table("cos", width), self._table("sin", width))
            if cos.ndim == 3:
                self._check_rows(cos, batch, new)
            if cos.ndim == 3 or (given is None and len(cos) == new):
                at_key = (cos, sin) if cos.ndim == 3 else (cos[None], sin[None])
                what = "RoPE's cos has rows for"
                return at_key, (_pick(at_key[0], rows, what), _pick(at_key[1], rows, what))
        if given is None:
            keyed, queried = past + np.arange(new)[None], past + rows
        else:
            keyed, queried = given, _pick(given, rows, "positions has")
        if tables is not None:
            k, q = _rows_of(len(cos), keyed), _rows_of(len(cos), queried)
            return (cos[k], sin[k]), (cos[q], sin[q])
        longest = max((int(p.max()) + 1 for p in (keyed, queried) if p.size), default=0)
        inverse, factor = frequencies(width, self.theta, self.scaling, longest)
        k, q = keyed[..., None] * inverse, queried[..., None] * inverse
        return (np.cos(k) * factor, np.sin(k) * factor), (np.cos(q) * factor, np.sin(q) * factor)

    def _width(self, width: int) -> int:
        if self.dim is None and width % 2:
            raise InputError(
                f"RoPE turns channels in pairs but the head has {width}",
                f"turn fewer, an even number: dim {width - 1}" if width > 1 else None,
            )
        if self.start and self.start + (self.dim or width) > width:
            raise InputError(
                f"RoPE turns {self.dim or width} channels from channel {self.start}, but the head "
                f"has {width}",
                f"give at most {(width - self.start) // 2 * 2}",
            )
        if self.dim is not None and self.dim > width:
            raise InputError(
                f"the RoPE width is {self.dim} but the head has {width} channels",
                f"give at most {width - width % 2}",
            )
        return width if self.dim is None else self.dim

    def _positions(self, batch: int, new: int) -> Array | None:
        if self.positions is None:
            return None
        array = np.asarray(self.positions)
        if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
            raise InputError(
                f"positions is {array.dtype} {array.shape}", "expected one finite number per key"
            )
        if array.shape not in ((new,), (1, new), (batch, new)):
            raise InputError(
                f"positions is {array.shape} but there are {new} new keys in a batch of {batch}",
                f"expected one position per new key: ({new},) or ({batch}, {new})",
            )
        return np.atleast_2d(array)

    def _table(self, name: str, width: int) -> Array:
        """Return cos or sin, float ``(P, n)`` or ``(B, L, n)``, with one number per pair."""
        array = np.asarray(getattr(self, name))
        if array.dtype.kind not in "iuf" and array.dtype.name != "bfloat16":
            raise InputError(f"RoPE's {name} is {array.dtype}", "expected real numbers")
        if array.shape != np.shape(self.cos):
            raise InputError(
                f"RoPE's sin is {array.shape} but cos is {np.shape(self.cos)}", "they must be alike"
            )
        if array.ndim not in (2, 3) or array.shape[-1] not in (width // 2, width):
            raise InputError(
                f"RoPE's {name} is {array.shape} but {width} channels turn",
                f"expected (positions, {width // 2}) or (batch, length, {width // 2}), or "
                f"{width} wide; --rope-dim says how many channels turn",
            )
        if array.shape[-1] == width // 2:
            return array
        for style in (self.style, *ROPE_STYLES):
            first, second = (array[..., part] for part in _halves(style, width))
            if np.array_equal(first, second, equal_nan=True):
                break
        else:
            style = ""
        if style != self.style:
            raise InputError(
                f"RoPE's {name} is {width} wide, but the two channels of a pair differ in style "
                f"{self.style}",
                f"it looks {style}" if style else "give one number per pair",
            )
        return first

    def _check_rows(self, cos: Array, batch: int, new: int) -> None:
        if self.positions is not None:
            raise InputError(
                f"RoPE's cos is {cos.shape}, rows of each key, and positions are given",
                "positions look rows up in a table (positions, width): leave them out",
            )
        if cos.shape[0] not in (1, batch) or cos.shape[1] != new:
            raise InputError(
                f"RoPE's cos is {cos.shape} but there are {new} new keys in a batch of {batch}",
                f"expected ({batch}, {new}, {cos.shape[2]}), or a table by position",
            )


def _over_heads(pair: Pair, dtype: Any) -> Pair:
    """cos and sin as ``(1 or B, 1, L, n/2)`` in the arithmetic's dtype."""
    cos, sin = pair
    return cos[:, None].astype(dtype), sin[:, None].astype(dtype)


def rotate(x: Array, cos: Array, sin: Array, style: str = "half", start: int = 0) -> Array:
    """Turn 2n channels of x ``(…, L, D)``, those from start on, by cos, sin ``(…, L, n)``.

    Computed in cos's dtype and rounded once to x's; the other channels stay as they are.
    """
    first, second = _halves(style, 2 * cos.shape[-1], start)
    turned = x.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        a, b = x[..., first].astype(cos.dtype), x[..., second].astype(cos.dtype)
        turned[..., first] = a * cos - b * sin
        turned[..., second] = b * cos + a * sin
    return turned


def _halves(style: str, width: int, start: int = 0) -> tuple[slice, slice]:
    """Return the first and the second channels of all pairs."""
    middle, end = start + width // 2, start + width
    if style == "half":
        return slice(start, middle), slice(middle, end)
    return slice(start, end, 2), slice(start + 1, end, 2)


def _pick(given: Array, rows: Array, what: str) -> Array:
    """Return given ``(1 or B, L, …)`` at rows ``(1 or B, Lq)``, as ``(1 or B, Lq, …)``."""
    if rows.size and rows.min() < 0:
        raise InputError(
            f"{what} {given.shape[1]} keys but there are {rows.shape[1]} queries, and none says "
            "where the first of them stand",
            "give as many keys as queries, or leave positions to their default",
        )
    return np.asarray(given[np.arange(max(len(given), len(rows)))[:, None] % len(given), rows])


def _rows_of(length: int, positions: Array) -> Array:
    """Return positions as rows of a table, integers; InputError outside it."""
    rows = positions.astype(np.int64)
    outside = (rows != positions) | (rows < 0) | (rows >= length)
    if outside.any():
        raise InputError(
            f"RoPE's cos and sin hold positions 0 to {length - 1}, but one is "
            f"{positions[outside][0]}",
            "give longer tables, or other positions",
        )
    return rows


def _is_count(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
