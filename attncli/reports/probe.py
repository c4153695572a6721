"""What `attncli inspect --probe` has to say: which heads find repeated tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from attncli.measures.roles import DETECTORS, OFFSETS
from attncli.reports.blocks import Block, Report, Text
from attncli.reports.heads import Shown
from attncli.reports.many import Lens, many_report
from attncli.reports.picking import Name
from attncli.studies.many import Head, Many
from attncli.studies.model.probe import REPEAT, Probe

#: What a probe shows, and the statistics whose means show it.
SCORES = {
    **{name: statistic for statistic, (name, _) in DETECTORS.items()},
    OFFSETS[-1]: "previous_mass",
}
NAMED = 6  # heads a line


def probe_report(many: Many, probe: Probe, **how: Any) -> Report:
    """Return the report on the heads of a model that read a probe, the strongest scores first.

    ``how`` as `many_report` takes it.
    """
    report = many_report(many, lens=LENS, **how)

    def data() -> Mapping[str, Any]:
        said = report.data()
        names = {one["name"] for one in said["heads"]}
        about = {"name": REPEAT, "length": probe.length, "sequences": probe.sequences,
                 "seed": many.seed}  # fmt: skip
        heads = [one for one in many.heads if one.name in names]
        return {**said, "probe": about, "detected": _data(heads)}

    made = f"{probe.words} (seed {many.seed}); scores are means over the rows where they can show"
    return report._replace(data=data, notes=[made, *report.notes])


def _data(heads: Sequence[Head]) -> dict[str, Any]:
    return {
        what: [{"name": one.name, "score": score(one, what)} for one in _found(heads, what)]
        for what in SCORES
    }


def score(head: Head, what: str) -> float:
    """Return the mean mass that a head gives to what is looked for; NaN where none can show."""
    value = head.statistics.get(SCORES[what])
    return float(value["mean"]) if isinstance(value, Mapping) else math.nan


def _found(heads: Sequence[Head], what: str) -> list[Head]:
    """Return the heads that have the role, the strongest first."""
    some = [one for one in heads if any(role.name == what for role in one.roles)]
    return sorted(some, key=lambda one: -score(one, what))


def _strongest(head: Head) -> float:
    return min((-one for what in SCORES if (one := score(head, what)) == one), default=0.0)


def _summary(heads: Sequence[Head]) -> list[Block]:
    """Return a line for each thing that is looked for: the heads that do it, and how much."""
    wide = max(map(len, SCORES))
    lines = []
    for what in SCORES:
        found = _found(heads, what)
        shown = [f"{one.name} ({score(one, what):.2f})" for one in found[:NAMED]]
        more = [f"{len(found) - NAMED} more"] if len(found) > NAMED else []
        lines.append(f"{what:{wide}}   {', '.join([*shown, *more]) or 'none'}")
    return [Text("Heads that find repeats", lines)]


LENS = Lens(
    map=Name("induction_mass", "mean"),
    columns=[Shown(one, "mean", keep=20 - n) for n, one in enumerate(SCORES.values())],
    summary=_summary,
    first=_strongest,
    words="the strongest",
)
