"""Maps and figures of attention that was examined."""

from __future__ import annotations

from collections.abc import Sequence

from attncli.attention.view import Labels, View
from attncli.measures.policy import LEVELS, POLICY
from attncli.reports.blocks import Heatmap, Picture
from attncli.reports.maps import heatmaps
from attncli.reports.picking import Mapped, Picking
from attncli.reports.selection import select
from attncli.resources import Progress
from attncli.studies.health import Examination, Head

MAPS = 6  # of heads, unless more are asked for


def maps(
    examined: Examination, heads: Sequence[Head], labels: Labels, view: View, asked: Picking
) -> list[Heatmap]:
    """Return maps of the weights of all heads that were asked for, or else of the worst."""
    problem, total = examined.result.problem, len(heads)
    if view.head is None:
        heads = list(heads) if asked.sort else sorted(heads, key=gravity)
        heads = heads if view.full else heads[:MAPS]
    shown = sorted(((head.batch, head.head) for head in heads), key=lambda pair: pair[0])
    chosen = select(problem, view)._replace(shown=tuple(shown))
    found = heatmaps(problem, examined.result.attended.lse, labels, view, chosen)
    ill = any(head.verdict.level != "ok" for head in heads)
    which = asked.words if asked.sort else "the worst" if ill else "all ok"
    part = f"maps of {len(heads)} of {total} heads, {which} (--head, --full)"
    found[-1] = found[-1]._replace(notes=[part] * (len(heads) < total))
    return found


def pictures(
    examined: Examination,
    heads: Sequence[Head],
    labels: Labels,
    view: View,
    seen: Mapped | None,
    progress: Progress | None = None,
) -> list[Picture]:
    """Return what --plot and --report draw of these heads; ``seen``: the map that was asked for."""
    from attncli.reports.pictures import effect_pictures, head_pictures, map_picture

    pairs = [(head.batch, head.head) for head in heads]
    problem, lse = examined.result.problem, examined.evidence.lse
    found: list[Picture] = [] if seen is None else [map_picture(seen)]
    if lse is not None:
        part = select(problem, view)
        values = examined.row_values
        found += head_pictures(problem, lse, values, labels, view, part, pairs, progress)
    return [*found, *effect_pictures([*examined.scale, *examined.what_ifs], pairs)]


def gravity(head: Head) -> tuple[int, int]:
    """Return what sorts heads: the worst verdict first, then the rule that stands first."""
    first = head.verdict.findings[0].name if head.verdict.findings else ""
    at = [rule.name for rule in POLICY].index(first) if first else len(POLICY)
    return -LEVELS.index(head.verdict.level), at
