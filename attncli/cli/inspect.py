"""``attncli inspect``: is this attention healthy? And what is in this file?"""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attncli import errors
from attncli.cli import groups, options
from attncli.cli import output as cli_output
from attncli.cli.output import save, stream_answers
from attncli.errors import InputError

if TYPE_CHECKING:
    from attncli import files
    from attncli.attention.view import Labels
    from attncli.reports.blocks import Report


HEALTH = "Health"
FILE = "Any tensor file"
SAVED = ("row_statistics",)
WIDEST = 1 << 16

WhatIf = Annotated[
    list[str] | None,
    options.option(
        "--what-if", metavar="CHANGE", panel=HEALTH,
        help="Also with scale=none, softcap=50, sink=0, qk_norm, qk_clip=100 or dtype=bfloat16; "
        "several together with commas; repeatable.",
    ),
]  # fmt: skip
SweepDim = Annotated[
    str | None,
    options.option(
        "--sweep-dim", metavar="D,D,…", panel=HEALTH,
        help="Unit-normal Q and K of these widths, with and without 1/√d. Needs no tensors.",
    ),
]  # fmt: skip
FailOn = Annotated[
    str | None,
    options.option("--fail-on", **options.one_of("watch", "critical"), panel=HEALTH,
                   help="Exit with 1 when a head is as bad as that."),
]  # fmt: skip
Policy = Annotated[
    str | None,
    options.option("--policy", metavar="FILE.toml", panel=HEALTH,
                   help="Limits of the verdicts that differ: [saturated] watch = 0.6."),
]  # fmt: skip
Seed = Annotated[
    int,
    options.option("--seed", metavar="N", panel=HEALTH, callback=options.at_least_zero,
                   help="Of the upstream gradient, of samples and of --sweep-dim (default: 0)."),
]  # fmt: skip
Header = Annotated[
    bool,
    options.option("--header", panel=FILE, help="Shapes, dtypes and bytes alone: no data read."),
]
Filter = Annotated[
    list[str] | None,
    options.option(
        "--filter", metavar="GLOB", panel=FILE, help="Tensors of these names; repeatable."
    ),
]
Sort = Annotated[
    str | None,
    options.option("--sort", metavar="COLUMN", panel=FILE,
                   help="Largest first, by bytes, max, std, nan, …; -COLUMN: smallest first."),
]  # fmt: skip
Include = Annotated[
    str | None,
    options.option("--include", metavar="LIST", panel=groups.SAVE,
                   autocompletion=lambda: list(SAVED),
                   help="row_statistics: the statistics of every row, into JSON or -o."),
]  # fmt: skip


