"""Words as people type them, right and wrong: masks, filters, selections, values of options."""

from __future__ import annotations

import numpy as np

from attncli.attention.words import MASKS
from tests.support.options import VALUES

NUMBERS = ["0", "1", "2", "3", "7", "-1", "1.5", "inf", "1e9", "99999999999999999999", "nan", "x"]
PIECES = [
    "(", ")", "&", "|", "~", "+", ",", " ", "'", "''", "'a.npy'", "[", "]", "top_left",
    "bottom_right", "left", "lambda: 0", "__import__('os')", "\\", "\n", "\x00", "é", "**",
    "1 if 1",
]  # fmt: skip
FILTERS = ["entropy", "head", "layer", "verdict", "max_weight", "'ok'", "q*", "kind", "batch"]
SELECTIONS = ["0", "1", "0:2", "-1", "1,0", "::2", "9", "a", "", "0:0", ":", "1:", "--", "0,,1"]


def one(rng: np.random.Generator, some: list[str]) -> str:
    """Return one of some words."""
    return some[int(rng.integers(len(some)))]


def mask(rng: np.random.Generator, depth: int = 0) -> str:
    """Return a mask expression, right more often than not."""
    way = rng.random()
    if depth > 3 or way < 0.5:
        name = one(rng, [*MASKS])
        count = int(rng.integers(0, 4))
        arguments = [one(rng, NUMBERS if rng.random() < 0.9 else PIECES) for _ in range(count)]
        if rng.random() < 0.3:
            arguments.append(one(rng, ["top_left", "bottom_right"]))
        return f"{name}({', '.join(arguments)})" if arguments or rng.random() < 0.3 else name
    if way < 0.8:
        joint = one(rng, [" & ", " | ", " + ", "&", "|"])
        return f"{mask(rng, depth + 1)}{joint}{mask(rng, depth + 1)}"
    if way < 0.9:
        return f"~({mask(rng, depth + 1)})"
    return "".join(one(rng, PIECES + NUMBERS + [*MASKS]) for _ in range(int(rng.integers(1, 8))))


def condition(rng: np.random.Generator) -> str:
    """Return an expression of --filter, or nearly one."""
    parts = []
    for _ in range(int(rng.integers(1, 4))):
        sign = one(rng, ["<", ">", "==", "!=", "<=", ">=", "=", "<>", " in "])
        parts.append(f"{one(rng, FILTERS)}{sign}{one(rng, NUMBERS + FILTERS)}")
    text = one(rng, [" & ", " | ", " and ", ","]).join(parts)
    return text if rng.random() < 0.8 else text + one(rng, PIECES)


def value(rng: np.random.Generator, option: str) -> str:
    """Return something to stand behind an option: what fits it, or what fits another."""
    way = rng.random()
    if option == "mask" and way < 0.7:
        return mask(rng)
    if option in ("filter", "sort") and way < 0.7:
        return condition(rng)
    if option in ("rows", "keys", "head", "batch", "layer") and way < 0.8:
        return one(rng, SELECTIONS)
    if way < 0.6:
        return VALUES.get(option, "1")
    if way < 0.8:
        return one(rng, NUMBERS)
    return one(rng, [*VALUES.values(), *PIECES, "", "missing.npz", "/dev/null", ".", "x" * 200])
