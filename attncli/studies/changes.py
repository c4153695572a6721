"""Two runs: what became of each head between them; of each layer O(heads) numbers stay."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple, Self

import numpy as np

from attncli.attention.problem import Problem
from attncli.attention.view import Labels
from attncli.errors import InputError, counted, listed, series
from attncli.measures import changes as measures
from attncli.measures.policy import POLICY, Rule, Verdict
from attncli.measures.pooled import folded
from attncli.measures.roles import Role
from attncli.measures.statistic import Summaries, of_head, summarize
from attncli.resources import Progress, stages
from attncli.studies.captures import Spool
from attncli.studies.health import Examination
from attncli.studies.many import Head, LayerHealth, Many, heads_of, labels_of, new_name

Array = np.ndarray[Any, np.dtype[Any]]

#: What is a number of a head or a place, so that a difference of two means nothing.
PLACES = frozenset({"similar_head", "sink_key", "top_offset"})
SIZES = (
    ("batch element", None), ("head", None), ("query", "queries"), ("key", None),
    ("channel of values", "channels of values"),
)  # fmt: skip


class Side(NamedTuple):
    """A problem before or after, its labels, and what was noted when it was read."""

    problem: Problem
    labels: Labels = Labels()
    notes: Collection[str] = ()


@dataclass(frozen=True, eq=False)
class State:
    """What is known of a head before or after: its statistics by name, its verdict, its roles."""

    statistics: Mapping[str, Any]
    verdict: Verdict
    roles: tuple[Role, ...] = ()


@dataclass(frozen=True, eq=False)
class Change:
    """What became of one head; ``found`` says how much, by the names of ``measures.changes``.

    ``label`` is layer.head in short, ``layer`` the whole name, ``index`` its number, ``at`` its
    place among all; ``batch`` None for all batch elements together.
    """

    label: str
    layer: str
    index: int
    at: int
    batch: int | None
    head: int
    found: Mapping[str, Any]
    before: State
    after: State

    @property
    def verdict(self) -> Verdict:
        """What the policy says of it now."""
        return self.after.verdict

    @property
    def amount(self) -> float:
        """The number by which heads are sorted; NaN where nothing can be said."""
        return float(self.found["change"])

    @cached_property
    def difference(self) -> dict[str, Any]:
        """After less before, of the statistics that are amounts and that both have."""
        was, now = self.before.statistics, self.after.statistics
        return {
            name: {q: _less(now[name][q], was[name][q]) for q in now[name]}
            if isinstance(now[name], Mapping) else _less(now[name], was[name])
            for name in now if name in was and name not in PLACES
        }  # fmt: skip

    @property
    def differing(self) -> list[str]:
        """The statistics that are not the same, by name."""
        return [
            name for name, value in self.difference.items()
            if any(v != 0 for v in _numbers(value) if v == v)
        ]  # fmt: skip

    @property
    def gained(self) -> list[Role]:
        """Roles that it did not have before."""
        return _without(self.after.roles, self.before.roles)

    @property
    def lost(self) -> list[Role]:
        """Roles that it had before."""
        return _without(self.before.roles, self.after.roles)


def _less(now: float, was: float) -> float:
    return 0 if now == was else now - was  # of infinities, too


def _numbers(value: Any) -> Collection[float]:
    return value.values() if isinstance(value, Mapping) else [value]


def _without(roles: Sequence[Role], others: Sequence[Role]) -> list[Role]:
    known = {(role.name, role.token) for role in others}
    return [role for role in roles if (role.name, role.token) not in known]


# -- who belongs to whom ----------------------------------------------------------------------


@dataclass(frozen=True)
class Paired:
    """Which of two lists of names belong together; ``alone`` are those of either side that do not.

    ``by`` says how: name, or number where the names have nothing in common.
    """

    pairs: tuple[tuple[int, int], ...]
    alone: tuple[tuple[str, ...], tuple[str, ...]]
    by: str = "name"


def paired(before: Sequence[str], after: Sequence[str]) -> Paired:
    """Return which names belong together: the same names, else the same short names.

    Two that are the only ones belong together whatever they are called. Raises InputError where
    no two do.
    """
    if len(before) == len(after) == 1:
        return Paired(((0, 0),), ((), ()))
    for by, way in (("name", list), ("number", labels_of)):
        was, now = way(before), way(after)
        if len({*was}) < len(was) or len({*now}) < len(now) or not {*was} & {*now}:
            continue
        at = {name: n for n, name in enumerate(now)}
        pairs = tuple((n, at[name]) for n, name in enumerate(was) if name in at)
        alone = (
            tuple(one for one, name in zip(before, was, strict=True) if name not in at),
            tuple(one for one, name in zip(after, now, strict=True) if name not in {*was}),
        )
        return Paired(pairs, alone, by)
    raise InputError(
        f"no layer of one is in the other: {listed(before, 3)} and {listed(after, 3)}",
        "expected the same names, or the same numbers in them",
    )


# -- two runs ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LayerChange:
    """One problem before and after; ``found`` are statistics of the change by name.

    ``dtypes`` are those of the queries. ``looked`` says of how many rows, of all, the weights were
    compared.
    """

    before: LayerHealth
    after: LayerHealth
    found: Summaries
    looked: tuple[int, int]
    dtypes: tuple[str, str]
    tokens_differ: bool


class Changes:
    """Pairs of problems, one added after the other; of each O(heads) numbers stay.

    ``sources`` say, in errors, what is before and what after. ``among`` are the names of all
    layers; the other arguments are those of `many.Many`.
    """

    def __init__(
        self, *, sources: tuple[str, str] = ("before", "after"), policy: Sequence[Rule] = POLICY,
        seed: int = 0, among: Sequence[str] = (), **how: Any,
    ) -> None:  # fmt: skip
        self.sources, self.seed = sources, seed
        one = partial(Many, policy=policy, seed=seed, among=among, **how)
        self.before, self.after = one(), one()
        self.layers: list[LayerChange] = []

    def add(
        self, name: str, before: Side, after: Side, *, batches: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> LayerChange:  # fmt: skip
        """Examine both and keep what is known of their heads and of what became of them.

        ``batches`` as in `many.Many.add`. Raises InputError where they are not of one size, and
        AttnError for what cannot be run.
        """
        self._demand_alike(name, before.problem, after.problem)
        part = stages(progress, (3, 3, 1))
        was = self.before.examine(before.problem, before.labels, next(part))
        now = self.after.examine(after.problem, after.labels, next(part))
        found, looked = _changed(was, now, self.seed, batches)
        layer = LayerChange(
            self.before.keep(name, was, before.notes, batches=batches),
            self.after.keep(name, now, after.notes, batches=batches),
            found, looked, (before.problem.query.dtype.name, after.problem.query.dtype.name),
            None not in (before.labels.key, after.labels.key)
            and before.labels.key != after.labels.key,
        )  # fmt: skip
        self.layers.append(layer)
        return layer

    def _demand_alike(self, name: str, before: Problem, after: Problem) -> None:
        """Raise InputError unless both have the same heads and rows."""
        sizes = [
            (p.batch, p.heads, p.queries, p.keys, p.value_width) for p in (before, after)
        ]  # fmt: skip
        if sizes[0] == sizes[1]:
            return
        words = [
            series([
                counted(own, *what)
                for own, other, what in zip(*both, SIZES, strict=True) if own != other
            ])
            for both in (sizes, sizes[::-1])
        ]  # fmt: skip
        raise InputError(
            f"{name} has {words[0]} in {self.sources[0]} and {words[1]} in {self.sources[1]}",
            "expected the same text through models of the same shape",
        )

    @property
    def heads(self) -> list[Change]:
        """Every head of every layer, in order."""
        found = []
        for at, one in enumerate(self.layers):
            called = self.before.called(one.before)
            pairs = zip(
                heads_of(one.before, *called, at), heads_of(one.after, *called, at), strict=True
            )
            found += [
                Change(
                    was.name, one.before.name, was.index, at, was.batch, was.head,
                    of_head(one.found, was.row, was.head), _state(was), _state(now),
                )
                for was, now in pairs
            ]  # fmt: skip
        return found


def _state(head: Head) -> State:
    return State(head.statistics, head.verdict, head.roles)


def _changed(
    was: Examination, now: Examination, seed: int, batches: Sequence[int] | None
) -> tuple[Summaries, tuple[int, int]]:
    """Return the statistics of CHANGES by name, ``(1, H)`` or those of ``batches``."""
    sides = was.evidence, now.evidence
    real = sides[0].real & sides[1].real
    chosen = real & (sides[0].chosen | sides[1].chosen)
    before, after = was.result.problem, now.result.problem
    moved = measures.moved(before, after, chosen, seed=seed)
    squares = measures.output_squares(was.result.attended.output, now.result.attended.output, real)
    rows = measures.js(moved)
    looked = ~np.isnan(rows)
    like, apart = measures.like_head(moved), measures.like_distance(moved)
    if batches is not None:
        at = list(batches)
        rows, looked, like, apart = (one[at] for one in (rows, looked, like, apart))
        difference, size = (one[at] for one in squares)
    else:
        rows, looked = folded(rows), folded(looked)
        difference, size = (one.sum(0, keepdims=True) for one in squares)
        same = (like == like[:1]).all(0, keepdims=True)  # in every text
        like = np.where(same, like[:1], -1)
        apart = np.where(like < 0, np.nan, apart.mean(0, keepdims=True))
    js = summarize(rows, looked)
    output = measures.output_change(difference, size)
    found: Summaries = {
        "change": measures.change(js["mean"], output), "js": js, "output_change": output,
        "like_head": like, "like_distance": apart,
    }  # fmt: skip
    return found, (moved.rows, moved.total)


class Waiting:
    """A context: the problems of one run wait in a temporary file for those of another."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._problems: dict[str, Side] = {}
        self._mapped: Mapping[str, Array] | None = None

    def __enter__(self) -> Self:
        stream = tempfile.TemporaryFile()
        self._spool = Spool(self._stack.enter_context(stream))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._problems

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all that was added."""
        return tuple(self._problems)

    @property
    def size(self) -> int:
        """The bytes of the file."""
        return self._spool.size

    def add(self, name: str, problem: Problem, labels: Labels) -> None:
        """Write query, key and value of a problem; a name that was there gets a number behind it.

        Its mask stays in memory.
        """
        name = new_name(name, self._problems)
        kept = {one: getattr(problem, one) for one in ("query", "key", "value")}
        for one, array in kept.items():
            self._spool.add(f"{name}.{one}", array)
        empty: dict[str, Any] = {one: array[:0] for one, array in kept.items()}
        self._problems[name] = Side(replace(problem, **empty, unturned=None), labels)

    def take(self, name: str) -> Side:
        """Return a problem with its tensors mapped. Nothing is added after the first."""
        if self._mapped is None:
            self._mapped = self._spool.arrays()
        mapped: dict[str, Any] = {
            one: self._mapped[f"{name}.{one}"] for one in ("query", "key", "value")
        }
        side = self._problems[name]
        return side._replace(problem=replace(side.problem, **mapped))
