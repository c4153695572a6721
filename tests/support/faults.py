"""What kernels of attention get wrong: a table of seeded faults, and what to say of each.

``python -m tests.support.faults`` prints how far each fault moves the result, measured in errors of
the same kernel without it, against a float64 truth of its own.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support.faults_kernel import (
    DTYPES,
    Kernel,
    Question,
    gradients,
    stages,
)

Array = np.ndarray[Any, np.dtype[Any]]
Generator = np.random.Generator
Told = str | Callable[[str], bool]  # a regular expression, or a test of the text

#: A fault that moves the result by less than so many honest errors is not visible.
VISIBLE = 5.0


@dataclass(frozen=True, eq=False)
class Case:
    """A question and what a kernel answered, ``(B, H, L, …)``; ``packed``: heads side by side."""

    asked: Question
    answered: Mapping[str, Array]
    grad_output: Array | None = None
    packed: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """For ``attncli.attend``."""
        found = self.asked.arguments()
        if self.packed:
            for name in ("query", "key", "value"):
                found[name] = side_by_side(found[name])
            found |= {"heads": self.asked.query.shape[1], "kv_heads": self.asked.key.shape[1]}
        return found

    @property
    def candidates(self) -> dict[str, Array]:
        """By stage, in the family of the question."""
        packed = ("output", "grad_query", "grad_key", "grad_value") if self.packed else ()
        return {n: side_by_side(a) if n in packed else a for n, a in self.answered.items()}

    def right(self, dtype: Any = np.float64) -> dict[str, Array]:
        """The truth."""
        found = stages(self.asked, dtype)
        if self.grad_output is not None:
            found |= gradients(self.asked, self.grad_output, dtype)
        return found

    def honest(self) -> dict[str, Array]:
        """What the kernel answers when nothing is wrong."""
        dtype = self.asked.dtype
        found = {name: a.astype(dtype) for name, a in self.right(np.float32).items()}
        return found | Kernel()(self.asked)

    def ratio(self) -> float:
        """How many honest errors the answer is away from the truth, where it is farthest."""
        right, honest = self.right(), self.honest()
        return max(
            distance(self.answered[n], right[n]) / (distance(honest[n], right[n]) or 1e-300)
            for n in self.answered
        )


def side_by_side(x: Array) -> Array:
    """``(B, H, L, D)`` as ``(B, L, H·D)``."""
    x = x.swapaxes(1, 2)
    return x.reshape(*x.shape[:2], -1)


def distance(candidate: Array, right: Array) -> float:
    """The largest difference; infinite where one alone is not finite."""
    wide, odd = candidate.astype(np.float64), ~np.isfinite(right)
    if not np.array_equal(wide[odd], right[odd]) or not np.isfinite(wide[~odd]).all():
        return float("inf")
    return float(np.abs(wide[~odd] - right[~odd]).max(initial=0))


@dataclass(frozen=True)
class Right:
    """What a right diagnosis says: all of ``told`` in one explanation.

    ``stage`` (a regular expression) diverges first.
    """

    told: tuple[Told, ...]
    stage: str | None = None

    def __call__(self, text: str) -> bool:
        return all(
            told(text) if callable(told) else re.search(told, text, re.I) is not None
            for told in self.told
        )


@dataclass(frozen=True)
class Fault:
    """A row of the table. ``hidden``: the types in which honest programs round as much."""

    name: str
    right: Right
    make: Callable[[Generator, np.dtype[Any]], Case]
    hidden: tuple[str, ...] = ()

    def seeded(self, seed: int, dtype: str) -> Case:
        """The case of a seed: the same in every type but for rounding."""
        rng = np.random.default_rng([seed, zlib.crc32(self.name.encode())])
        return self.make(rng, DTYPES[dtype])


FAULTS: list[Fault] = []
Make = Callable[[Generator, np.dtype[Any]], Case]


def fault(
    name: str, *told: Told, stage: str | None = None, hidden: tuple[str, ...] = ()
) -> Callable[[Make], Make]:
    """Put the function below into the table."""

    def put(make: Make) -> Make:
        FAULTS.append(Fault(name, Right(told, stage), make, hidden))
        return make

    return put


def option(flag: str, value: float, *words: str) -> Callable[[str], bool]:
    """Told by an option with this number, or by one of the words (regular expressions)."""

    def told(text: str) -> bool:
        found = re.findall(rf"{flag}[ =]+([-+.\de]+|-?inf)(?=[ ,|]|$)", text)
        near = any(np.isclose(float(number), value, rtol=2e-3, atol=0) for number in found)
        return near or any(re.search(word, text, re.I) for word in words)

    return told


def scaled(value: float, *words: str) -> Callable[[str], bool]:
    """Told by ``--scale``; see ``option``."""
    return option("--scale", value, *words)


#: No scale, no softcap, no sink, no mask, as a program may say it.
NO_SCALE = scaled(1.0, r"--scale none", "no scale", "scale (is )?missing")
NO_SOFTCAP = option(
    "--softcap",
    0.0,
    r"--softcap none",
    r"(no|without) (the )?softcap",
    r"softcap.*(missing|left out)",
)
NO_SINK = option(
    "--sink", -np.inf, r"--sink none", r"(no|without) (the )?sink", r"sink.*(missing|left out)"
)


def ask(
    rng: Generator,
    dtype: np.dtype[Any],
    *,
    batch: int = 2,
    heads: int = 4,
    groups: int | None = None,
    queries: int | None = None,
    keys: int | None = None,
    width: int | None = None,
    size: float = 2.0,
    **rest: Any,
) -> Question:
    """A question of random normal tensors; ``size`` is the standard deviation of the logits.

    Lengths and widths that are not given are drawn: no tile divides the lengths.
    """
    queries = queries or int(rng.choice([134, 168, 200]))
    keys, width = keys or queries, width or int(rng.choice([32, 48, 64]))
    groups = groups or heads

    def normal(count: int, length: int, by: float = 1.0) -> Array:
        return (by * rng.standard_normal((batch, count, length, width))).astype(dtype)

    return Question(
        normal(heads, queries, size), normal(groups, keys), normal(groups, keys), **rest
    )


def case(
    right: Question,
    wrong: Question | None = None,
    kernel: Kernel | None = None,
    names: tuple[str, ...] = ("output",),
    rng: Generator | None = None,
) -> Case:
    """What ``kernel`` answers to the wrong question, judged by the right one."""
    asked, kernel = wrong or right, kernel or Kernel()
    answered = kernel(asked, rng)
    if {"scores", "weights"} & set(names):
        dense = stages(asked, np.float32)
        answered |= {n: dense[n].astype(right.dtype) for n in ("scores", "weights")}
    return Case(right, {name: answered[name] for name in names})


def table() -> list[Fault]:
    """Every fault, from all modules."""
    from tests.support import (  # noqa: F401
        faults_gradients,
        faults_layout,
        faults_masks,
        faults_pairs,
        faults_scores,
        faults_tiles,
    )

    return FAULTS


def main() -> None:
    """Print how visible each fault is."""
    print(f"{'fault':44}" + "".join(f"{d:>12}" for d in ("float32", "float16", "bfloat16")))
    for row in table():
        ratios = [row.seeded(0, d).ratio() for d in ("float32", "float16", "bfloat16")]
        print(f"{row.name:44}" + "".join(f"{ratio:12.3g}" for ratio in ratios), flush=True)


if __name__ == "__main__":
    from tests.support.faults import main as run  # the table lives in the module by its name

    run()
