"""The tensors of a file, whatever they are: a row each, totals, and what is wrong with some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from textwrap import wrap
from typing import Any

from attncli.errors import FileError, InputError, listed, nearest
from attncli.files.attentions import NO_ATTENTIONS
from attncli.files.bundle import Bundle
from attncli.measures.tensors import TensorFacts, header_facts, tensor_facts
from attncli.models.stored import packed
from attncli.reports.blocks import Block, Column, Gap, Records, Report, Table, Text
from attncli.resources import Progress, readable_bytes, stages

WHOLE = 40  # rows of a table that is shown whole
EDGE = 16  # else at each end
SHORT, LONG = 20, 32  # a name up to SHORT labels its row; a longer one has a column of LONG
DAMAGED = 10  # unreadable tensors that are listed

#: The columns of JSON, CSV and --sort.
HEADER = ("name", "shape", "dtype", "bytes", "size")
STATISTICS = (
    "min", "max", "mean", "std", "zeros", "nan", "inf",
    "float16_overflow", "float16_subnormal", "float16_underflow",
    "bfloat16_overflow", "bfloat16_subnormal", "bfloat16_underflow",
)  # fmt: skip
SORTABLE = HEADER + STATISTICS


def tensors_report(
    bundles: Bundle | Sequence[Bundle],
    *,
    header: bool = False,
    filter: str | Sequence[str] | None = None,
    sort: str | None = None,
    full: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Report:
    """Return a row a tensor with shape, dtype, bytes, statistics; ``exit_code`` 2 if any is bad.

    ``header`` (--header): shape, dtype and bytes alone; no data are read. ``filter`` (--filter
    GLOB): names that match one of these, as in a shell. ``sort`` (--sort COLUMN, a name of JSON):
    largest number first, words from A, ``-COLUMN`` the other way round, tensors without that number
    last. ``full`` (--full): no row is left out and names are whole. ``threads``: default all.
    ``data`` and ``records`` hold every tensor. A tensor that cannot be read is a row with the
    reason. Raises InputError for an unknown column or a filter that nothing matches, FileError for
    a file without tensors.
    """
    chosen = _chosen(bundles, filter)
    order = _order(sort, header)
    facts = list(_facts(chosen, header, threads, progress))
    if order:
        facts = order(facts)
    several = len({f.source for f in facts}) > 1
    totals = _totals(facts)

    def data() -> Mapping[str, Any]:
        return {
            "schema": "attncli.inspect/1",
            "command": "inspect",
            "totals": totals,
            "warnings": warnings,
            "tensors": [_line(f, header, several) for f in facts],
        }

    def records() -> Records:
        columns = [*(["source"] if several else []), *HEADER]
        columns += ["reason"] if header else [*STATISTICS, "reason"]
        lines = (_line(f, header, several) for f in facts)
        return Records(columns, ([_cell(line.get(c)) for c in columns] for line in lines))

    warnings = _warnings(facts)
    return Report(
        command="inspect", headline=_headline(chosen, facts, totals),
        blocks=_blocks(facts, header, full, sort), data=data, records=records,
        warnings=warnings, exit_code=_exit_code(facts),
    )  # fmt: skip


# -- which tensors, in what order -------------------------------------------------------------

Chosen = Sequence[tuple[Bundle, str]]


def _chosen(bundles: Bundle | Sequence[Bundle], filter: str | Sequence[str] | None) -> Chosen:
    bundles = [bundles] if isinstance(bundles, Bundle) else bundles
    every = [(bundle, name) for bundle in bundles for name in bundle.tensors]
    if not every:
        sources = " and ".join(bundle.source for bundle in bundles)
        text = any(bundle.kind == "json" for bundle in bundles)
        raise FileError(
            f"{sources} holds no tensor",
            "a tensor in JSON is a nested list of numbers" if text else NO_ATTENTIONS,
        )
    if filter is None:
        return every
    globs = [filter] if isinstance(filter, str) else list(filter)
    chosen = [(b, name) for b, name in every if any(fnmatchcase(name, g) for g in globs)]
    if chosen:
        return chosen
    names = [name for _, name in every]
    inside = [g for g in globs if any(g.strip("*") in name for name in names)]
    hint = (
        f"the pattern is of the whole name: --filter '*{inside[0].strip('*')}*'" if inside else None
    )
    if not hint and globs:
        hint = nearest(globs[0].strip("*"), names, "")
    raise InputError(
        f"no name of {len(names)} tensors matches {' or '.join(map(repr, globs))}",
        hint or f"they are called {listed(map(repr, names), 3)}",
    )


def _order(
    sort: str | None, header: bool
) -> Callable[[list[TensorFacts]], list[TensorFacts]] | None:
    """A function that sorts; InputError for a column that is not there."""
    if sort is None:
        return None
    column, reverse = sort.removeprefix("-"), sort.startswith("-")
    if column not in SORTABLE:
        raise InputError(
            f"unknown column '{column}' in --sort",
            nearest(column, SORTABLE, f"columns are {', '.join(SORTABLE)}"),
        )
    if header and column in STATISTICS:
        raise InputError(
            f"--sort {column} needs the data, and --header leaves them unread",
            f"leave out --header, or sort by {', '.join(HEADER)}",
        )
    words = column in ("name", "dtype")

    def sorted_(facts: list[TensorFacts]) -> list[TensorFacts]:
        keyed = [(_line(f, header, False).get(column), f) for f in facts]
        known = [(key, f) for key, f in keyed if key is not None]
        known.sort(key=lambda pair: pair[0], reverse=reverse if words else not reverse)
        return [f for _, f in known] + [f for key, f in keyed if key is None]

    return sorted_


def _facts(
    chosen: Chosen, header: bool, threads: int | None, progress: Progress | None
) -> Iterator[TensorFacts]:
    """The facts of one tensor after the other; progress goes by bytes."""
    heads = [header_facts(bundle, name) for bundle, name in chosen]
    if header:
        yield from heads
        return
    away = {id(bundle): packed(bundle.tensors) for bundle in {id(b): b for b, _ in chosen}.values()}
    heads = [
        replace(head, reason=f"{row.name}, several numbers in one; {row.way}")
        if (row := away[id(bundle)].get(name)) and head.header
        else head
        for (bundle, name), head in zip(chosen, heads, strict=True)
    ]
    sizes = [_bytes(head) + 1 for head in heads]
    for (bundle, _), head, stage in zip(chosen, heads, stages(progress, sizes), strict=True):
        yield tensor_facts(bundle, head, threads=threads, progress=stage)
        if stage:
            stage(1.0)


# -- for programs -----------------------------------------------------------------------------


def _line(facts: TensorFacts, header: bool, several: bool) -> dict[str, Any]:
    """One tensor as an object; what is not known is null, ``reason`` stands only where needed."""
    h, s = facts.header, facts.statistics
    line: dict[str, Any] = {"source": facts.source} if several else {}
    line |= {
        "name": facts.name,
        "shape": list(h.shape) if h else None,
        "dtype": h.dtype if h else None,
        "bytes": h.nbytes if h else None,
        "size": facts.size,
    }
    if not header:
        line |= {name: getattr(s, name) if s else None for name in STATISTICS}
    if facts.reason:
        line["reason"] = facts.reason
    return line


def _cell(value: Any) -> Any:
    return "×".join(map(str, value)) if isinstance(value, list) else value


def _bytes(facts: TensorFacts) -> int:
    return facts.header.nbytes if facts.header else 0


def _totals(facts: Sequence[TensorFacts]) -> dict[str, Any]:
    """Sums over the tensors whose header could be read."""
    return {
        "tensors": len(facts),
        "parameters": sum(f.size or 0 for f in facts),
        "bytes": sum(map(_bytes, facts)),
        "dtypes": dict(Counter(f.header.dtype for f in facts if f.header).most_common()),
        "unreadable": sum(not f.readable for f in facts),
    }


def _exit_code(facts: Sequence[TensorFacts]) -> int:
    return 0 if all(f.readable for f in facts) else 2


def _warnings(facts: Sequence[TensorFacts]) -> list[str]:
    """A line a kind of trouble: what, how many, the first one."""
    lines = []
    damaged = [f for f in facts if not f.readable]
    if damaged:
        lines.append(
            f"{_of(damaged, facts)} cannot be read: {_named(damaged[0])}: {damaged[0].reason}"
        )
    unfit = [f for f in facts if f.readable and f.reason]
    if unfit:
        lines.append(
            f"{_of(unfit, facts)} without statistics: {_named(unfit[0])}: {unfit[0].reason}"
        )
    odd = [f for f in facts if f.statistics and f.statistics.nan + f.statistics.inf]
    if odd and odd[0].statistics:
        s = odd[0].statistics
        lines.append(
            f"{_of(odd, facts)} with NaN or infinities: {_named(odd[0])} has {s.nan} NaN and "
            f"{s.inf} ±inf of {s.size}; min, max, mean and std are of the rest"
        )
    return lines


def _of(some: Sequence[TensorFacts], facts: Sequence[TensorFacts]) -> str:
    return f"{len(some)} of {len(facts)} tensor{'s' * (len(facts) > 1)}"


def _named(facts: TensorFacts) -> str:
    return f"'{facts.name}'" if facts.name else facts.source


# -- for people -------------------------------------------------------------------------------


def _headline(chosen: Chosen, facts: Sequence[TensorFacts], totals: Mapping[str, Any]) -> list[str]:
    every = sum(len(bundle.tensors) for bundle in {id(b): b for b, _ in chosen}.values())
    some = f" of {every}" if every > len(facts) else ""
    kinds = sorted({bundle.kind for bundle, _ in chosen})
    dtypes = totals["dtypes"]
    return [
        f"{len(facts):,}{some} tensor{'s' * (every > 1)} ({', '.join(kinds)})",
        f"{totals['parameters']:,} parameters",
        readable_bytes(totals["bytes"]),
        ", ".join(f"{dtype} × {n}" if len(dtypes) > 1 else dtype for dtype, n in dtypes.items())
        or "no dtype",
    ]


def _blocks(
    facts: Sequence[TensorFacts], header: bool, full: bool, sort: str | None
) -> list[Block]:
    blocks: list[Block] = [_table(facts, header, full, (sort or "").removeprefix("-"))]
    without = [f"{f.name or f.source}: {f.reason}" for f in facts if f.reason]
    if without:
        more = len(without) - DAMAGED
        if more > 0 and not full:
            without[DAMAGED:] = [f"… and {more} more (--full, --json)"]
        lines = [line for text in without for line in wrap(text, 78, subsequent_indent="  ")]
        blocks.append(Text("Without statistics", lines))
    return blocks


#: What a table says of the numbers; a percentage is of a tensor's size. After the first four only
#: those with something to say are shown.
COLUMNS: Mapping[str, Column] = {
    "min": Column("min", keep=6),
    "max": Column("max", keep=6),
    "mean": Column("mean", keep=4),
    "std": Column("std", keep=5),
    "nan": Column("NaN", "count", keep=7),
    "inf": Column("inf", "count", keep=7),
    "zeros": Column("zeros", "percent", keep=3),
    "float16_overflow": Column("float16", "count", "overflow", keep=6),
    "float16_subnormal": Column("float16", "percent", "subnormal", keep=1),
    "float16_underflow": Column("float16", "percent", "underflow", keep=2),
    "bfloat16_overflow": Column("bfloat16", "count", "overflow", keep=6),
    "bfloat16_subnormal": Column("bfloat16", "percent", "subnormal", keep=1),
    "bfloat16_underflow": Column("bfloat16", "percent", "underflow", keep=2),
}
LEAST = 0.005  # a share that is more than '<1 %'


def _value(facts: TensorFacts, name: str) -> Any:
    s = facts.statistics
    if s is None or (COLUMNS[name].kind == "percent" and not s.size):
        return None
    value = getattr(s, name)
    return value / s.size if COLUMNS[name].kind == "percent" else value


def _tells(name: str, facts: Sequence[TensorFacts]) -> bool:
    if name in ("min", "max", "mean", "std"):
        return True
    least = LEAST if COLUMNS[name].kind == "percent" else 1
    return any((_value(f, name) or 0) >= least for f in facts)


def _table(facts: Sequence[TensorFacts], header: bool, full: bool, sort: str) -> Table:
    places, gap = list(range(len(facts))), None
    if not full and len(facts) > WHOLE:
        gap = Gap(EDGE, len(facts) - 2 * EDGE)
        places = [*places[:EDGE], *places[-EDGE:]]
    several = len({f.source for f in facts}) > 1
    names = [_title(facts[k], several) for k in places]
    short = all(len(name) <= SHORT for name in names)
    told = [] if header else [name for name in COLUMNS if name == sort or _tells(name, facts)]
    rows = []
    for k, name in zip(places, names, strict=True):
        row: list[Any] = [] if short else [name if full else _tail(name)]
        rows.append([*row, *_described(facts[k]), *(_value(facts[k], c) for c in told)])
    columns = [
        *([] if short else [Column("tensor", "text", keep=9)]),
        Column("shape", "text", keep=8),
        Column("dtype", "text", keep=7),
        Column("bytes", "text", keep=10 if sort in ("bytes", "size") else 0),
        *(COLUMNS[c]._replace(keep=10) if c == sort else COLUMNS[c] for c in told),
    ]
    clean = not {"nan", "inf"} & {*told} and all(f.statistics for f in facts)
    return Table(
        title="Tensors" if short else "", columns=columns, rows=rows,
        labels=names if short else [str(k) for k in places],
        part=f"{len(places)} of {len(facts):,} tensors" if gap else "",
        notes=["no NaN, no inf"] if clean else [],
        hint="--full, --filter or --format csv for the others" if gap else "",
        row_gap=gap, whole=full,
    )  # fmt: skip


def _described(facts: TensorFacts) -> list[Any]:
    h = facts.header
    if h is None:
        return ["unreadable", None, None]
    return ["×".join(map(str, h.shape)) or "scalar", h.dtype, readable_bytes(h.nbytes)]


def _title(facts: TensorFacts, several: bool) -> str:
    name = facts.name or "(array)"
    return f"{facts.source}::{name}" if several else name


def _tail(name: str) -> str:
    """The end of a long name tells more than its beginning."""
    return name if len(name) <= LONG else "…" + name[1 - LONG :]
