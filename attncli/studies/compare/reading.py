"""What came in as a candidate: its shape, and the type at whose precision it is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.problem import FLOATS, Problem, float_dtype
from attncli.errors import InputError, Misfit, listed
from attncli.measures.budget import MATRICES, eps
from attncli.studies.compare.judged import AXES
from attncli.studies.compare.theory import Candidate

Array = np.ndarray[Any, np.dtype[Any]]

TELLING, MANY = 16, 256  # different values, or cells, that tell a type by what it can hold


class Reading(NamedTuple):
    """One way to read a shape; ``move`` brings such an array to ``(B, H, L, …)``."""

    words: str
    shape: tuple[int, ...]
    move: Callable[[Array], Array]


def read(
    problem: Problem, given: Mapping[str, Any], notes: list[str], tolerance: Any = None
) -> Candidate:
    """Return the candidate canonical; ``notes`` get a line for each choice that was made.

    Raises InputError for a stage that is none, that holds no numbers or does not fit.
    """
    unknown = [name for name in given if name not in AXES]
    if unknown or not given:
        raise InputError(
            f"nothing is compared under the name '{unknown[0]}'" if unknown else "no candidate",
            f"expected {listed(AXES)}",
        )
    arrays = {name: numbers(name, array) for name, array in given.items()}
    stages = {name: canonical(problem, name, array, notes) for name, array in arrays.items()}
    inputs = (problem.query, problem.key, problem.value)
    if problem.unturned is not None:
        inputs = (*problem.unturned, problem.value)
    return judged_at(stages, problem.dtype, problem.result_dtype, inputs, notes, tolerance)


def judged_at(
    stages: Mapping[str, Array],
    dtype: np.dtype[Any],
    result: np.dtype[Any],
    inputs: Sequence[Array],
    notes: list[str],
    tolerance: Any = None,
) -> Candidate:
    """Return canonical stages with the types at whose precision they are judged.

    ``dtype`` is the arithmetic's, ``result`` that of our own result, ``inputs`` are what all was
    made from.
    """
    # nothing is finer than what it is made from
    finest = np.dtype(np.float64 if dtype.itemsize > 4 else np.float32)
    kept = {
        name: max(own_dtype(name, array, inputs, notes), finest, key=eps)
        for name, array in stages.items()
    }
    results = [one for name, one in kept.items() if name not in ("lse", "scores")]
    own = max(results or [result, *kept.values()], key=eps)
    return Candidate(stages, own, kept, tolerance)


def numbers(name: str, array: Any) -> Array:
    """Return a stage as an array of numbers; Misfit where it is none."""
    array = np.asanyarray(array)
    if array.dtype.kind in "iu":
        return np.asarray(array.astype(np.float64))
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        have = "have" if be(name) == "are" else "has"
        raise Misfit(
            name, f"the {name} to be judged {have} dtype {array.dtype}",
            f"expected numbers: {listed(FLOATS)}",
        )  # fmt: skip
    if not array.size:
        raise Misfit(
            name, f"the {name} to be judged {be(name)} empty, {array.shape}", "expected numbers"
        )
    return np.asarray(array)


def sizes(problem: Problem, name: str) -> tuple[int, ...]:
    """Return the canonical shape of a stage."""
    p = problem
    if name in ("grad_key", "grad_value"):
        width = p.width if name == "grad_key" else p.value_width
        return (p.batch, p.kv_heads, p.keys - p.past, width)
    last = {"lse": (), "grad_query": (p.width,), "output": (p.value_width,)}
    return (p.batch, p.heads, p.queries, *last.get(name, (p.keys,)))


def canonical(problem: Problem, name: str, array: Array, notes: list[str]) -> Array:
    """Return a stage as ``(B, H, L, …)``, in the shape family that came in or one that fits.

    Raises Misfit where none does.
    """
    family, rows = problem.family, name == "lse" or name in MATRICES
    shape = sizes(problem, name)
    back = family.restore_rows if rows else family.restore
    own = back(np.broadcast_to(np.float32(0), shape)).shape
    if array.shape == own:
        if rows:
            return array.reshape(shape)
        return _unpacked(array, shape, packed=family.packed, blhd=family.blhd)
    fits = [one for one in readings(shape) if one.shape == array.shape]
    if not fits:
        raise _misfit(problem, name, array, own)
    notes.append(f"the {name} {array.shape} {be(name)} read as {fits[0].words}")
    return fits[0].move(array)


def _unpacked(array: Array, shape: tuple[int, ...], *, packed: bool, blhd: bool) -> Array:
    if packed or blhd:
        b, h, length, width = shape
        return array.reshape(b, length, h, width).swapaxes(1, 2)  # (B, H, L, D)
    return array.reshape(shape)


def readings(shape: tuple[int, ...]) -> Iterator[Reading]:
    """Yield the ways in which a canonical ``(B, H, L, …)`` is written elsewhere."""
    b, h, length, *last = shape
    c = tuple(last)
    names = ", D" if c else ""

    def by_length(array: Array) -> Array:
        return array.reshape(b, length, h, *c).swapaxes(1, 2)

    def as_is(array: Array) -> Array:
        return array.reshape(shape)

    yield Reading(f"(B, H, L{names})", (b, h, length, *c), as_is)
    yield Reading(f"(B, L, H{names})", (b, length, h, *c), by_length)
    if c:
        yield Reading("(B, L, H·D)", (b, length, h * c[0]), by_length)
        yield Reading("(L, B, H·D)", (length, b, h * c[0]), lambda a: by_length(a.swapaxes(0, 1)))
    else:
        yield Reading("(B, H, L, 1)", (b, h, length, 1), as_is)
    yield Reading(f"(B·H, L{names})", (b * h, length, *c), as_is)
    if b == 1:
        yield Reading(f"(H, L{names})", (h, length, *c), as_is)
        yield Reading(f"(L, H{names})", (length, h, *c), by_length)
        if c:
            yield Reading("(L, H·D)", (length, h * c[0]), by_length)
    if h == 1:
        yield Reading(f"(B, L{names})", (b, length, *c), as_is)
    if b == h == 1:
        yield Reading(f"(L{names})", (length, *c), as_is)


def _misfit(problem: Problem, name: str, array: Array, own: tuple[int, ...]) -> Misfit:
    """Return the error for a shape that is no way to write this stage, with what it may be."""
    b, h, *rest = sizes(problem, name)
    parts = {"head": (b, 1, *rest), "batch element": (1, h, *rest), "of both": (1, 1, *rest)}
    part = next((n for n, one in parts.items() if _may_be(array, one)), None)
    alike = [n for n in AXES if n.startswith("grad_") == name.startswith("grad_") and n != name]
    other = next((n for n in alike if _may_be(array, sizes(problem, n))), None)
    if part is not None:
        which = "one head of one batch element" if part == "of both" else f"one {part}"
        hint = f"{array.shape} is {which} of {own}: give all of them"
    elif other is not None:
        hint = f"{array.shape} is how the {other} {be(other)}: give the {name}, {own}"
    elif array.size == np.prod((b, h, *rest)):
        hint = f"it has as many numbers, but in an order that nothing here knows: make it {own}"
    elif array.ndim == len(own) and sum(x != y for x, y in zip(array.shape, own, strict=True)) == 1:
        axis = next(n for n, (x, y) in enumerate(zip(array.shape, own, strict=True)) if x != y)
        hint = (
            f"its dimension {axis} is {array.shape[axis]}, not {own[axis]}: is it the answer to "
            "another problem, or to a part of this one?"
        )
    else:
        hint = f"give a number for each {' and '.join(AXES[name])} of each head, {own}"
    return Misfit(
        name, f"the {name} to be judged {be(name)} {array.shape}, but {own} is needed", hint
    )


def _may_be(array: Array, shape: tuple[int, ...]) -> bool:
    return any(one.shape == array.shape for one in readings(shape))


def be(name: str) -> str:
    """Return the verb behind the name of a stage."""
    return "are" if name.endswith("s") else "is"


def own_dtype(name: str, array: Array, inputs: Sequence[Array], notes: list[str]) -> np.dtype[Any]:
    """Return the type at whose precision a stage is judged.

    Its own; or the narrower one in which it was made, when it holds nothing else and neither do
    the inputs, query, key and value: what a program wrote with more digits than it computed with.
    """
    kept: np.dtype[Any] = array.dtype if array.dtype.isnative else array.dtype.newbyteorder("=")
    floats: list[np.dtype[Any]] = [float_dtype(name) for name in FLOATS]
    narrower = sorted((one for one in floats if one.itemsize < kept.itemsize), key=eps)
    for dtype in reversed(narrower):
        if not holds(dtype, array) or not _telling(array):
            continue
        # a document of text has no types: its numbers may be those of a program in float32
        if dtype.itemsize == 2 and not all(holds(dtype, one) for one in inputs):
            continue
        if (kept.name, dtype.name) != ("float64", "float32"):  # a copy by NumPy: no news
            notes.append(f"the {name} {be(name)} judged as {dtype.name}: it holds no finer number")
        kept = dtype
        break
    return kept


def _telling(array: Array) -> bool:
    """Whether there are enough numbers for their type to be told: toys are exact in any."""
    return array.size >= MANY or len(np.unique(array.astype(np.float64))) >= TELLING


def holds(dtype: np.dtype[Any], array: Array) -> bool:
    """Whether all numbers are of this type."""
    sample = array.ravel()
    with np.errstate(all="ignore"):
        rounded = sample.astype(dtype).astype(sample.dtype)
        return bool(np.array_equal(rounded, sample, equal_nan=True))
