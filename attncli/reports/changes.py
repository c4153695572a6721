"""What `attncli inspect A --compare B` has to say: what became of each head, most of all first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from attncli.errors import counted, listed
from attncli.measures.policy import LEVELS
from attncli.reports.blocks import Block, Column, Picture, Report, Table, sentences
from attncli.reports.changed_heads import (
    BEFORE,
    DIFFERENCE,
    Kind,
    facts_of,
    head_data,
    records_of,
)
from attncli.reports.facts import engine_in_words
from attncli.reports.heads import Shown, cells, reasons
from attncli.reports.many import SCHEMA
from attncli.reports.picking import Mapped, Name, Picking, mapped, name_of
from attncli.reports.selection import with_numbers
from attncli.resources import Progress
from attncli.studies.changes import Change, LayerChange

TELLING = 12  # heads that are shown unless all are asked for
NOTABLE = 0.1  # a change from which on heads are counted, where --fail-on says no other
MAP = Name("change")
MEANING = {
    "runs": "change: the larger of weights (mean Jensen–Shannon distance of a row's weights, 0 to "
    "1) and output (‖o_B − o_A‖/‖o_A‖)",
    "weights": "change: the larger of those of the QK and the OV circuit, ‖M_B − M_A‖_F/‖M_A‖_F, "
    "norm gains and biases of queries and keys within",
}


def changes_report(
    every: Sequence[Change],
    kind: Kind,
    *,
    layers: Sequence[LayerChange] = (),
    layer: str | None = None,
    head: str | None = None,
    asked: Picking | None = None,
    fail_on: str | float | None = None,
    full: bool = False,
    seed: int = 0,
    sources: tuple[str, str] = ("before", "after"),
    facts: Sequence[str] = (),
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> Report:
    """Return the report on what became of every head, those that changed most first.

    ``layers`` are what the heads are of, where both sides ran. ``layer`` and ``head`` select
    numbers, ``asked`` picks among these; its map is of the change unless it says otherwise.
    ``fail_on`` makes the exit code 1: watch or critical, where a head is that bad after; a number,
    where one changed by more. ``seed`` is that of gradients and samples. Raises InputError where a
    selection hits nothing.
    """
    asked = asked or Picking(kind.registry)
    heads = asked.pick(_selected(every, layer, head), lambda one: facts_of(one, kind))
    ordered = heads if asked.sort else sorted(heads, key=_rank)
    limit = NOTABLE if not isinstance(fail_on, float) else fail_on
    same = not any(one.amount or one.differing for one in heads)
    seen = _map(heads, kind, asked.map or MAP)
    words = _sentence(heads, limit, same)
    blocks: list[Block] = []
    if heads and same and not (asked.map or asked.sort or full):
        blocks = [sentences(words)]
    elif heads:
        blocks = [sentences(words, *_summary(heads)), seen.table]
        blocks.append(_head_table(ordered, kind, full, asked))
        turned = [one for one in ordered if one.verdict.level != one.before.verdict.level]
        blocks += reasons(turned, lambda one: one.label, _gravity, TELLING)
    told = list(warnings) + _warnings(layers)
    told += [] if heads else ["no head passes --filter" if every else "there are no heads"]
    said = [*notes, *_differences(layers), *_made(layers, seed), MEANING[kind.name]]

    def data() -> Mapping[str, Any]:
        return {
            "schema": SCHEMA, "command": "inspect", "compared": kind.name,
            "sources": list(sources), "warnings": told, "notes": said,
            "summary": _summary_data(heads, limit, same, words),
            "heads": [head_data(one) for one in ordered],
            **({"map": seen.data} if asked.map else {}),
        }  # fmt: skip

    def pictures(progress: Progress | None = None) -> list[Picture]:
        from attncli.reports.pictures import map_picture

        own = (name_of(one, kind.own) for one in kind.shown)
        drawn = dict.fromkeys([asked.map or MAP, *own]) if heads else ()
        return [map_picture(_map(heads, kind, name)) for name in drawn]

    count = len({one.layer for one in every})
    of = f" of {len(every):,}" if len(heads) < len(every) else ""
    return Report(
        command="inspect",
        headline=[
            f"{sources[0]} → {sources[1]}", counted(count, "layer"),
            f"{counted(len(heads), 'head')}{of}", *_length(layers), *facts, *_engines(layers),
        ],
        blocks=blocks,
        data=data,
        records=lambda: seen.records if asked.map else records_of(ordered, kind),
        pictures=pictures,
        warnings=told,
        notes=said,
        exit_code=int(_fails(heads, fail_on)),
    )  # fmt: skip


def _fails(heads: Sequence[Change], fail_on: str | float | None) -> bool:
    if isinstance(fail_on, float):
        return any(one.amount > fail_on or _is_unknown(one) for one in heads)
    worst = max((LEVELS.index(one.verdict.level) for one in heads), default=0)
    return fail_on is not None and worst >= LEVELS.index(fail_on)


def _is_unknown(head: Change) -> bool:
    """Whether numbers that are not finite hide what became of a head."""
    return math.isnan(head.amount) and head.verdict.level == LEVELS[-1]


def _selected(every: Sequence[Change], layer: str | None, head: str | None) -> list[Change]:
    """Return the heads of the layers with these numbers; InputError where there are none."""
    names = [(one.label.rpartition(".")[0], one.layer) for one in every]
    some = with_numbers("layer", every, [one.index for one in every], layer, names)
    return with_numbers("head", some, [one.head for one in some], head)


def _rank(head: Change) -> tuple[bool, float]:
    """Return what sorts heads: what changed most first, what is not known last."""
    return math.isnan(head.amount), -head.amount


def _gravity(head: Change) -> int:
    return -LEVELS.index(head.verdict.level)


# -- in words ---------------------------------------------------------------------------------


def _sentence(heads: Sequence[Change], limit: float, same: bool) -> str:
    """Return what changed as a whole: 'layer 3 changed most; 5 of 72 heads changed more …'."""
    if same:
        return "nothing changed"
    known = [one for one in heads if not math.isnan(one.amount)]
    most = max(known, key=lambda one: one.amount, default=None)
    if most is None:
        return "nothing can be said: no head has finite numbers before or after"
    hidden = sum(map(_is_unknown, heads))
    rest = f"; {hidden} of {counted(len(heads), 'head')} cannot be compared, for NaN" * bool(hidden)
    if not most.amount:
        names = listed(dict.fromkeys(name for one in heads for name in one.differing), 4)
        told = f"; these statistics did: {names}" if names else ""
        return f"no weights and no outputs changed{told}{rest}"
    layers = _by_layer(heads)
    first = max(layers, key=lambda name: layers[name]["mean"])
    size = f"{_size(layers[first]['mean'])} on average"
    named = f"layer {first} changed most ({size}); " if len(layers) > 1 else ""
    start = next(name for name, own in layers.items() if own["max"])
    if start != next(iter(layers)):
        named += f"nothing changed before layer {start}; "
    above = sum(one.amount > limit for one in known)
    named += f"{above} of {counted(len(heads), 'head')} changed more than {limit:g}"
    return f"{named}, most of all {most.label} ({_size(most.amount)}){rest}"


def _size(number: float) -> str:
    return f"{number:.3g}" if math.isfinite(number) else "∞"


def _by_layer(heads: Sequence[Change]) -> dict[str, dict[str, float]]:
    """Return the mean and the largest change of the heads of each layer, in the order of layers."""
    found: dict[str, list[float]] = {}
    for one in sorted(heads, key=lambda head: head.at):
        if not math.isnan(one.amount):
            found.setdefault(_layer_label(one), []).append(one.amount)
    return {name: {"mean": sum(some) / len(some), "max": max(some)} for name, some in found.items()}


def _layer_label(head: Change) -> str:
    return head.label.rpartition("/")[2].rpartition(".")[0]


def _summary(heads: Sequence[Change]) -> list[str]:
    """Return lines on verdicts, roles, and heads that are like others."""
    lines = []
    turned = [f"{one} {n}" for one, n in Counter(filter(None, map(_turned, heads))).items()]
    if turned:
        lines.append(f"verdicts   {', '.join(turned)}")
    for word in ("gained", "lost"):
        places = Counter(role.token or role.name for one in heads for role in getattr(one, word))
        if places:
            some = [f"{place} {n}" for place, n in places.most_common(6)]
            lines.append(f"{word:<11}{listed(some, 6)}{', …' * (len(places) > 6)}")
    like = [f"{one.label} like {_liked(one)} before" for one in heads if _like(one) is not None]
    if like:
        lines.append(f"alike      {listed(like, 4)}")
    return lines


def _turned(head: Change) -> str:
    was, now = head.before.verdict.level, head.verdict.level
    return "" if was == now else f"{was} → {now}"


def _like(head: Change) -> int | None:
    found = head.found.get("like_head", -1)
    return None if found < 0 else int(found)


def _liked(head: Change) -> str:
    return f"{head.label.rpartition('.')[0]}.{_like(head)}"


def _warnings(layers: Sequence[LayerChange]) -> list[str]:
    """Return each warning once, with the side and the layers it is about."""
    about: dict[tuple[str, str], list[str]] = {}
    for one in layers:
        for side, own in (("before", one.before), ("after", one.after)):
            for text in own.warnings:
                about.setdefault((side, text), []).append(own.name)
    told: dict[str, None] = {}
    for (side, text), names in about.items():
        both = all((other, text) in about for other in ("before", "after"))
        where = [] if len(names) == len(layers) else [listed(names, 6)]
        told[": ".join([*([] if both else [side]), *where, text])] = None
    if any(one.tokens_differ for one in layers):
        told["the tokens are not the same before and after: changes may be the text's"] = None
    return [*told]


def _length(layers: Sequence[LayerChange]) -> list[str]:
    """Return '19 tokens', or '3 queries, 19 keys', where all layers have as many."""
    sizes = {(one.before.queries, one.before.keys) for one in layers}
    if len(sizes) != 1:
        return []
    queries, keys = sizes.pop()
    same = queries == keys
    return [
        counted(queries, "token")
        if same
        else f"{counted(queries, 'query', 'queries')}, {keys:,} keys"
    ]


def _differences(layers: Sequence[LayerChange]) -> list[str]:
    """Return what else is not the same, as in 'scale 0.125 → 1 (2 layers)'."""
    found: Counter[str] = Counter()
    for one in layers:
        sides = [
            {"dtype": dtype, "scale": own.scale, "softcap": own.softcap, "mask": own.mask or None,
             "key/value heads": own.kv_heads}
            for own, dtype in zip((one.before, one.after), one.dtypes, strict=True)
        ]  # fmt: skip
        found.update(
            f"{name} {_plain(was)} → {_plain(sides[1][name])}"
            for name, was in sides[0].items() if was != sides[1][name]
        )  # fmt: skip
    return [
        text if n == len(layers) else f"{text} ({counted(n, 'layer')})" for text, n in found.items()
    ]


def _plain(value: Any) -> str:
    return "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _made(layers: Sequence[LayerChange], seed: int) -> list[str]:
    """Return what the numbers were made with."""
    looked, total = (sum(one.looked[n] for one in layers) for n in range(2))
    made = [f"gradients for a random normal upstream gradient dO (seed {seed})"] if layers else []
    return made + [f"weights compared in {looked:,} of {total:,} rows"] * (looked < total)


def _engines(layers: Sequence[LayerChange]) -> list[str]:
    return [*dict.fromkeys(
        engine_in_words(side.engine) for one in layers
        for side in (one.before, one.after)
    )]  # fmt: skip


# -- tables -----------------------------------------------------------------------------------


def _map(heads: Sequence[Change], kind: Kind, name: Name) -> Mapped:
    """Return a statistic as a row a layer, the layers of one batch element together."""
    places = sorted({(one.batch or 0, one.at) for one in heads})
    rows = {place: n for n, place in enumerate(places)}
    labels = {rows[one.batch or 0, one.at]: one.label.rpartition(".")[0] for one in heads}
    cells = {(rows[one.batch or 0, one.at], one.head): facts_of(one, kind) for one in heads}
    found = mapped(
        Picking(kind.registry, map=name), "layer", [labels[n] for n in range(len(labels))], cells
    )
    assert found is not None
    return found


def _head_table(ordered: Sequence[Change], kind: Kind, full: bool, asked: Picking) -> Table:
    """Return a row a head: how much changed, then statistics before, after and the difference."""
    some = ordered if full else ordered[:TELLING]
    told = asked.shown((*kind.shown, *_compared(kind)))
    roles = any(map(_roles, some))
    rows = [
        [*cells(told, facts_of(one, kind)), _verdict(one), *([_roles(one)] * roles)] for one in some
    ]  # fmt: skip
    what = asked.words or "those that changed most"
    part = f"{len(some)} of {counted(len(ordered), 'head')}, {what}"
    return Table(
        title="batch/layer.head" if ordered[0].batch is not None else "layer.head",
        columns=[
            *(_column(one, kind) for one in told),
            Column("verdict", "text", keep=96), *([Column("roles", "text", keep=95)] * roles),
        ],
        rows=rows,
        labels=[one.label for one in some],
        part=part if len(some) < len(ordered) else "",
        hint="--full, --layer, --sort, --filter 'change>0.1', --format csv"
        if len(some) < len(ordered) else "",
        whole=full,
    )  # fmt: skip


def _compared(kind: Kind) -> list[Shown]:
    """Return the columns of statistics; where there is little room the difference stays longest."""
    ends = (BEFORE, "before"), ("", "after"), (DIFFERENCE, "differ.")
    return [
        one._replace(name=one.name + end, sub=word, keep=3 * (one.keep or n) + place)
        for n, one in zip(range(len(kind.compared), 0, -1), kind.compared, strict=True)
        for place, (end, word) in enumerate(ends)
    ]


def _column(one: Shown, kind: Kind) -> Column:
    name = one.name.removesuffix(DIFFERENCE).removesuffix(BEFORE)
    found = one.column(kind.registry, False, False, False)
    statistics = kind.statistics
    return found._replace(title=statistics[name].heading) if name in statistics else found


def _verdict(head: Change) -> str:
    return _turned(head) or head.verdict.level


def _roles(head: Change) -> str:
    """Return the roles that came and went: '+previous token 40 %, −[CLS] 84 %'."""
    signs = [*(f"+{role.words}" for role in head.gained), *(f"−{role.words}" for role in head.lost)]
    like = [] if _like(head) is None else [f"like {_liked(head)} before"]
    return listed([*like, *signs], 3)


# -- for programs -----------------------------------------------------------------------------


def _summary_data(heads: Sequence[Change], limit: float, same: bool, words: str) -> dict[str, Any]:
    count = Counter(one.verdict.level for one in heads)
    known = [one for one in heads if not math.isnan(one.amount)]
    most = max(known, key=lambda one: one.amount, default=None)
    return {
        **{level: count[level] for level in LEVELS},
        "words": words, "nothing_changed": same,
        "limit": limit, "above_limit": sum(one.amount > limit for one in known),
        "most_changed": most.label if most and most.amount else None,
        "verdicts": dict(Counter(filter(None, map(_turned, heads)))),
        "layers": [{"layer": name, **own} for name, own in _by_layer(heads).items()],
    }  # fmt: skip
