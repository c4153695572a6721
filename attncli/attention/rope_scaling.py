"""The scalings of RoPE for longer sequences: those of transformers, under its names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from attncli.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]

#: The parameters of each scaling: those it needs, those it may have.
SCALINGS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "default": ((), ()),
    "linear": (("factor",), ()),
    "dynamic": (("factor", "max_position_embeddings"), ()),
    "llama3": (
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
        (),
    ),
    "yarn": (
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "mscale", "mscale_all_dim", "beta_fast", "beta_slow", "truncate"),
    ),
    "longrope": (
        ("short_factor", "long_factor", "original_max_position_embeddings"),
        ("factor", "attention_factor"),
    ),
}
LISTS = ("short_factor", "long_factor")  # a factor for each pair


def frequencies(
    width: int, theta: float = 10000.0, scaling: Mapping[str, Any] | None = None, length: int = 0
) -> tuple[Array, float]:
    """Return the angle per position of each pair, ``(width / 2,)``, and the factor of cos and sin.

    ``length`` is that of the sequence, which ``dynamic`` grows with, and past whose original
    ``longrope`` takes its long factors. Sources: linear, kaiokendev 2023; dynamic, NTK by bloc97
    and emozilla 2023; llama3, Llama 3.1; yarn, Peng et al. 2023; longrope, Ding et al. 2024.
    """
    kind, p = kind_of(scaling), parameters_of(scaling)
    powers = np.arange(0, width, 2) / max(width, 1)
    inverse = theta**-powers
    if kind == "linear":
        return inverse / p["factor"], 1.0
    if kind == "dynamic":
        if width <= 2:
            raise InputError(f"dynamic RoPE needs more than {width} channels", "give at least 4")
        whole = p["max_position_embeddings"]
        growth = p["factor"] * max(length, whole) / whole - (p["factor"] - 1)
        return (theta * growth ** (width / (width - 2))) ** -powers, 1.0
    if kind == "llama3":
        turns = p["original_max_position_embeddings"] * inverse / (2 * math.pi)
        low, high = p["low_freq_factor"], p["high_freq_factor"]
        keep = np.clip((turns - low) / (high - low), 0, 1)
        return inverse * (keep + (1 - keep) / p["factor"]), 1.0
    if kind == "yarn":
        return _yarn(width, theta, inverse, p)
    if kind == "longrope":
        return _longrope(inverse, p, length)
    return inverse, 1.0


def _longrope(inverse: Array, p: Mapping[str, Any], length: int) -> tuple[Array, float]:
    whole, factor = p["original_max_position_embeddings"], p.get("factor", 1.0)
    factors = np.asarray(p["long_factor" if length > whole else "short_factor"], np.float64)
    if whole <= 1:
        raise InputError(f"longrope was made for {whole:g} positions", "expected at least 2")
    if factors.shape != inverse.shape:
        raise InputError(
            f"RoPE scaling 'longrope' has {factors.size} factors but {inverse.size} pairs turn",
            "short_factor and long_factor have one for each pair",
        )
    attention = p.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(whole)) if factor > 1 else 1.0
    return inverse / factors, float(attention)


def _yarn(width: int, theta: float, inverse: Array, p: Mapping[str, Any]) -> tuple[Array, float]:
    if theta <= 1:
        raise InputError(f"yarn needs a theta above 1, not {theta:g}", "10000 is usual")
    factor, whole = p["factor"], p["original_max_position_embeddings"]

    def pair(turns: float) -> float:
        """Which pair makes so many turns over the original length."""
        return width * math.log(whole / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(p.get("beta_fast") or 32), pair(p.get("beta_slow") or 1)
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    high += 0.001 if low == high else 0
    stretch = np.clip((np.arange(width // 2) - low) / (high - low), 0, 1)
    attention = p.get("attention_factor")
    if attention is None:

        def magnitude(weight: float) -> float:
            return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

        attention = magnitude(1)
        if p.get("mscale") and p.get("mscale_all_dim"):
            attention = magnitude(p["mscale"]) / magnitude(p["mscale_all_dim"])
    return inverse * (1 - stretch + stretch / factor), float(attention)


def kind_of(scaling: Mapping[str, Any] | None) -> str:
    """Return the name of a scaling."""
    scaling = scaling or {}
    return str(scaling.get("rope_type") or scaling.get("type") or "default")


def scaling_words(kind: str, parameters: Mapping[str, Any]) -> str:
    """Return the scaling in words: ``yarn ×4``."""
    factor = parameters.get("factor")
    return "" if kind == "default" else kind if factor is None else f"{kind} ×{factor:g}"


def parameters_of(scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the scaling says beside its type; null in config.json says nothing."""
    return {
        name: value
        for name, value in (scaling or {}).items()
        if name not in ("rope_type", "type") and value is not None
    }


def check_scaling(scaling: Mapping[str, Any]) -> None:
    """Raise InputError for a scaling that is not known, or whose parameters do not fit it."""
    kind, parameters = kind_of(scaling), parameters_of(scaling)
    names = ", ".join(SCALINGS)
    if not scaling.get("rope_type") and not scaling.get("type"):
        raise InputError("the RoPE scaling has no rope_type", f"it must be one of {names}")
    if kind not in SCALINGS:
        raise InputError(f"unknown RoPE scaling '{kind}'", f"rope_type must be one of {names}")
    needed, optional = SCALINGS[kind]
    for name in needed:
        if name not in parameters:
            raise InputError(
                f"RoPE scaling '{kind}' needs {name}", f"it takes {', '.join(needed + optional)}"
            )
    for name, value in parameters.items():
        if name not in needed + optional:
            takes = ", ".join(needed + optional) or "no parameters"
            raise InputError(
                f"RoPE scaling '{kind}' has no parameter {name}",
                "theta is an option of its own" if name == "rope_theta" else f"it takes {takes}",
            )
        if name == "truncate":
            good = isinstance(value, bool)
        elif name in LISTS:
            good = isinstance(value, list | tuple) and all(is_number(v) and v > 0 for v in value)
        else:
            good = is_number(value) and (value > 0 or name.startswith("mscale"))
        if not good:
            raise InputError(
                f"RoPE scaling: {name} is {value!r}",
                "expected true or false"
                if name == "truncate"
                else "expected positive numbers, one for each pair"
                if name in LISTS
                else "expected a positive number",
            )
    if kind == "llama3" and not parameters["low_freq_factor"] < parameters["high_freq_factor"]:
        raise InputError(
            f"RoPE scaling: low_freq_factor {parameters['low_freq_factor']} is not below "
            f"high_freq_factor {parameters['high_freq_factor']}",
            "1 and 4 are usual",
        )


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return number and math.isfinite(value)
