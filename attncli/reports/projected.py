"""What `--steps` says of a layer around its attention: the projections before it and after it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from attncli.reports.arithmetic import CHANNELS, bracket, given, number, summed
from attncli.reports.blocks import Column, Step, Table
from attncli.studies.layer import MultiheadResult

if TYPE_CHECKING:
    from attncli.reports.steps import Lesson

Array = np.ndarray[Any, np.dtype[Any]]

RTOL = 1e-4  # float32 weights; a norm or a clip on the way changes far more
WHAT = {
    "query": "what each position looks for",
    "key": "what each position is found by",
    "value": "what each position gives where it is found",
}


class Around:
    """The projections of a layer, in arithmetic.

    Only what a product and a bias give is written out: where a norm, a clip or a latent comes
    between, the step is left out.
    """

    def __init__(self, made: MultiheadResult) -> None:
        self.made = made
        asked = made.posing.keywords
        x = asked["x"]
        memory = x if asked["memory"] is None else asked["memory"]
        value = memory if asked["memory_value"] is None else asked["memory_value"]
        self.states = {
            role: self._canonical(array)
            for role, array in (("query", x), ("key", memory), ("value", value))
        }  # (B, L, E)

    def _canonical(self, array: Any) -> Array:
        wide = np.asarray(array).astype(np.float64)
        if wide.ndim == 2:
            return wide[None]
        return wide.swapaxes(0, 1) if self.made.seq_first else wide

    def before(self, lesson: Lesson) -> Iterator[Step]:
        """Yield how the queries, keys and values of a head come from hidden states."""
        p = lesson.problem
        q, k = p.unturned if p.unturned is not None else (p.query, p.key)
        group = p.group(lesson.h)
        first = lesson.worked[0]
        key = lesson.visible(first)[0]
        for role, array, head, names, rows, spoken in (
            ("query", q, lesson.h, lesson.q_names, lesson.rows, first),
            ("key", k, group, lesson.k_names, lesson.keys, key),
            ("value", p.value, group, lesson.k_names, lesson.keys, key),
        ):
            made = np.asarray(array[lesson.b, head], np.float64)  # (L, D)
            step = self._projected(role, made, lesson.b, head, rows, names, spoken)
            if step is not None:
                yield step

    def _projected(
        self, role: str, made: Array, b: int, head: int, rows: Array, names: list[str], spoken: int
    ) -> Step | None:
        weights = getattr(self.made.projections, role)
        bias = getattr(self.made.projections, f"{role}_bias")
        width = made.shape[1]
        own = slice(head * width, (head + 1) * width)
        w = np.asarray(weights[own], np.float64)  # (D, E)
        x = self.states[role][b]
        plus = None if bias is None else np.asarray(bias[own], np.float64)
        if x.shape[1] != w.shape[1] or len(x) != len(made) or not _gives(x, w, plus, made):
            return None
        i = rows[spoken]
        lines = [
            f"{names[spoken]} [{d}]: {_product(x[i], w[d], plus, d)} = {number(made[i, d])}"
            for d in range(min(width, CHANNELS))
        ]
        if width > CHANNELS:
            lines.append(f"… and {width - CHANNELS} more channels alike")
        names_of = {"query": "queries", "key": "keys", "value": "values"}
        table = _table(made[rows], names)
        return Step(0, names_of[role], f"X·W_{role[0].upper()}ᵀ", WHAT[role], table, lines)

    def after(self, lesson: Lesson) -> Step | None:
        """Return how the outputs of all heads become the layer's; None where nothing does."""
        weights, bias = self.made.projections.output, self.made.projections.output_bias
        if weights is None:
            return None
        made = self.made
        heads = made.concat[None] if made.concat.ndim == 2 else made.concat
        x, right = np.asarray(heads[lesson.b], np.float64), made.projected[lesson.b]
        w = np.asarray(weights, np.float64)
        plus = None if bias is None else np.asarray(bias, np.float64)
        if not _gives(x, w, plus, np.asarray(right, np.float64)):
            return None
        lines = []
        for r in lesson.worked:
            i = lesson.rows[r]
            lines += [
                f"{lesson.q_names[r]} [{d}]: {_product(x[i], w[d], plus, d)}"
                f" = {number(float(right[i, d]))}"
                for d in range(min(len(w), CHANNELS))
            ]
        if len(w) > CHANNELS:
            lines.append(f"… and {len(w) - CHANNELS} more channels alike")
        table = _table(x[lesson.rows], lesson.q_names)
        return Step(
            0, "projected", "concat·W_Oᵀ", "mixes the heads, here side by side", table, lines
        )


def _gives(x: Array, w: Array, bias: Array | None, made: Array) -> bool:
    """Whether a product and a bias alone give what is there."""
    with np.errstate(all="ignore"):
        found = x @ w.T + (0 if bias is None else bias)
        size = float(np.abs(made).max(initial=0))
        return found.shape == made.shape and np.allclose(found, made, RTOL, RTOL * size)


def _product(x: Array, w: Array, bias: Array | None, d: int) -> str:
    terms = [f"{given(a)}×{given(b)}" for a, b in zip(x, w, strict=True)]
    return summed(terms) + ("" if bias is None else f" + {bracket(number(bias[d]))}")


def _table(rows: Array, names: list[str]) -> Table:
    return Table(
        title="", columns=[Column(str(d)) for d in range(rows.shape[1])], rows=rows.tolist(),
        labels=names, matrix=True, things="channels",
    )  # fmt: skip
