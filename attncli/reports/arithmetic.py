"""Numbers and sums as `--steps` writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

TERMS = 4  # of a sum; the others are counted
CHANNELS = 4  # of a row that are written out
MINUS_INFINITY = "−∞"


def summed(terms: Sequence[str], most: int = TERMS) -> str:
    """Return a sum, the first terms and the last where it has more than ``most``."""
    if len(terms) <= most:
        return " + ".join(terms)
    head = " + ".join(terms[: most - 1])
    return f"{head} + … + {terms[-1]} ({len(terms)} products)"


def bracket(text: str) -> str:
    """Return a number in parentheses if it is negative."""
    return f"({text})" if text.startswith(("-", "−")) else text


def given(value: float) -> str:
    """Return a number as it came in, up to four digits; negative ones in parentheses."""
    return bracket(f"{value + 0.0:.4g}")


def number(value: float) -> str:
    """Return a result: three decimals where they say enough."""
    if value == -math.inf:
        return MINUS_INFINITY
    if value and math.isfinite(value) and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}"
    return f"{value + 0.0:.3f}"


def weight(value: float) -> str:
    """Return a weight: three decimals."""
    return f"{value:.3f}"
