"""``attncli inspect FOLDER --text``: a model reads a text, and every head of it is examined."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import typer

from attncli.cli import groups, output, ranks
from attncli.cli.groups import divided
from attncli.cli.groups import inspect as own
from attncli.cli.options import mode
from attncli.errors import InputError
from attncli.render import LINES

if TYPE_CHECKING:
    from attncli.attention.problem import Problem
    from attncli.attention.view import Labels
    from attncli.cli.given.model import Read
    from attncli.studies.model.loading import Loaded


@mode(
    f"a model that reads ({', '.join(f'--{name}' for name in own.Reads.members)})",
    heatmap="--map STATISTIC shades all heads; one layer: "
    "attncli compute FOLDER --text … --layer N --heatmap",
    what_if="one layer can be asked: -o capture.safetensors --quiet, then "
    "attncli inspect capture.safetensors::NAME --what-if …, a NAME as --format csv has it",
)
def reading(
    source: str,
    *,
    bundle: own.Bundles,
    given: own.Reads,
    dtype: str | None,
    verdicts: own.Verdicts,
    where: own.Layers,
    elements: groups.Elements,
    picked: own.Picked,
    map: str | None,
    engine: groups.Engine,
    shared: divided.Shard,
    seed: int,
    full: bool,
    saved: groups.Saved,
    drawn: groups.Drawn,
    printed: groups.Printed,
) -> None:
    """Print one report on the heads of all layers, or a line of JSON each; or save a capture."""
    if saved.output is not None and saved.include is None:
        saved = saved.but(include=",".join(own.CAPTURED))
    page = output.page_of(printed, saved, own.CAPTURED, drawn)
    if page.names and not page.target:
        raise InputError("--include has no use without -o", "add -o capture.safetensors")
    exchange = ranks.by_layers(shared.shard, "a model that reads", engine.device, page)

    from attncli import render
    from attncli.cli.given import model as reads
    from attncli.cli.layers import lost
    from attncli.reports.kept import KeptMaps
    from attncli.reports.many import asked_of_heads, layer_report, many_report
    from attncli.reports.probe import probe_report
    from attncli.reports.selection import selection
    from attncli.studies.captures import Capture
    from attncli.studies.many import Many
    from attncli.studies.model import loading
    from attncli.studies.model.capture import capture
    from attncli.studies.model.probe import parse, words_of

    output.keep_inputs(page, reads.sources(source, given))
    asked = asked_of_heads(filters=picked.filter or (), sort=picked.sort, map=map)
    limits = verdicts.limits()
    probe = None if given.probe is None else parse(given.probe)
    failed = False
    with ExitStack() as stack:
        target, kept = page.target, None
        if target:
            kept = stack.enter_context(Capture(target.path, target.names, format=target.suffix))
        progress = stack.enter_context(render.progress("layers"))
        loaded = loading.load(source, dtype=dtype, device=engine.device)
        words = words_of(loaded) if probe else loaded.tokenizer
        it_reads = batch_of(loaded, given, seed)

        def told(path: str, problem: "Problem", labels: "Labels") -> None:
            nonlocal failed
            if (some is not None and path not in some) or many.skips(path):
                return
            one = many.add(
                path, problem, labels, batches=selection("--batch", elements.batch, problem.batch)
            )
            if kept:
                kept.add(one.name, problem, labels)
            progress(min(len(many.layers) / max(len(seen.short), 1), 1))
            if page.shown == LINES:
                report = layer_report(
                    one, *many.called(one), asked=asked, head=elements.head,
                    fail_on=verdicts.fail_on,
                )  # fmt: skip
                render.show_warnings([f"{one.name}: {text}" for text in report.warnings])
                render.show(report, LINES)
                failed = failed or bool(report.exit_code)

        seen = stack.enter_context(
            capture(
                loaded.model, told=told, words=words, backend=engine.backend,
                device=engine.device, threads=engine.threads,
            )
        )  # fmt: skip
        maps = KeptMaps(len(seen.short))
        many = Many(
            policy=limits, seed=seed, backend=engine.backend, device=engine.device,
            threads=engine.threads, among=list(seen.short),
            seen=maps.add if "report" in page.pictures else None, exchange=exchange,
        )  # fmt: skip
        some = chosen(list(seen.short), where.layer)
        ranks.agreed(exchange, source, len(some or seen.short))
        loading.run(loaded, it_reads.batch)
        many.join()
    ranks.rest()
    if kept and page.target:
        page = page._replace(target=page.target._replace(path=kept.written))
    unsaid = lost(kept) if kept else []
    if page.shown == LINES:
        render.show_warnings(unsaid)
        if page.target and not page.target.replaces_report:
            output.say_wrote(page.target.path, page.target.names)
        raise typer.Exit(int(failed))
    how: dict[str, Any] = dict(
        head=elements.head, asked=asked, fail_on=verdicts.fail_on, full=full, sources=[source],
        facts=_facts(loaded, it_reads), warnings=[*it_reads.warnings, *unsaid],
        maps=maps.maps,
    )  # fmt: skip
    report = probe_report(many, probe, **how) if probe else many_report(many, **how)
    render.show_warnings(report.warnings)
    output.finish(report, page, printed)


def chosen(paths: Sequence[str], layer: str | None) -> set[str] | None:
    """Return the modules that --layer means, by numbers or words of their paths, or places."""
    if layer is None or not paths:
        return None
    from attncli.reports.selection import with_numbers
    from attncli.studies.many import indices_of, labels_of

    names = [*zip(labels_of(paths), paths, strict=True)]
    return {*with_numbers("layer", paths, indices_of(paths), layer, names)}


def batch_of(loaded: "Loaded", given: own.Reads, seed: int) -> "Read":
    """Return what the model is given; InputError for what does not go together."""
    from attncli.cli.given.model import Read, read
    from attncli.studies.model.probe import parse, read_probe

    if given.probe is None:
        return read(loaded, given)
    if len(given.said) > 1:
        ways = " and ".join(given.said[:2])
        raise InputError(f"{ways} are two ways to say what the model reads", "choose one")
    return Read(read_probe(loaded, parse(given.probe), seed), (), loaded.warnings)


def _facts(loaded: "Loaded", it_reads: "Read") -> list[str]:
    """Return what the first line says besides the sizes: what ran, and on what."""
    from attncli.studies.model.loading import DECODED

    batch, facts = it_reads.batch, [type(loaded.model).__name__, *it_reads.notes]
    if {"input_ids", DECODED} <= batch.keys():
        facts.append("its decoder reads the same tokens")
    real = batch.get("attention_mask")
    if "input_ids" in batch and real is not None and not real.all():
        facts.append(f"{int(real.sum())} tokens without padding")
    return [*facts, f"its attention computed here, the rest by transformers in {loaded.dtype}"]
