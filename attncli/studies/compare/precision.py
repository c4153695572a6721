"""Low precision: which roundings on the way would make the errors that are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from attncli.attention.problem import Problem, float_dtype
from attncli.measures.budget import eps
from attncli.studies.compare.theory import Candidate, Theory, Unit, outputs_of

Array = np.ndarray[Any, np.dtype[Any]]
Low = Callable[[Array], Array]

LOW = ("float16", "bfloat16")
ROWS = 8  # of each head that are looked at
CLEAR = 16  # steps of the candidate's type above which an error is looked at
ALIKE = 0.8  # correlation of errors above which two programs round alike
EVEN = 0.8  # how far the errors of nine rows in ten may differ, as the spread of their logarithm
SIZES = (0.2, 12.0)  # errors, as multiples of what rounding of the weights makes


def _weights(z: Array, sink: float, low: Low) -> Array:
    """The softmax of z ``(n, Lk)``; ``low`` rounds exp and its sum."""
    top = np.maximum(z.max(-1, keepdims=True, initial=-np.inf), sink)
    top = np.where(np.isneginf(top), 0, top)
    e = low(np.exp(low(z - top)))
    total = low(e.sum(-1, keepdims=True)) + np.exp(sink - top)
    return e / np.where(total == 0, 1, total)


def _same(array: Array) -> Array:
    return array


#: What is rounded in an online softmax: of z − max, of its exp, of exp on its way to the values, of
#: the accumulator.
ROUNDED = {
    "shifted": {"softmax"},
    "summed": {"softmax", "exp of the scores"},
    "read": {"exp that the values are multiplied by"},
    "kept": {"accumulator"},
}
Rounding = Callable[[Array, Array, Array, float, Low], Array]


def _online(tile: int, what: str) -> Rounding:
    """The online softmax over tiles of so many keys, one of ``ROUNDED`` in it rounded."""
    shifted, summed, read, kept = (what in names for names in ROUNDED.values())

    def made(z: Array, w: Array, v: Array, sink: float, low: Low) -> Array:
        at, exp, p, sum_of = (low if on else _same for on in (shifted, summed, read, kept))
        top = np.full((len(z), 1), sink)
        total = np.full_like(top, 0.0 if np.isneginf(sink) else 1.0)
        sums = np.zeros((len(z), v.shape[1]))
        for j in range(0, z.shape[1], tile):
            part = z[:, j : j + tile]
            new = np.maximum(top, part.max(-1, keepdims=True))
            base = np.where(np.isneginf(new), 0, new)
            moved = np.where(np.isneginf(top), 0, np.exp(top - base))
            e = exp(np.exp(at(part - base)))
            total = total * moved + e.sum(-1, keepdims=True)
            sums = sum_of(sums * moved + p(e) @ v[j : j + tile])
            top = new
        return sums / np.where(total == 0, 1, total)

    return made


#: What is rounded, and the output ``(n, Dv)`` of masked scores z, weights w, values v and a sink.
ROUNDINGS: Mapping[str, Rounding] = {
    "the scores are": lambda z, w, v, sink, low: _weights(z, sink, _same) @ v,
    "each logit is": lambda z, w, v, sink, low: _weights(low(z), sink, _same) @ v,
    "the weights are": lambda z, w, v, sink, low: low(w) @ v,
    "scores and weights are": lambda z, w, v, sink, low: low(_weights(z, sink, _same)) @ v,
    "the whole softmax is": lambda z, w, v, sink, low: low(_weights(low(z), sink, low)) @ v,
    "the values are": lambda z, w, v, sink, low: w @ low(v),
    "the output is": lambda z, w, v, sink, low: low(w @ v),
    **{
        f"the {what}, in tiles of {tile} keys, is": _online(tile, what)
        for what in sorted(set().union(*ROUNDED.values()))
        for tile in (16, 32, 64, 128)
    },
    "the accumulator, key by key, is": _online(1, "accumulator"),
}


def precision(theory: Theory, candidate: Candidate, units: Sequence[Unit]) -> Iterator[str]:
    """Say which rounding makes the very errors that are there; failing that, of what size they are.

    Programs that round the same numbers make the same errors: they go together row by row.
    """
    p = theory.problem
    types = [name for name in LOW if eps(float_dtype(name)) >= eps(candidate.own)]
    sums = {(name, what): np.zeros(3) for name in types for what in (*ROUNDINGS, INPUTS)}
    sizes: dict[str, list[float]] = {name: [] for name in types}
    lean: list[float] = []
    for b, h, rows in units:
        unit = Unit(b, h, rows[:: max(1, len(rows) // ROWS)])
        for arrays, wanted in outputs_of(theory, candidate, unit):
            right = arrays["output"]
            value = p.value[b, p.group(h)].astype(np.float64)
            value = np.where(np.isfinite(value), value, 0)
            sink = -np.inf if p.sink is None else float(p.sink[h])
            error = wanted - right
            size = np.linalg.norm(right, axis=1)
            busy = (arrays["weights"] > 1e-4).sum(1) > 1
            clear = CLEAR if candidate.own.itemsize > 2 else CLEAR / 10
            busy &= np.linalg.norm(error, axis=1) > clear * eps(candidate.own) * size
            if not busy.any():
                continue
            with np.errstate(all="ignore"):
                lean += (np.vecdot(error, right) / size)[busy & (size > 0)].tolist()
            for name in types:
                for what in (*ROUNDINGS, INPUTS):
                    made = _rounded(p, unit, arrays, value, sink, name, what) - right
                    with np.errstate(all="ignore"):
                        scale = 1 / np.maximum(np.linalg.norm(error, axis=1), 1e-300)[busy, None]
                    x, y = error[busy] * scale, np.nan_to_num(made[busy]) * scale
                    sums[name, what] += ((x * y).sum(), (x * x).sum(), (y * y).sum())
                    if what == "scores and weights are":
                        with np.errstate(all="ignore"):
                            ratio = np.linalg.norm(error, axis=1) / np.linalg.norm(made, axis=1)
                        sizes[name] += ratio[busy & np.isfinite(ratio)].tolist()
    if len(lean) < 8:
        return
    likeness = {
        key: float(xy / np.sqrt(xx * yy)) if xx * yy > 0 else 0.0
        for key, (xy, xx, yy) in sums.items()
    }
    (name, what), most = max(likeness.items(), key=lambda one: one[1], default=(("", ""), 0.0))
    if most > ALIKE:
        yield (
            f"low precision: {what} rounded to {name} (that makes the same errors, row by row: "
            f"their correlation is {most:.2f})"
        )
        return
    straight = abs(np.mean(lean)) < 3 * np.std(lean) / np.sqrt(len(lean))
    for name, found in sizes.items():
        ratio = np.array(found)
        ratio = ratio[ratio > 0]
        if len(ratio) < 8 or not straight:
            continue
        middle = float(np.median(ratio))
        low, high = np.quantile(np.log(ratio), (0.05, 0.95))
        if SIZES[0] < middle < (3.0 if name == "float16" else SIZES[1]) and high - low < 4 * EVEN:
            yield (
                f"low precision: in every row the errors are about {middle:.1g} times those of a "
                f"program that keeps scores and weights in {name}, and lean to no side; look at "
                "the types of the inputs, the softmax, the weights and the accumulator"
            )
            return


INPUTS = "query, key and value are"
OF_SCORES = ("the scores are", "scores and weights are")


def _rounded(
    p: Problem,
    unit: Unit,
    arrays: Mapping[str, Array],
    value: Array,
    sink: float,
    name: str,
    what: str,
) -> Array:
    """Return the output ``(n, Dv)`` of a program that rounds so."""
    dtype = float_dtype(name)

    def low(array: Array) -> Array:
        return np.asarray(array.astype(np.float32).astype(dtype).astype(np.float64))

    b, h, rows = unit
    with np.errstate(all="ignore"):
        if what != INPUTS:
            masked, weights = arrays["masked"], arrays["weights"]
            if what in OF_SCORES and p.scale:  # of q·k, and once more of its multiple
                scores = arrays["scores"]
                once = low(low(scores / p.scale) * p.scale)
                masked = np.where(np.isneginf(masked), -np.inf, masked + (once - scores))
            return ROUNDINGS[what](masked, weights, value, sink, low)
        q, k = p.query[b, h][rows], p.key[b, p.group(h)]
        scores = (low(q) @ low(k).T - q @ k.T) * p.scale
        if p.softcap is not None:
            scores = scores * (1 - np.tanh(arrays["scores"] / p.softcap) ** 2)
        moved = np.where(np.isneginf(arrays["masked"]), -np.inf, arrays["masked"] + scores)
        return np.asarray(_weights(moved, sink, _same) @ low(value))
