"""``attncli inspect``: is this attention healthy? And what is in this file?"""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

import re
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from attncli.cli import groups, output, ranks
from attncli.cli.comparing import (
    CHECKPOINT,
    compared,
    compared_models,
    compared_weights,
    two_of,
)
from attncli.cli.composing import composition
from attncli.cli.groups import divided
from attncli.cli.groups import inspect as own
from attncli.cli.layers import many, problems_inside
from attncli.cli.model import reading
from attncli.cli.options import Call, Mode, command, mode
from attncli.errors import InputError
from attncli.render import LINES

if TYPE_CHECKING:
    from attncli import files
    from attncli.attention.problem import Problem
    from attncli.cli.answering import Posed
    from attncli.reports.blocks import Report
    from attncli.studies.health import Examination


WIDEST = 1 << 16


@command(own.DIFFERING)
def inspect(
    call: Call,
    bundle: own.Bundles = None,
    *,
    asked: own.Everything,
    shared: divided.Shard,
    full: groups.Full,
    saved: groups.Saved,
    drawn: groups.Drawn,
    printed: groups.Printed,
) -> None:
    """Is this attention healthy? Statistics, gradients, what-ifs, verdicts; or any tensor file.

    BUNDLE with query, key and value (as for compute): a row a head with its verdict (ok, watch,
    critical), the reasons, what it looks at, and what the scale 1/√D does for its gradient. The
    gradients are those for a random upstream gradient.

    BUNDLE that is a checkpoint (a file, or a folder with its config.json): every attention layer
    and head from the weights alone: the largest logit of two inputs of norm 1, ranks, norms.

    A checkpoint with --composition: which heads read what which earlier heads write.

    BUNDLEs, a folder of them, or one with layers (layers.3.query, …): one report on all heads. A
    head is layer.head; -o saves all as one capture, which compute --layer reads, too.

    BUNDLE --compare OTHER (two captures, checkpoints, or models with --text): what became of each
    head, largest change first. Change is the larger of the mean Jensen–Shannon distance of its
    weights and the relative change of its output; of checkpoints, of its QK and OV circuits.

    BUNDLE with attention weights alone (output_attentions=True, BertViz, a matrix in CSV): what
    needs no scores, and which mask their zeros look like.

    BUNDLE of any other kind, or with --header, --filter GLOB or --sort by what tensors have: a row
    a tensor with shape, dtype, range, NaN, and room in float16.

    \b
    Examples:
      attncli inspect qkv.npz --causal --what-if scale=none --what-if softcap=50
      attncli inspect qkv.npz --fail-on critical --policy limits.toml
      attncli inspect capture.safetensors --map sink_mass --filter 'layer>3'
      attncli inspect --sweep-dim 8,64,512,1000,4096
      attncli inspect qkv.npz --sort entropy --filter 'max_weight>0.9'
      attncli inspect checkpoint/ --layer 3:9 --map largest_logit
      attncli inspect checkpoint/ --composition --filter 'kind=="K"'
      attncli inspect MiniLM/ --text 'the cat sat on the mat because it was tired'
      attncli inspect SmolLM2/ --probe repeat
      attncli inspect before.npz --compare after.npz --fail-on change=0.1
      attncli inspect model.safetensors --filter '*.q_proj.*' --sort max
    """
    if asked.sweep_dim is not None:
        return call.run(sweep)
    ranks.meet(shared.shard, asked.device)
    if asked.attention_weights is not None:
        if bundle or asked.query is not None:
            raise InputError(
                "--attention-weights is all that is inspected, and there is another input",
                f"leave it out: attncli inspect --attention-weights {asked.attention_weights}",
            )
        bundle = [asked.attention_weights]
    if not bundle and asked.query is None:
        raise InputError(
            "nothing to inspect: no BUNDLE and no --query",
            f"attncli inspect FOLDER {asked.reads.said[0]} … has a model read it"
            if asked.reads.said
            else "try: attncli inspect FILE, or attncli inspect --sweep-dim 8,64,512",
        )
    reads = asked.reads.said
    if asked.compare is not None:
        return _compare(call, bundle or [], asked.compare, bool(reads))
    own.refuse_change(asked.fail_on)
    if asked.composition:
        return _compose(call, bundle or [])
    if reads:
        if not bundle or len(bundle) > 1:
            raise InputError(
                f"{reads[0]} is for one model, and there are {len(bundle or ())}",
                "attncli inspect FOLDER --text 'the cat sat'",
            )
        return call.run(reading, source=bundle[0])
    inside = [] if not bundle or len(bundle) > 1 else problems_inside(bundle[0])
    only = inside[0] if len(inside) == 1 else bundle[0] if bundle else None
    weights = asked.attention_weights is not None
    listing = header if asked.header else tensors if _about_tensors(asked) else None
    if bundle and (len(bundle) > 1 or (len(inside) > 1 and not listing)):
        call.check(many)
        from attncli.cli.given.many import of_references

        return call.run(many, **vars(of_references(bundle)))
    if listing:
        call.check(listing)

    from attncli import files

    source = None if only is None else files.read_many(only, lines=printed.format == LINES)
    run = partial(call.run, bundle=only)
    if isinstance(source, files.Records):
        with closing(source):
            if printed.format in (None, "json", LINES):
                return run(lines, records=source)
            from attncli.cli.given.many import of_records

            return call.run(many, found=of_records(source), paths=[source.source], warnings=())
    if listing:
        return run(listing, source=source)
    if source is None or asked.query is not None:
        return run(health, source=source)
    fewest = 2 if asked.layer is None else 1  # of layers, that they are spoken of as such
    from attncli.files.attentions import weights_in
    from attncli.files.bundle import TUPLE

    found = _recognised(source, fewest)
    doubtful = found is tensors or tuple(source.tensors) == tuple(TUPLE)
    alone = weights_in(source, weights) if weights or doubtful else {}
    if found is many or len(alone) >= fewest:
        from attncli.cli.given.many import of_bundle

        return call.run(many, **vars(of_bundle(source, fewest, weights)))
    if alone:
        found, source = health, next(iter(alone.values()))
    run(found, source=source, hint=None if found is health else _no_query(source))


