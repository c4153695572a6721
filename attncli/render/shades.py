"""What a shade means: the colours of the scale, and the place of a number on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]

NAME = "viridis"
#: Even steps of viridis (matplotlib's, by S. van der Walt and N. Smith), made for eyes that do not
#: tell red from green: its lightness grows evenly.
ANCHORS = (
    (68, 1, 84), (72, 24, 106), (71, 45, 123), (66, 64, 134), (59, 82, 139), (51, 99, 141),
    (44, 114, 142), (38, 130, 142), (33, 145, 140), (31, 160, 136), (40, 174, 128), (63, 188, 115),
    (94, 201, 98), (132, 212, 75), (173, 220, 48), (216, 226, 25), (253, 231, 37),
)  # fmt: skip
RGB = tuple[int, int, int]
LEAST = 1e-300  # what is smaller is nothing
DECADES = 6  # of a log scale, at most
FIFTHS = tuple(k / 5 for k in range(6))


def rgb(place: float) -> RGB:
    """Return the colour of a place 0 … 1 on the scale."""
    at = min(max(place, 0.0), 1.0) * (len(ANCHORS) - 1)
    n = min(int(at), len(ANCHORS) - 2)
    red, green, blue = (
        round(a + (b - a) * (at - n)) for a, b in zip(ANCHORS[n], ANCHORS[n + 1], strict=True)
    )
    return red, green, blue


def text_on(color: RGB) -> RGB:
    """Return white or black, whichever is read more easily on a colour (WCAG's contrast)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
              for c in (part / 255 for part in color)]  # fmt: skip
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return (0, 0, 0) if luminance > 0.179 else (255, 255, 255)


class Scale(NamedTuple):
    """How numbers become places 0 … 1: ``kind`` is matrix (√), row (√, each row), log or linear.

    ``low`` and ``high`` are the numbers at both ends; by row, ``high`` is the largest of all rows.
    """

    kind: str
    low: float
    high: float

    @classmethod
    def of(cls, kind: str, values: Sequence[Array]) -> Scale:
        """Return the scale that all these matrices share; their NaN are left out."""
        import numpy as np

        known = np.concatenate([v[np.isfinite(v)].ravel() for v in values])
        high = float(known.max(initial=-math.inf))
        if kind == "linear":
            low = float(known.min(initial=math.inf))
            return cls(kind, low, high) if low < high else cls(kind, min(low, 0.0), max(high, 1.0))
        high = high if high > LEAST else 1.0
        if kind != "log":
            return cls(kind, 0.0, high)
        low = float(known[known > 0].min(initial=high))
        return cls(kind, max(10.0 ** math.floor(math.log10(low * 0.999)), high / 10**DECADES), high)

    @property
    def name(self) -> str:
        """The name of the scale, for its legend."""
        return {"matrix": "√ scale", "row": "√ scale, by row"}.get(self.kind, f"{self.kind} scale")

    def places(self, values: Array) -> Array:
        """Return the places of numbers, 0 … 1, in rows; NaN stay NaN."""
        import numpy as np

        values = values.astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.kind == "log":
                span = math.log10(self.high / self.low)
                found = np.log10(np.maximum(values, self.low) / self.low) / span
            elif self.kind == "linear":
                found = (values - self.low) / (self.high - self.low)
            else:
                top: Any = self.high
                if self.kind == "row":
                    top = np.where(np.isfinite(values), values, 0).max(-1, initial=0, keepdims=True)
                found = np.sqrt(np.maximum(values, 0) / np.where(top > 0, top, 1))
        return np.clip(found, 0, 1)

    def at(self, place: float) -> float:
        """Return the number at a place; by row, the share of the row's largest."""
        if self.kind == "log":
            return float(self.low * (self.high / self.low) ** place)
        if self.kind == "linear":
            return self.low + (self.high - self.low) * place
        return place**2 * (1.0 if self.kind == "row" else self.high)

    @property
    def ticks(self) -> list[tuple[float, float]]:
        """The places of ticks, and the numbers there: powers of ten on a log scale, else fifths."""
        if self.kind != "log":
            return [(place, self.at(place)) for place in FIFTHS]
        powers = range(
            math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high)) + 1
        )
        span = math.log10(self.high / self.low)
        inner = [(math.log10(10.0**n / self.low) / span, 10.0**n) for n in powers]
        inner = [tick for tick in inner if tick[0] < 1 - 1e-9]
        return [*inner, (1.0, self.high)]
