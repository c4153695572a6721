"""``attncli compute --part`` and ``--merge``: one part of the keys after the other, then all."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from typing import TYPE_CHECKING

from attncli.cli import groups, output
from attncli.cli.groups import divided
from attncli.cli.groups.compute import Layer
from attncli.cli.options import mode
from attncli.errors import FileError, InputError

if TYPE_CHECKING:
    from attncli import files


class Parted(groups.Posed, groups.Engine, divided.Part):
    """All that a part of a problem depends on."""


@mode("a part of the keys (--part)", "leave it out: it is saved, and nothing else is made of it")
def one_part(
    source: "files.Bundle | None",
    *,
    bundle: str | None,
    asked: Parted,
    where: Layer,
    saved: groups.Output,
    printed: groups.Printed,
) -> None:
    """Save what some of the keys give."""
    page = output.page_of(printed)
    target = _target(saved.output)

    from attncli import render
    from attncli.attention.view import Labels
    from attncli.cli.given import attention
    from attncli.reports.merged import part_report
    from attncli.studies import partial

    assert asked.part is not None
    given = attention.gather(source, asked)
    page = page._replace(target=target, quiet=saved.quiet)
    output.keep_inputs(page, given.sources)
    with render.progress() as progress:
        kept, ran = partial.compute(
            given.pose(), *divided.numbers(asked.part), backend=asked.backend,
            device=asked.device, threads=asked.threads, progress=progress,
        )  # fmt: skip
    output.conclude(part_report(kept, ran), Labels(), page, printed)


@mode("parts that are joined (--merge)", "leave it out: parts hold what they were made with")
def merge(
    *,
    bundle: str | None,
    command: list[str] | None,
    merge: bool,
    saved: groups.Saved,
    printed: groups.Printed,
) -> None:
    """Print, or save, what all parts of a problem give together."""
    from attncli.reports.merged import KNOWN, merged_report

    page = output.page_of(printed, saved, KNOWN)
    output.demand_place(page)
    paths = [*([] if bundle is None else [bundle]), *(command or ())]
    if not paths:
        raise InputError(
            "--merge has nothing to join",
            "attncli compute --merge part1.safetensors part2.safetensors",
        )
    output.keep_inputs(page, paths)

    from attncli import files
    from attncli.attention.view import Labels
    from attncli.studies import partial

    result = partial.merge([files.read(path) for path in paths])
    output.conclude(merged_report(result, len(paths), page.names), Labels(), page, printed)


def _target(path: str | None) -> output.Target:
    """Return where a part is saved, in a format that holds its facts, too."""
    if path is None:
        raise InputError(
            "a part is there to be saved, and nothing says where", "add -o part1.safetensors"
        )
    from attncli.files.formats import WRITABLE

    target = output.target_of(path, (), "table")
    assert target is not None
    if not WRITABLE[target.suffix].options:
        able = ", ".join(suffix for suffix, row in WRITABLE.items() if row.options)
        raise FileError(f"{target.suffix} holds arrays alone, no facts", f"write {able}")
    return target
