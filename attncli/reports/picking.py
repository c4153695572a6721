"""Which heads are shown, in what order, and a map of all: ``--filter``, ``--sort``, ``--map``.

Their names are those of the registry of statistics, with a quantile behind (``entropy_p05``) or
the median, and ``layer``, ``batch``, ``head``, ``verdict``.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from attncli.errors import InputError, listed, nearest
from attncli.measures.composition import KINDS
from attncli.measures.policy import LEVELS
from attncli.measures.statistic import Statistic
from attncli.reports.blocks import Column, Records, Table
from attncli.reports.heads import Shown

Head = TypeVar("Head")
#: What is known of a head by name: its statistics (see ``statistic.of_head``) and its place.
Facts = Mapping[str, Any]
Test = Callable[[Facts], Any]

VERDICT = "verdict"
#: What is no number, and the words that it may be, in their order.
WORDS: Mapping[str, Sequence[str]] = {VERDICT: LEVELS, "kind": KINDS}
COMPARED: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}  # fmt: skip
#: Signs outside of quotes bind less than comparisons here, as people write them.
SIGNS = re.compile(r"""(?P<quoted>'[^']*'|"[^"]*")|(?P<and>&&?)|(?P<or>\|\|?)|(?P<not>~)""")
EXAMPLES = {
    VERDICT: "as in --filter 'entropy<0.5 & verdict!=\"ok\"'",
    "kind": "as in --filter 'score>0.1 & kind==\"K\"'",
}


def is_expression(text: str) -> bool:
    """Whether a ``--filter`` compares something: globs of tensors' names do not."""
    return any(sign in text for sign in "<>=")


@dataclass(frozen=True)
class Name:
    """A statistic at one of its quantiles, or where a head stands."""

    name: str
    quantile: str = ""

    def of(self, facts: Facts) -> Any:
        """Return the number, NaN where it is not known."""
        value = facts.get(self.name)
        if isinstance(value, Mapping):
            value = value.get(self.quantile)
        return math.nan if value is None else value


def name_of(column: Shown, registry: Mapping[str, Statistic]) -> Name:
    """Return the statistic that a column shows, at its quantile if it has such."""
    return Name(column.name, column.quantile if registry[column.name].quantiles else "")


@dataclass(frozen=True)
class Picking:
    """What was asked of the heads; ``registry`` are the statistics that they have."""

    registry: Mapping[str, Statistic]
    tests: tuple[Test, ...] = ()
    sort: Name | None = None
    ascending: bool = False
    map: Name | None = None
    named: tuple[Name, ...] = ()

    def pick(self, heads: Sequence[Head], facts: Callable[[Head], Facts]) -> list[Head]:
        """Return the heads that pass every test, in the order that was asked for."""
        some = [head for head in heads if all(test(facts(head)) for test in self.tests)]
        if self.sort is None:
            return some
        key = self.sort
        known = [head for head in some if _rank(key, facts(head)) == _rank(key, facts(head))]
        unknown = [head for head in some if _rank(key, facts(head)) != _rank(key, facts(head))]
        known.sort(key=lambda head: _rank(key, facts(head)), reverse=not self.ascending)
        return [*known, *unknown]

    def shown(self, columns: Sequence[Shown]) -> tuple[Shown, ...]:
        """Return the columns of a table, and one for each name that was asked about."""
        there = {(one.name, one.quantile) for one in columns if not one.is_range}
        more = [
            Shown(one.name, one.quantile or "median", keep=9)
            for one in dict.fromkeys(self.named)
            if one.name in self.registry and (one.name, one.quantile or "median") not in there
        ]
        return (*columns, *more)

    @property
    def words(self) -> str:
        """What the heads are sorted by, for the line under a table."""
        if self.sort is None:
            return ""
        text = self.sort.name + (f" {self.sort.quantile}" if self.sort.quantile else "")
        return f"{'smallest' if self.ascending else 'largest'} {text} first"


def _rank(key: Name, facts: Facts) -> Any:
    value = key.of(facts)
    return WORDS[key.name].index(value) if key.name in WORDS else value


