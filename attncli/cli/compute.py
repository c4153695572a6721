"""``attncli compute``: from files and flags to a report."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from attncli.cli import options
from attncli.errors import AttnError, InputError

if TYPE_CHECKING:
    from attncli import files
    from attncli.report import Labels, Report

EXAMPLE = """echo '{"query": [[1, 0]], "key": [[1, 0], [0, 1]]}' | attncli compute -"""


def compute(
    bundle: options.Bundle = None,
    query: options.Query = None,
    key: options.Key = None,
    value: options.Value = None,
    past_key: options.PastKey = None,
    past_value: options.PastValue = None,
    kv_lengths: options.KvLengths = None,
    layout: options.Layout = None,
    heads: options.Heads = None,
    kv_heads: options.KvHeads = None,
    tokens: options.Tokens = None,
    query_tokens: options.QueryTokens = None,
    key_tokens: options.KeyTokens = None,
    mask: options.Mask = None,
    causal: options.Causal = False,
    attn_mask: options.AttnMask = None,
    mask_polarity: options.MaskPolarity = None,
    scale: options.Scale = None,
    softcap: options.Softcap = None,
    sink: options.Sink = None,
    dtype: options.Dtype = None,
    softmax_dtype: options.SoftmaxDtype = None,
    rope: options.Rope = None,
    rope_theta: options.RopeTheta = None,
    rope_dim: options.RopeDim = None,
    rope_scaling: options.RopeScaling = None,
    positions: options.Positions = None,
    rope_cos: options.RopeCos = None,
    rope_sin: options.RopeSin = None,
    backend: options.Backend = "numpy",
    device: options.Device = "auto",
    threads: options.Threads = None,
    grad_output: options.GradOutput = None,
    time: options.Time = False,
    batch: options.Batch = None,
    head: options.Head = None,
    rows: options.Rows = None,
    keys: options.Keys = None,
    top: options.Top = None,
    heatmap: options.Heatmap = False,
    steps: options.Steps = False,
    full: options.Full = False,
    output: options.Output = None,
    include: options.Include = None,
    format: options.FormatOrLines = None,
    json: options.Json = False,
    color: options.Color = None,
    no_color: options.NoColor = False,
) -> None:
    """Attention of Q, K, V: weights, output, stability statistics.

    Each query is compared with all keys; the softmax of these scores are the weights, and the
    output is the mean of the values under these weights: softmax(Q·Kᵀ/√D)·V.

    BUNDLE is a file that holds query, key and value (or q, k, v) by name, or a single tensor for
    self-attention: JSON, .npy, .npz, .safetensors or a PyTorch file. A missing value is the key,
    a missing key is the query. Shapes are (L, D), (H, L, D) or (B, H, L, D). Options on the
    command line win over options in a JSON file.

    With NDJSON, one problem a line, the results are NDJSON too, each with the number of its line.

    \b
    Examples:
      attncli compute qkv.npz --causal
      attncli compute -q q.npy -k k.npy -v v.npy -o out.npz
      attncli compute x.json --tokens 'the cat sat' --steps
      echo '{"query": [[1, 0]], "key": [[1, 0], [0, 1]]}' | attncli compute -
    """
    shown = options.format_of(format, json)
    options.check_view(shown, top=top, heatmap=heatmap, steps=steps)
    names = options.names_of(include)
    target = None
    if output is not None:
        target = options.target_of(
            output,
            names or ("output",),
            json=shown in ("json", options.LINES),
            is_terminal=sys.stdout.isatty,
        )
    if bundle is None and query is None:
        raise InputError("nothing to compute: no BUNDLE and no --query", f"try: {EXAMPLE}")
    if "-" in (bundle, query) and sys.stdin is not None and sys.stdin.isatty():
        options.say('reading {"query": [[…], …], …} from the keyboard; Ctrl-D ends it')

    from attncli import files, inputs, render, report_compute, run

    flags = inputs.Flags(
        query=query, key=key, value=value, past_key=past_key, past_value=past_value,
        kv_lengths=kv_lengths, layout=layout, heads=heads, kv_heads=kv_heads, tokens=tokens,
        query_tokens=query_tokens, key_tokens=key_tokens,
        mask=(*(mask or ()), *(["causal"] if causal else [])), attn_mask=attn_mask,
        mask_polarity=mask_polarity, scale=scale, softcap=softcap, sink=sink, dtype=dtype,
        softmax_dtype=softmax_dtype, rope=rope, rope_theta=rope_theta, rope_dim=rope_dim,
        rope_scaling=rope_scaling, positions=positions, rope_cos=rope_cos, rope_sin=rope_sin,
    )  # fmt: skip

    def answer(
        source: "files.Bundle | None", progress: Callable[[float], None] | None
    ) -> "tuple[Report, Labels]":
        given = inputs.gather(source, flags)
        if target:
            options.keep_inputs(target[0], given.sources)
        problem = given.pose()
        labels = given.labels(problem)
        view = inputs.view(
            problem, batch=batch, head=head, rows=rows, keys=keys, top=top, heatmap=heatmap,
            steps=steps, full=full, time=time,
        )  # fmt: skip
        machine = shown in ("json", options.LINES)
        want = report_compute.wanted(problem, view, names, machine, grad_output is not None)
        result = run.solve(
            problem, backend=backend, device=device, threads=threads, want=want,
            grad_output=inputs.upstream(grad_output), progress=progress,
        )  # fmt: skip
        report = report_compute.compute_report(
            result, labels, view, names, notes=given.notes, progress=progress
        )
        return report, labels

    source = None
    if bundle is not None:
        source = files.read_many(bundle, lines=shown == options.LINES)
    if isinstance(source, files.Records):
        refuse_lines(source, format, {"-o": target, "--steps": steps, "--heatmap": heatmap})
        shown = options.LINES
        stream_answers(source, lambda one: answer(one, None)[0])
        return
    with render.progress() as progress:
        report, labels = answer(source, progress)
    render.show_warnings(report.warnings)
    if target:
        save(*target, report, labels)
    if target is None or target[0] != "-":
        when = "never" if no_color else color or "auto"
        render.show(report, shown, color=when)
    if target and target[0] != "-":
        options.say_wrote(target[0], names or ("output",))
    raise typer.Exit(report.exit_code)


def refuse_lines(
    records: "files.Records", format: str | None, asked: "Mapping[str, object]"
) -> None:
    """Raise InputError for an option that NDJSON has no place for."""
    wishes = [name for name, wish in asked.items() if wish]
    if format not in (None, "json", options.LINES):
        wishes.append(f"--format {format}")
    if wishes:
        records.close()
        raise InputError(
            f"{wishes[0]} cannot hold the results of NDJSON, one a line",
            "leave it out: the results are NDJSON on standard output",
        )


def stream_answers(
    records: "files.Records", answer: "Callable[[files.Bundle], Report]", command: str = "compute"
) -> None:
    """Print one line of JSON for each record, in order and as it comes; exit 1 if any failed."""
    from attncli import render

    failed = False
    try:
        for record in records:
            try:
                if isinstance(record, AttnError):
                    raise record
                report = answer(record)
            except AttnError as error:
                failed = True
                render.show_error(error, json=True, command=command, line=records.line)
            else:
                render.show_warnings([f"line {records.line}: {w}" for w in report.warnings])
                render.show(report, "ndjson", line=records.line)
                failed = failed or bool(report.exit_code)
    except BrokenPipeError:
        pass  # nobody reads any more: what happened so far decides
    finally:
        records.close()
    raise typer.Exit(1 if failed else 0)


def save(path: str, suffix: str, report: "Report", labels: "Labels") -> None:
    """Write the arrays asked for; JSON and safetensors carry labels and options along."""
    from attncli import files

    extra: dict[str, Any] = {
        f"{role}_tokens": tokens if len(tokens) > 1 else tokens[0]
        for role in ("query", "key")
        if (tokens := getattr(labels, role)) is not None
    }
    files.write(path, report.arrays, extra={**report.options, **extra}, format=suffix)
