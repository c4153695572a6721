"""What `attncli inspect CKPT --composition` has to say: which heads read what which heads write."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from attncli.errors import InputError, counted, listed
from attncli.files.bundle import Bundle
from attncli.measures.composition import KINDS, PAIRS, Composition, compositions
from attncli.models.finding import How, find_layers, labels
from attncli.models.layer import Layer
from attncli.models.stream import Stream, streams
from attncli.reports.blocks import Block, Column, Picture, Records, Report, Table
from attncli.reports.heads import WHOLE, Shown, cells, columns
from attncli.reports.layers import family_of
from attncli.reports.picking import Name, Picking, mapped
from attncli.reports.selection import with_numbers
from attncli.reports.weights import asides, not_folded
from attncli.resources import Progress

Array = np.ndarray[Any, np.dtype[Any]]

PLACES = ("from_layer", "from_head", "to_layer", "to_head")
COLUMNS = (Shown("score"), Shown("above_chance"), Shown("deviations"))
MAPPED = Name("above_chance")
LISTED = 1000  # pairs in JSON; --full has all
MEANING = (
    "score: ‖B A‖/(‖B‖ ‖A‖) of A = W_O W_V of the earlier head and B of the later one: W_Kᵀ W_Q "
    "(Q), W_Qᵀ W_K (K) or W_O W_V (V); no biases (Elhage et al. 2021)"
)


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Every pair that has a score: columns of one length, the largest above chance first.

    ``kind`` counts KINDS, ``writer`` and ``reader`` count ``heads``: (layer, head) each.
    """

    heads: Sequence[tuple[int, int]]
    numbers: Sequence[int]  # of the layers, as --layer has them
    names: Sequence[str]
    kind: Array
    writer: Array
    reader: Array
    values: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.kind)

    def only(self, rows: Any) -> _Pairs:
        """Return some of them, in that order."""
        values = {name: array[rows] for name, array in self.values.items()}
        kind, writer, reader = (a[rows] for a in (self.kind, self.writer, self.reader))
        return _Pairs(self.heads, self.numbers, self.names, kind, writer, reader, values)

    def facts(self, n: int) -> dict[str, Any]:
        """Return what --filter and --sort know of a pair."""
        ends = [self.heads[int(one[n])] for one in (self.writer, self.reader)]
        places = [number for at, head in ends for number in (self.numbers[at], head)]
        numbers = {name: array[n].item() for name, array in self.values.items()}
        return {"kind": KINDS[int(self.kind[n])], **dict(zip(PLACES, places, strict=True)),
                **numbers}  # fmt: skip

    def ends(self, n: int) -> tuple[str, str]:
        """Return the names of both heads, as '3.7'."""
        return self.name(int(self.writer[n])), self.name(int(self.reader[n]))

    def name(self, at: int) -> str:
        """Return the name of a head."""
        layer, head = self.heads[at]
        return f"{self.names[layer]}.{head}"