def picking(
    registry: Mapping[str, Statistic], places: Sequence[str], *,
    filters: Collection[str] = (), sort: str | None = None, map: str | None = None,
    others: Collection[str] = (), word: str = VERDICT,
) -> Picking:  # fmt: skip
    """Return what was asked for. ``places`` name where a head stands, such as layer and head.

    ``word`` is what else is known of it, of WORDS. ``others`` are what else --sort knows, in files
    without heads. Raises InputError for a name that no head has, and for what is no expression.
    """
    reading = _Reading(registry, places, word)
    tests = tuple(reading.test(text) for text in filters)
    column = None if sort is None else reading.name(sort.removeprefix("-"), "--sort", others)
    mapped = None if map is None else reading.name(map, "--map")
    if column:
        reading.named.append(column)
    ascending = sort is not None and sort.startswith("-")
    return Picking(registry, tests, column, ascending, mapped, tuple(reading.named))


class _Reading:
    """Reads names and expressions about heads."""

    def __init__(
        self, registry: Mapping[str, Statistic], places: Sequence[str], word: str
    ) -> None:  # fmt: skip
        self.registry, self.places, self.word = registry, (*places, word), word
        self.example = EXAMPLES[word]
        self.named: list[Name] = []

    def name(self, text: str, option: str, others: Collection[str] = ()) -> Name:
        """Return what ``entropy``, ``entropy_p05``, ``entropy.p05`` or ``layer`` name."""
        if option != "--map" and text in self.places:
            return Name(text)
        if text in self.registry:
            return Name(text, "median" if self.registry[text].quantiles else "")
        for sign in "._":
            name, _, quantile = text.rpartition(sign)
            if name in self.registry and quantile in self.registry[name].quantiles:
                return Name(name, quantile)
        names = [*self.registry, *(self.places if option != "--map" else ())]
        likely = nearest(text, [*names, *others], "")
        raise InputError(
            f"unknown name '{text}' in {option}",
            likely or f"names are such as {listed(names, 6)}",
        )

    def test(self, text: str) -> Test:
        """Return whether a head passes an expression such as ``entropy<0.5 & layer>3``."""
        if not is_expression(text):
            raise InputError(f"--filter '{text}' compares nothing", self.example)

        def sign(found: re.Match[str]) -> str:
            return found["quoted"] or f" {found.lastgroup} "

        try:
            with warnings.catch_warnings(action="ignore"):  # of Python's about '1or 2'
                tree = ast.parse(SIGNS.sub(sign, text).strip(), mode="eval")
            return self._part(tree.body, text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            single = re.search(r"(?<![<>=!])=(?!=)", text)
            equal = f"equal is ==, {self.example}" if single else self.example
            raise InputError(f"--filter '{text}' cannot be read", equal) from None

    def _fail(self, text: str, what: str) -> NoReturn:
        raise InputError(f"--filter '{text}': {what}", self.example)

    def _part(self, node: ast.expr, text: str) -> Test:
        if isinstance(node, ast.BoolOp):
            parts = [self._part(value, text) for value in node.values]
            join = all if isinstance(node.op, ast.And) else any
            return lambda facts: join(part(facts) for part in parts)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            part = self._part(node.operand, text)
            return lambda facts: not part(facts)
        if isinstance(node, ast.Compare):
            return self._compared(node, text)
        self._fail(text, f"'{ast.unparse(node)}' compares nothing")

    def _compared(self, node: ast.Compare, text: str) -> Test:
        sides = [node.left, *node.comparators]
        values = [self._value(side, text) for side in sides]
        words = [v.name in WORDS if isinstance(v, Name) else isinstance(v, str) for v in values]
        signs = [COMPARED.get(type(sign)) for sign in node.ops]
        if None in signs:
            self._fail(text, "it may compare with <, <=, >, >=, == and != alone")
        if any(words):
            what = next((v.name for v in values if isinstance(v, Name)), VERDICT)
            known = WORDS.get(what, ())
            equality = all(isinstance(sign, ast.Eq | ast.NotEq) for sign in node.ops)
            if not (all(words) and equality):
                known = WORDS[self.word]
                self._fail(text, f"a {self.word} is == or != one of {', '.join(known)}")
            for word in values:
                if isinstance(word, str) and word not in known:
                    self._fail(text, f"no {what} is '{word}': it is one of {', '.join(known)}")

        def test(facts: Facts) -> bool:
            found = [v.of(facts) if isinstance(v, Name) else v for v in values]
            return all(
                sign is not None and sign(found[n], found[n + 1]) for n, sign in enumerate(signs)
            )

        return test

    def _value(self, node: ast.expr, text: str) -> Name | float | str:
        negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        inner = node.operand if isinstance(node, ast.UnaryOp) and negative else node
        if isinstance(inner, ast.Constant) and type(inner.value) in (int, float):
            return -inner.value if negative else inner.value  # type: ignore[operator,return-value]
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.Name | ast.Attribute):
            name = self.name(ast.unparse(node), "--filter")
            self.named.append(name)
            return name
        self._fail(text, f"'{ast.unparse(node)}' is no number and no name")