def inspect(
    bundle: groups.Bundle = None,
    query: groups.Query = None,
    key: groups.Key = None,
    value: groups.Value = None,
    past_key: groups.PastKey = None,
    past_value: groups.PastValue = None,
    kv_lengths: groups.KvLengths = None,
    layout: groups.Layout = None,
    heads: groups.Heads = None,
    kv_heads: groups.KvHeads = None,
    tokens: groups.Tokens = None,
    query_tokens: groups.QueryTokens = None,
    key_tokens: groups.KeyTokens = None,
    mask: groups.Mask = None,
    causal: groups.Causal = False,
    attn_mask: groups.AttnMask = None,
    mask_polarity: groups.MaskPolarity = None,
    scale: groups.Scale = None,
    softcap: groups.Softcap = None,
    sink: groups.Sink = None,
    dtype: groups.Dtype = None,
    rope: groups.Rope = None,
    rope_theta: groups.RopeTheta = None,
    rope_dim: groups.RopeDim = None,
    rope_scaling: groups.RopeScaling = None,
    positions: groups.Positions = None,
    rope_cos: groups.RopeCos = None,
    rope_sin: groups.RopeSin = None,
    what_if: WhatIf = None,
    sweep_dim: SweepDim = None,
    fail_on: FailOn = None,
    policy: Policy = None,
    seed: Seed = 0,
    header: Header = False,
    filter: Filter = None,
    sort: Sort = None,
    backend: groups.Backend = "numpy",
    device: groups.Device = "auto",
    threads: groups.Threads = None,
    batch: groups.Batch = None,
    head: groups.Head = None,
    full: groups.Full = False,
    output: groups.Output = None,
    include: Include = None,
    format: groups.Format = None,
    json: groups.Json = False,
    color: groups.Color = None,
    no_color: groups.NoColor = False,
) -> None:
    """Is this attention healthy? Statistics, gradients, what-ifs, verdicts; or any tensor file.

    BUNDLE with query, key and value (as for compute): a row a head with its verdict (ok, watch,
    critical), the reasons, what it looks at, and what the scale 1/√D does for its gradient. The
    gradients are those for a random upstream gradient.

    BUNDLE that is a checkpoint (a file, or a folder with its config.json): every attention layer
    and head from the weights alone: the largest logit of two inputs of norm 1, ranks, norms.

    BUNDLE of any other kind, or with --header, --filter or --sort: a row a tensor with shape,
    dtype, range, NaN, and room in float16.

    \b
    Examples:
      attncli inspect qkv.npz --causal --what-if scale=none --what-if softcap=50
      attncli inspect qkv.npz --fail-on critical --policy limits.toml
      attncli inspect --sweep-dim 8,64,512,1000,4096
      attncli inspect checkpoint/
      attncli inspect model.safetensors --filter '*.q_proj.*' --sort max
    """
    shown = cli_output.format_of(format, json)
    names = _names(include)
    target = None
    if output is not None:
        target = cli_output.target_of(
            output, names or SAVED, json=shown == "json", is_terminal=sys.stdout.isatty
        )
        names = names or SAVED
    when = "never" if no_color else color or "auto"
    if sweep_dim is not None:
        widths = _widths(sweep_dim)
        if bundle or query:
            raise InputError(
                "--sweep-dim makes tensors of its own, but there are others as well",
                "leave one of the two out",
            )
        asked = {
            "--output": output, "--include": include, "--what-if": what_if, "--policy": policy,
            "--fail-on": fail_on, "--mask": mask or causal, "--header": header,
            "--filter": filter, "--sort": sort, "--scale": scale, "--softcap": softcap,
            "--key": key, "--value": value, "--batch": batch, "--head": head,
            "--backend": backend != "numpy", "--device": device != "auto",
        }  # fmt: skip
        alien = next((name for name, given in asked.items() if given), None)
        if alien:
            raise InputError(
                f"{alien} has nothing to do with --sweep-dim", "leave one of the two out"
            )
        from attncli import render
        from attncli.reports import health as report_health
        from attncli.reports import sweep
        from attncli.studies import effects

        with render.progress("widths") as progress:
            found = list(effects.sweep_dim(widths, seed=seed, threads=threads, progress=progress))
        render.show(sweep.sweep_report(found, seed), shown, color=when)
        return
    if bundle is None and query is None:
        raise InputError(
            "nothing to inspect: no BUNDLE and no --query",
            "try: attncli inspect FILE, or attncli inspect --sweep-dim 8,64,512",
        )

    from attncli import files, render
    from attncli.cli.given import attention
    from attncli.cli.given import view as given_view
    from attncli.measures import policy as measure_policy
    from attncli.reports import health as report_health
    from attncli.reports import sweep
    from attncli.studies import health
    from attncli.studies import what_if as changes

    limits = measure_policy.read_policy(policy) if policy is not None else measure_policy.POLICY
    what_ifs = [changes.parse(text) for text in what_if or ()]
    flags = attention.Flags(
        query=query, key=key, value=value, past_key=past_key, past_value=past_value,
        kv_lengths=kv_lengths, layout=layout, heads=heads, kv_heads=kv_heads, tokens=tokens,
        query_tokens=query_tokens, key_tokens=key_tokens,
        mask=(*(mask or ()), *(["causal"] if causal else [])), attn_mask=attn_mask,
        mask_polarity=mask_polarity, scale=scale, softcap=softcap, sink=sink, dtype=dtype,
        rope=rope, rope_theta=rope_theta, rope_dim=rope_dim, rope_scaling=rope_scaling,
        positions=positions, rope_cos=rope_cos, rope_sin=rope_sin,
    )  # fmt: skip

    def answer(
        source: "files.Bundle | None", progress: Callable[[float], None] | None
    ) -> "tuple[Report, Labels]":
        given = attention.gather(source, flags)
        if target:
            cli_output.keep_inputs(target[0], given.sources)
        problem = given.pose()
        labels = given.labels(problem)
        view = given_view.view(problem, batch=batch, head=head, full=full)
        examined = health.examine(
            problem, tokens=labels.key, what_ifs=what_ifs, policy=limits,
            grad_output=f"random:{seed}", backend=backend, device=device, threads=threads,
            seed=seed, progress=progress,
        )  # fmt: skip
        report = report_health.inspect_report(
            examined, labels, view, fail_on=fail_on, include=names, notes=given.notes
        )
        return report, labels

    source = None if bundle is None else files.read_many(bundle)
    if isinstance(source, files.Records):
        if target or shown in ("csv", "markdown"):
            source.close()
            raise InputError(
                f"{'-o' if target else f'--format {shown}'} cannot hold the results of NDJSON",
                "leave it out: the results are NDJSON on standard output",
            )
        stream_answers(source, lambda one: answer(one, None)[0], command="inspect")
        return
    about_file = header or filter is not None or sort is not None
    if source is not None and query is None and not about_file:
        from attncli.models.finding import holds_layers
        from attncli.reports.weights import weights_report

        asked = {
            "--what-if": what_if, "--mask": mask or causal, "--include": include,
            "--output": output, "--key": key, "--value": value,
        }  # fmt: skip
        if "query" not in map(str.lower, source.tensors) and holds_layers(source):
            _check_tensors(source, [name for name, given in asked.items() if given], False)
            from attncli.models import finding

            with render.progress("layers") as progress:
                report = weights_report(
                    source, finding.config_beside(bundle or ""), heads=heads,
                    kv_heads=kv_heads, policy=limits, fail_on=fail_on, full=full,
                    threads=threads, progress=progress,
                )  # fmt: skip
            render.show_warnings(report.warnings)
            render.show(report, shown, color=when)
            raise typer.Exit(report.exit_code)
    if source is not None and query is None and (about_file or files.find(source, "query") is None):
        asked = {
            "--what-if": what_if, "--fail-on": fail_on, "--policy": policy,
            "--mask": mask or causal, "--scale": scale, "--softcap": softcap, "--sink": sink,
            "--rope": rope, "--batch": batch, "--head": head, "--include": include,
            "--output": output, "--key": key, "--value": value,
            "--backend": backend != "numpy", "--device": device != "auto",
        }  # fmt: skip
        _check_tensors(source, [name for name, given in asked.items() if given], about_file)
        with render.progress("tensors") as progress:
            report = _tensors(
                source, header=header, filter=filter, sort=sort, full=full, threads=threads,
                progress=progress,
            )  # fmt: skip
        render.show_warnings(report.warnings)
        render.show(report, shown, color=when)
        raise typer.Exit(report.exit_code)
    with render.progress() as progress:
        report, labels = answer(source, progress)
    render.show_warnings(report.warnings)
    if target:
        save(*target, report, labels)
    if target is None or target[0] != "-":
        render.show(report, shown, color=when)
    if target and target[0] != "-":
        sys.stdout.flush()
        cli_output.say_wrote(target[0], names)
    raise typer.Exit(report.exit_code)


