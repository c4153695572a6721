"""What would help? Changes to a problem: scale, softcap, sink, QK-norm, QK-Clip, dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.errors import InputError, nearest

Array = np.ndarray[Any, np.dtype[Any]]

HALVES = ("float16", "bfloat16")
EXAMPLES = {
    "scale": "scale=none", "softcap": "softcap=50", "sink": "sink=0", "qk_norm": "qk_norm",
    "qk_clip": "qk_clip=100", "dtype": "dtype=bfloat16",
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """``name`` and ``value`` as in qk_clip=100; value is None for what takes none."""

    name: str
    value: float | str | None = None


@dataclass(frozen=True)
class WhatIf:
    """Changes made together, as written in ``text``."""

    text: str
    changes: tuple[Change, ...]

    @property
    def dtype(self) -> str | None:
        """The half precision to simulate, if any."""
        return next((str(c.value) for c in self.changes if c.name == "dtype"), None)

    def apply(self, problem: Problem, logit_max: Array) -> Problem:
        """Return the changed problem; dtype is left to ``half``. logit_max: ``(B, H)``, today's."""
        p = problem
        for change in self.changes:
            if change.name == "qk_norm":
                p = replace(p, query=rms_normalized(p.query, p), key=rms_normalized(p.key, p))
            elif change.name == "qk_clip":
                # as in training, one γ for a head, whatever the batch element
                top = np.max(logit_max, axis=0, initial=0)
                assert isinstance(change.value, float)
                p = replace(p, query=clipped(p.query, top, change.value, p))
            elif change.name != "dtype":
                p = _OPTIONS[change.name](p, change.value)
        return p


def parse(text: str) -> WhatIf:
    """Return the changes of 'scale=none' or of several, 'qk_norm, softcap=50'.

    Raises InputError for an unknown name or a value that does not fit.
    """
    changes: list[Change] = []
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in EXAMPLES:
            raise InputError(f"--what-if: nothing is called '{name}'", nearest(name, EXAMPLES))
        if any(change.name == name for change in changes):
            raise InputError(f"--what-if '{text}' has {name} twice", "give each once")
        changes.append(Change(name, _value(name, value if equals else None)))
    return WhatIf(", ".join(part.strip() for part in text.split(",")), tuple(changes))


def _value(name: str, text: str | None) -> float | str | None:
    if name == "qk_norm":
        if text is not None:
            raise InputError(f"--what-if: qk_norm takes no value, got '{text}'", "write qk_norm")
        return None
    if text is None or not text:
        raise InputError(f"--what-if: {name} needs a value", f"as in {EXAMPLES[name]}")
    if name == "dtype":
        if text not in HALVES:
            raise InputError(f"--what-if: unknown dtype '{text}'", nearest(text, HALVES))
        return text
    words = {"scale": ("auto", "none"), "softcap": ("none",), "sink": ("none",)}.get(name, ())
    if text in words:
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (name in ("softcap", "qk_clip") and number <= 0):
        positive = "a positive number" if name in ("softcap", "qk_clip") else "a number"
        raise InputError(
            f"--what-if: {name} is '{text}'", f"expected {' or '.join([positive, *words])}"
        )
    return number


def _with_scale(p: Problem, value: float | str | None) -> Problem:
    if value == "auto":
        width = p.width
        scale, source = (1 / math.sqrt(width), f"1/√{width}") if width else (1.0, "width 0")
        return replace(p, scale=scale, scale_source=source)
    if value == "none":
        return replace(p, scale=1.0, scale_source="no scale")
    return replace(p, scale=float(value or 0), scale_source="given")


def _with_softcap(p: Problem, value: float | str | None) -> Problem:
    return replace(p, softcap=None if value == "none" else float(value or 0))


def _with_sink(p: Problem, value: float | str | None) -> Problem:
    sink = None if value == "none" else np.full(p.heads, float(value or 0))
    return replace(p, sink=sink)


_OPTIONS: dict[str, Callable[[Problem, float | str | None], Problem]] = {
    "scale": _with_scale,
    "softcap": _with_softcap,
    "sink": _with_sink,
}


def with_scale(problem: Problem, scale: str) -> Problem:
    """Return the problem with scale 'auto' or 'none'."""
    return _with_scale(problem, scale)


def rms_normalized(array: Array, p: Problem) -> Array:
    """Return x/√(mean x²) of each row, as RMSNorm without a gain (QK-norm of Qwen3, Gemma 3).

    It is the same before and after RoPE, which keeps norms.
    """
    with np.errstate(all="ignore"):
        wide = array.astype(p.dtype)
        mean = np.mean(wide * wide, axis=-1, keepdims=True, dtype=np.float64)
        return np.asarray((wide / np.sqrt(np.maximum(mean, 1e-12))).astype(array.dtype))


def clipped(query: Array, logit_max: Array, threshold: float, p: Problem) -> Array:
    """Return the queries times γ = min(1, τ/S_max) of their head (QK-Clip, Kimi K2 2025).

    query ``(B, H, Lq, D)``, logit_max ``(H,)``. Keys may be shared by heads: γ goes to the queries.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        gamma = np.where(logit_max > threshold, threshold / logit_max, 1.0)
    scaled = query.astype(p.dtype) * gamma[:, None, None].astype(p.dtype)
    return np.asarray(scaled.astype(query.dtype))
