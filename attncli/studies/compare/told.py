"""A comparison in words and as data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from decimal import ROUND_CEILING, Context, Decimal
from typing import TYPE_CHECKING, Any

import numpy as np

from attncli.errors import counted
from attncli.studies.compare.judged import Judged, pooled

if TYPE_CHECKING:
    from attncli.studies.compare import Comparison, Explanation

MOST = 512  # numbers of an error by row
NEAR = 1 / 3  # of a candidate: who leaves more of it says nothing of it
#: A list that is longer than a line: its first three numbers, and the last.
LIST = re.compile(r"((?:-?\d+, ){3})(?:-?\d+, ){6,}(?=-?\d)")


def data(one: Comparison) -> dict[str, Any]:
    """Return the member ``expect`` of JSON."""
    said: dict[str, Any] = {"passed": one.passed, "stage": one.stage, "verdict": one.verdict}
    said |= {name: stage_data(judged) for name, judged in one.stages.items()}
    if not one.passed:
        said["explanations"] = [
            {
                "options": list(each.options), "words": each.words, "max_error": each.max_error,
                "share_left": None if math.isnan(each.share) else each.share,
                "passed": each.passed,
            }
            for each in one.explanations
        ]  # fmt: skip
        said["located"] = list(one.located)
    if one.notes:
        said["notes"] = list(one.notes)
    return said


def stage_data(one: Judged) -> dict[str, Any]:
    """Return what JSON says of one stage."""
    rows, edges = pooled(one.by_row(), MOST)
    heads = one.by_head()
    said: dict[str, Any] = {
        "passed": one.passed,
        "dtype": one.own.name,
        "max_error": one.max_error,
        "max_relative_error": _finite_max(one),
        "budget": one.budget,
        "smallest_atol": one.smallest_atol,
        "max_ulp": float(one.ulps.max(initial=0)),
        "snr_db": one.snr,
        "bad_rows": int(one.bad.sum()),
        "worst": one.worst,
        **({} if one.whole else {"by_head": (heads[0] if len(heads) == 1 else heads).tolist()}),
        "by_row": rows.tolist(),
    }
    if one.tolerance is not None:
        said |= {"rtol": one.tolerance.rtol, "atol": one.tolerance.atol}
    if len(rows) < len(one.by_row()):
        said["row_edges"] = edges
    return said


def _finite_max(one: Judged) -> float:
    finite = one.relative[np.isfinite(one.relative)]
    return float(finite.max(initial=0))


def number(value: float) -> str:
    """Return an error as it is read: two or three digits."""
    if not math.isfinite(value):
        return "NaN or infinite" if math.isnan(value) else "infinite"
    return f"{value:.3g}"


def enough(value: float, digits: int = 3) -> float:
    """Return a tolerance of a few digits that passes what needs this one: rounded up."""
    if not math.isfinite(value):
        return value
    return float(Context(prec=digits, rounding=ROUND_CEILING).create_decimal(Decimal(value)))


def allowed(one: Judged) -> str:
    """Return what was allowed where the error is largest, in words."""
    if one.tolerance is not None:
        return f"rtol {one.tolerance.rtol:g}, atol {one.tolerance.atol:g}"
    return f"budget {number(one.budget)}, {one.own.name}"


def verdict(one: Comparison, name: str = "it") -> str:
    """Return the first sentence: whether the candidate is right, and how far off it is."""
    judged = one.shown
    stage = "" if judged.name == "output" else f" in {judged.name}"
    if one.passed:
        stages = list(one.stages.values())
        largest = max(stages, key=lambda s: float(s.excess.max(initial=0)))
        what = "" if len(stages) == 1 else f" in {largest.name}"
        return (
            f"{name} is right: largest error {number(largest.max_error)}{what} ({allowed(largest)})"
        )
    rows = f"{int(judged.bad.sum()):,} of {counted(judged.error.size, 'row')}"
    odd = int(judged.odd.sum())
    error = f"largest error {number(judged.max_error)}" if not odd else (
        f"{counted(odd, 'number')} that {'is' if odd == 1 else 'are'} NaN or infinite"
    )  # fmt: skip
    worst, room = judged.telling
    if not odd and worst != judged.max_error:  # the largest of all is where more is allowed
        error += f", {number(worst)} where {number(room)} is allowed"
        rule = judged.own.name if judged.tolerance is None else allowed(judged)
        return f"{name} differs{stage}: {rows}, {error} ({rule})"
    return f"{name} differs{stage}: {rows}, {error} ({allowed(judged)})"


def reasons(one: Comparison) -> Iterator[str]:
    """Yield what explains it, a sentence each."""
    if one.passed:
        return
    passing = [each for each in one.explanations if each.passed]
    if one.verdict == "ambiguous":
        many = counted(len(passing), "explanation")
        yield f"{many} fit equally well, and this input cannot tell them apart:"
        yield from (f"  {_said(each)}" for each in passing)
    elif passing:
        error = passing[0].max_error
        left = "" if error is None else f" (largest error {number(error)})"
        yield f"it is reproduced{left} by  {_said(passing[0])}"
    yield from one.located
    if passing or not one.explained:
        return
    if not one.located:
        yield "nothing known explains it"
    near = [each for each in one.explanations[:2] if each.share < NEAR]
    if near and not one.located:
        yield "nearest, each leaving a part: " + "; ".join(
            f"{_said(each)} (leaves {each.share:.0%} of the error)" for each in near
        )


def _said(each: Explanation) -> str:
    """Return an explanation in words; long lists are whole in JSON alone."""
    text = LIST.sub(r"\1…, ", each.text)
    return f"{text}  ({each.words})" if text and each.words else text or each.words


def sentence(one: Comparison) -> str:
    """Return all in a line."""
    said = verdict(one)
    for reason in reasons(one):
        said += (" " if said.endswith(":") else "; ") + reason.strip()
    return said


def lines(one: Comparison) -> list[str]:
    """Return all, a line each."""
    judged = one.shown
    said = [verdict(one), *reasons(one), *one.notes]
    if not one.passed:
        where = ", ".join(f"{axis} {n}" for axis, n in judged.worst.items())
        said.append(
            f"worst cell: {where}; "
            f"smallest atol that passes: {number(enough(judged.smallest_atol))}"
        )
    return said
