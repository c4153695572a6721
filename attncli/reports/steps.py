"""Attention one stage after the other, with the arithmetic written out: for learning."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from attncli.attention.definition import stages
from attncli.attention.pose import turn
from attncli.attention.problem import Problem
from attncli.attention.view import Labels, View
from attncli.errors import InputError, counted
from attncli.reports.arithmetic import (
    CHANNELS,
    MINUS_INFINITY,
    bracket,
    given,
    number,
    summed,
    weight,
)
from attncli.reports.blocks import Block, Column, Step, Table, Text
from attncli.reports.labels import label, where
from attncli.reports.matrices import not_shown
from attncli.reports.selection import Selection

Array = np.ndarray[Any, np.dtype[Any]]

MOST = 12  # rows and keys that are written out


class Frame(Protocol):
    """What comes before the attention of a head, and after that of all."""

    def before(self, lesson: Lesson) -> Iterable[Step]: ...
    def after(self, lesson: Lesson) -> Step | None: ...


def steps(
    problem: Problem,
    labels: Labels,
    view: View,
    chosen: Selection,
    frame: Frame | None = None,
) -> list[Block]:
    """Return the stages of the heads asked for, or of the first, and what is left out.

    They are (turned,) scores, scaled, (softcapped,) masked, weights, output; those of a ``frame``
    before and after.
    All selected rows stand in the tables; the arithmetic is of the rows asked for, or of the first
    that has a choice. Raises InputError when there are more than MOST rows or keys.
    """
    for flag, many, things in (
        ("rows", chosen.rows, "queries"),
        ("keys", chosen.keys, "keys"),
    ):
        if len(many) > MOST:
            raise InputError(
                f"--steps writes every number out: {len(many)} {things} are too many",
                f"choose up to {MOST}, as with --{flag} 0:{min(4, MOST)}",
            )
    if not (chosen.shown and chosen.rows and chosen.keys):
        raise InputError("there is no query or no key", "--steps needs at least one of each")
    blocks: list[Block] = []
    for pair in chosen.shown:
        which = where(problem, *pair).removeprefix(" · ")
        lesson = Lesson(problem, labels, view, chosen, *pair)
        before = list(frame.before(lesson)) if frame else []
        made = [*before, *lesson.steps()]
        if frame and pair == chosen.shown[-1]:
            last = frame.after(lesson)
            made += [last] if last else []
        made = [step._replace(number=n) for n, step in enumerate(made, start=1)]
        blocks += [*([Text("", [which])] if which else []), *made]
    last = made[-1]
    blocks[-1] = last._replace(lines=[*last.lines, *_left_out(problem, view, chosen, lesson)])
    return blocks


def _left_out(problem: Problem, view: View, chosen: Selection, last: Lesson) -> list[str]:
    """Return which heads are not shown and which rows not worked out, and how to see them."""
    heads, flags = not_shown(problem, view, chosen)
    facts = [heads] if heads else []
    if len(last.worked) < len(chosen.rows):
        name = last.q_names[last.worked[0]]
        facts.insert(0, f"worked out for {name}, 1 of {len(chosen.rows)} queries")
        flags.insert(0, "--rows")
    return [f"{'; '.join(facts)} ({', '.join(flags)})"] if facts else []


class Lesson:
    """The stages of some rows of one head and how to write them down."""

    def __init__(
        self, problem: Problem, labels: Labels, view: View, chosen: Selection, b: int, h: int
    ) -> None:
        self.problem = problem
        self.b, self.h = b, h
        rows, self.keys = np.asarray(chosen.rows), np.asarray(chosen.keys)
        self.others = np.setdiff1d(np.arange(problem.keys), self.keys)
        self.rows = rows
        self.query = np.asarray(problem.query[self.b, self.h][rows], np.float64)  # (n, D)
        group = problem.group(self.h)
        self.key = np.asarray(problem.key[self.b, group], np.float64)  # (Lk, D)
        self.value = np.asarray(problem.value[self.b, group], np.float64)  # (Lk, Dv)
        self.stages = stages(problem, self.b, self.h, rows)  # (n, Lk) each
        with np.errstate(all="ignore"):
            self.products = self.query @ self.key.T  # (n, Lk)
        self.worked = list(range(len(rows)))
        if view.rows is None:
            self.worked = [int(np.argmax(self.stages["keep"].sum(axis=1) > 1))]
        names = [label(labels.query, self.b, int(i)) for i in rows]
        self.q_names = _spoken(names, "q", labels.query is not None)
        names = [label(labels.key, self.b, int(j)) for j in self.keys]
        self.k_names = _spoken(names, "k", labels.key is not None)

    def steps(self) -> list[Step]:
        made = [self.turned()] if self.problem.rope is not None else []
        made += [self.scores(), self.scaled()]
        if self.problem.softcap is not None:
            made.append(self.softcapped())
        return [*made, self.masked(), self.weights(), self.output()]

    def table(self, stage: Array, kind: Any = "number") -> Table:
        return Table(
            title="",
            columns=[Column(name, kind) for name in self.k_names],
            rows=stage[:, self.keys].tolist(),
            labels=self.q_names,
            matrix=True,
            things="keys",
        )

    def visible(self, r: int) -> tuple[int, int]:
        """Return the first key that a row sees, by its place among those shown and by its index."""
        k = int(np.argmax(self.stages["keep"][r, self.keys]))
        return k, int(self.keys[k])

    @property
    def alike(self) -> str:
        """What is said where one key stands for all."""
        others = len(self.keys) - 1
        return f", and {counted(others, 'more key')} alike" if others else ""

    def turned(self) -> Step:
        """Return the step of RoPE: queries and keys as they are after it, and how one pair turned.

        The problem holds them turned; the angle is seen on a pair (1, 0) that is turned likewise.
        """
        p = self.problem
        assert p.rope is not None
        first, second = (part.start for part in p.rope.pairs(p.width))
        pairs = np.zeros((p.batch, 1, max(p.queries, p.keys), p.width))
        pairs[..., first] = 1
        at_query, at_key = turn(
            p.rope, pairs[:, :, : p.queries], pairs[:, :, : p.keys], p.mask, p.past, np.float64
        )  # (B, 1, Lq, D), (B, 1, Lk, D): cosine and sine of each angle
        queries = [
            (f"query {name}", self.query[r], at_query[self.b, 0, self.rows[r]])
            for r, name in enumerate(self.q_names)
        ]
        keys = [
            (f"key {name}", self.key[j], at_key[self.b, 0, j])
            for name, j in zip(self.k_names, self.keys, strict=True)
            if j >= p.past
        ]
        lines = []
        for name, after, (cos, sin) in (
            (name, row[[first, second]], angle[[first, second]])
            for name, row, angle in [*(queries[r] for r in self.worked), *keys]
        ):
            size = math.hypot(cos, sin) or 1.0
            x, y = after
            before = ((x * cos + y * sin) / size**2, (y * cos - x * sin) / size**2)
            longer = "" if abs(size - 1) < 1e-6 else f" and made {number(size)} times as long"
            lines.append(
                f"{name} [{first}, {second}]: ({number(before[0])}, {number(before[1])}) turned "
                f"by {math.degrees(math.atan2(sin, cos)):.1f}°{longer}"
                f" = ({number(x)}, {number(y)})"
            )
        table = Table(
            title="", columns=[Column(str(d)) for d in range(p.width)],
            rows=[row.tolist() for _, row, _ in [*queries, *keys]],
            labels=[name for name, _, _ in [*queries, *keys]], matrix=True, things="channels",
        )  # fmt: skip
        meaning = "pairs of channels turn with their position, so that q·k knows the distance"
        if p.past:
            meaning += "; cached keys are turned already"
        return Step(0, "turned", f"RoPE {p.rope.text}", meaning, table, lines)

    def scores(self) -> Step:
        lines = []
        for r in self.worked:
            for k, j in enumerate(self.keys):
                terms = [
                    f"{given(a)}×{given(b)}"
                    for a, b in zip(self.query[r], self.key[j], strict=True)
                ]
                total = number(self.products[r, j])
                lines.append(f"{self.q_names[r]}·{self.k_names[k]} = {summed(terms)} = {total}")
        return Step(
            0, "scores", "q·kᵀ",
            "how much the query resembles each key",
            self.table(self.products), lines,
        )  # fmt: skip

    def scaled(self) -> Step:
        problem = self.problem
        source, factor = problem.scale_source, given(problem.scale)
        formula, meaning = f"× {factor}", source
        if source.startswith("1/√"):
            formula = f"× {source} = {factor}"
            meaning = "or wide vectors would saturate the softmax"
        elif problem.scale == 1:
            meaning = f"leaves them as they are ({source})"
        lines = [
            f"{self.q_names[r]}·{self.k_names[k]}: {number(self.products[r, j])} × {factor}"
            f" = {number(self.stages['scores'][r, j])}{self.alike}"
            for r in self.worked
            for k, j in [self.visible(r)]
            if problem.scale != 1
        ]
        return Step(
            0, "scaled", formula, meaning,
            self.table(self.stages["scores"]) if problem.scale != 1 else None, lines,
        )  # fmt: skip

    def softcapped(self) -> Step:
        cap = given(self.problem.softcap or math.nan)
        lines = [
            f"{self.q_names[r]}·{self.k_names[k]}: "
            f"{cap}×tanh({number(self.stages['scores'][r, j])} / {cap})"
            f" = {number(self.stages['softcapped'][r, j])}{self.alike}"
            for r in self.worked
            for k, j in [self.visible(r)]
        ]
        return Step(
            0, "softcapped", f"{cap}·tanh(s/{cap})", f"no score can pass ±{cap}",
            self.table(self.stages["softcapped"]), lines,
        )  # fmt: skip

    def masked(self) -> Step:
        mask = self.problem.mask
        if mask.trivial:
            return Step(0, "masked", "(no mask)", "every query sees every key")
        meaning = f"a hidden key gets {MINUS_INFINITY}, and so no weight"
        if mask.has_bias and self.stages["keep"].all():
            meaning = "a bias is added to each score"
        elif mask.has_bias:
            meaning = f"a bias is added; {meaning}"
        return Step(0, "masked", mask.text or "(mask)", meaning, self.table(self.stages["masked"]))

    def weights(self) -> Step:
        lines: list[str] = []
        for r in self.worked:
            lines += self.softmax(r)
        sink = self.problem.sink is not None
        meaning = "each row and its sink sum to 1" if sink else "each row sums to 1"
        return Step(
            0, "weights", "softmax", meaning, self.table(self.stages["weights"], "weight"), lines
        )

    def softmax(self, r: int) -> list[str]:
        """Return the lines of one row: e to the score less the largest, over the sum of those."""
        masked = self.stages["masked"][r]
        name = self.q_names[r]
        sink = None if self.problem.sink is None else float(self.problem.sink[self.h])
        top = max(masked.max(), -math.inf if sink is None else sink)
        if not math.isfinite(top):
            sees = "sees no key: its weights are 0" if top < 0 else "has a score that is not finite"
            return [f"{name} {sees}"]
        powers = np.exp(masked - top)
        lines, terms = [], []
        for k, j in enumerate(self.keys):
            if np.isneginf(masked[j]):
                lines.append(f"{self.k_names[k]}: hidden, 0")
            else:
                power = number(powers[j])
                terms.append(power)
                difference = f"{number(masked[j])} − {bracket(number(top))}"
                lines.append(f"{self.k_names[k]}: exp({difference}) = {power}")
        rest = float(powers[self.others].sum())
        total = powers.sum()
        if len(self.others):
            terms.append(f"{number(rest)} of {len(self.others)} other keys")
        if sink is not None:
            terms.append(f"{number(math.exp(sink - top))} of the sink")
            total += math.exp(sink - top)
        lines.append(f"sum for {name}: {' + '.join(terms)} = {number(total)}")
        lines += [
            f"{name} → {self.k_names[k]}: {number(powers[j])} / {number(total)}"
            f" = {weight(self.stages['weights'][r, j])}"
            for k, j in enumerate(self.keys)
            if not np.isneginf(masked[j])
        ]
        return lines

    def output(self) -> Step:
        weights, keep = self.stages["weights"], self.stages["keep"]
        visible = np.where(keep[:, :, None], self.value, 0)  # (n, Lk, Dv): masked is not read
        with np.errstate(all="ignore"):
            output = np.einsum("nk,nkd->nd", weights, visible)  # (n, Dv)
        width = output.shape[1]
        lines = []
        for r in self.worked:
            for d in range(min(width, CHANNELS)):
                terms = [f"{weight(weights[r, j])}×{given(self.value[j, d])}" for j in self.keys]
                if len(self.others):
                    rest = float(weights[r, self.others] @ visible[r, self.others, d])
                    terms.append(f"{bracket(number(rest))} of {len(self.others)} other keys")
                sums = f"{summed(terms, len(terms))} = {number(output[r, d])}"
                several = len(self.q_names) > 1 or width > 1
                lines.append(f"{self.q_names[r]} [{d}]: {sums}" if several else sums)
            if width > CHANNELS:
                lines.append(f"… and {width - CHANNELS} more channels alike")
        meaning = "the values, mixed by their weights"
        if len(output) == 1 and width == 1 and len(lines[0]) <= 48:
            return Step(0, "output", "weights · V", lines[0])
        table = Table(
            title="", columns=[Column(str(d)) for d in range(width)], rows=output.tolist(),
            labels=self.q_names, matrix=True, things="channels",
        )  # fmt: skip
        return Step(0, "output", "weights · V", meaning, table, lines)


def _spoken(names: Sequence[str], letter: str, labelled: bool) -> list[str]:
    """Return the names in tables and arithmetic alike, blanks at their ends visible."""
    if not labelled:
        return [letter + name for name in names]
    ends = [(len(n) - len(n.lstrip(" ")), len(n.rstrip(" "))) for n in names]
    return [
        "␣" * start + n[start:stop] + "␣" * (len(n) - max(start, stop))
        for n, (start, stop) in zip(names, ends, strict=True)
    ]