def _compare(call: Call, bundle: list[str], other: str, reads: bool) -> None:
    """Compare one BUNDLE with another; ``reads``: as models that are given a text."""
    if len(bundle) != 1:
        raise InputError(
            f"--compare is for one BUNDLE, and there are {len(bundle)}",
            "attncli inspect A --compare B; A and B may be folders",
        )
    if reads:
        return call.run(compared_models, source=bundle[0])
    kind, before, after = two_of(bundle[0], other)
    of_kind = compared_weights if kind == CHECKPOINT else compared
    call.run(of_kind, before=before, after=after)


def _compose(call: Call, bundle: list[str]) -> None:
    """Show which heads of a checkpoint read what which others write."""
    if len(bundle) != 1:
        raise InputError(
            f"--composition is for one checkpoint, and there are {len(bundle)} inputs",
            "attncli inspect checkpoint/ --composition",
        )
    call.check(composition)

    from attncli import files
    from attncli.models.finding import holds_layers

    source = files.read(bundle[0])
    if not holds_layers(source):
        raise InputError(
            f"--composition is for a checkpoint, and {bundle[0]} holds no attention layer",
            "leave it out, or give a file or folder with the weights of a model",
        )
    call.run(composition, source=source, bundle=bundle[0])


def _about_tensors(asked: own.Picked) -> bool:
    """Whether --filter or --sort are about the tensors of a file, whatever it holds."""
    if asked.filter is None and asked.sort is None:
        return False
    from attncli.reports.picking import is_expression
    from attncli.reports.tensors import SORTABLE

    column = (asked.sort or "").removeprefix("-")
    return column in SORTABLE or not all(map(is_expression, asked.filter or ()))


def _recognised(source: "files.Bundle", fewest: int) -> Mode:
    """Return what there is to do with a file of which nobody has said what it is.

    ``fewest`` layers in one file are many problems.
    """
    from attncli import files
    from attncli.models.finding import holds_layers

    if "query" not in map(str.lower, source.tensors) and holds_layers(source):
        return checkpoint
    if files.problems_of(source, fewest):
        return many
    by_role = files.unwrapped(source).by_role
    return health if {"query", "qkv"} & by_role.keys() else tensors


@mode("a sweep of widths (--sweep-dim)", "leave one of the two out")
def sweep(
    *, sweep_dim: str, seed: int, threads: int | None, drawn: groups.Drawn, printed: groups.Printed
) -> None:
    """Print what the scale does for tensors of its own."""
    page = output.page_of(printed, drawn=drawn)
    widths = _widths(sweep_dim)

    from attncli import render
    from attncli.reports.sweep import sweep_report
    from attncli.studies.widths import sweep_dim as sweep_widths

    with render.progress("widths") as progress:
        found = list(sweep_widths(widths, seed=seed, threads=threads, progress=progress))
    output.finish(sweep_report(found, seed), page, printed)


@mode("the health of attention")
def health(
    source: "files.Bundle | None",
    *,
    bundle: str | None,
    asked: own.Asked,
    shared: divided.Shard,
    pictures: groups.Shades,
    full: bool,
    saved: groups.Saved,
    drawn: groups.Drawn,
    printed: groups.Printed,
) -> None:
    """Print a row a head with its verdict, or save the statistics of every row."""
    page = output.page_of(printed, saved, own.SAVED, drawn)
    output.check_view(page.shown, pictures)
    output.demand_place(page)

    from attncli import render
    from attncli.cli.answering import Answering

    answer = Answering(asked, page, full=full, **vars(pictures))
    with render.progress() as progress:
        report, labels = answer(source, progress, shared.shard)
    output.conclude(report, labels, page, printed)


