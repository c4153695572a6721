"""Tables of heads: which columns, which heads, what they are called, and why they stand out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from attncli.attention.problem import Problem
from attncli.errors import counted, listed
from attncli.measures.statistic import STATISTICS, Statistic
from attncli.reports.blocks import Block, Column, Gap, sentences
from attncli.reports.selection import excerpt

if TYPE_CHECKING:
    from attncli.measures.policy import Verdict
    from attncli.measures.roles import Role

WHOLE = 40  # heads up to here are all shown
EDGE = 8  # of many heads with nothing to say
WORDS = {"cv": "CV"}  # of quantiles


class Shown(NamedTuple):
    """A column: a statistic at a quantile, or a range: up to ``high``, or to that of ``to``.

    ``sub`` and ``keep`` stand for what the registry says: the quantile or the unit, and ``keep``.
    """

    name: str
    quantile: str = "median"
    high: str = ""
    to: str = ""
    sub: str | None = None
    keep: int | None = None

    @property
    def is_range(self) -> bool:
        """Whether a cell is a pair of numbers."""
        return bool(self.high or self.to)

    def cell(self, own: Mapping[str, Any]) -> Any:
        """Return the cell of a head with these statistics (see ``statistic.of_head``)."""
        low = _known(own.get(self.name), self.quantile)
        if not self.is_range:
            return low
        high = _known(own.get(self.to or self.name), self.high or self.quantile)
        return None if low is None or high is None else (low, high)

    def column(
        self, registry: Mapping[str, Statistic], plain: bool, continues: bool, units: bool
    ) -> Column:
        """Return the column: ``plain`` has no quantile and no unit below a title.

        With ``units`` the unit stands behind the title where a quantile stands below.
        """
        one = registry[self.name]
        word = WORDS.get(self.quantile, self.quantile)
        sub = f"{word}–{self.high}" if self.high else word if one.quantiles else one.unit
        keep = one.keep if self.keep is None else self.keep
        sub = "" if plain or one.kind == "count" else sub if self.sub is None else self.sub
        kind = "range" if self.is_range else one.kind
        told = units and one.quantiles and one.unit not in one.heading
        unit = f" ({one.unit})" if told else ""
        return Column("" if continues else one.heading + unit, kind, sub, keep)


def columns(
    shown: Sequence[Shown], registry: Mapping[str, Statistic] = STATISTICS, *,
    plain: bool = False, units: bool = False,
) -> list[Column]:  # fmt: skip
    """Return the columns; one of the same statistic as the column before continues it."""
    before = ["", *(one.name for one in shown)]
    return [
        one.column(registry, plain, one.name == last, units)
        for one, last in zip(shown, before, strict=False)
    ]


def cells(shown: Sequence[Shown], own: Mapping[str, Any]) -> list[Any]:
    """Return the cells of one head's row, None for what is not known."""
    return [one.cell(own) for one in shown]


def known(shown: Sequence[Shown], found: Sequence[Mapping[str, Any]]) -> tuple[Shown, ...]:
    """Return the columns of what some of these heads, by their statistics, know."""
    return tuple(one for one in shown if any(one.name in own for own in found))


def _known(value: Any, quantile: str) -> Any:
    number = value[quantile] if isinstance(value, Mapping) else value
    return None if number is None or number != number else number


def alike(own: Mapping[str, Any], name: str) -> str | None:
    """Return the head that is most alike, as in '3 (0.42)'; ``name``: how much."""
    return f"{own['similar_head']} ({own[name]:.2f})" if own["similar_head"] >= 0 else None


def looks(roles: Sequence[Role], most: int = 2) -> str:
    """Return what a head looks at in a line; an ellipsis stands for more than ``most`` places."""
    return ", ".join([role.words for role in roles[:most]] + ["…"] * (len(roles) > most))


def head_name(problem: Problem, b: int, h: int) -> str:
    """Return '3', or '0/3' of several batch elements."""
    return f"{b}/{h}" if problem.batch > 1 else str(h)


def head_in_words(problem: Problem, b: int, h: int) -> str:
    """Return 'head 3', 'batch 0 head 3' or 'batch 0', without what there is only one of."""
    if problem.batch == 1:
        return f"head {h}"
    return f"batch {b} head {h}" if problem.heads > 1 else f"batch {b}"


# -- heads that were judged -------------------------------------------------------------------


class Judged(Protocol):
    """A head with its verdict."""

    @property
    def verdict(self) -> Verdict:
        """What the policy says of it."""


Head = TypeVar("Head", bound=Judged)
Gravity = Callable[[Head], Any]


def telling(
    heads: Sequence[Head], ill: Sequence[Head], gravity: Gravity[Head], what: str, full: bool
) -> tuple[list[Head], str, Gap | None]:
    """Return the heads to show: all, the worst of the ``ill`` ones, or both ends.

    ``gravity`` sorts the worst first; ``what`` says in words which they are.
    """
    if full or len(heads) <= WHOLE:
        return list(heads), "", None
    if not ill:
        at, gap = excerpt(range(len(heads)), False, WHOLE, EDGE)
        return [heads[n] for n in at.tolist()], f"{len(at)} of {len(heads)} heads, all ok", gap
    worst = {id(head) for head in sorted(ill, key=gravity)[:WHOLE]}
    shown = [head for head in ill if id(head) in worst]
    return shown, f"{len(shown)} of {len(heads)} heads, {what}", None


def first(heads: Sequence[Head], what: str, full: bool) -> tuple[list[Head], str, Gap | None]:
    """Return the first heads of those that somebody sorted; ``what`` says by what."""
    shown = list(heads if full else heads[:WHOLE])
    return shown, f"{len(shown)} of {len(heads)} heads, {what}" * (len(shown) < len(heads)), None


def reasons(
    heads: Sequence[Head], name: Callable[[Head], str], gravity: Gravity[Head], limit: int
) -> list[Block]:
    """Return a line for heads of the same findings, at most ``limit`` lines, the worst first."""
    alike: dict[Any, list[Head]] = {}
    for head in heads:
        same = head.verdict.level, *(found.words for found in head.verdict.findings)
        alike.setdefault(same, []).append(head)
    groups = [group for group in alike.values() if group[0].verdict.findings]
    if not groups:
        return []
    groups.sort(key=lambda group: min(map(gravity, group)))
    lines = [_told_of(group, name) for group in groups[:limit]]
    if rest := sum(map(len, groups[limit:])):
        lines.append(f"… and {counted(rest, 'more head')} (--format csv, --json)")
    return [sentences(*lines, indent="  ")]


def _told_of(heads: Sequence[Head], name: Callable[[Head], str]) -> str:
    """Return what is said of heads whose findings differ in their numbers alone."""
    level = heads[0].verdict.level
    who = f"{'head' if len(heads) == 1 else 'heads'} {listed(map(name, heads), 12)}"
    who += ", each" * (len(heads) > 1) + f" {level}" * (level != "ok")
    said = []
    for found in zip(*(head.verdict.findings for head in heads), strict=True):
        least, most = (of(found, key=lambda one: one.value).number for of in (min, max))
        said.append(found[0].words.replace("{}", least if least == most else f"{least}–{most}"))
    return f"{who}: {'; '.join(said)}"
