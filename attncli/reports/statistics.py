"""The registry of statistics, and the limits of verdicts, as documentation."""

from __future__ import annotations

from collections.abc import Iterable

from attncli.measures.circuits import ALONE
from attncli.measures.evidence import every_statistic
from attncli.measures.policy import LIMITS, POLICY, Rule
from attncli.measures.statistic import Statistic

HEAD = "| name | of | unit | what it is | source |\n| --- | --- | --- | --- | --- |\n"
LIMITS_HEAD = (
    f"| rule | statistic | is | {' | '.join(LIMITS)} | fixed places | why |\n"
    f"| --- | --- | --- |{' ---: |' * len(LIMITS)} --- | --- |\n"
)


def statistics_markdown() -> str:
    """Return two Markdown tables: the statistics of attention, and those of weights alone."""
    told = [one for one in every_statistic() if not one.inner]
    return f"{HEAD}{_rows(told)}\n{HEAD}{_rows(ALONE)}"


def _rows(statistics: Iterable[Statistic]) -> str:
    lines = []
    for one in statistics:
        unit = f"share of {one.unit}" if one.kind == "percent" and one.unit else one.unit
        # what stands behind it is a shape
        text = one.text.split(", ``")[0].removesuffix(".").replace("|", "\\|")
        lines.append(f"| `{one.name}` | {one.of} | {unit} | {text} | {one.source} |\n")
    return "".join(lines)


def limits_markdown() -> str:
    """Return a Markdown table: a row a rule of the policy, with its limits."""
    return LIMITS_HEAD + "".join(map(_limits, POLICY))


def _limits(rule: Rule) -> str:
    limits = (getattr(rule, name) for name in LIMITS)
    cells = (
        f"`{rule.name}`",
        f"`{rule.statistic}`{f', {rule.quantile}' if rule.quantile else ''}",
        "below" if rule.below else "above",
        *("" if limit is None else f"{limit:g}" for limit in limits),
        "free" if rule.placed else "",
        rule.source,
    )
    return f"| {' | '.join(cells)} |\n"
