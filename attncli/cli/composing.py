"""``attncli inspect CHECKPOINT --composition``: which heads read what which others write."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from typing import TYPE_CHECKING

from attncli.cli import groups, output
from attncli.cli.groups import inspect as own
from attncli.cli.options import mode

if TYPE_CHECKING:
    from attncli import files


@mode("the composition of heads (--composition)", "leave one of the two out")
def composition(
    source: "files.Bundle",
    *,
    bundle: str,
    composition: bool,
    model: own.Model,
    where: own.Layers,
    head: str | None,
    picked: own.Picked,
    map: str | None,
    threads: int | None,
    full: bool,
    drawn: groups.Drawn,
    printed: groups.Printed,
) -> None:
    """Print a row a pair of heads, the strongest first."""
    page = output.page_of(printed, drawn=drawn)
    output.keep_inputs(page, [bundle])

    from attncli import render
    from attncli.measures.composition import PAIRS
    from attncli.models.beside import config_of
    from attncli.reports.composition import PLACES, composition_report
    from attncli.reports.picking import picking

    asked = picking(
        PAIRS, PLACES, filters=picked.filter or (), sort=picked.sort, map=map, word="kind"
    )
    config = config_of(bundle, model.config)
    with render.progress("layers") as progress:
        report = composition_report(
            source, config, layer=where.layer, head=head, asked=asked, full=full,
            threads=threads, progress=progress, **model.how,
        )  # fmt: skip
    render.show_warnings(report.warnings)
    output.finish(report, page, printed)
