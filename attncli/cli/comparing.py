"""``attncli inspect A --compare B``: what became of every head between two runs or checkpoints."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from attncli.cli import groups, output
from attncli.cli.groups import inspect as own
from attncli.cli.model import batch_of, chosen
from attncli.cli.options import mode
from attncli.errors import AttnError, InputError, listed

if TYPE_CHECKING:
    from attncli import files
    from attncli.attention.problem import Problem
    from attncli.attention.view import Labels
    from attncli.cli.given.many import Source, Sources
    from attncli.models.layer import Layer
    from attncli.studies.changes import Paired, Side

CAPTURE, CHECKPOINT = "a capture", "a checkpoint"
WAYS = "expected two captures, two checkpoints, or two folders of transformers with --text"


def two_of(before: str, after: str) -> "tuple[str, Any, Any]":
    """Return what both are, and the problems or the tensors of either.

    Raises InputError where they are not of one kind.
    """
    (kind, was), (other, now) = map(_side, (before, after))
    if kind != other:
        raise InputError(f"{before} is {kind} and {after} is {other}", WAYS)
    return kind, was, now


def _side(ref: str) -> "tuple[str, Any]":
    """Return what a reference is, and its problems or its tensors."""
    from attncli import files
    from attncli.cli.given.many import of_bundle, of_one, of_references
    from attncli.cli.layers import problems_inside
    from attncli.models.finding import holds_layers

    if problems_inside(ref):
        return CAPTURE, of_references([ref])
    bundle = files.read(ref)
    if "query" not in map(str.lower, bundle.tensors) and holds_layers(bundle):
        return CHECKPOINT, bundle
    if files.problems_of(bundle, 1):
        return CAPTURE, of_bundle(bundle, 1)
    if not {"query", "qkv"} & files.unwrapped(bundle).by_role.keys():
        raise InputError(f"{ref} holds neither a query nor the weights of attention", WAYS)
    return CAPTURE, of_one(bundle)


@mode("a comparison of two captures")
def compared(
    before: "Sources",
    after: "Sources",
    *,
    bundle: own.Bundles,
    compare: str,
    asked: own.Many,
    full: bool,
    drawn: groups.Drawn,
    printed: groups.Printed,
) -> None:
    """Print what became of each head of captured problems; the options are those of both."""
    page = output.page_of(printed, drawn=drawn)

    from attncli import render
    from attncli.reports.changed_heads import RUNS, asked_of_changes
    from attncli.reports.changes import changes_report
    from attncli.reports.selection import selection
    from attncli.resources import stages
    from attncli.studies.changes import Changes, paired

    sources = (bundle or [""])[0], compare
    output.keep_inputs(page, sources)
    picked = asked_of_changes(
        RUNS, filters=asked.filter or (), sort=asked.sort, map=asked.map
    )  # fmt: skip
    limit = own.limit_of(asked.fail_on)
    names = [[one.name for one in side.found] for side in (before, after)]
    belong = paired(*names)
    some = chosen(names[0], asked.layer)
    pairs = [
        (before.found[a], after.found[b]) for a, b in belong.pairs
        if some is None or names[0][a] in some
    ]  # fmt: skip
    changes = Changes(
        sources=sources, policy=asked.limits(), seed=asked.seed, backend=asked.backend,
        device=asked.device, threads=asked.threads, among=names[0],
    )  # fmt: skip
    with render.progress("layers") as progress:
        parts = stages(progress, [1] * len(pairs))
        for (was, now), part in zip(pairs, parts, strict=True):
            with _named(was.name):
                sides = [_posed(one, asked) for one in (was, now)]
                changes.add(
                    was.name, *sides, progress=part,
                    batches=selection("--batch", asked.batch, sides[0].problem.batch),
                )  # fmt: skip
    report = changes_report(
        changes.heads, RUNS, layers=changes.layers, head=asked.head, asked=picked, fail_on=limit,
        full=full, seed=asked.seed, sources=sources, notes=_notes(belong, changes.layers),
        warnings=[*before.warnings, *after.warnings, *_alone(belong.alone, sources)],
    )  # fmt: skip
    render.show_warnings(report.warnings)
    output.finish(report, page, printed)


def _posed(source: "Source", asked: own.Many) -> "Side":
    """Return a problem with its labels and notes, as options and its file say it."""
    from attncli.cli.given import attention
    from attncli.cli.given.weights import posed
    from attncli.studies.changes import Side

    return Side(*posed(attention.gather(source.load(), asked.problem), asked.query_start))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Put the name of a problem before what is said to be wrong with it."""
    try:
        yield
    except AttnError as error:
        if not error.message.startswith(name):
            error.message = f"{name}: {error.message}"
        raise


