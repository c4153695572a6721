"""What `attncli inspect CKPT` has to say: every attention layer and head, by weights alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from attncli.attention.shares import Exchange
from attncli.errors import counted
from attncli.files.bundle import Bundle
from attncli.measures.circuits import AMONG_ALL, OF_LAYERS, WeightFacts, judged, weight_facts
from attncli.measures.copying import stride
from attncli.measures.policy import LEVELS, POLICY, Rule, Verdict, judge
from attncli.measures.statistic import WEIGHTS
from attncli.models.finding import How, find_layers, holds_layers, labels
from attncli.models.layer import Layer
from attncli.models.stream import SCALE, output_norm, streams
from attncli.models.vocabulary import vocabulary
from attncli.reports.blocks import Block, Column, Picture, Records, Report, Table
from attncli.reports.heads import (
    WHOLE,
    Shown,
    alike,
    cells,
    columns,
    first,
    known,
    reasons,
    telling,
)
from attncli.reports.layers import family_of, layer_data, short_name
from attncli.reports.picking import Name, Picking, mapped
from attncli.reports.selection import excerpt, with_numbers
from attncli.resources import Progress

__all__ = ["holds_layers", "weights_report"]

EDGE = 16  # layers at both ends of many
HEAD = tuple(
    map(Shown, ("largest_logit", "qk_rank", "ov_norm", "ov_rank", "copying", "matching",
                "query_norm", "key_norm", "value_norm", "output_norm"))
)  # fmt: skip
DRAWN = tuple(Name(one.name) for one in HEAD[:4])
#: What heads have that are judged by their weights.
REGISTRY = {name: WEIGHTS[name] for name in (*OF_LAYERS, *AMONG_ALL)}
MEANING = (
    "logit: largest logit of two inputs of norm 1, ‖W_Q W_Kᵀ‖₂·scale; rank: effective, of the width"
)


@dataclass(frozen=True)
class _Head:
    facts: WeightFacts
    at: int  # of the layer among all
    layer: str  # its label
    head: int
    found: Mapping[str, float]
    verdict: Verdict

    @property
    def name(self) -> str:
        return f"{self.layer}/{self.head}"

    @property
    def statistics(self) -> dict[str, float | int]:
        return {**self.facts.of_head(self.head), **self.found}


def weights_report(
    bundle: Bundle,
    config: Mapping[str, Any] | None = None,
    *,
    layer: str | None = None,
    head: str | None = None,
    asked: Picking | None = None,
    policy: Sequence[Rule] = POLICY,
    fail_on: str | None = None,
    full: bool = False,
    threads: int | None = None,
    exchange: Exchange | None = None,
    found: Callable[[Sequence[Layer]], None] = lambda layers: None,
    progress: Progress | None = None,
    **how: Unpack[How],
) -> Report:
    """Return the report on a checkpoint's attention layers, from its weights alone.

    ``bundle`` is ``files.read(ref)``, ``config`` what ``checkpoints.config_beside(ref)`` returns;
    ``holds_layers(bundle)`` says whether there is something to report. ``layer`` and ``head``
    select numbers, as ``0:4,7``; ``asked`` picks among these; outliers are found among all heads.
    ``fail_on`` is watch or critical: a head that bad makes the exit code 1. ``full`` (--full):
    every head is a row. ``threads`` layers are looked at at a time; with an
    ``exchange`` several processes divide them, when ``found`` has been told of all. Layers that
    cannot be read are warnings; InputError where none can.
    """
    skipped: list[str] = []
    layers = find_layers(bundle, config, skipped=skipped, **how)
    found(layers)
    facts = weight_facts(layers, threads=threads, progress=progress, exchange=exchange)
    names = labels(layers)
    every = [
        _Head(one, at, names[at], h, found, judge(found, 0.0, policy))
        for at, (one, some) in enumerate(zip(facts, judged(facts), strict=True))
        for h, found in enumerate(some)
    ]
    total, asked = len(every), asked or Picking(WEIGHTS)
    every = asked.pick(_selected(every, layer, head), _facts)
    layers_shown = {head.at for head in every}
    seen = mapped(
        asked, "layer", names,
        {(one.at, one.head): _facts(one) for one in every} if asked.map else {},
    )  # fmt: skip

    def pictures(progress: Progress | None = None) -> list[Picture]:
        from attncli.reports.pictures import map_picture

        cells = {(one.at, one.head): _facts(one) for one in every}
        drawn = dict.fromkeys([asked.map or DRAWN[0], *DRAWN]) if cells else ()
        made = (mapped(Picking(REGISTRY, map=one), "layer", names, cells) for one in drawn)
        return [map_picture(one) for one in made if one]

    count = Counter(head.verdict.level for head in every)
    families = sorted({family_of(layer) for layer in layers} - {""})
    blocks: list[Block] = [
        _layer_table(facts, names, sorted(layers_shown), full),
        *([seen.table] if seen else []),
    ]
    blocks.append(_head_table(every, full, asked))
    blocks += reasons(every, lambda head: head.name, _gravity, WHOLE)
    worst = max((LEVELS.index(head.verdict.level) for head in every), default=0)
    notes = [" · ".join([*families, f"scale {_scales(facts)}", *asides(layers)]), MEANING,
             *words_in(layers)]  # fmt: skip
    notes += layers[0].bundle.notes if layers[0].bundle else ()
    warnings = [f"not read: {why}" for why in skipped]
    warnings += not_folded(layers)
    warnings += [] if every else ["no head passes --filter"]
    return Report(
        command="inspect",
        headline=[
            f"{len(every)} heads{f' of {total}' * (len(every) < total)} in "
            f"{counted(len(layers), 'attention layer')}",
            *(f"{count[level]} {level}" for level in reversed(LEVELS)),
            f"{sum(layer.parameters for layer in layers):,} parameters",
        ],
        blocks=blocks,
        data=lambda: (
            _data(bundle.source, every, facts, count, warnings)
            | ({"map": seen.data} if seen else {})
        ),
        records=lambda: seen.records if seen else _records(every),
        pictures=pictures,
        warnings=warnings,
        notes=notes,
        exit_code=int(fail_on is not None and worst >= LEVELS.index(fail_on)),
    )


def _facts(head: _Head) -> dict[str, Any]:
    """Return what --filter, --sort and --map know of a head."""
    return {
        **head.statistics, "layer": head.facts.layer.index, "head": head.head,
        "verdict": head.verdict.level,
    }  # fmt: skip


def _selected(every: Sequence[_Head], layer: str | None, head: str | None) -> list[_Head]:
    """Return the heads of the layers with these numbers; InputError where there are none."""
    numbers = [one.facts.layer.index for one in every]
    names = [(one.layer, one.facts.layer.name) for one in every]
    some = with_numbers("layer", every, numbers, layer, names)
    return with_numbers("head", some, [one.head for one in some], head)


def _scales(facts: Sequence[WeightFacts]) -> str:
    found = {f"{one.layer.scale:.4g} = {one.layer.scale_source}": None for one in facts}
    return next(iter(found)) if len(found) == 1 else f"of each layer ({len(found)})"


def asides(layers: Sequence[Layer], biases: bool = True) -> list[str]:
    """Return what numbers of weights alone hold, ``biases`` too, and leave out."""
    found = ["norm gains within"] if any(a.input_norm for a in layers) else []
    roles = {"query_bias", "qkv_bias", "q_bias"} if biases else set()
    found += ["biases within"] if any(roles & a.tensors.keys() for a in layers) else []
    found += ["RoPE at distance 0"] if any(a.rope for a in layers) else []
    behind = ["qk-norm"] * any(a.query_norm or a.key_norm for a in layers)
    after = {norm.kind for norm in map(output_norm, layers) if norm}
    behind += ["the output's norm"] * bool(after - {SCALE})
    if behind:
        found.append(f"gains of {' and '.join(behind)} within, not what it divides by")
    found += ["layer scale within"] * (SCALE in after)
    found += ["without c2p, p2c"] if any(a.disentangled for a in layers) else []
    found += ["gates left out"] if any(a.gated for a in layers) else []
    found += ["latents not normed"] if any(a.latent for a in layers) else []
    return found


def not_folded(layers: Sequence[Layer]) -> list[str]:
    """Return a warning of layers of which nobody knows whether a norm lies before them."""
    return list(
        dict.fromkeys(
            f"{lack.what}: its norm, if any, is not folded in"
            for one in layers for lack in one.lacks if lack.option == "arch"
        )
    )  # fmt: skip


def words_in(layers: Sequence[Layer]) -> list[str]:
    """Return a line on the embeddings through which heads are seen."""
    found = []
    for stream in streams(layers):
        one = vocabulary(stream)
        if one is None:
            continue
        logits = f", logits {one.unembedding}" if one.unembedding else ""
        logits = ", logits by the same (tied)" if one.tied else logits
        each = stride(stream.layers[0], one)
        part = f"; 1 word of {each}" if each > 1 else ""
        found.append(f"copies, matches: Σλ/Σ|λ| between words of {one.embedding}{logits}{part}")
    return list(dict.fromkeys(found)) or ["no embedding is there: copies, matches are not known"]


# -- tables -----------------------------------------------------------------------------------


def _layer_table(
    facts: Sequence[WeightFacts], names: Sequence[str], some: Sequence[int], full: bool
) -> Table:
    shown, gap = excerpt(some, full, WHOLE, EDGE)
    rows = []
    for one in (facts[n] for n in shown.tolist()):
        largest = int(np.nanargmax(one["largest_logit"])) if _some(one["largest_logit"]) else None
        rows.append([
            short_name(one.layer.name), one.layer.heads,
            _middle(one["largest_logit"]), _most(one["largest_logit"]),
            f"head {largest}" if largest is not None else None,
            _middle(one["qk_rank"]), _middle(one["ov_norm"]), _most(one["ov_norm"]),
            _middle(one["ov_rank"]), _most(one["similarity"]), _most(one["logit_bound"]),
        ])  # fmt: skip
    columns = [
        Column("name", "text", keep=8), Column("heads", "count", keep=3),
        Column("logit", sub="median", keep=9), Column("", sub="max", keep=10),
        Column("", "text", keep=8), Column("QK rank", sub="median", keep=7),
        Column("‖OV‖₂", sub="median", keep=6), Column("", sub="max", keep=6),
        Column("OV rank", sub="median", keep=2), Column("QK alike", sub="max cosine", keep=4),
        Column("logit bound", sub="of qk-norm", keep=1),
    ]  # fmt: skip
    used = [n for n in range(len(columns)) if n < 10 or any(row[n] is not None for row in rows)]
    return Table(
        title="layer",
        columns=[columns[n] for n in used],
        rows=[[row[n] for n in used] for row in rows],
        labels=[names[n] for n in shown.tolist()],
        part=f"{len(shown)} of {len(some)} layers" if gap else "",
        hint="--full, --format csv" if gap else "",
        row_gap=gap,
        whole=full,
    )


def _some(values: Any) -> bool:
    return bool(np.isfinite(values).any())


def _middle(values: Any) -> float | None:
    return float(np.nanmedian(values)) if _some(values) else None


def _most(values: Any) -> float | None:
    return float(np.nanmax(values)) if _some(values) else None


def _head_table(every: Sequence[_Head], full: bool, asked: Picking) -> Table:
    if asked.sort:
        shown, part, gap = first(every, asked.words, full)
    else:
        told = [head for head in every if head.verdict.findings]
        shown, part, gap = telling(every, told, _gravity, "those that stand out", full)
    named = known(asked.shown(HEAD), [head.facts.of_head(head.head) for head in every])
    rows = []
    for head in shown:
        own = head.facts.of_head(head.head)
        rows.append([head.verdict.level, *cells(named, own), alike(own, "similarity")])
    return Table(
        title="layer/head",
        columns=[
            Column("verdict", "verdict", keep=10),
            *columns(named, WEIGHTS),
            Column("QK like", "text", "(cosine)", keep=7),
        ],
        rows=rows,
        labels=[head.name for head in shown],
        part=part,
        hint="--full, --layer, --sort, --filter, --format csv" if part else "",
        row_gap=gap,
        whole=full,
    )


def _gravity(head: _Head) -> int:
    return -LEVELS.index(head.verdict.level)


# -- for programs -----------------------------------------------------------------------------


def _data(
    source: str, every: Sequence[_Head], facts: Sequence[WeightFacts], count: Counter[str],
    warnings: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    return {
        "schema": "attncli.inspect/1",
        "command": "inspect",
        "source": source,
        "warnings": list(warnings),
        "summary": {level: count[level] for level in LEVELS},
        "layers": [layer_data(one.layer) for one in facts],
        "heads": [
            {
                "layer": head.facts.layer.name,
                "head": head.head,
                "verdict": head.verdict.level,
                "reasons": head.verdict.reasons,
                "statistics": _existing(head.statistics),
            }
            for head in every
        ],
    }


def _existing(statistics: Mapping[str, float | int]) -> dict[str, float | int | None]:
    """Return numbers of a head; None for one that does not exist.

    That is NaN where all weights are finite; of others NaN is what came out.
    """
    lost = statistics["nonfinite"]
    return {name: None if v != v and not lost else v for name, v in statistics.items()}


def _records(every: Sequence[_Head]) -> Records:
    names = [*OF_LAYERS, *AMONG_ALL]
    columns = ["layer", "layer_index", "head", "verdict", "reasons", *names]
    rows = (
        [
            head.facts.layer.name, head.facts.layer.index, head.head, head.verdict.level,
            "; ".join(head.verdict.reasons), *(head.statistics[name] for name in columns[5:]),
        ]
        for head in every
    )  # fmt: skip
    return Records(columns, rows)