@mode(output.IN_LINES, output.LINES_HINT)
def lines(
    records: "files.Records",
    *,
    bundle: str,
    asked: own.Asked,
    include: str | None,
    answers: groups.Format,
) -> None:
    """Print a line of JSON for each line that holds a problem."""
    page = output.Page(output.format_of(answers), output.names_of(include, own.SAVED))
    output.demand_lines(answers.format)
    from attncli.cli.answering import Answering
    from attncli.cli.given.alike import Ahead
    from attncli.studies.alike import examine_together

    answering = Answering(asked, page)

    def solve(first: "Posed", whole: "Problem") -> "list[Examination]":
        return examine_together(first.problem, whole, **answering.how(first))

    ahead = Ahead(answering.pose, solve)

    def answer(one: "files.Bundle") -> "Report":
        found = ahead.answer(one)
        return answering.report(*found) if found else answering(one)[0]

    if answering.what_ifs or asked.query_start is not None:
        output.stream_answers(records, lambda one: answering(one)[0], "inspect")
    else:
        output.stream_answers(records, answer, "inspect", ahead.hear)


@mode("a checkpoint")
def checkpoint(
    source: "files.Bundle",
    *,
    bundle: str,
    model: own.Model,
    verdicts: own.Verdicts,
    where: own.Layers,
    head: str | None,
    picked: own.Picked,
    map: str | None,
    threads: int | None,
    shared: divided.Shard,
    full: bool,
    drawn: groups.Drawn,
    printed: groups.Printed,
) -> None:
    """Print a row a head from the weights alone."""
    page = output.page_of(printed, drawn=drawn)
    output.keep_inputs(page, [bundle])
    exchange = ranks.by_layers(shared.shard, "a checkpoint", "cpu")

    from attncli import render
    from attncli.models.beside import config_of
    from attncli.reports.picking import picking
    from attncli.reports.tensors import SORTABLE
    from attncli.reports.weights import REGISTRY, weights_report

    asked = picking(
        REGISTRY, ("layer", "head"), filters=picked.filter or (), sort=picked.sort, map=map,
        others=SORTABLE,
    )  # fmt: skip
    config = config_of(bundle, model.config)
    with render.progress("layers") as progress:
        report = weights_report(
            source, config, layer=where.layer, head=head, asked=asked,
            policy=verdicts.limits(), fail_on=verdicts.fail_on, full=full,
            threads=threads, exchange=exchange, progress=progress,
            found=lambda layers: ranks.agreed(exchange, bundle, len(layers)), **model.how,
        )  # fmt: skip
    ranks.rest()
    render.show_warnings(report.warnings)
    output.finish(report, page, printed)


@mode("a list of tensors", "leave one of them out: --filter and --sort are about any file")
def tensors(
    source: "files.Bundle",
    *,
    bundle: str,
    picked: own.Picked,
    threads: int | None,
    full: bool,
    printed: groups.Printed,
) -> None:
    """Print a row a tensor, whatever the file holds."""
    _list(source, picked, threads, full, printed, header=False)


@mode("a list of tensors from their headers", "leave one of them out")
def header(
    source: "files.Bundle",
    *,
    bundle: str,
    header: bool,
    picked: own.Picked,
    full: bool,
    printed: groups.Printed,
) -> None:
    """Print a row a tensor from what the file says of it; no data are read."""
    _list(source, picked, None, full, printed, header=header)


def _list(
    source: "files.Bundle",
    picked: own.Picked,
    threads: int | None,
    full: bool,
    printed: groups.Printed,
    *,
    header: bool,
) -> None:
    page = output.page_of(printed)

    from attncli import render

    with render.progress("tensors") as progress:
        report = _tensors(
            source, header=header, filter=picked.filter, sort=picked.sort, full=full,
            threads=threads, progress=progress,
        )  # fmt: skip
    render.show_warnings(report.warnings)
    output.finish(report, page, printed)


def _no_query(source: "files.Bundle") -> str:
    """Return how to say that a file without a query holds attention."""
    names = [name or "one tensor" for name in source.tensors]
    holds = ", ".join(names[:6]) + ", …" * (len(names) > 6)
    which = f"-q {source.source}" if [*source.tensors] == [""] else f"-q {source.source}::NAME"
    others = "" if len(names) == 1 else " -k … -v …"
    return (
        f"{source.source} has no query: it holds {holds or 'no tensors'}\n"
        f"leave it out, or say which it is: {which}{others}"
    )


def _widths(text: str) -> list[int]:
    """Return the widths of ``--sweep-dim``."""
    widths = []
    for piece in filter(None, (part.strip() for part in text.split(","))):
        width = int(piece) if re.fullmatch(r"[0-9]{1,9}", piece) else 0
        if not 1 <= width <= WIDEST:
            raise InputError(
                f"--sweep-dim: '{piece}' is no width", f"expected 1 to {WIDEST}, as in 8,64,512"
            )
        widths.append(width)
    if not widths:
        raise InputError("--sweep-dim names no width", "as in --sweep-dim 8,64,512,1000,4096")
    return widths


def _tensors(source: "files.Bundle", **how: Any) -> "Report":
    """Return the report on a file's tensors; say what is missing when it is nearly attention."""

    from attncli.reports.tensors import tensors_report

    report = tensors_report(source, **how)
    roles = [role for role in ("key", "value") if role in source.by_role]
    if roles and "query" not in source.by_role:
        missing = f"{' and '.join(roles)} but no query: its tensors, not its attention (-q REF)"
        report = report._replace(notes=(*report.notes, missing))
    return report
