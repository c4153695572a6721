"""Plain data that a window can show: facts, tables, maps, warnings. Nothing here prints."""

# No `from __future__ import annotations` here: NamedTuple would compile each text.

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[Any]]


Kind = Literal[
    "number", "percent", "count", "text", "range", "weight", "verdict", "error"
]  # fmt: skip


class Column(NamedTuple):
    """A column: its numbers share one format.

    ``title`` and ``sub`` (the unit or the quantile) stand one over the other; a column with no
    title continues the one before. The smallest ``keep`` goes first when a table is too wide. An
    ``error`` has a format of its own: errors and tolerances are read by their exponents.
    """

    title: str
    kind: Kind = "number"
    sub: str = ""
    keep: int = 0


@dataclass(frozen=True)
class Gap:
    """``count`` rows or columns are left out after the first ``after``."""

    after: int
    count: int


class Table(NamedTuple):
    """``rows`` of cells under ``columns``; ``labels`` name the rows. None is an empty cell.

    A ``matrix`` has one format for all its numbers and, when too wide, loses columns in its middle
    (``things`` says what they are); other tables lose those with the smallest ``keep``. ``whole``
    loses none. With ``fold`` a row goes on below, ``fold`` columns staying together.
    ``row_gap`` and ``column_gap`` say what was left out before; ``part`` and ``notes`` say it in
    words and ``hint`` how to see it. ``shades`` are shares in [0, 1] by which cells of weights are
    shaded, where not by themselves, and ``span`` the numbers at both ends of their scale.
    """

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    labels: Sequence[str] = ()
    part: str = ""
    notes: Sequence[str] = ()
    hint: str = ""
    row_gap: Gap | None = None
    column_gap: Gap | None = None
    matrix: bool = False
    things: str = "columns"
    whole: bool = False
    fold: int = 0
    shades: Sequence[Sequence[float]] | None = None
    span: tuple[float, float] | None = None


class Heatmap(NamedTuple):
    """Weights in [0, 1] to be shaded, ``(r, c)``: each the largest of a block of the matrix.

    Block i holds the rows ``row_edges[i]:row_edges[i + 1]`` (``r + 1`` edges), likewise columns.
    ``row_labels``, ``column_labels`` name the single rows and columns, not the blocks;
    ``row_positions``, ``column_positions`` say where they stand, when not at 0, 1, 2, …
    ``hidden``, bool ``(r, c)``: a mask hides the whole block. ``scale``: matrix (√, up to the
    largest of all maps beside it), row (√, up to each row's largest), log or linear (lowest to
    highest); None: by row where a causal map outgrows the screen, else matrix. ``head`` is whose
    weights these are, as `head_key` spells it. ``closer`` makes parts of the map in smaller blocks,
    where much is to be seen; their positions say where they lie.
    """

    title: str
    values: "Array"
    row_edges: Sequence[int]
    column_edges: Sequence[int]
    row_labels: Sequence[str]
    column_labels: Sequence[str]
    row_positions: Sequence[int] | None = None
    column_positions: Sequence[int] | None = None
    notes: Sequence[str] = ()
    hidden: "Array | None" = None
    scale: str | None = None
    head: str = ""
    closer: Callable[[], Sequence["Heatmap"]] = tuple


class Grid(Heatmap):
    """Which cells of a matrix are kept: the share of each block, 0 none, 1 all.

    Shown as marks; as shades where it has a ``scale``.
    """


class Shaded(NamedTuple):
    """Any numbers ``(r, c)`` to be shaded, NaN where there is none; blocks as of a ``Heatmap``.

    ``name`` says what the numbers are, with their unit; ``rows`` and ``columns`` what stands along
    the sides. ``log``: shades by the logarithm, 0 as the smallest; ``diverging``: around 0.
    """

    title: str
    values: "Array"
    row_edges: Sequence[int]
    column_edges: Sequence[int]
    row_labels: Sequence[str]
    column_labels: Sequence[str]
    name: str = ""
    rows: str = ""
    columns: str = ""
    log: bool = False
    diverging: bool = False
    notes: Sequence[str] = ()
    hidden: "Array | None" = None


class Text(NamedTuple):
    """Lines printed as they are."""

    title: str
    lines: Sequence[str]


class Step(NamedTuple):
    """One stage of a computation: what it is, its numbers, and how some of them came about."""

    number: int
    name: str
    formula: str
    meaning: str
    table: Table | None = None
    lines: Sequence[str] = ()


class Curve(NamedTuple):
    """A line of a figure: x and y ``(n,)``, NaN where there is nothing; its name for the legend.

    One without a name is one of many, drawn thin behind the others.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


class Figure(NamedTuple):
    """Curves over the same axes; ``ticks`` name the whole numbers 0, 1, … of x."""

    title: str
    x: str
    y: str
    curves: Sequence[Curve]
    log_x: bool = False
    log_y: bool = False
    ticks: Sequence[str] | None = None
    notes: Sequence[str] = ()


def head_key(batch: int, head: int, layer: str = "") -> str:
    """Return what ties a map to its head in JSON's list of heads."""
    return f"{layer}:{batch}:{head}"


Block = Table | Heatmap | Grid | Text | Step
Picture = Heatmap | Grid | Shaded | Figure


def sentences(*lines: str, indent: str = "") -> Text:
    """Return lines broken at blanks, so that they fit 80 columns."""
    from textwrap import wrap

    whole = [line.replace(" %", "~%") for line in lines]  # a number stays with its unit
    parts = [part for line in whole for part in wrap(line, 79, subsequent_indent=indent)]
    return Text("", [part.replace("~%", " %") for part in parts])


class Records(NamedTuple):
    """One tidy table for programs: every row complete, every number in full."""

    columns: Sequence[str]
    rows: Iterable[Sequence[Any]]


class Report(NamedTuple):
    """What a command has to say: for people ``headline`` and ``blocks``, for programs the rest.

    ``headline`` are facts for the first line. ``data`` makes the JSON object and ``records`` the
    table of ``--format csv``, when they are asked for; both may raise AttnError. ``arrays`` are the
    results to be saved, by name, in the shape family that came in; ``options`` go along into files
    that hold options. ``pictures`` makes what --plot and --report draw, of everything selected;
    it takes a Progress, or nothing. ``asides`` are said on standard error where the report is not
    printed: what was asked for, and is in no file.
    """

    command: str
    headline: Sequence[str]
    blocks: Sequence[Block]
    data: Callable[[], Mapping[str, Any]]
    records: Callable[[], Records] | None = None
    arrays: Mapping[str, "Array"] = MappingProxyType({})
    options: Mapping[str, Any] = MappingProxyType({})
    pictures: Callable[..., Sequence[Picture]] | None = None
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()
    exit_code: int = 0
    asides: Sequence[str] = ()
