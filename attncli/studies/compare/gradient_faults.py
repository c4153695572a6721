"""Why gradients differ where the forward pass is right."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from attncli.attention import definition
from attncli.attention.gradients import turned_back
from attncli.attention.problem import Problem
from attncli.measures.gradient_budget import slopes
from attncli.studies.compare.answers import AMBIGUOUS, LOCATED, UNEXPLAINED, Answer, Explanation
from attncli.studies.compare.judged import Judged
from attncli.studies.compare.mask_suspects import mask_suspects
from attncli.studies.compare.patterns import appearance, place
from attncli.studies.compare.search import LIKE, wide
from attncli.studies.compare.suspects import suspects
from attncli.studies.compare.theory import Candidate, Theory

Array = np.ndarray[Any, np.dtype[Any]]

LARGEST = 1 << 22  # cells of a head beyond which only a part of the rows is looked at
EXACT = 0.02  # of the candidate's size that may be left over, as a root mean square
CLOSE = 0.1  # the part of what is left over now that an explanation may leave
FITTED = "multiplied by"  # what any number could be: less than a reason
NAMES = ("query", "key", "value")


def diagnose_gradients(
    problem: Problem, candidate: Candidate, found: Mapping[str, Judged], grad_output: Array | None
) -> Answer:
    """Return what explains the gradients. grad_output: dO, ``(B, H, Lq, Dv)``."""
    assert grad_output is not None
    first = next(one for one in found.values() if not one.passed)
    given = {n.removeprefix("grad_"): candidate.stages[n] for n in found if n.startswith("grad_")}
    where = place(first)
    seen = appearance(problem, candidate, first)
    located = []
    if where or seen:
        located = [f"only {where.words} wrong" + (f": {seen}" if seen else "") if where else seen]
    problem, grad_output, shown = _part(problem, grad_output, given, first)
    if problem.heads * problem.queries * problem.keys > LARGEST:
        note = "the gradients are too large to look for a reason; a smaller problem may show it"
        return Answer(LOCATED if located else UNEXPLAINED, (), [*(x for x in located if x), note])
    start = _left(shown, _turned(problem, slopes(problem, grad_output, np.float64).arrays), problem)
    tried = sorted(
        ((_left(shown, made, problem), words, said) for words, said, made in
         _theories(wide(problem), grad_output.astype(np.float64), shown)),
        key=lambda one: one[0],
    )  # fmt: skip
    noise = _noise(candidate)
    good = [one for one in tried if one[0] <= max(noise, 1e-6) and one[0] <= CLOSE * start]
    reasons = [one for one in good if FITTED not in one[1]]
    good = reasons or good[:1]
    told = [
        Explanation(
            tuple(x for flag, text in said.items() for x in (flag, text or "")),
            f"in the backward pass alone: {words}", None, True, True, left,
        )
        for left, words, said in good
    ]  # fmt: skip
    if not good:
        return Answer(LOCATED if located else UNEXPLAINED, (), [x for x in located if x])
    rivals = [e for e in told[1:] if e.share <= LIKE * told[0].share]
    return Answer(AMBIGUOUS if rivals else LOCATED, [told[0], *rivals])


def _part(
    p: Problem, do: Array, given: Mapping[str, Array], first: Judged
) -> tuple[Problem, Array, Mapping[str, Array]]:
    """Return one batch element and the heads of one group, the first that are wrong, if they do."""
    if p.mask.varies.batch or p.mask.varies.head or p.mask.extent.lengths is not None:
        return p, do, given
    b, which = (int(n) for n in np.argwhere(first.bad.any(-1))[0])
    each = p.heads // p.kv_heads
    g = which // each if first.name == "grad_query" else which
    pair = slice(g, min(g + 2, p.kv_heads)) if g + 2 <= p.kv_heads else slice(max(g - 1, 0), g + 1)
    heads = slice(pair.start * each, pair.stop * each)
    extent = replace(p.mask.extent, batch=1, heads=heads.stop - heads.start)
    part = replace(
        p, query=p.query[b : b + 1, heads], key=p.key[b : b + 1, pair],
        value=p.value[b : b + 1, pair], mask=replace(p.mask, extent=extent, joined=()),
        sink=None if p.sink is None else p.sink[heads],
        unturned=None,
    )  # fmt: skip
    cut = {n: a[b : b + 1, heads if n == "query" else pair] for n, a in given.items()}
    return part, do[b : b + 1, heads], cut


def _noise(candidate: Candidate) -> float:
    """Return what rounding leaves at the candidate's precision, relative."""
    from attncli.measures.budget import eps

    return float(min(EXACT, 64 * eps(candidate.own)))


