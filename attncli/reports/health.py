"""What `attncli inspect` has to say about attention: an Examination becomes a Report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from attncli.attention.problem import Problem
from attncli.attention.view import Labels, View
from attncli.errors import counted
from attncli.measures.policy import LEVELS
from attncli.measures.roles import Role
from attncli.measures.statistic import STATISTICS, flat_names, flat_values
from attncli.reports.blocks import (
    Block,
    Column,
    Records,
    Report,
    Table,
    Text,
    sentences,
)
from attncli.reports.examined import gravity, maps, pictures
from attncli.reports.facts import facts_of, headline
from attncli.reports.heads import (
    WHOLE,
    Judged,
    Shown,
    cells,
    columns,
    first,
    head_name,
    known,
    looks,
    reasons,
    telling,
)
from attncli.reports.missing import demand_known, in_words, not_known
from attncli.reports.picking import Picking, mapped
from attncli.reports.selection import select
from attncli.studies.effects import OVERALL, Effect, Overall
from attncli.studies.health import Examination, Head

Array = np.ndarray[Any, np.dtype[Any]]

SCHEMA = "attncli.inspect/1"
WHOLE_ROWS = "Jacobian's largest eigenvalue and head similarity"  # what is made from these
LINES = 24  # of reasons
FACTS = 6  # counts on a line of the summary
HEAD = (
    Shown("entropy", keep=7), Shown("entropy", "p05", "p95", keep=3), Shown("max_weight", keep=4),
    Shown("saturated_share", keep=6), Shown("logit_max", keep=5), Shown("grad_query_norm", "p05"),
    Shown("grad_query_norm", keep=2),
)  # fmt: skip
#: Of all heads together, and how telling each is where the registry says nothing fit.
EFFECT: dict[str, int | None] = {
    "logit_std": None, "saturated_share": None, "entropy": 7, "grad_score_p05": None,
    "grad_score_median": 4, "grad_score_cv": 3, "vanishing_share": None,
}  # fmt: skip


def inspect_report(
    examined: Examination,
    labels: Labels,
    view: View,
    *,
    asked: Picking | None = None,
    fail_on: str | None = None,
    include: Collection[str] = (),
    notes: Sequence[str] = (),
) -> Report:
    """Return the report on the heads that ``view`` selects and ``asked`` picks, in its order.

    ``fail_on`` is watch or critical: a head that bad makes the exit code 1. ``include`` may hold
    row_statistics. Raises InputError for an index that does not exist.
    """
    problem = examined.result.problem
    chosen, asked = set(select(problem, view).pairs), asked or Picking(STATISTICS)
    demand_known(asked, [examined.found], examined.missing)
    facts = partial(_facts, examined)
    heads = [head for head in examined.heads if (head.batch, head.head) in chosen]
    heads = asked.pick(heads, facts)
    batches = [str(b) for b in range(problem.batch)]
    there = {(head.batch, head.head): facts(head) for head in heads} if asked.map else {}
    seen = mapped(asked, "batch", batches, there)
    count = Counter(head.verdict.level for head in heads)
    blocks: list[Block] = []
    if heads:
        blocks = [_summary(heads), *([seen.table] if seen else [])]
        blocks.append(_head_table(examined, heads, view, asked))
        blocks += reasons(heads, partial(_name, examined), gravity, LINES)
        blocks += maps(examined, heads, labels, view, asked) if view.heatmap else []
        scale, what_ifs = _over(examined, heads)
        blocks += [_scale_table(scale), sentences(scale_sentence(scale))] if scale else []
        blocks += [_what_if_table(scale[examined.today], what_ifs)] if what_ifs else []
    arrays = _row_statistics(examined) if "row_statistics" in include else {}
    worst = max((LEVELS.index(head.verdict.level) for head in heads), default=0)
    warnings = [*examined.result.warnings, *_unjudged(examined, heads, bool(asked.tests))]
    more = {"warnings": warnings} | ({"map": seen.data} if seen else {})

    return Report(
        command="inspect",
        headline=_first_line(problem, heads, count),
        blocks=blocks,
        data=lambda: _data(examined, heads, labels, include, notes) | more,
        records=lambda: seen.records if seen else _records(examined, heads),
        arrays={f"row_statistics.{name}": values for name, values in arrays.items()},
        pictures=partial(pictures, examined, heads, labels, view, seen),
        warnings=warnings,
        notes=[" · ".join(headline(examined.result)), *notes, *_how(examined)],
        exit_code=int(fail_on is not None and worst >= LEVELS.index(fail_on)),
    )


def _facts(examined: Examination, head: Head) -> dict[str, Any]:
    """Return what --filter, --sort and --map know of a head."""
    own = examined.statistics[head.batch][head.head]
    return {**own, "batch": head.batch, "head": head.head, "verdict": head.verdict.level}


def _unjudged(examined: Examination, heads: Sequence[Head], filtered: bool) -> list[str]:
    """Return a warning when heads have nothing in them that a verdict could be about."""
    rows = np.asarray(examined.found["rows_with_choice"])
    count = sum(not rows[head.batch, head.head] for head in heads)
    if not heads:
        return ["no head passes --filter" if filtered else "there are no heads to judge"]
    if not count:
        return []
    whose = f"{count} of {counted(len(heads), 'head')}"
    return [f"{whose} with no row that sees two keys or more: ok says nothing there"]


def _first_line(problem: Problem, heads: Sequence[Head], count: Counter[str]) -> list[str]:
    total = problem.batch * problem.heads
    many = f"{len(heads)} head{'s' if len(heads) != 1 else ''}"
    if len(heads) < total:
        many += f" of {total}"
    elif problem.batch > 1:
        many += f" ({problem.batch} × {problem.heads})"
    return [many, *(f"{count[level]} {level}" for level in reversed(LEVELS))]


def _how(examined: Examination) -> list[str]:
    """Return how gradients and samples were made, and which statistics are not known."""
    lines = _gradients(examined) if examined.result.problem.scored else []
    sample = examined.sample
    looked = [] if sample.whole else [(WHOLE_ROWS, sample.rows, sample.total)]
    looked += [
        (f"scale {effect.text}", *effect.sample) for effect in examined.scale if effect.sample
    ]
    if looked:
        said = [f"{what} from {some:,} of {total:,} rows" for what, some, total in looked]
        lines = [" · ".join([*lines, f"{', '.join(said)} (seed {sample.seed})"])]
    if not examined.result.problem.scored:
        lines += not_known(examined.missing)
    return lines


def _gradients(examined: Examination) -> list[str]:
    kind, _, seed = examined.grad_output.partition(":")
    made = f"a random normal upstream gradient dO (seed {seed or 0})" if kind == "random" else kind
    return [f"gradients for {made}"]


# -- the heads --------------------------------------------------------------------------------


class Looking(Judged, Protocol):
    """A head with its verdict, and what it looks at."""

    @property
    def roles(self) -> Sequence[Role]:
        """The most telling first."""


def findings_of(heads: Sequence[Looking]) -> dict[str, int]:
    """Return how many heads are saturated, collapsed, flat, dead, sinks, duplicates …"""
    named = Counter(
        finding.name for head in heads for finding in head.verdict.findings
        if finding.level != "hint"
    )  # fmt: skip
    always = ("saturated", "collapsed", "flat", "dead", "duplicate")
    found = {name: named.pop(name, 0) for name in always}
    found["sink"] = sum(any(role.sink for role in head.roles) for head in heads)
    return found | dict(named.most_common())


def places_of(heads: Sequence[Looking]) -> dict[str, int]:
    """Return how many heads look at each place first."""
    first = Counter(
        (role.token or role.name) if role.name != "separators" else role.name
        for head in heads for role in head.roles[:1]
    )  # fmt: skip
    return dict(first.most_common())


def summarized(facts: Sequence[str], heads: Sequence[Looking]) -> Text:
    """Return facts on the heads, some a line, and where these look first."""
    lines = [" · ".join(facts[at : at + FACTS]) for at in range(0, len(facts), FACTS)]
    places = list(places_of(heads).items())
    shown = [f"{place} {n}" for place, n in places[:6]]
    if len(places) > 6:
        shown.append(counted(len(places) - 6, "more place"))
    if shown:
        lines.append(f"looks at   {', '.join(shown)}")
    return sentences(*lines, indent=" " * 11)


def _summary(heads: Sequence[Head]) -> Text:
    named = findings_of(heads).items()
    return summarized([f"{name.replace('_', ' ')} {n}" for name, n in named], heads)


def _head_table(examined: Examination, heads: Sequence[Head], view: View, asked: Picking) -> Table:
    ill = [head for head in heads if head.verdict.level != "ok"]
    what = f"the worst of {len(ill)}" if len(ill) > WHOLE else "those that are not ok"
    if asked.sort:
        shown, part, gap = first(heads, asked.words, view.full)
    else:
        shown, part, gap = telling(heads, ill, gravity, what, view.full)
    told = known(asked.shown(HEAD), [examined.found])
    rows = [
        [
            head.verdict.level,
            *cells(told, examined.statistics[head.batch][head.head]),
            looks(head.roles),
        ]
        for head in shown
    ]
    return Table(
        title="head" if examined.result.problem.batch == 1 else "batch/head",
        columns=[
            Column("verdict", "verdict", keep=10),
            *columns(told, units=True),
            Column("looks at", "text", keep=8),
        ],
        rows=rows,
        labels=[_name(examined, head) for head in shown],
        part=part,
        hint="--full, --head, --sort, --filter, --format csv" if part else "",
        row_gap=gap,
        whole=view.full,
    )


def _name(examined: Examination, head: Head) -> str:
    return head_name(examined.result.problem, head.batch, head.head)


# -- the scale and other changes --------------------------------------------------------------


def _effect_columns() -> list[Shown]:
    return [Shown(*OVERALL[name], keep=keep) for name, keep in EFFECT.items()]


def _over(examined: Examination, heads: Sequence[Head]) -> tuple[list[Overall], list[Overall]]:
    """Return the effects of the scale and of the what-ifs on these heads."""
    pairs = [(head.batch, head.head) for head in heads]
    scale, what_ifs = (
        [effect.over(pairs) for effect in some] for some in (examined.scale, examined.what_ifs)
    )
    return scale, what_ifs


def _cells(effect: Overall) -> list[Any]:
    values = [effect.statistics[name] for name in EFFECT]
    return [None if np.isnan(value) else value for value in values]


def _scale_table(scale: Sequence[Overall]) -> Table:
    return Table(
        title="Scale",
        columns=columns(_effect_columns(), units=True),
        rows=[_cells(effect) for effect in scale],
        labels=[effect.text for effect in scale],
    )


def scale_sentence(scale: Sequence[Overall]) -> str:
    """Return what the numbers say about the scale, and not more.

    The median row's gradient may well be larger without it: the mean misleads, the tail tells.
    """
    auto, none = scale[0].statistics, scale[min(1, len(scale) - 1)].statistics
    if len(scale) < 2 or scale[1].text != "none":
        return "With a width of 1 there is nothing to scale."
    if np.isnan(none["saturated_share"]):
        return "No row has a choice to make: there is nothing to compare."
    shares = [
        (share_in_words(none[name]), share_in_words(auto[name]))
        for name in ("saturated_share", "vanishing_share")
    ]
    if all(without == with_it for without, with_it in shares):
        text = (
            f"With and without the scale {shares[0][0]} of the rows saturate, and {shares[1][0]} "
            "pass less than 1/1000 of the median row's gradient."
        )
    else:
        text = (
            f"Without the scale {shares[0][0]} of the rows saturate (with it {shares[0][1]}) and "
            f"{shares[1][0]} pass less than 1/1000 of the median row's gradient (with it "
            f"{shares[1][1]})."
        )
    names = ("grad_score_median", "grad_score_p05")
    if all(auto[name] > 0 for name in names):
        median, tail = (_times(none[name] / auto[name]) for name in names)
        text += (
            f" Without it ‖dS‖ is {median} times as large in the median row, {tail} times at p05."
        )
    return text


def _times(ratio: float) -> str:
    return f"{ratio:.2g}" if ratio >= 0.001 or ratio == 0 else "less than 0.001"


def share_in_words(value: float) -> str:
    """Return '12 %'; '<1 %' for what rounds to 0 but is not."""
    return f"{100 * value:.0f} %" if value >= 0.005 or value == 0 else "<1 %"


def _what_if_table(now: Overall, effects: Sequence[Overall]) -> Table:
    shown = _effect_columns()
    shown.insert(1, Shown("logit_max", keep=4))
    titles = [*columns(shown, units=True), Column("output moves", "percent", "‖ΔO‖/‖O‖", keep=10)]
    lost = any(effect.lost for effect in effects)
    if lost:
        titles.append(Column("rows lost", "count", "NaN or ∞", keep=10))
    rows = []
    for effect in (now, *effects):
        cells = _cells(effect)
        cells.insert(1, effect.statistics["logit_max"])
        moved = effect.moved
        cells.append(None if effect is now or np.isnan(moved) else moved)
        rows.append(cells + ([effect.lost] if lost else []))
    return Table(
        title="What if", columns=titles, rows=rows, labels=["now", *(e.text for e in effects)]
    )


# -- for programs -----------------------------------------------------------------------------


def _data(
    examined: Examination, heads: Sequence[Head], labels: Labels, include: Collection[str],
    notes: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Return the JSON object of the report."""
    result, sample = examined.result, examined.sample
    count = Counter(head.verdict.level for head in heads)
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "command": "inspect",
        **facts_of(result),
        "notes": list(notes),
        "grad_output": examined.grad_output if result.problem.scored else None,
        "sample": {"rows": sample.rows, "of": sample.total, "seed": sample.seed},
        "summary": {level: count[level] for level in LEVELS}
        | {"findings": findings_of(heads), "looks_at": places_of(heads)},
        "heads": [_head_data(examined, head) for head in heads],
        "scale_effect": [
            _effect_data(one, heads, "scale") | _sample_data(one, sample.seed)
            for one in examined.scale if heads
        ],
        "scale_sentence": scale_sentence(_over(examined, heads)[0])
        if heads and examined.scale else None,
    }  # fmt: skip
    if examined.what_ifs:
        data["what_if"] = [_effect_data(effect, heads, "what") for effect in examined.what_ifs]
    if not result.problem.scored:
        data["missing"] = {name: in_words(n) for name, n in examined.missing.items()}
    if "row_statistics" in include:
        data["row_statistics"] = _row_statistics(examined)
    return data


