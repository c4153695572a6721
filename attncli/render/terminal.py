"""A report as lines for people: tables, maps and steps that fit a width, calm without colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from attncli.errors import counted
from attncli.render.cells import (
    ELLIPSIS,
    columns_of,
    cut,
    cut_apart,
    escaped,
    flow,
    pad,
    visible,
    wide,
    wrap,
)
from attncli.render.legend import legend_lines
from attncli.render.maps import gathered, grid_lines, heatmap_lines
from attncli.render.paint import Paint
from attncli.render.shades import Scale
from attncli.reports.blocks import Block, Grid, Heatmap, Report, Step, Table

LAYOUTS = ((3, 16), (2, 8))  # blanks between columns, longest label over a column of a matrix
LONGEST_LABEL = 20
SHORT_LABEL = 12  # label columns up to here stand in line from table to table
NARROWEST = 24


def lines(report: Report, *, width: int, height: int, colors: int) -> Iterator[str]:
    """Return the report as lines of at most ``width`` cells (unless something is to be whole)."""
    width, paint = max(width, NARROWEST), Paint(colors)
    for line in wrap([visible(fact) for fact in report.headline], " · ", width):
        yield from flow(line, width)
    for note in report.notes:
        yield from map(paint.dim, flow(visible(note), width))
    own = [_label_width(b, width) for b in report.blocks if isinstance(b, Table)]
    aligned = max((w for w in own if w <= SHORT_LABEL), default=0)
    for n, blocks in enumerate(gathered(report.blocks)):
        if n or report.headline:
            yield ""
        yield from block_lines(blocks, paint, width, height, aligned)


def block_lines(
    blocks: Sequence[Block], paint: Paint, width: int, height: int, aligned: int = 0
) -> Iterator[str]:
    """Return one block, or maps that go side by side, as lines.

    ``aligned``: at least that wide a label column for tables.
    """
    block = blocks[0]
    if isinstance(block, Table):
        yield from table_lines(block, paint, width, aligned)
    elif isinstance(block, Grid) and block.scale is None:
        yield from grid_lines(block, paint, width, height)
    elif isinstance(block, Heatmap):
        maps = [one for one in blocks if isinstance(one, Heatmap)]
        yield from heatmap_lines(maps, paint, width, height)
    elif isinstance(block, Step):
        yield from step_lines(block, paint, width)
    else:
        if block.title:
            yield paint.bold(escaped(block.title))
        yield from map(escaped, block.lines)


# -- tables -----------------------------------------------------------------------------------
# rich's Table squeezes and wraps its columns; here the least telling go and a line says so.


def _label_width(table: Table, width: int) -> int:
    alone = not any(column.title for column in table.columns)  # in its line
    return max([0 if alone else wide(table.title), *map(wide, _labels(table, width))])


def _labels(table: Table, width: int) -> list[str]:
    """Return the labels, cut, but not so short that two of them become one."""
    return cut_apart([visible(text) for text in table.labels], LONGEST_LABEL, width // 2)


def table_lines(table: Table, paint: Paint, width: int, aligned: int = 0) -> Iterator[str]:
    """Return a table as lines: a header, the rows, and what is not shown."""
    label_width = max(_label_width(table, width), aligned)
    if table.fold:
        table = _folded(table, width - label_width)
    body = columns_of(table)
    titles = [visible(column.title) for column in table.columns]
    if table.matrix:
        shown, gap, titles = _fit_matrix(table, titles, body, width - label_width)
    else:
        shown, gap = _fit_columns(table, titles, body, width - label_width)
    widths = {n: _width(titles[n], table.columns[n].sub, body[n]) for n in shown if n >= 0}
    yield _line(paint.bold(pad(table.title, label_width, left=True)), [
        " " * gap + (_head(table, titles[n], widths[n], n) if n >= 0 else ELLIPSIS) for n in shown
    ])  # fmt: skip
    if any(table.columns[n].sub for n in shown if n >= 0):
        subs = [
            " " * gap + (_head(table, table.columns[n].sub, widths[n], n) if n >= 0 else " ")
            for n in shown
        ]
        yield paint.dim(_line(" " * label_width, subs).rstrip())
    for r, label in enumerate(_labels(table, width)):
        if table.row_gap and r == table.row_gap.after:
            yield ELLIPSIS
        cells = []
        for n in shown:
            if n < 0:
                cells.append(" " * gap + ELLIPSIS)
                continue
            cell = pad(body[n][r], widths[n], left=table.columns[n].kind in ("text", "verdict"))
            value = table.rows[r][n]
            if table.columns[n].kind == "verdict":
                cell = paint.verdict(cell)
            if table.columns[n].kind == "weight" and value is not None:
                share = table.shades[r][n] if table.shades else value
                cell = paint.shade(cell, share, least=0 if table.span else 1)
            cells.append(" " * gap + cell)
        yield _line(pad(label, label_width, left=True), cells)
    yield from map(paint.dim, _footer(table, shown, width))
    if table.span and paint.colors:
        yield from legend_lines(Scale("linear", *table.span), paint, width)


def _line(label: str, cells: Sequence[str]) -> str:
    return (label + "".join(cells)).rstrip()


def _head(table: Table, text: str, width: int, n: int) -> str:
    return pad(text, width, left=table.columns[n].kind in ("text", "verdict"))


def _width(title: str, sub: str, cells: Sequence[str]) -> int:
    return max([wide(title), wide(sub), *map(wide, cells)])


def _fit_columns(
    table: Table, titles: Sequence[str], body: Sequence[Sequence[str]], room: int
) -> tuple[list[int], int]:
    """Return the columns that fit and the blanks between; the least telling are dropped."""
    widths = [_width(t, c.sub, b) for t, c, b in zip(titles, table.columns, body, strict=True)]
    shown = list(range(len(widths)))
    for gap in (gap for gap, _ in LAYOUTS):
        if table.whole or sum(widths) + gap * len(widths) <= room:
            return shown, gap
    while len(shown) > 1 and sum(widths[n] + gap for n in shown) > room:
        # of equally telling ones the last goes first, with what continues it
        least = min(shown, key=lambda n: (table.columns[n].keep, -n))
        shown.remove(least)
        if titles[least] and least + 1 in shown and not titles[least + 1]:
            shown.remove(least + 1)
    wider = LAYOUTS[0][0]
    return shown, wider if sum(widths[n] + wider for n in shown) <= room else gap


def _folded(table: Table, room: int) -> Table:
    """Return the table with as many columns as fit; a row goes on in the lines below it."""
    count, together, gap = len(table.columns), table.fold, LAYOUTS[-1][0]
    widths = [max((wide(t) for t in cells), default=0) for cells in columns_of(table)]
    group = sum(max(widths[k::together]) + gap for k in range(together)) if count else room
    columns = min(max(room // group, 1) * together, count)
    if columns == count:
        return table
    lines = -(-count // columns)
    empty = [None] * (lines * columns - count)
    return table._replace(
        columns=table.columns[:columns],
        rows=[
            ([*row, *empty])[start : start + columns]
            for row in table.rows
            for start in range(0, lines * columns, columns)
        ],
        labels=[text for label in table.labels for text in [label, *[""] * (lines - 1)]],
        row_gap=table.row_gap and replace(table.row_gap, after=table.row_gap.after * lines),
    )


def _fit_matrix(
    table: Table, titles: list[str], body: Sequence[Sequence[str]], room: int
) -> tuple[list[int], int, list[str]]:
    """Return the columns that fit, from both ends, with -1 for the gap between them."""
    count, before = len(titles), table.column_gap
    if table.whole:
        return list(range(count)), LAYOUTS[-1][0], titles
    for gap, longest in LAYOUTS:
        short = [cut(title, longest) for title in titles]
        widths = [_width(t, "", b) for t, b in zip(short, body, strict=True)]
        if before is None and sum(widths) + gap * count <= room:
            return list(range(count)), gap, short
    room -= gap + 1  # the ellipsis
    left, right = 0, count
    while left < right:
        from_left = left <= count - right and (before is None or left < before.after)
        room -= gap + widths[left if from_left else right - 1]
        if room < 0 and left:  # however narrow, something is shown
            break
        left, right = (left + 1, right) if from_left else (left, right - 1)
    return [*range(left), -1, *range(right, count)], gap, short


def _footer(table: Table, shown: Sequence[int], width: int) -> Iterator[str]:
    facts = [table.part] if table.part else []
    if table.matrix and -1 in shown:
        total = len(table.columns) + (table.column_gap.count if table.column_gap else 0)
        facts.append(f"{len(shown) - 1} of {total} {table.things}")
    facts += table.notes
    if facts:
        yield from flow("; ".join(facts) + (f" ({table.hint})" if table.hint else ""), width)
    dropped = len(table.columns) - len(shown)
    if not table.matrix and dropped:
        yield from flow(f"+{counted(dropped, 'column')}: --format csv, or a wider terminal", width)


# -- steps ------------------------------------------------------------------------------------


def step_lines(step: Step, paint: Paint, width: int) -> Iterator[str]:
    """Return a stage as lines: its heading, its numbers, the arithmetic behind them."""
    heading = f"{step.number}  {pad(step.name, 12, left=True)}"
    heading += pad(escaped(step.formula) + "  ", 17, left=True)
    meaning = escaped(step.meaning)
    if wide(heading + meaning) <= width:
        yield (paint.bold(heading) + meaning).rstrip()
    else:
        yield paint.bold(heading.rstrip())
        yield from (f"   {line}" for line in flow(meaning, width - 3))
    if step.table:
        yield from (f"   {line}" for line in table_lines(step.table, paint, width - 3))
    for line in step.lines:
        first, *rest = flow(escaped(line), width - 5)
        yield f"   {first}"
        yield from (f"     {more}" for more in rest)