def _left(given: Mapping[str, Array], made: Mapping[str, Array], problem: Problem) -> float:
    """Return the root mean square of what is left over, relative, the largest of all three."""
    worst = 0.0
    for name, array in given.items():
        right = made[name]
        if name != "query" and problem.past:
            right = right[:, :, problem.past :]
        wide_ = array.astype(np.float64)
        if right.shape != wide_.shape or not np.isfinite(wide_).all():
            return float("inf")
        size = float(np.sum(wide_**2)) or float(np.sum(right**2)) or 1.0
        worst = max(worst, float(np.sqrt(np.sum((wide_ - right) ** 2) / size)))
    return worst


def _multiples(
    right: Mapping[str, Array], given: Mapping[str, Array]
) -> Iterator[tuple[str, Mapping[str, str | None], Mapping[str, Array]]]:
    """Yield the gradients with one, or dQ and dK together, multiplied by what fits."""
    for names, words in (
        (("query", "key"), "dQ and dK are"), (("query",), "dQ is"), (("key",), "dK is"),
        (("value",), "dV is"), (NAMES, "all gradients are"),
    ):  # fmt: skip
        there = [n for n in names if n in given and given[n].shape == right[n].shape]
        if not there:
            continue
        up = sum(float(np.sum(given[n].astype(np.float64) * right[n])) for n in there)
        down = sum(float(np.sum(right[n] ** 2)) for n in there)
        if down and up and np.isfinite(up) and abs(up / down - 1) > 1e-3:
            factor = float(f"{up / down:.4g}")
            yield (
                f"{words} {FITTED} {factor:g}", {},
                {**right, **{n: right[n] * (up / down) for n in names}},
            )  # fmt: skip


def _theories(
    p: Problem, do: Array, given: Mapping[str, Array]
) -> Iterator[tuple[str, Mapping[str, str | None], Mapping[str, Array]]]:
    """Yield words, options and the three gradients."""
    right = _turned(p, slopes(p, do, np.float64).arrays)

    def with_query_key(factor: float) -> Mapping[str, Array]:
        return {**right, "query": right["query"] * factor, "key": right["key"] * factor}

    if p.scale not in (0, 1):
        yield "the scale is left out", {}, with_query_key(1 / p.scale)
        yield "the scale is multiplied twice", {}, with_query_key(p.scale)
        if p.width == p.value_width and p.queries == p.keys and p.heads == p.kv_heads:
            swapped = {**right, "query": right["key"], "key": right["query"]}
            yield "dQ and dK are exchanged", {}, swapped
        yield "the scale is left out of dQ", {}, {**right, "query": right["query"] / p.scale}
        yield "the scale is left out of dK", {}, {**right, "key": right["key"] / p.scale}
    yield from _multiples(right, given)
    for words, change in _formulas().items():
        yield words, {}, _turned(p, _by_formula(p, do, change))
    if p.heads > p.kv_heads:
        each = p.heads // p.kv_heads
        for words, pick in (
            ("dK and dV are those of the first head of each group, not the sum", 0),
            ("dK and dV are those of the last head of each group, not the sum", each - 1),
        ):
            yield words, {}, {**right, **_one_of_group(p, do, pick)}
        if p.kv_heads > 1:
            tiled = _tiled(p, do)
            yield "dK and dV are summed into group h mod G (tiled), not h // (H/G)", {}, tiled
        mean = {n: right[n] / each for n in ("key", "value")}
        yield "dK and dV are means over each group, not sums", {}, {**right, **mean}
    base = Theory(p)
    for suspect in (*mask_suspects(p), *suspects(p)):
        if suspect.after or suspect.view or suspect.kind == "rope":
            continue
        theory = suspect.applied(base)
        if theory is None or theory.problem.key.shape != p.key.shape:
            continue
        words = suspect.words
        if theory.problem.mask is not p.mask:
            yield words, suspect.said, _turned(p, _backward_of(p, theory.problem, do))
        yield (
            words + ", softmax and all",
            suspect.said,
            _turned(p, slopes(theory.problem, do, np.float64).arrays),
        )


