"""From what was tried to what is said: explained, ambiguous, located or unexplained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from attncli.attention.problem import Problem
from attncli.errors import counted
from attncli.measures.masks import difference
from attncli.studies.compare.answers import (
    AMBIGUOUS,
    EXPLAINED,
    LOCATED,
    UNEXPLAINED,
    Answer,
    Explanation,
)
from attncli.studies.compare.backward import GRADIENTS
from attncli.studies.compare.decimals import decimals
from attncli.studies.compare.judged import Judged
from attncli.studies.compare.patterns import (
    appearance,
    denominators,
    dropout,
    place,
    replace_bad,
    units_of,
    unwritten,
)
from attncli.studies.compare.precision import precision
from attncli.studies.compare.search import LIKE, SLIGHT, Search, Tried
from attncli.studies.compare.suspects import Suspect
from attncli.studies.compare.theory import Candidate, Theory, Unit, held

Array = np.ndarray[Any, np.dtype[Any]]

SHOWN = 5  # explanations at most
RTOL = 1e-6  # numbers that differ by less were fitted to one another


def diagnose(
    problem: Problem,
    candidate: Candidate,
    found: dict[str, Judged],
    grad_output: Array | None,
    threads: int | None = None,
) -> Answer:
    """Return why a candidate did not pass. ``found`` is what the problem makes of it."""
    forward = {n: one for n, one in found.items() if n not in GRADIENTS}
    if all(one.passed for one in forward.values()):
        from attncli.studies.compare.gradient_faults import diagnose_gradients

        return diagnose_gradients(problem, candidate, found, grad_output)
    stages = {n: a for n, a in candidate.stages.items() if n in forward}
    candidate = replace(candidate, stages=stages)
    first = next(one for one in forward.values() if not one.passed)
    empty = unwritten(candidate, first)
    if empty is not None and (empty == first.bad).all():
        return Answer(LOCATED, (), [_said_of(first, empty)])
    if np.isnan(candidate.stages[first.name].astype(np.float64)).all():
        return Answer(LOCATED, (), ["all of it is NaN"])
    written = decimals(candidate.stages, forward)
    if written:
        return Answer(LOCATED, (), written)
    search = Search(problem, candidate, forward, threads)
    tried = search.run()
    answer = explained(tried)
    if answer is None and empty is not None:  # what was written may have a reason of its own
        rest = Search(problem, candidate, forward, threads, spared=empty)
        partly = explained(rest.run())
        if partly is not None and partly.verdict != AMBIGUOUS:
            told = partly.explanations[0]
            by = " ".join(one for one in (told.text, told.words) if one)
            rest_of_it = f"what was written is reproduced by  {by}"
            return Answer(LOCATED, (), [_said_of(first, empty), rest_of_it])
    if answer is not None:
        return answer
    return left_over(search, tried, _located(problem, candidate, first, search))


def _said_of(one: Judged, empty: Array) -> str:
    """Say which rows were never written."""
    where = place(replace_bad(one, empty))
    rows = counted(int(empty.sum()), "row")
    return (f"{where.words}: " if where else "") + f"{rows} all zero: never written"


def explained(tried: Sequence[Tried]) -> Answer | None:
    """Return what explains the candidate, or None where nothing does."""
    passed = _different([one for one in tried if one.passed])
    if not passed:
        return None
    best = passed[0]
    rivals = [one for one in passed[1:] if _as_good(one, best)]
    shown = [_explanation(one) for one in [best, *rivals][:SHOWN]]
    if rivals:
        return Answer(AMBIGUOUS, shown)
    return Answer(LOCATED if shown[0].fault else EXPLAINED, shown)


def left_over(search: Search, tried: Sequence[Tried], located: list[str]) -> Answer:
    """Return what is said where nothing explains it: where it is, and what comes near."""
    near = [_explanation(one, search.start) for one in tried[:SHOWN] if one.left < search.start]
    return Answer(LOCATED if located else UNEXPLAINED, near, located)


def _as_good(one: Tried, best: Tried) -> bool:
    return one.left <= LIKE * best.left + SLIGHT


def _different(passed: Sequence[Tried]) -> list[Tried]:
    """Leave out what is the same problem as one before it, and what asks for more than that.

    Of two that do as well, the one with fewer changes stands for both; a number that was fitted
    gives way to one that has a reason.
    """
    found: list[Tried] = []
    for one in sorted(passed, key=_simplicity):
        t = one.theory
        if any(_same(t, other.theory) or _shown_alike(t, other.theory) for other in found):
            continue
        others = [o for o in found if _as_good(o, one)]
        if any(_covers(o.theory, t) for o in others):
            continue
        found.append(one)
    return sorted(found, key=lambda t: t.left if t.left > SLIGHT else 0)


def _covers(one: Theory, other: Theory) -> bool:
    """Whether one says with less what another, which does as well, says with more."""
    if one.kinds < other.kinds:
        return True
    return other.fitted and one.kinds <= other.kinds


def _simplicity(one: Tried) -> tuple[Any, ...]:
    t = one.theory
    return len(t.kinds), t.fitted, bool(t.words), len(str(t.said))


def _shown_alike(one: Theory, other: Theory) -> bool:
    """Whether two would be told in the same words."""
    return (one.said, one.words) == (other.said, other.words)


def _same(one: Theory, other: Theory) -> bool:
    """Whether two theories say the same of these sizes, in other words."""
    if one.after or other.after or one.view is not other.view or not one.alike(other):
        return False
    p, q = one.problem, other.problem

    def alike(a: Any, b: Any) -> bool:
        if a is None or b is None:
            return a is b
        return a is b or bool(np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=RTOL, atol=0))

    tensors = all(alike(getattr(p, n), getattr(q, n)) for n in ("query", "key", "value"))
    numbers = all(alike(getattr(p, n), getattr(q, n)) for n in ("scale", "softcap", "sink"))
    if not (tensors and numbers) or p.mask.has_bias or q.mask.has_bias:
        return False
    return difference(p.mask, q.mask).first is None


def _explanation(one: Tried, start: float = math.nan) -> Explanation:
    """Return what is told of a theory; ``start`` is what was left without it."""
    theory, error = one.theory, None
    options = [part for flag, text in theory.said.items() for part in (flag, text or "")]
    if one.found:
        error = max((judged.max_error for judged in one.found.values()), default=0.0)
    share = math.sqrt(one.left / start) if start and math.isfinite(start) else math.nan
    words = "; ".join(theory.words)
    return Explanation(tuple(options), words, error, one.passed, bool(theory.words), share)


def _located(problem: Problem, candidate: Candidate, one: Judged, search: Search) -> list[str]:
    """Say where the errors are, what they look like, and what explains them there."""
    where, seen = place(one), appearance(problem, candidate, one)
    found: list[str] = []
    if where:
        found.append(
            f"only {where.words} {_are(where.words)} wrong" + (f": {seen}" if seen else "")
        )
        if not seen:
            found += _there(problem, candidate, one, search)
    elif seen:
        found.append(seen)
    if not seen and not found[1:]:
        for look in (dropout, denominators, precision):
            said = list(look(search.base, candidate, search.units))
            found += said
            if said:
                break
    return found


def _are(words: str) -> str:
    many = " to " in words or "rows " in words or words.split(" ")[0].endswith("s")
    return "are" if many else "is"


def _there(problem: Problem, candidate: Candidate, one: Judged, search: Search) -> list[str]:
    """Return what explains the wrong rows alone, if one thing does."""
    units = units_of(one)
    few = [Unit(u.b, u.h, u.rows[:: max(1, len(u.rows) // 16)]) for u in units[:8]]
    part = replace(candidate, stages={one.name: candidate.stages[one.name]})
    local = Search(problem, part, {one.name: one}, search.threads)
    local.units = local.few = few
    tried = local.alone([*local.suspects, *_strangers(problem)])
    good = []
    for each in tried[:6]:
        read = part.seen_by(each.theory)
        if read is None or not each.left < 0.1:
            continue
        there = held(each.theory, read, units, threads=search.threads)
        if all(j.passed for j in there.values()):
            good.append(replace(each, found=there))
    good = _different(good)
    if not good or (len(good) > 1 and _as_good(good[1], good[0])):
        return []
    told = _explanation(good[0])
    return [f"there it is explained by {told.text or told.words}"]


def _strangers(p: Problem) -> list[Suspect]:
    """A head that reads what belongs to another, or a batch element."""
    found = []
    if p.kv_heads > 1:
        for g in range(p.kv_heads):
            for name in ("key", "value"):
                found.append(
                    Suspect("stranger", f"{name} of key/value head {g}", _take(name, 1, g))
                )
            found.append(
                Suspect("stranger", f"key and value of key/value head {g}", _take("both", 1, g))
            )
    if p.heads > 1:
        found += [
            Suspect("stranger", f"the query of head {h}", _take("query", 1, h))
            for h in range(p.heads)
        ]
    if p.batch > 1:
        for b in range(p.batch):
            for name in ("query", "key", "value", "both"):
                what = "key and value" if name == "both" else name
                found.append(Suspect("stranger", f"{what} of batch element {b}", _take(name, 0, b)))
    return found


def _take(name: str, axis: int, which: int) -> Any:
    """Return the change that gives all heads, or batch elements, a tensor of one of them."""

    def change(p: Problem) -> Problem:
        names = ("key", "value") if name == "both" else (name,)
        made: dict[str, Any] = {}
        for one in names:
            array = getattr(p, one)
            chosen = array.take([which], axis)
            made[one] = np.broadcast_to(chosen, array.shape)
        return replace(p, **made)

    return change
