"""Maps as text that a page can carry: exact where they are small, else a byte a cell, deflated.

Numbers other than weights are always exact, pooled where there are many.

A byte says the square root of a weight's share of the map's largest, so that small weights keep
their differences: 1 is 0, 254 the largest; 0 is hidden and 255 is NaN.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from attncli.render.cells import cut, legible
from attncli.render.pooling import is_mean, joined
from attncli.reports.blocks import Grid, Heatmap, Shaded

Array = np.ndarray[Any, np.dtype[Any]]
Kind = TypeVar("Kind", Heatmap, Shaded)

EXACT = 64 * 64  # cells of a map that is kept as it is
BUDGET = 3_450_000  # bytes of all maps, a third less than their text in base64
NUMBERS = 256  # cells a side of other numbers
SIDES = (512, 384, 256, 192, 128, 96, 64)  # blocks of a map
FEWEST = (64, 48, 32, 24, 16)  # of very many maps
TRIED, GOLDEN = 12, 0.618  # maps by whose size that of all is judged, and how they are spread
HIDDEN, NAN, LAST = 0, 255, 253  # LAST is the largest weight, beyond 1 for a weight of 0
OFF = 1 / LAST  # of the largest weight: half a step of the square root, twice
WIDEST, NAMES = 80, 1_200_000  # letters of a token, and of all tokens


class Way(NamedTuple):
    """Most blocks a side, whether closer parts are kept, whether small maps are as they are."""

    side: int
    closer: bool
    exact: bool

    def parts(self, heat: Heatmap) -> Sequence[Heatmap]:
        """Return the closer parts of a map that are kept."""
        return heat.closer() if self.closer else ()


#: The first that fits the budget is taken, or the last.
WAYS = [
    *(Way(side, closer, True) for side in SIDES for closer in (True, False)),
    *(Way(side, False, False) for side in FEWEST),
]


class Packed(NamedTuple):
    """What a page needs of all maps: ``axes`` and ``names`` are shared by many of them."""

    maps: list[dict[str, Any]]
    axes: list[dict[str, Any]]
    names: list[list[str]]
    notes: list[str]


def pack(maps: Sequence[Heatmap], others: Sequence[Shaded] = ()) -> Packed:
    """Return maps as plain data, ``others`` behind: pooled until all fit, with words for that."""
    for way in WAYS:
        if not _seems_to_fit(maps, way):
            continue
        shared = _Shared()
        made = [_packed(one, way, shared) for one in maps]
        if shared.size <= BUDGET:
            break
    made += [_numbers(one, shared) for one in others]
    return Packed(made, shared.axes, shared.names, _notes(maps, way, shared.cut))


def pooled(heat: Kind, most: int) -> Kind:
    """Return the map in at most so many blocks each way."""
    down, across = (range(0, n, max(1, -(-n // most))) for n in heat.values.shape)
    found: Kind = joined(heat, down, across)
    return found


# -- how large --------------------------------------------------------------------------------


def _seems_to_fit(maps: Sequence[Heatmap], way: Way) -> bool:
    """Whether all maps would fit the budget, by the size of some; the last way always does."""
    spread = sorted({int(len(maps) * (k * GOLDEN % 1)) for k in range(TRIED)}) if maps else []
    tried = sum(_size(maps[n], way) for n in spread)
    return tried * len(maps) <= BUDGET * len(spread) or way == WAYS[-1]


def _size(heat: Heatmap, way: Way) -> int:
    """Return bytes; closer parts are never pooled: that is what they are for."""
    own = len(_bytes(pooled(heat, way.side), _is_exact(heat, way)))
    return own + sum(len(_bytes(one, _is_exact(one, way))) for one in way.parts(heat))


def _is_exact(heat: Heatmap, way: Way) -> bool:
    return way.exact and heat.values.size <= EXACT


def _notes(maps: Sequence[Heatmap], way: Way, cut_names: bool) -> list[str]:
    """Return what was lost, in words."""
    lines = []
    if not all(_is_exact(one, way) for one in maps):
        which = "Maps of more than 64 × 64 cells" if way.exact else "Maps"
        lines.append(
            f"{which} are kept in 8 bits on a square-root scale: a weight is off by at most "
            f"{100 * OFF:.1f} % of the largest in its map."
        )
    largest = max(maps, key=lambda one: one.values.size, default=None)
    if largest is not None and max(largest.values.shape) > way.side:
        before, after = (
            " × ".join(map(str, one.values.shape)) for one in (largest, pooled(largest, way.side))
        )
        lines.append(f"To keep this page small, maps of {before} cells are pooled to {after}.")
    if not way.closer and any(one.closer() for one in maps):
        lines.append("There was no room for closer views of parts of these maps.")
    if cut_names:
        lines.append("Long tokens are cut in the middle.")
    return lines


# -- what is kept -----------------------------------------------------------------------------


def _packed(heat: Heatmap, way: Way, shared: _Shared) -> dict[str, Any]:
    exact, heat = _is_exact(heat, way), pooled(heat, way.side)
    rows, columns = shared.row_axis(heat), shared.column_axis(heat)
    return {
        "title": legible(heat.title),
        "head": heat.head,
        "kind": "mask" if isinstance(heat, Grid) else "weights",
        "words": ["query", "key"],
        "rows": rows,
        "columns": columns,
        **shared.coded(heat, exact),
        "notes": list(map(legible, heat.notes)),
        "closer": [_part(one, way, rows, columns, shared) for one in way.parts(heat)],
    }


def _numbers(shaded: Shaded, shared: _Shared) -> dict[str, Any]:
    """Return any numbers, exact."""
    small = pooled(shaded, NUMBERS)
    heat = Heatmap(
        small.title, small.values, small.row_edges, small.column_edges, small.row_labels,
        small.column_labels, notes=small.notes, hidden=small.hidden,
    )  # fmt: skip
    made = _packed(heat, Way(NUMBERS, False, True), shared)
    return made | shared.coded(heat, True) | {
        "kind": "numbers", "name": legible(shaded.name), "log": shaded.log,
        "diverging": shaded.diverging, "mean": is_mean(shaded),
        "words": [legible(shaded.rows or "row"), legible(shaded.columns or "column")],
    }  # fmt: skip


def _part(heat: Heatmap, way: Way, rows: int, columns: int, shared: _Shared) -> dict[str, Any]:
    """Return a closer part, whose names are those of the whole map."""
    names = [shared.axes[n].get("names") for n in (rows, columns)]
    return {
        "rows": shared.axis(heat.row_edges, heat.row_positions, names[0]),
        "columns": shared.axis(heat.column_edges, heat.column_positions, names[1]),
        **shared.coded(heat, _is_exact(heat, way)),
    }


def _top(values: Array) -> float:
    finite = values[np.isfinite(values)]
    return float(f"{float(finite.max(initial=0)):.7g}")


def _bytes(heat: Heatmap, exact: bool) -> bytes:
    """Return the values themselves, where −∞ is hidden, or a byte each; deflated."""
    values, hidden = np.asarray(heat.values, np.float32), heat.hidden
    if exact:
        whole = values if hidden is None else np.where(hidden, np.float32(-np.inf), values)
        return zlib.compress(np.ascontiguousarray(whole, "<f4").tobytes(), 9)
    top = _top(values) or 1.0
    with np.errstate(invalid="ignore"):
        share = np.sqrt(np.clip(values / np.float32(top), 0, 1))
    known = np.isfinite(values)
    code = np.rint(np.where(known, share, 0) * LAST).astype(np.int16) + 1
    if isinstance(heat, Grid):  # some is neither none nor all
        code = np.clip(code, 1 + (values > 0), LAST + (values >= 1))
    code[~known] = NAN
    if hidden is not None:
        code[hidden] = HIDDEN
    return zlib.compress(code.astype(np.uint8).tobytes(), 6)


class _Shared:
    """What all maps are written into: axes and lists of names, each kept once."""

    def __init__(self) -> None:
        self.size = 0  # bytes of cells
        self.axes: list[dict[str, Any]] = []
        self.names: list[list[str]] = []
        self.cut = False
        self._axes: dict[str, int] = {}
        self._names: dict[tuple[str, ...], int] = {}

    def coded(self, heat: Heatmap, exact: bool) -> dict[str, Any]:
        """Return how cells are written, their bytes in base64, and the largest weight there is."""
        data = _bytes(heat, exact)
        self.size += len(data)
        text = base64.b64encode(data).decode()
        return {"code": "f32" if exact else "u8", "top": _top(heat.values), "data": text}

    def row_axis(self, heat: Heatmap) -> int:
        names = self._named(heat.row_labels, heat.row_positions)
        return self.axis(heat.row_edges, heat.row_positions, names)

    def column_axis(self, heat: Heatmap) -> int:
        names = self._named(heat.column_labels, heat.column_positions)
        return self.axis(heat.column_edges, heat.column_positions, names)

    def axis(self, edges: Sequence[int], positions: Sequence[int] | None, names: int | None) -> int:
        """Return the number of an axis: blocks of ``size``, or their edges, and where they lie."""
        axis: dict[str, Any] = {"count": len(edges) - 1, "stop": int(edges[-1])}
        size = int(edges[1]) if len(edges) > 1 else 1
        if [*range(0, axis["stop"], size), axis["stop"]] == list(edges):
            axis["size"] = size
        else:
            axis["edges"] = [int(edge) for edge in edges]
        if positions is not None and len(positions) and isinstance(positions, range):
            axis |= {"at": positions[0]} if positions.step == 1 else {"places": list(positions)}
        elif positions is not None:
            axis["places"] = list(map(int, positions))
        if names is not None:
            axis["names"] = names
        key = repr(axis)
        if key not in self._axes:
            self._axes[key] = len(self.axes)
            self.axes.append(axis)
        return self._axes[key]

    def _named(self, labels: Sequence[str], positions: Sequence[int] | None) -> int | None:
        """Return the number of a list of names; None where they only count."""
        key = tuple(labels)
        counted = map(str, positions if positions is not None else range(len(key)))
        if all(map(str.__eq__, key, counted)):
            return None
        if key not in self._names:
            self._names[key] = self._kept(key)
        return self._names[key]

    def _kept(self, labels: Sequence[str]) -> int:
        room = max(8, min(WIDEST, NAMES // max(len(labels), 1)))
        kept = list(_cut(labels, room))
        self.cut = self.cut or any(len(one) > room for one in labels)
        self.names.append(kept)
        return len(self.names) - 1


def _cut(labels: Sequence[str], room: int) -> Iterator[str]:
    for label in labels:
        # what lies between is not shown: it need not be spelled out first
        short = label if len(label) <= 4 * room else label[: 2 * room] + label[-2 * room :]
        yield cut(legible(short), room)
