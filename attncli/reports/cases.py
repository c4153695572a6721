"""What is said of a kernel's test set: what was written, and how somebody's answers to it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attncli.errors import counted, series
from attncli.reports.blocks import Column, Records, Report, Table, Text, sentences
from attncli.reports.compute import SCHEMA
from attncli.studies.cases.kinds import KINDS
from attncli.studies.cases.tally import Count, Tally
from attncli.studies.cases.writing import Written

HEAD = {"schema": SCHEMA, "command": "compute"}


def written_report(written: Written, seed: int) -> Report:
    """Return how many cases there are of each kind, and what each catches."""
    total = sum(written.counts.values())
    width = max(map(len, written.counts))
    lines = [f"{n:4}  {k.ljust(width)}  {KINDS[k].catches}" for k, n in written.counts.items()]
    rows = [(name, n, KINDS[name].catches) for name, n in written.counts.items()]
    columns = ("kind", "cases", "catches")
    return Report(
        command="compute",
        headline=[counted(total, "case"), counted(len(lines), "kind"), f"seed {seed}"],
        blocks=[sentences(*lines, indent=" " * (width + 8))],
        data=lambda: {
            **HEAD,
            "files": [written.lines, written.tensors],
            "seed": seed,
            "cases": total,
            "kinds": [dict(zip(columns, row, strict=True)) for row in rows],
        },
        records=lambda: Records(columns, rows),
    )


def judged_report(expect: Mapping[str, Any], kind: str, unanswered: Sequence[str] = ()) -> Report:
    """Return the judgement of one case, for programs alone.

    ``unanswered``: the stages that it expects and that are not answered.
    """
    about: dict[str, Any] = {"kind": kind} if kind else {}
    if unanswered:
        about["unanswered"] = list(unanswered)
    return Report("compute", [], [], lambda: {**HEAD, **about, "expect": expect})


def tally_report(
    tally: Tally, explained: str, unclaimed: int = 0, *, every: bool = False
) -> Report:
    """Return the sums of all cases, a row a kind, with what failed first, or all that did.

    ``explained`` says which failures were explained, where any could be.
    """
    notes = [f"explained: {explained}"] if tally.differing else []
    if tally.unanswered:
        notes.insert(0, f"{counted(tally.unanswered, 'case')}: gradients not answered")
    total = tally.total()
    rows = [[count.cases, count.passed, count.failed] for count in tally.kinds.values()]
    labels = [name or "cases" for name in tally.kinds]
    whole = [f"{name} ({number})" for name, number in tally.patterns().items()]
    words = [f"All cases fail of {series(whole) if len(whole) > 1 else whole[0]}."] if whole else []
    firsts = [count.first for count in tally.kinds.values() if count.first]
    words += [
        f"{one.name} (line {one.line}): {one.words}"
        for one in (tally.failures if every else firsts)
    ]
    columns = [Column(name, "count") for name in ("cases", "passed", "failed")]
    blocks = [Table("Kind", columns, rows, labels)] if rows else [Text("", ["no cases"])]
    return Report(
        command="compute",
        headline=[
            counted(total.cases, "case"), f"{total.passed:,} passed", f"{total.failed:,} failed"
        ],
        blocks=[*blocks, *([sentences(*words, indent="  ")] if words else [])],
        data=lambda: {**HEAD, "summary": _data(tally, total, explained, unclaimed)},
        records=lambda: Records(
            ("kind", "cases", "passed", "failed", "first_failure", "words"),
            [
                (name, *row, *((c.first.name, c.first.words) if c.first else (None, None)))
                for (name, c), row in zip(tally.kinds.items(), rows, strict=True)
            ],
        ),
        notes=notes,
        exit_code=1 if total.failed else 0,
    )  # fmt: skip


def _data(tally: Tally, total: Count, explained: str, unclaimed: int) -> dict[str, Any]:
    return {
        "cases": total.cases, "passed": total.passed, "failed": total.failed,
        "unanswered": tally.unanswered, "explained": explained, "unclaimed": unclaimed,
        "all_fail": list(tally.patterns()),
        "kinds": [{"kind": name or None, **_count(c)} for name, c in tally.kinds.items()],
        "dtypes": [{"dtype": name, **_count(c)} for name, c in tally.dtypes.items()],
    }  # fmt: skip


def _count(count: Count) -> dict[str, Any]:
    first = count.first
    return {
        "passed": count.passed, "failed": count.failed,
        "first": first and {"line": first.line, "name": first.name, "words": first.words},
    }  # fmt: skip
