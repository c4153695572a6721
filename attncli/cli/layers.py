"""``attncli inspect`` of many layers, files or texts: one report, or a line of JSON each."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import typer

from attncli.cli import groups, output, ranks
from attncli.cli.groups import divided
from attncli.cli.groups import inspect as own
from attncli.cli.options import mode
from attncli.errors import AttnError, InputError
from attncli.render import LINES

if TYPE_CHECKING:
    from attncli.cli.given.many import Source
    from attncli.reports.picking import Picking
    from attncli.resources import Progress
    from attncli.studies.captures import Capture
    from attncli.studies.many import LayerHealth, Many


@mode(
    "one report on many layers",
    heatmap="--map STATISTIC shades all heads; one layer: attncli compute FILE --layer N --heatmap",
    what_if="one layer can be asked: attncli inspect FILE::NAME --what-if …, a NAME as "
    "--format csv has it",
)
def many(
    found: "Iterable[Source]",
    paths: Sequence[str],
    warnings: Sequence[str],
    *,
    bundle: own.Bundles,
    asked: own.Many,
    shared: divided.Shard,
    full: bool,
    saved: groups.Saved,
    drawn: groups.Drawn,
    printed: groups.Printed,
) -> None:
    """Print one report on all layers, or a line of JSON for each; or save them as a capture.

    ``found`` is a sequence, or problems that come one after the other.
    """
    if saved.output is not None and saved.include is None:
        saved = saved.but(include=",".join(own.CAPTURED))
    page = output.page_of(printed, saved, own.CAPTURED, drawn)
    if page.names and not page.target:
        raise InputError("--include has no use without -o", "add -o capture.safetensors")
    _keep_inputs(page, paths)
    exchange = ranks.by_layers(shared.shard, "many problems", asked.device, page)

    from attncli import render
    from attncli.reports.kept import KeptMaps
    from attncli.reports.many import asked_of_heads, many_report
    from attncli.studies.captures import Capture
    from attncli.studies.many import Many

    picked = asked_of_heads(filters=asked.filter or (), sort=asked.sort, map=asked.map)
    known = found if isinstance(found, Sequence) else ()
    maps = KeptMaps(len(known))
    together = Many(
        policy=asked.limits(), seed=asked.seed, backend=asked.backend, device=asked.device,
        threads=asked.threads, among=[one.name for one in known],
        seen=maps.add if "report" in page.pictures else None, exchange=exchange,
    )  # fmt: skip
    if asked.layer is not None:
        found = _chosen(known, asked.layer)
    if exchange is not None:
        found = list(found)
        ranks.agreed(exchange, ", ".join(paths), len(found))
    with ExitStack() as stack:
        target, capture = page.target, None
        if target:
            capture = stack.enter_context(Capture(target.path, target.names, format=target.suffix))
        progress = stack.enter_context(render.progress("layers"))
        each = _examined(found, len(known), together, asked, page, capture, progress)
        if page.shown == LINES:
            failed = _print_lines(each, together, picked, asked, quiet=_no_report(page))
        else:
            for one in each:
                if isinstance(one, AttnError):
                    raise one
            together.join()
    ranks.rest()
    if capture and page.target:
        page = page._replace(target=page.target._replace(path=capture.written))
        warnings = [*warnings, *lost(capture)]
    if page.shown == LINES:
        render.show_warnings(warnings)
        if page.target and not page.target.replaces_report:
            output.say_wrote(page.target.path, page.target.names)
        raise typer.Exit(int(failed))
    report = many_report(
        together, head=asked.head, asked=picked, fail_on=asked.fail_on, full=full, sources=paths,
        warnings=warnings, maps=maps.maps,
    )  # fmt: skip
    render.show_warnings(report.warnings)
    output.finish(report, page, printed)


def problems_inside(path: str) -> list[str]:
    """Return the files of a folder that may hold problems; none of a checkpoint or a dump."""
    import os

    if not os.path.isdir(path):
        return []
    from attncli import files
    from attncli.files.sglang import is_dump

    return [] if is_dump(path) else files.captures_in(path)


def _keep_inputs(page: output.Page, sources: Sequence[str]) -> None:
    """Raise FileError where a capture would overwrite what is read, in one file or in several."""
    from attncli.files.folders import index_of

    output.keep_inputs(page, sources)
    if page.target:
        index = page.target._replace(path=index_of(page.target.path))
        output.keep_inputs(page._replace(target=index), sources)


def _chosen(known: "Sequence[Source]", layer: str) -> "list[Source]":
    """Return the problems that --layer means, by numbers or words of their names, or places."""
    from attncli.reports.selection import with_numbers
    from attncli.studies.many import indices_of, labels_of

    if not known:
        raise InputError(
            "--layer has no use in NDJSON: its problems come one after the other",
            "choose lines: sed -n 3,5p FILE | attncli …, or --filter 'layer==3'",
        )
    paths = [one.name for one in known]
    names = [*zip(labels_of(paths), paths, strict=True)]
    return with_numbers("layer", known, indices_of(paths), layer, names)


def _examined(
    found: "Iterable[Source]", count: int, together: "Many", asked: own.Many, page: output.Page,
    capture: "Capture | None", progress: "Progress",
) -> "Iterator[LayerHealth | AttnError]":  # fmt: skip
    """Yield each problem when it is examined and saved, or the error that names it."""
    from attncli.cli.given.weights import gather, posed
    from attncli.reports.selection import selection
    from attncli.resources import stages

    parts = stages(progress, [1] * count)
    for source in found:
        part = next(parts, None)
        if together.skips(source.name):
            continue
        try:
            given = gather(source.load(), asked.problem)
            _keep_inputs(page, given.sources)
            problem, labels, notes = posed(given, asked.query_start)
            one = together.add(
                source.name, problem, labels, notes, progress=part,
                batches=selection("--batch", asked.batch, problem.batch),
            )  # fmt: skip
            if capture:
                capture.add(one.name, problem, labels)
        except AttnError as error:
            error.message = f"{source.name}: {error.message}"
            yield error
        else:
            yield one


def _print_lines(
    each: "Iterable[LayerHealth | AttnError]", together: "Many", picked: "Picking",
    asked: own.Many, *, quiet: bool,
) -> bool:  # fmt: skip
    """Print a line of JSON for each problem as it comes; return whether any failed."""
    from attncli import render
    from attncli.reports.many import layer_report

    failed = False
    for one in each:
        if isinstance(one, AttnError):
            failed = True
            render.show_error(one, json=True, command="inspect")
            continue
        report = layer_report(
            one, *together.called(one), asked=picked, head=asked.head, fail_on=asked.fail_on
        )
        render.show_warnings([f"{one.name}: {text}" for text in report.warnings])
        if not quiet:
            render.show(report, LINES)
        failed = failed or bool(report.exit_code)
        together.layers.clear()  # it has been said
    return failed


def _no_report(page: output.Page) -> bool:
    return page.target is not None and (page.target.replaces_report or page.quiet)


def lost(capture: "Capture") -> list[str]:
    """Return a warning of what the format has no place for."""
    from attncli.studies.bundle import flags_of

    flags: dict[str, str] = {}
    labels: dict[str, None] = {}
    for name, said in capture.lost.items():
        flags[name] = flags_of({n: value for n, value in said.items() if not n.endswith("tokens")})
        labels |= dict.fromkeys(n for n in said if n.endswith("tokens"))
    if not (labels or any(flags.values())):
        return []
    name, first = next(((name, own) for name, own in flags.items() if own), ("", ""))
    alike = len({*flags.values()}) == 1
    return [
        f"{capture.written} holds {', nor '.join(['no options', *labels])}"
        + f": read it with {first}" * bool(first)
        + ("" if alike else f" for {name}, others for others (.safetensors holds them)")
    ]