def composition_report(
    bundle: Bundle,
    config: Mapping[str, Any] | None = None,
    *,
    layer: str | None = None,
    head: str | None = None,
    asked: Picking | None = None,
    full: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    **how: Unpack[How],
) -> Report:
    """Return the report on pairs of heads of a checkpoint, from its weights alone.

    The arguments are those of ``weights_report``; ``layer`` and ``head`` select pairs of which one
    head is among these. Raises InputError where no two layers write to one residual stream.
    """
    skipped: list[str] = []
    layers = find_layers(bundle, config, skipped=skipped, **how)
    every = streams(layers)
    some = [one for one in every if len(one.layers) > 1]
    if not some:
        raise _nothing(bundle.source, layers)
    asked, names = asked or Picking(PAIRS), labels(layers)
    known = [(n, h) for n, one in enumerate(layers) for h in range(one.heads)]
    called = [(names[n], layers[n].name) for n, _ in known]
    chosen = with_numbers("layer", known, [layers[n].index for n, _ in known], layer, called)
    chosen = with_numbers("head", chosen, [h for _, h in chosen], head)
    among = {*chosen}
    only = None if layer is None else {layers[n].index for n, _ in chosen}
    found = compositions(every, only=only, threads=threads, progress=progress)
    pairs = _pairs(found, layers, names)
    picked = np.array([one in among for one in known])
    whole = pairs = pairs.only(picked[pairs.writer] | picked[pairs.reader])
    if asked.tests or asked.sort:
        pairs = pairs.only(np.array(asked.pick(range(len(pairs)), pairs.facts), np.int64))
    seen = mapped(asked, "layer", names, _strongest(pairs) if asked.map else {})

    def pictures(progress: Progress | None = None) -> list[Picture]:
        from attncli.reports.pictures import map_picture

        drawn = Picking(PAIRS, map=asked.map or MAPPED)
        made = mapped(drawn, "layer", names, _strongest(pairs)) if len(pairs) else None
        return [map_picture(made)] if made else []

    warnings = [f"not read: {why}" for why in skipped] + not_folded(layers)
    silent = picked & ~np.isin(np.arange(len(known)), (whole.writer, whole.reader))
    silent &= np.isin([layers[n].name for n, _ in known], _compared(some))
    if silent.any():
        told = listed([whole.name(n) for n in np.flatnonzero(silent).tolist()], 6)
        warnings.append(f"no score, weights that are 0 or not finite: {told}")
    warnings += ["no pair passes --filter"] if asked.tests and not len(pairs) else []
    blocks: list[Block] = [_kinds(whole), *([seen.table] if seen else []),
                           _table(pairs, len(whole), full, asked)]  # fmt: skip
    return Report(
        command="inspect",
        headline=[
            f"{len(pairs):,} {f'of {len(whole):,} ' * (len(pairs) < len(whole))}pairs of heads",
            f"{sum(len(one.heads) for one in found):,} heads in "
            f"{counted(sum(len(one.layers) for one in some), 'attention layer')}",
        ],
        blocks=blocks,
        data=lambda: (
            _data(bundle.source, found, pairs, full, warnings)
            | ({"map": seen.data} if seen else {})
        ),
        records=lambda: seen.records if seen else _records(pairs),
        pictures=pictures,
        warnings=warnings,
        notes=[
            " · ".join([*sorted({family_of(one) for one in layers} - {""}),
                        *asides(layers, biases=False)]),
            MEANING, _chance(found), *_said(layers, every),
        ],
    )  # fmt: skip


def _nothing(source: str, layers: Sequence[Layer]) -> InputError:
    what = f"it holds {counted(len(layers), 'attention layer')}"
    if len(layers) == 1 and layers[0].shared > 1:
        what = f"{layers[0].label} is one block for {layers[0].shared} layers"
    return InputError(
        f"{source} has no two attention layers that write to one residual stream: {what}",
        "leave --composition out: inspect shows each head by itself",
    )


def _pairs(found: Sequence[Composition], layers: Sequence[Layer], names: Sequence[str]) -> _Pairs:
    at = {(n, h): i for i, (n, h) in enumerate(
        (n, h) for n, one in enumerate(layers) for h in range(one.heads))}  # fmt: skip
    number = {id(one): n for n, one in enumerate(layers)}
    columns: list[tuple[Array, ...]] = []
    for one in found:
        place = np.array([at[number[id(one.stream.layers[n])], h] for n, h in one.heads])
        kind, writer, reader = np.nonzero(~np.isnan(one.scores))
        score, away = (a[kind, writer, reader] for a in (one.scores, one.deviations))
        made = [PAIRS[name].formula(score, one.chance, away) for name in PAIRS]
        columns.append((kind, place[writer], place[reader], *made))
    kind, writer, reader, *values = (np.concatenate(some) for some in zip(*columns, strict=True))
    pairs = _Pairs([*at], [one.index for one in layers], names, kind, writer, reader,
                   dict(zip(PAIRS, values, strict=True)))  # fmt: skip
    return pairs.only(np.argsort(-pairs.values["above_chance"], kind="stable"))


def _strongest(pairs: _Pairs) -> dict[tuple[int, int], dict[str, float]]:
    """Return the largest of each statistic among a head's pairs, as writer or reader."""
    found: dict[tuple[int, int], dict[str, float]] = {}
    for name, values in pairs.values.items():
        most = np.full(len(pairs.heads), np.nan)
        for end in (pairs.writer, pairs.reader):
            np.fmax.at(most, end, values)
        for place, value in zip(pairs.heads, most.tolist(), strict=True):
            if value == value:
                found.setdefault(place, {})[name] = value
    return found