def _alone(alone: "Sequence[Sequence[str]]", sources: tuple[str, str]) -> list[str]:
    """Return a warning of the layers that only one side has."""
    return [
        f"only in {source}, not compared: {listed(names, 6)}"
        for source, names in zip(sources, alone, strict=True) if names
    ]  # fmt: skip


def _notes(belong: "Paired", layers: Sequence[Any]) -> list[str]:
    notes = [] if belong.by == "name" else ["layers belong together by their numbers"]
    read = (note for one in layers for side in (one.before, one.after) for note in side.notes)
    return [*notes, *dict.fromkeys(read)]


@mode("a comparison of two checkpoints", "leave it out, or add --text to run both models")
def compared_weights(
    before: "files.Bundle",
    after: "files.Bundle",
    *,
    bundle: own.Bundles,
    compare: str,
    model: own.Model,
    verdicts: own.Verdicts,
    where: own.Layers,
    head: str | None,
    picked: own.Picked,
    map: str | None,
    threads: int | None,
    full: bool,
    drawn: groups.Drawn,
    printed: groups.Printed,
) -> None:
    """Print what became of each head by the weights alone."""
    page = output.page_of(printed, drawn=drawn)

    from attncli import render
    from attncli.models import finding
    from attncli.models.adapters import is_adapter
    from attncli.models.beside import config_of
    from attncli.reports.changed_heads import WEIGHTS, asked_of_changes
    from attncli.reports.changes import changes_report
    from attncli.studies.changes import paired
    from attncli.studies.weight_changes import unseen_tensors, weight_changes

    sources = (bundle or [""])[0], compare
    output.keep_inputs(page, sources)
    asked = asked_of_changes(WEIGHTS, filters=picked.filter or (), sort=picked.sort, map=map)
    limit, limits = own.limit_of(verdicts.fail_on), verdicts.limits()
    warnings: list[str] = []
    layers = []
    adapted = [is_adapter(side.tensors) for side in (before, after)]
    if model.base is not None and not any(adapted):
        raise InputError("--base is given and neither is an adapter", "leave --base out")
    for source, checkpoint in zip(sources, (before, after), strict=True):
        skipped: list[str] = []
        config = config_of(source, model.config)
        how = model.how if is_adapter(checkpoint.tensors) else {**model.how, "base": None}
        layers.append(finding.find_layers(checkpoint, config, skipped=skipped, **how))
        warnings += [f"not read in {source}: {why}" for why in skipped]
    belong = paired(*([one.name for one in side] for side in layers))
    was, now = ([side[pair[n]] for pair in belong.pairs] for n, side in enumerate(layers))
    with render.progress("layers") as progress:
        changes = weight_changes(
            was, now, policy=limits, sources=sources, threads=threads, progress=progress
        )  # fmt: skip
    for at, (one, other) in enumerate(zip(was, now, strict=True)):
        if not any(change.amount for change in changes if change.at == at):
            unseen = unseen_tensors(one, other)
            if unseen:
                warnings.append(f"{one.name}: not counted as a change: {listed(unseen)} differ")
    report = changes_report(
        changes, WEIGHTS, layer=where.layer, head=head, asked=asked, fail_on=limit, full=full,
        sources=sources,
        notes=[*_about(layers), *_stored(layers), *_notes(belong, ())],
        warnings=[*warnings, *_alone(belong.alone, sources)],
    )  # fmt: skip
    render.show_warnings(report.warnings)
    output.finish(report, page, printed)


def _about(sides: "Sequence[Sequence[Layer]]") -> list[str]:
    """Return the architectures and what the numbers hold: 'llama · RoPE at distance 0'."""
    from attncli.reports.layers import family_of
    from attncli.reports.weights import asides

    words = [
        " · ".join([*sorted({family_of(one) for one in side} - {""}), *asides(side)])
        for side in sides
    ]
    return list(filter(None, [" → ".join(dict.fromkeys(words))]))


def _stored(sides: "Sequence[Sequence[Layer]]") -> list[str]:
    """Return what was made of weights that were stored otherwise, on either side."""
    bundles = [side[0].bundle for side in sides]
    return list(dict.fromkeys(note for one in bundles if one for note in one.notes))


