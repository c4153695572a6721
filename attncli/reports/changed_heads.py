"""What is known of heads that changed: the names of it all, and how programs get it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attncli.measures.changes import CHANGES, WEIGHT_CHANGES
from attncli.measures.statistic import STATISTICS, Statistic, flat_names, flat_values
from attncli.reports.blocks import Records
from attncli.reports.heads import Shown
from attncli.reports.many import COLUMNS
from attncli.reports.picking import Picking, picking
from attncli.reports.weights import HEAD, REGISTRY
from attncli.studies.changes import PLACES, Change
from attncli.studies.health import TOLD

BEFORE, DIFFERENCE = "_before", "_difference"  # behind the name of a statistic; nothing: after


@dataclass(frozen=True)
class Kind:
    """What is compared: the statistics of the change, those of the heads, and what tables show."""

    name: str
    own: Mapping[str, Statistic]
    statistics: Mapping[str, Statistic]
    shown: tuple[Shown, ...]
    compared: tuple[Shown, ...]

    @property
    def registry(self) -> dict[str, Statistic]:
        """All that --filter, --sort and --map know: a statistic is meant as it is after."""
        found = {**self.own, **self.statistics}
        for name, one in self.statistics.items():
            found[name + BEFORE] = one._replace(name=name + BEFORE, heading=f"{one.heading} before")
            if name not in PLACES:
                found[name + DIFFERENCE] = one._replace(
                    name=name + DIFFERENCE, heading=f"{one.heading} difference", kind="number"
                )
        return found


RUNS = Kind(
    "runs", CHANGES, {name: STATISTICS[name] for name in TOLD},
    (Shown("change", keep=100), Shown("js", "mean", sub="JS mean", keep=98),
     Shown("js", "p95", sub="JS p95", keep=18), Shown("output_change", keep=97)),
    COLUMNS,
)  # fmt: skip
WEIGHTS = Kind(
    "weights", WEIGHT_CHANGES, REGISTRY,
    (Shown("change", keep=100), Shown("qk_change", keep=98), Shown("ov_change", keep=97)),
    HEAD[:4],
)  # fmt: skip


def asked_of_changes(kind: Kind, **asked: Any) -> Picking:
    """Return what --filter, --sort and --map ask (see `picking`) of what became of heads.

    Raises InputError for a name that no head has, and for what is no expression.
    """
    return picking(kind.registry, ("layer", "batch", "head"), **asked)


def facts_of(head: Change, kind: Kind) -> dict[str, Any]:
    """Return what --filter, --sort and --map know of a head."""
    before = {name + BEFORE: value for name, value in head.before.statistics.items()}
    apart = {name + DIFFERENCE: value for name, value in head.difference.items()}
    return {
        **before, **head.after.statistics, **apart, **head.found, "layer": head.index,
        "batch": head.batch or 0, "head": head.head, "verdict": head.verdict.level,
    }  # fmt: skip


def head_data(head: Change) -> dict[str, Any]:
    """Return what JSON says of a head.

    verdict, reasons, roles and statistics are those after, ``before`` holds them before.
    """
    batch = {} if head.batch is None else {"batch": head.batch}
    found, like = dict(head.found), {}
    if "like_head" in found:
        at, distance = found.pop("like_head"), found.pop("like_distance")
        like = {"like": {"head": at, "distance": distance} if at >= 0 else None}
    return {
        "name": head.label, "layer": head.layer, "layer_index": head.index, **batch,
        "head": head.head, **_known(found), **like,
        "verdict": head.verdict.level, "reasons": head.verdict.reasons,
        "roles": [role.data for role in head.after.roles],
        "roles_gained": [role.data for role in head.gained],
        "roles_lost": [role.data for role in head.lost],
        "statistics": head.after.statistics, "difference": _known(head.difference),
        "before": {
            "verdict": head.before.verdict.level, "reasons": head.before.verdict.reasons,
            "roles": [role.data for role in head.before.roles],
            "statistics": head.before.statistics,
        },
    }  # fmt: skip


def _known(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers, None for what does not exist."""
    return {
        name: _known(value) if isinstance(value, Mapping) else None if value != value else value
        for name, value in found.items()
    }


def records_of(heads: Sequence[Change], kind: Kind) -> Records:
    """Return a row a head: what changed, then each statistic before, after and the difference."""
    apart = any(one.batch is not None for one in heads)
    place = ["layer", "layer_index", *(["batch"] if apart else []), "head"]
    words = ["verdict_before", "verdict", "reasons", "roles_before", "roles"]
    known: dict[str, None] = {}  # layers may differ in what is known, as of repeated tokens
    for one in heads:
        known |= dict.fromkeys(_flat(one, kind))

    def row(one: Change) -> list[Any]:
        own = _flat(one, kind)
        return [
            one.layer, one.index, *([one.batch] if apart else []), one.head,
            one.before.verdict.level, one.verdict.level, "; ".join(one.verdict.reasons),
            ", ".join(role.words for role in one.before.roles),
            ", ".join(role.words for role in one.after.roles),
            *(own.get(name) for name in known),
        ]  # fmt: skip

    return Records([*place, *words, *known], map(row, heads))


def _flat(head: Change, kind: Kind) -> dict[str, Any]:
    """Return the numbers of a head by the names that --filter knows: entropy_difference_p05, …"""
    facts = facts_of(head, kind)
    names = [*kind.own] + [
        name + end for name in kind.statistics for end in (BEFORE, "", DIFFERENCE)
    ]
    own = {name: facts[name] for name in names if name in facts}
    return dict(zip(flat_names(own), flat_values(own), strict=True))