def _head_data(examined: Examination, head: Head) -> dict[str, Any]:
    return {
        "batch": head.batch,
        "head": head.head,
        "verdict": head.verdict.level,
        "reasons": head.verdict.reasons,
        "findings": [
            {"name": f.name, "level": f.level, "value": f.value, "limit": f.limit}
            for f in head.verdict.findings
        ],
        "roles": [role.data for role in head.roles],
        "statistics": examined.statistics[head.batch][head.head],
    }


def _effect_data(effect: Effect, heads: Sequence[Head], name: str) -> dict[str, Any]:
    overall = effect.over([(head.batch, head.head) for head in heads])
    return {
        name: effect.text,
        "statistics": dict(overall.statistics),
        "output_change": overall.moved,
        "lost_rows": overall.lost,
        "heads": [
            {
                "batch": head.batch, "head": head.head,
                "statistics": effect.statistics[b][h], "output_change": effect.moved[b, h].item(),
            }
            for head in heads
            for b, h in [effect.part.at(head.batch, head.head)]
        ],
    }  # fmt: skip


def _sample_data(effect: Effect, seed: int) -> dict[str, Any]:
    if effect.sample is None:
        return {}
    rows, total = effect.sample
    return {"sample": {"rows": rows, "of": total, "seed": seed}}


def _row_statistics(examined: Examination) -> dict[str, Array]:
    family = examined.result.problem.family
    return {name: family.restore_rows(values) for name, values in examined.row_values.items()}


def _records(examined: Examination, heads: Sequence[Head]) -> Records:
    columns = ["batch", "head", "verdict", "reasons", "looks_at", *flat_names(examined.found)]

    def row(head: Head) -> list[Any]:
        return [
            head.batch, head.head, head.verdict.level, "; ".join(head.verdict.reasons),
            ", ".join(role.words for role in head.roles),
            *flat_values(examined.statistics[head.batch][head.head]),
        ]  # fmt: skip

    return Records(columns, map(row, heads))