# -- the map ----------------------------------------------------------------------------------


def map_title(heading: str, quantile: str, unit: str) -> str:
    """Return what stands over the map of a statistic."""
    return " ".join(filter(None, (heading, quantile, f"({unit})" if unit else "")))


@dataclass(frozen=True)
class Mapped:
    """A statistic of all heads as a matrix: a row a layer (or a batch element), a column a head."""

    name: Name
    registry: Mapping[str, Statistic]
    rows: str
    labels: Sequence[str]
    values: Sequence[Sequence[float | None]]

    @property
    def table(self) -> Table:
        """Numbers on shades, from the smallest to the largest."""
        one = self.registry[self.name.name]
        known = [v for row in self.values for v in row if v is not None and math.isfinite(v)]
        low, high = min(known, default=0.0), max(known, default=0.0)
        spread = high - low or 1.0
        shades = [
            [0.0 if v is None else min(max((v - low) / spread, 0), 1) ** 2 for v in row]
            for row in self.values
        ]
        heads = max(map(len, self.values), default=0)
        return Table(
            title=map_title(one.heading, self.name.quantile, one.unit),
            columns=[Column(str(h), "weight") for h in range(heads)],
            rows=[[*row, *[None] * (heads - len(row))] for row in self.values],
            labels=[f"{self.rows} {label}" for label in self.labels],
            matrix=True, things="heads", shades=shades,
            span=(low, high) if low < high else None,
            notes=[f"a row a {self.rows}, a column a head; shades from {low:.4g} to {high:.4g}"],
        )  # fmt: skip

    @property
    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        quantile = {"quantile": self.name.quantile} if self.name.quantile else {}
        return {
            "statistic": self.name.name, **quantile, "rows": self.rows,
            "labels": list(self.labels), "values": [list(row) for row in self.values],
        }  # fmt: skip

    @property
    def records(self) -> Records:
        """As CSV has it: a row a layer (or a batch element), a column a head."""
        heads = max(map(len, self.values), default=0)
        rows = [
            [label, *row, *[None] * (heads - len(row))]
            for label, row in zip(self.labels, self.values, strict=True)
        ]
        return Records([self.rows, *map(str, range(heads))], rows)


def mapped(
    asked: Picking, rows: str, labels: Sequence[str], cells: Mapping[tuple[int, int], Facts]
) -> Mapped | None:
    """Return the map that was asked for.

    cells: what is known of the heads to show, by row and head. A row without any is left out, and
    so are heads after the last one shown.
    """
    if asked.map is None:
        return None
    kept = sorted({row for row, _ in cells})
    heads = 1 + max((head for _, head in cells), default=-1)
    values = [
        [_known(asked.map.of(cells[r, h])) if (r, h) in cells else None for h in range(heads)]
        for r in kept
    ]
    return Mapped(asked.map, asked.registry, rows, [labels[r] for r in kept], values)


def _known(value: float) -> float | None:
    return None if value != value else value
