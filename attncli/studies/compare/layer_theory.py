"""How a layer's output may have been made: the attention of all heads, and what follows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np

from attncli.attention.problem import Problem
from attncli.errors import AttnError
from attncli.measures import budget
from attncli.measures.budget import Block, eps
from attncli.models.stages import Way, linear
from attncli.studies.compare.recipe import Out, Recipe, as_kept
from attncli.studies.compare.theory import CELLS, Candidate, Plain, Theory, Unit

Array = np.ndarray[Any, np.dtype[Any]]

#: What follows the attention done otherwise; None where it cannot be.
OutChange = Callable[[Out, Recipe], "Out | None"]


@dataclass(frozen=True, eq=False)
class LayerTheory(Theory):
    """The attention of a layer by heads. Its plain implementations project for themselves.

    ``outs`` change what follows the attention.
    """

    recipe: Recipe = field(kw_only=True)
    outs: tuple[OutChange, ...] = field(default=(), kw_only=True)

    @classmethod
    def of(cls, recipe: Recipe) -> LayerTheory:
        """Return that the layer was computed as it is meant."""
        return cls(recipe.exact.problem, recipe=recipe)

    @cached_property
    def out(self) -> Out | None:
        """What follows the attention; None where the changes do not go with the layer."""
        out: Out | None = self.recipe.out
        for change in self.outs:
            out = None if out is None else change(out, self.recipe)
        return out

    @cached_property
    def projected(self) -> Projected:
        """The same, by the output of the whole layer."""
        return Projected(**{one.name: getattr(self, one.name) for one in fields(self)})

    def again(self, recipe: Recipe) -> LayerTheory | None:
        """Return the theory of another recipe, all else as it is; None where it cannot be."""
        try:
            problem = _changed(self, recipe.exact.problem)
        except (AttnError, ValueError):  # shapes that are not the layer's
            return None
        return None if problem is None else replace(self, problem=problem, recipe=recipe)

    def parts(self, candidate: Candidate) -> list[tuple[Theory, Candidate]]:
        """Return the attention, judged by heads, and the output of all."""
        split = (
            (self, {n: a for n, a in candidate.stages.items() if n != "output"}),
            (self.projected, {n: a for n, a in candidate.stages.items() if n == "output"}),
        )
        return [(one, replace(candidate, stages=stages)) for one, stages in split if stages]

    def alike(self, other: Theory) -> bool:
        """Whether what follows the attention is the same, or said to be."""
        if not isinstance(other, LayerTheory):
            return False
        if self.words and self.words == other.words:
            return True
        one, two = self.out, other.out
        if one is None or two is None or self.outs != other.outs:
            return False
        pairs = ((one.weight, two.weight), (one.bias, two.bias))
        return all(
            a is b or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs
        )

    def plains(self, own: np.dtype[Any]) -> Sequence[Plain]:
        """Return plain implementations of the attention in ``own``, from hidden states on."""
        return [partial(self.plain, given, way) for given, way, _ in self._givens(own)]

    def gate(self, way: Way | None, own: np.dtype[Any] | None) -> Array | None:
        """Return what the heads' outputs are multiplied by, ``(B, H, L, Dv or 1)``."""
        recipe = self.recipe
        posed = recipe.exact if way is None or own is None else recipe.plain(own, way)
        return posed.made.gate

    def _givens(self, own: np.dtype[Any]) -> list[tuple[Problem, budget.Way, Way]]:
        """Return problems that were projected in ``own``, and how plain ones go about them."""
        found = []
        for n, way in enumerate(budget.ways(self.problem, own)):
            of = Way(way.low, n or None) if way.low is None else Way(way.low)
            problem = _changed(self, self.recipe.plain(own, of).problem)
            p = self.problem if problem is None else problem
            kept = ["mask", "scale", "softcap", "sink"]
            if self.recipe.layer.disentangled:  # the plain one's mask has its own terms
                kept.remove("mask")
            mine = {name: getattr(self.problem, name) for name in kept}
            found.append((budget.as_own(replace(p, **mine), own), way, of))
        return found


def _changed(theory: Theory, problem: Problem) -> Problem | None:
    """Return a problem changed as the theory's own was."""
    found: Problem | None = problem
    for change in theory.changes:
        found = None if found is None else change(found)
    return found