def _names(include: str | None) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(n.strip() for n in (include or "").split(",") if n.strip()))
    for name in names:
        if name not in SAVED:
            raise InputError(f"--include: nothing is called '{name}'", errors.nearest(name, SAVED))
    if include is not None and not names:
        raise InputError("--include names nothing", f"name {', '.join(SAVED)}")
    return names


def _widths(text: str) -> list[int]:
    """Return the widths of ``--sweep-dim``."""
    widths = []
    for piece in filter(None, (part.strip() for part in text.split(","))):
        width = int(piece) if piece.isascii() and piece.isdecimal() else 0
        if not 1 <= width <= WIDEST:
            raise InputError(
                f"--sweep-dim: '{piece}' is no width", f"expected 1 to {WIDEST}, as in 8,64,512"
            )
        widths.append(width)
    if not widths:
        raise InputError("--sweep-dim names no width", "as in --sweep-dim 8,64,512,1000,4096")
    return widths


def _check_tensors(source: "files.Bundle", asked: list[str], about_file: bool) -> None:
    """Raise InputError when what was asked for needs attention, which this is not."""
    if not asked:
        return
    names = list(source.tensors)
    holds = ", ".join(name or "one tensor" for name in names[:6]) + ", …" * (len(names) > 6)
    if about_file:
        raise InputError(
            f"{asked[0]} is about attention, --header, --filter and --sort about any file",
            "leave one of them out",
        )
    raise InputError(
        f"{asked[0]} is about attention, but {source.source} has no query: it holds "
        f"{holds or 'no tensors'}",
        f"say which it is: -q {source.source}::NAME -k … -v …; without {asked[0]}, inspect lists "
        "the tensors",
    )


def _tensors(source: "files.Bundle", **how: Any) -> "Report":
    """Return the report on a file's tensors; say what is missing when it is nearly attention."""
    from dataclasses import replace

    from attncli import files
    from attncli.reports.tensors import tensors_report

    report = tensors_report(source, **how)
    roles = [role for role in ("key", "value") if files.find(source, role) is not None]
    if roles and files.find(source, "query") is None:
        missing = f"{' and '.join(roles)} but no query: its tensors, not its attention (-q REF)"
        report = replace(report, notes=(*report.notes, missing))
    return report