@mode("a comparison of two models that read a text")
def compared_models(
    source: str,
    *,
    bundle: own.Bundles,
    compare: str,
    given: own.Reads,
    dtype: str | None,
    verdicts: own.Verdicts,
    where: own.Layers,
    elements: groups.Elements,
    picked: own.Picked,
    map: str | None,
    engine: groups.Engine,
    seed: int,
    full: bool,
    drawn: groups.Drawn,
    printed: groups.Printed,
) -> None:
    """Print what became of each head where two models read the same text, one after the other."""
    page = output.page_of(printed, drawn=drawn)

    from attncli import render
    from attncli.cli.given import model as reads
    from attncli.reports.changed_heads import RUNS, asked_of_changes
    from attncli.reports.changes import changes_report
    from attncli.reports.selection import selection
    from attncli.resources import readable_bytes
    from attncli.studies.changes import Changes, Side, Waiting, paired
    from attncli.studies.many import new_name
    from attncli.studies.model import loading
    from attncli.studies.model.capture import capture

    asked = asked_of_changes(RUNS, filters=picked.filter or (), sort=picked.sort, map=map)
    limit, limits = own.limit_of(verdicts.fail_on), verdicts.limits()
    how: dict[str, Any] = dict(backend=engine.backend, device=engine.device, threads=engine.threads)
    sources = source, compare
    output.keep_inputs(page, [file for model in sources for file in reads.sources(model, given)])
    with Waiting() as waiting, render.progress("layers") as progress:
        loaded = loading.load(source, dtype=dtype, device=engine.device)
        it_reads = batch_of(loaded, given, seed)
        warnings = [*it_reads.warnings]
        with capture(loaded.model, told=waiting.add, words=loaded.tokenizer, **how) as seen:
            paths = [[*seen.short]]
            some = chosen(paths[0], where.layer)
            loading.run(loaded, it_reads.batch)
        read = _arrays(it_reads.batch)
        del loaded, it_reads, seen  # one model is in memory at a time

        loaded = loading.load(compare, dtype=dtype, device=engine.device)
        it_reads = batch_of(loaded, given, seed)
        _demand_same(read, _arrays(it_reads.batch), sources)
        warnings += [one for one in it_reads.warnings if one not in warnings]
        changes = Changes(sources=sources, policy=limits, seed=seed, among=paths[0], **how)
        after: set[str] = set()
        taken: set[str] = set()

        def told(path: str, problem: "Problem", labels: "Labels") -> None:
            call = new_name(path, after)
            after.add(call)
            name = partners.get(path, path) + call.removeprefix(path)
            if name not in waiting:
                return
            taken.add(name)
            if some is not None and partners.get(path, path) not in some:
                return
            changes.add(
                name, waiting.take(name), Side(problem, labels),
                batches=selection("--batch", elements.batch, problem.batch),
            )  # fmt: skip
            progress(min(len(taken) / len(waiting.names), 1))

        with capture(loaded.model, told=told, words=loaded.tokenizer, **how) as seen:
            paths.append([*seen.short])
            belong = paired(*paths)
            partners = {paths[1][b]: paths[0][a] for a, b in belong.pairs}
            loading.run(loaded, it_reads.batch)
        size = readable_bytes(waiting.size)
        left = [name for name in waiting.names if name not in taken]
    warnings += _alone((left, belong.alone[1]), sources)
    report = changes_report(
        changes.heads, RUNS, layers=changes.layers, head=elements.head, asked=asked,
        fail_on=limit, full=full, seed=seed, sources=sources,
        facts=[type(loaded.model).__name__, loaded.dtype],
        notes=[*_notes(belong, changes.layers),
               f"{size} of queries, keys and values of {source} waited in a temporary file"],
        warnings=warnings,
    )  # fmt: skip
    render.show_warnings(report.warnings)
    output.finish(report, page, printed)


def _arrays(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a model is given, of any device, as arrays."""
    return {name: one.cpu().numpy() for name, one in batch.items()}


def _demand_same(was: Any, now: Any, sources: tuple[str, str]) -> None:
    """Raise InputError where what both models read is not the same, as by other tokenizers."""
    for name in [*was, *(name for name in now if name not in was)]:
        sides = [one.get(name) for one in (was, now)]
        if all(one is not None for one in sides) and (
            sides[0].shape == sides[1].shape and (sides[0] == sides[1]).all()
        ):
            continue
        made = [
            f"{source} makes {'no' if one is None else 'x'.join(map(str, one.shape))} {name} of it"
            for source, one in zip(sources, sides, strict=True)
        ]
        raise InputError(
            f"what is read is not the same for both models: {' and '.join(made)}",
            "give what both read by --ids in place of --text",
        )
