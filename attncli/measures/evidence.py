"""What statistics are made from, and all statistics of one attention by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from attncli.attention.problem import Problem
from attncli.attention.rows import Rows
from attncli.measures.statistic import STATISTICS, Statistic, Summaries, of_head, summarize
from attncli.resources import Progress, stages

if TYPE_CHECKING:
    from attncli.attention.gradients import WeightSums
    from attncli.measures.sample import Sample
    from attncli.measures.sweep import Sweep

Array = np.ndarray[Any, np.dtype[Any]]


E = TypeVar("E", Rows, "WeightSums")

TOGETHER = 1 << 14  # rows up to which calls of NumPy cost more than what they do


def _of_all(some: Mapping[str, Array], at: slice) -> dict[str, Array]:
    """Return some batch elements of each."""
    return {name: one[at] for name, one in some.items()}


def _of_each(sums: E, at: slice) -> E:
    """Return some batch elements of all sums."""
    return type(sums)(**_of_all(vars(sums), at))


def _is_plain(one: Statistic) -> bool:
    """Whether it is summed up over the rows with a choice, and without its spread."""
    return one.over == "chosen" and not one.spread


def told(*files: ModuleType) -> tuple[str, ...]:
    """Return the names of the statistics of these files, in the order of reports."""
    return tuple(
        one.name
        for file in files
        for one in STATISTICS.values()
        if one.formula.__module__ == file.__name__ and not one.inner
    )


def files() -> tuple[ModuleType, ...]:
    """Return where statistics of attention stand, in the order of reports."""
    from attncli.measures import layer, outputs, rows, sample, sweep

    return rows, sweep, sample, outputs, layer


def every_statistic() -> tuple[Statistic, ...]:
    """Return all statistics of attention, in the order of reports, and those that are not told."""
    every = told(*files())
    inner = (one for one in STATISTICS.values() if one.inner)
    return (*(STATISTICS[name] for name in every), *inner)


def words_of(
    queries: Sequence[Sequence[str]] | None, keys: Sequence[Sequence[str]] | None, batch: int
) -> tuple[Array, Array] | None:
    """Return numbers that tell tokens apart, of queries ``(B, Lq)`` and of keys ``(B, Lk)``.

    A list of tokens each batch element, or one for all. None where some are not known.
    """
    if not queries or not keys:
        return None
    number: dict[str, int] = {}
    numbered = [
        np.array(
            [[number.setdefault(token, len(number)) for token in one] for one in some], np.int32
        )
        for some in (queries, keys)
    ]
    query, key = (np.broadcast_to(some, (batch, some.shape[-1])) for some in numbered)
    return query, key


@dataclass(frozen=True, eq=False)
class Evidence:
    """What is known of one run, canonical; what a formula asks for is made then, and once.

    ``sums``: the running sums as the engine made them, sink included. For what needs them: ``lse``
    ``(B, H, Lq)``, sink included; ``output`` ``(B, H, Lq, Dv)``; ``norms``: the gradients' (see
    ``gradients.row_norms``); ``floor`` ``(B, H)``: the ‖dS‖ below which a gradient vanishes;
    ``added`` ``(B, H, Lq)``: the norm of what a head adds to the output of its layer; ``words``:
    numbers that tell the tokens of queries ``(B, Lq)`` and keys ``(B, Lk)`` apart (``words_of``);
    ``weight_sums``: what an engine has summed of the sweep by the way.
    """

    problem: Problem
    sums: Rows
    lse: Array | None = None
    output: Array | None = None
    norms: Mapping[str, Array] = field(default_factory=dict)
    floor: Array | None = None
    added: Array | None = None
    words: tuple[Array, Array] | None = None
    weight_sums: WeightSums | None = None
    seed: int = 0
    threads: int | None = None
    progress: Progress | None = None
    _made: dict[str, Array] = field(default_factory=dict, init=False)
    _summed: dict[str, Mapping[str, Array]] = field(default_factory=dict, init=False)

    @cached_property
    def rows(self) -> Rows:
        """The running sums in float64."""
        return self.sums.astype(np.float64)

    @property
    def scored(self) -> Rows:
        """The same, of what depends on the scores themselves."""
        assert self.problem.scored, "nothing says the scores of this run"
        return self.rows

    @cached_property
    def real(self) -> Array:
        """Which rows are no padding, ``(B, H, Lq)``."""
        return np.broadcast_to(self.problem.real_rows[:, None], self.sums.n.shape)

    @cached_property
    def chosen(self) -> Array:
        """Which of them have a choice to make: at least two visible keys, ``(B, H, Lq)``."""
        return np.asarray(self.real & (self.sums.n >= 2))

    @cached_property
    def keys(self) -> Array:
        """Which keys are no padding, ``(B, G, Lk)``."""
        p = self.problem
        real = ~p.mask.padding()
        return np.broadcast_to(real[:, None], (p.batch, p.kv_heads, p.keys))

    @cached_property
    def first(self) -> Array:
        """The logit of the first key that is no padding, ``(B, H, Lq)``; −∞ where it is hidden."""
        from attncli.measures.cells import weights_at

        p, found, lse = self.problem, self.rows.first, self.rows.lse
        start = self.keys.argmax(-1) if p.keys else np.zeros((0, 0))
        if not start.any():
            return found
        found, rows = found.copy(), np.arange(p.queries)
        for b, h in np.ndindex(p.batch, p.heads):
            if j := int(start[b, p.group(h)]):
                weight = weights_at(p, b, h, lse[b, h], rows, np.full_like(rows, j))
                found[b, h] = np.log(weight) + lse[b, h]
        return found

    @cached_property
    def _stages(self) -> Iterator[Progress | None]:
        return stages(self.progress, (1, 1))  # the sweep and the sample, if both are asked for

    @cached_property
    def sweep(self) -> Sweep:
        """What a second pass over all visible cells finds."""
        from attncli.measures.sweep import sweep

        assert self.lse is not None
        return sweep(
            self.problem, np.asarray(self.lse, np.float64), self.chosen, words=self.words,
            sums=self.weight_sums, threads=self.threads, progress=next(self._stages),
        )  # fmt: skip

    @property
    def placed(self) -> Sweep:
        """The same, of what depends on the positions of queries."""
        return self.sweep

    @property
    def offsets(self) -> Array:
        """The position of query 0 among the keys, ``(B,)``; 0 where nothing says it."""
        return np.asarray(self.problem.mask.positions() or (0,) * self.problem.batch)

    @property
    def repeats(self) -> Sweep:
        """The same, of what depends on the tokens."""
        assert self.words is not None, "nothing says the tokens of this run"
        return self.sweep

    @cached_property
    def repeated(self) -> Array:
        """Which rows with a choice see another occurrence of their token, ``(B, H, Lq)``."""
        return np.asarray(self.chosen & (self.repeats.occurrences[..., 0] > 0))

    @cached_property
    def followed(self) -> Array:
        """Which of them see what came after an earlier occurrence, ``(B, H, Lq)``."""
        return np.asarray(self.chosen & (self.repeats.occurrences[..., 1] > 0))

    def of_batches(self, at: slice, problem: Problem) -> Evidence:
        """Return what is known of some batch elements, ``problem``; what was made stays made."""

        def some(one: Any) -> Any:
            return one if one is None else one[at]

        part = replace(
            self, problem=problem, sums=_of_each(self.sums, at), lse=some(self.lse),
            output=some(self.output), norms=_of_all(self.norms, at), floor=some(self.floor),
            added=some(self.added), words=self.words and (self.words[0][at], self.words[1][at]),
            weight_sums=self.weight_sums and _of_each(self.weight_sums, at), progress=None,
        )  # fmt: skip
        part._made.update(_of_all(self._made, at))
        part._summed.update({name: _of_all(found, at) for name, found in self._summed.items()})
        if "sample" in vars(self):
            rows = int(part.chosen.any(1).sum())
            vars(part)["sample"] = self.sample.of_batches(at, rows)
        return part

    def known(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return those of the statistics of which this run says enough."""
        names = tuple(names)
        missing = self.missing(names)
        return tuple(name for name in names if name not in missing)

    def missing(self, names: Iterable[str]) -> dict[str, str]:
        """Return the others by name, and what each would need that this run does not say."""
        said = {
            "repeats": self.words, "repeated": self.words, "norms": self.norms or None,
            "floor": self.floor, "added": self.added, "output": self.output, "sweep": self.lse,
            "placed": self.lse, "scored": self.problem.scored or None,
        }  # fmt: skip
        unsaid = {need for need, what in said.items() if what is None}

        def lacks(name: str) -> str | None:
            for need in STATISTICS[name].needs:
                if need in unsaid:
                    return need
                inner = need in STATISTICS and not hasattr(type(self), need)
                if inner and (lack := lacks(need)):
                    return lack
            return None

        return {name: lack for name in names if (lack := lacks(name))}

    @cached_property
    def sample(self) -> Sample:
        """What whole rows of weights say."""
        from attncli.measures.sample import sample

        return sample(
            self.problem, self.chosen, seed=self.seed, threads=self.threads,
            progress=next(self._stages),
        )  # fmt: skip

    @property
    def distances(self) -> Array:
        """The Jensen–Shannon distance of every two heads, ``(B, H, H)``."""
        return self.sample.distances

    def values(self, name: str) -> Array:
        """Return a statistic: ``(B, H, Lq)`` of rows, ``(B, G, Lk)`` of keys, ``(B, H)`` of heads.

        KeyError for a name that is none, AssertionError where what it needs was not given.
        """
        if name not in self._made:
            one = STATISTICS[name]
            with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
                spare = {name: self._needed(name) for name in self.known(one.spare)}
                self._made[name] = one.formula(*map(self._needed, one.needs), **spare)
        return self._made[name]

    def _needed(self, name: str) -> Any:
        if name in STATISTICS and not hasattr(type(self), name):
            return self.values(name)
        value = getattr(self, name)
        assert value is not None or name == "threads", f"nothing says the {name} of this run"
        return value

    def summary(self, name: str) -> Mapping[str, Array] | Array:
        """Return a statistic of heads: quantiles over rows or keys, or one number, ``(B, H)``."""
        one, values = STATISTICS[name], self.values(name)
        if one.of == "head":
            return values
        if name not in self._summed:
            found = summarize(values, getattr(self, one.over), one.spread)
            if one.of == "key":
                group = [self.problem.group(h) for h in range(self.problem.heads)]
                found = {quantile: of_groups[:, group] for quantile, of_groups in found.items()}
            self._summed[name] = found
        return self._summed[name]

    def summaries(self, names: Iterable[str]) -> Summaries:
        """Return the statistics of heads by name."""
        names = tuple(names)
        self._sum_up([STATISTICS[name] for name in names if name not in self._summed])
        return {name: self.summary(name) for name in names}

    def _sum_up(self, some: Iterable[Statistic]) -> None:
        """Sum up those of small problems that are over the same rows, all at once."""
        alike = [one.name for one in some if one.of == "row" and _is_plain(one)]
        if len(alike) < 2 or self.chosen.size > TOGETHER:
            return
        b, *others = self.chosen.shape
        values = np.stack([self.values(name) for name in alike])  # (S, B, H, Lq)
        shape = len(alike) * b, *others
        chosen = np.broadcast_to(self.chosen, values.shape).reshape(shape)
        found = summarize(values.reshape(shape), chosen)
        for at, name in enumerate(alike):
            part = slice(at * b, (at + 1) * b)
            self._summed[name] = {quantile: one[part] for quantile, one in found.items()}

    def row_values(self, names: Iterable[str]) -> dict[str, Array]:
        """Return by name, ``(B, H, Lq)``, those of the statistics that are of every row."""
        return {
            name: self.values(name)
            for name in names
            if STATISTICS[name].of == "row" and "sample" not in STATISTICS[name].needs
        }

    def judged(self, found: Summaries, b: int, h: int) -> dict[str, Any]:
        """Return what ``policy.judge`` takes of one head: what is told, and what is judged only."""
        inner = self.known(one.name for one in STATISTICS.values() if one.inner)
        return of_head(found | {name: self.values(name) for name in inner}, b, h)