def _chance(found: Sequence[Composition]) -> str:
    sizes = dict.fromkeys((one.channels, one.chance) for one in found)
    words = ", ".join(f"1/√{n} = {chance:.4f}" for n, chance in sizes)
    return (
        f"chance: {words}, the root mean square for matrices in random orientation; deviations: of "
        "score² from its mean there, with these singular values"
    )


def _said(layers: Sequence[Layer], every: Sequence[Stream]) -> list[str]:
    """Return what is within beyond gains, and what is not compared."""
    found = []
    if any(one.post_norm for one in every):
        found.append("norms on the stream between two layers are within, not what they divide by")
    several = [one.name for one in every if len(one.layers) > 1]
    if len(several) > 1:
        found.append(f"compared within each residual stream alone: {listed(several, 4)}")
    if any(one.kind == "cross" for one in layers):
        found.append("cross-attention reads its queries here, its keys and values elsewhere: Q")
    inside = _compared([one for one in every if len(one.layers) > 1])
    alone = [one.label for one in layers if one.name not in inside]
    if alone:
        found.append(f"no other layer writes where these do, not compared: {listed(alone, 4)}")
    return found


def _compared(some: Sequence[Stream]) -> list[str]:
    """Return the names of the layers in these streams."""
    return [layer.name for one in some for layer in one.layers]


# -- tables -----------------------------------------------------------------------------------


def _kinds(pairs: _Pairs) -> Table:
    """Return a row a kind: how many, in the middle, the strongest."""
    rows: list[list[Any]] = []
    for n in range(len(KINDS)):
        own = np.flatnonzero(pairs.kind == n)
        score, above = (pairs.values[name][own] for name in ("score", "above_chance"))
        if not len(own):
            rows.append([0, None, None, None, None])
            continue
        most = " → ".join(pairs.ends(int(own[0])))
        rows.append([len(own), float(np.median(score)), float(score[0]), float(above[0]), most])
    return Table(
        title="kind",
        columns=[
            Column("pairs", "count", keep=5), Column("score", sub="median", keep=6),
            Column("", sub="strongest", keep=8), Column("above chance", keep=7),
            Column("from → to", "text", keep=9),
        ],
        rows=rows, labels=list(KINDS),
    )  # fmt: skip


def _table(pairs: _Pairs, total: int, full: bool, asked: Picking) -> Table:
    shown = range(len(pairs) if full else min(len(pairs), WHOLE))
    order = asked.words or "strongest above chance first"
    part = f"{len(shown)} of {len(pairs):,} pairs, {order}" if len(shown) < len(pairs) else ""
    return Table(
        title="kind",
        columns=[
            Column("from", "text", keep=10), Column("to", "text", keep=10),
            *columns(COLUMNS, PAIRS),
        ],
        rows=[[*pairs.ends(n), *cells(COLUMNS, pairs.facts(n))] for n in shown],
        labels=[KINDS[int(pairs.kind[n])] for n in shown],
        part=part,
        hint="--full, --layer, --head, --sort, --filter, --format csv" if part else "",
        whole=full,
    )  # fmt: skip


# -- for programs -----------------------------------------------------------------------------


def _data(
    source: str, found: Sequence[Composition], pairs: _Pairs, full: bool, warnings: Sequence[str]
) -> dict[str, Any]:
    count = len(pairs) if full else min(len(pairs), LISTED)
    left = [f"{count:,} of {len(pairs):,} pairs are here (--full, --format csv)"]
    return {
        "schema": "attncli.inspect/1",
        "command": "inspect",
        "source": source,
        "warnings": [*warnings, *left[: int(count < len(pairs))]],
        "streams": [
            {"name": one.stream.name, "layers": [layer.name for layer in one.stream.layers],
             "channels": one.channels, "chance": one.chance} for one in found
        ],
        "pairs": [
            {"from": ends[0], "to": ends[1], **pairs.facts(n)}
            for n in range(count) for ends in [pairs.ends(n)]
        ],
    }  # fmt: skip


def _records(pairs: _Pairs) -> Records:
    def rows() -> Iterator[list[Any]]:
        for n in range(len(pairs)):
            yield [*pairs.ends(n), *pairs.facts(n).values()]

    return Records(["from", "to", "kind", *PLACES, *PAIRS], rows())