def _turned(p: Problem, arrays: Mapping[str, Array]) -> dict[str, Array]:
    found = {name: arrays[name] for name in NAMES}
    if p.rope is not None:
        found["query"], found["key"] = turned_back(p.rope, found["query"], found["key"], p)
    return found


def _backward_of(p: Problem, other: Problem, do: Array) -> dict[str, Array]:
    """Return the gradients with the lse and output of ``p`` and the mask of ``other``."""
    return _by_formula(p, do, lambda w, dp, delta, slope: w * (dp - delta) * slope, other)


Formula = Callable[[Array, Array, Array, Array], Array]


def _formulas() -> dict[str, Formula]:
    return {
        "dS leaves out δ = rowsum(dO∘O)": lambda w, dp, delta, slope: w * dp * slope,
        "δ is added, not subtracted": lambda w, dp, delta, slope: w * (dp + delta) * slope,
        "the weights are left out of dS": lambda w, dp, delta, slope: (dp - delta) * slope,
        "the derivative of the softcap is left out": lambda w, dp, delta, slope: w * (dp - delta),
        "dS has the other sign": lambda w, dp, delta, slope: -w * (dp - delta) * slope,
    }


def _by_formula(
    p: Problem, do: Array, formula: Formula, other: Problem | None = None
) -> dict[str, Array]:
    """Return the gradients by another dS; with ``other`` its mask, and the lse and δ of ``p``."""
    found = {name: np.zeros(getattr(p, name).shape) for name in NAMES}
    for b, h in np.ndindex(p.batch, p.heads):
        g = p.group(h)
        q, k, v = (np.asarray(a, np.float64) for a in (p.query[b, h], p.key[b, g], p.value[b, g]))
        stage = definition.stages(p, b, h)
        dp = do[b, h] @ v.T
        with np.errstate(all="ignore"):
            delta = (np.where(stage["keep"], stage["weights"], 0) * dp).sum(1, keepdims=True)
            w = np.where(stage["keep"], stage["weights"], 0)
            if other is not None:
                again = definition.stages(other, b, h)
                lse = np.where(np.isneginf(stage["lse"]), np.inf, stage["lse"])
                w = np.where(again["keep"], np.exp(again["masked"] - lse[:, None]), 0)
            slope = np.ones_like(w)
            if p.softcap is not None:
                slope = 1 - (stage["softcapped"] / p.softcap) ** 2
            ds = np.where(w > 0, formula(w, dp, delta, slope), 0)
        found["query"][b, h] = p.scale * ds @ k
        found["key"][b, g] += p.scale * ds.T @ q
        found["value"][b, g] += w.T @ do[b, h]
    return found


def _tiled(p: Problem, do: Array) -> dict[str, Array]:
    """Return the gradients of heads that take and give group h mod G in the backward pass."""
    groups = [h % p.kv_heads for h in range(p.heads)]
    other = replace(p, key=p.key[:, groups], value=p.value[:, groups])
    made = _turned(other, slopes(other, do, np.float64).arrays)
    found = {n: np.zeros(getattr(p, n).shape) for n in ("key", "value")}
    for h, g in enumerate(groups):
        for n, array in found.items():
            array[:, g] += made[n][:, h]
    return {"query": made["query"], **found}


def _one_of_group(p: Problem, do: Array, pick: int) -> dict[str, Array]:
    """Return dK and dV of one head of each group."""
    each = p.heads // p.kv_heads
    heads = [g * each + pick for g in range(p.kv_heads)]
    if p.mask.varies.head or p.sink is not None:
        return {}
    part = replace(p, query=p.query[:, heads])
    extent = replace(p.mask.extent, heads=len(heads))
    part = replace(part, mask=replace(p.mask, extent=extent))
    made = _turned(part, slopes(part, do[:, heads], np.float64).arrays)
    return {n: made[n] for n in ("key", "value")}