@dataclass(frozen=True, eq=False)
class Projected(LayerTheory):
    """What a layer gives: all heads together, ``(B, 1, L, Eo)``."""

    whole: ClassVar[bool] = True

    def parts(self, candidate: Candidate) -> list[tuple[Theory, Candidate]]:
        """Return itself."""
        return [(self, candidate)]

    def units(self, units: Sequence[Unit] | None) -> Sequence[Unit]:
        """Return units without heads: the rows of any."""
        p = self.problem
        if units is None:
            step = max(1, min(p.queries, CELLS // max(p.keys, 1)))
            return [
                Unit(b, 0, np.arange(i, min(i + step, p.queries)))
                for b in range(p.batch)
                for i in range(0, p.queries, step)
            ]
        by_batch: dict[int, list[Array]] = {}
        for unit in units:
            by_batch.setdefault(unit.b, []).append(unit.rows)
        return [Unit(b, 0, np.unique(np.concatenate(rows))) for b, rows in by_batch.items()]

    def block(
        self,
        b: int,
        h: int,
        rows: Array,
        own: np.dtype[Any] | None,
        keys: slice,
        matrices: bool = False,
    ) -> Block:
        """Return the output, and with ``own`` its band: the heads' carried through |W_o|.

        And one rounding of the projection's own sum and of the result. In a half type roundings
        are many and independent: their squares add.
        """
        out = self.out
        assert out is not None

        gate = self.gate(None, None)

        def of(head: int, at: Array) -> Array:
            one = super(Projected, self).block(b, head, at, own, self.seen(b, head, at))
            right = one.arrays["output"]
            band = one.bands["output"] if own else np.zeros_like(right)
            if gate is not None:
                right, band = right * gate[b, head, at], band * gate[b, head, at]
                band = band + (eps(own) * np.abs(right) if own else 0)
            return np.stack([right, band], -1)

        with np.errstate(all="ignore"):
            both = self._concat(rows, of, out)
            right, band = both[..., 0], both[..., 1]
            if own is not None and out.weight is not None:
                sums = eps(own if own.itemsize > 4 else np.float32) * (np.abs(right) @ out.reach)
                if own.itemsize == 2:
                    band = np.sqrt((band**2 + (eps(own) * right) ** 2) @ out.reach**2) + sums
                else:
                    band = band @ out.reach + sums
            if out.weight is not None:
                right = linear(right, out.weight, out.bias, right.dtype)
                if own is not None:
                    band = band + eps(own) * np.abs(right)
            for end in out.ends:
                before, right = right, end(self.recipe, b, rows, right)
                if own is not None:
                    band = band * _growth(before, right) + 2 * eps(own) * np.abs(right)
        return Block({"output": right}, {"output": band} if own is not None else {})

    def plains(self, own: np.dtype[Any]) -> Sequence[Plain]:
        """Return plain implementations of the whole layer in ``own``."""
        return [partial(self._plain, given, way, of) for given, way, of in self._givens(own)]

    def _plain(
        self, given: Problem, way: budget.Way, of: Way, b: int, h: int, rows: Array, keys: slice
    ) -> dict[str, Array]:
        out, own = self.out, given.result_dtype
        assert out is not None

        gate = self.gate(of, own)

        def one(head: int, at: Array) -> Array:
            made = self.plain(given, way, b, head, at, self.seen(b, head, at))["output"]
            return made if gate is None else (made * gate[b, head, at]).astype(made.dtype)

        with np.errstate(all="ignore"):
            found = self._concat(rows, one, out).astype(given.dtype)
            if out.weight is not None:
                weight = as_kept(out.weight, own)
                assert weight is not None
                found = linear(found, weight, as_kept(out.bias, own), given.dtype, of)
            for end in out.ends:
                found = end(self.recipe, b, rows, found.astype(own).astype(given.dtype))
            return {"output": found.astype(own)}

    def _concat(self, rows: Array, of: Callable[[int, Array], Array], out: Out) -> Array:
        """Return heads side by side, ``(n, H·Dv, …)``; ``of`` gives some rows of one."""
        heads = self.problem.heads
        if not out.untransposed:
            return np.concatenate([of(h, rows) for h in range(heads)], 1)
        lies = rows[:, None] * heads + np.arange(heads)  # (n, H): which row of (H·L, Dv)
        head, row = np.divmod(lies, self.problem.queries)
        parts: dict[int, Array] = {}
        made: Array | None = None
        for h in np.unique(head).tolist():
            some, back = np.unique(row[head == h], return_inverse=True)
            parts[h] = of(h, some)[back]
            if made is None:
                made = np.empty((*head.shape, *parts[h].shape[1:]), parts[h].dtype)
            made[head == h] = parts[h]
        assert made is not None
        return made.reshape(len(rows), -1, *made.shape[3:])


def _growth(before: Array, after: Array) -> Array:
    """Return by how much the numbers of a row grew, 1 at least, ``(n, 1)``."""
    sizes = (np.abs(x).max(-1, keepdims=True, initial=0) for x in (after, before))
    growth = np.divide(*sizes)
    return np.where(np.isfinite(growth), np.maximum(growth, 1), 1)
