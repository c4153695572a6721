"""``attncli compute``: from files and flags to a report."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from attncli.cli import groups
from attncli.cli import output as cli_output
from attncli.cli.output import refuse_lines, save, stream_answers
from attncli.errors import InputError

if TYPE_CHECKING:
    from attncli import files
    from attncli.attention.view import Labels
    from attncli.reports.blocks import Report


EXAMPLE = """echo '{"query": [[1, 0]], "key": [[1, 0], [0, 1]]}' | attncli compute -"""


def compute(
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
    softmax_dtype: groups.SoftmaxDtype = None,
    rope: groups.Rope = None,
    rope_theta: groups.RopeTheta = None,
    rope_dim: groups.RopeDim = None,
    rope_scaling: groups.RopeScaling = None,
    positions: groups.Positions = None,
    rope_cos: groups.RopeCos = None,
    rope_sin: groups.RopeSin = None,
    backend: groups.Backend = "numpy",
    device: groups.Device = "auto",
    threads: groups.Threads = None,
    grad_output: groups.GradOutput = None,
    time: groups.Time = False,
    batch: groups.Batch = None,
    head: groups.Head = None,
    rows: groups.Rows = None,
    keys: groups.Keys = None,
    top: groups.Top = None,
    heatmap: groups.Heatmap = False,
    steps: groups.Steps = False,
    full: groups.Full = False,
    output: groups.Output = None,
    include: groups.Include = None,
    format: groups.FormatOrLines = None,
    json: groups.Json = False,
    color: groups.Color = None,
    no_color: groups.NoColor = False,
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
    shown = cli_output.format_of(format, json)
    cli_output.check_view(shown, top=top, heatmap=heatmap, steps=steps)
    names = cli_output.names_of(include)
    target = None
    if output is not None:
        target = cli_output.target_of(
            output,
            names or ("output",),
            json=shown in ("json", groups.LINES),
            is_terminal=sys.stdout.isatty,
        )
    if bundle is None and query is None:
        raise InputError("nothing to compute: no BUNDLE and no --query", f"try: {EXAMPLE}")
    if "-" in (bundle, query) and sys.stdin is not None and sys.stdin.isatty():
        cli_output.say('reading {"query": [[…], …], …} from the keyboard; Ctrl-D ends it')

    from attncli import files, render
    from attncli.cli.given import attention
    from attncli.cli.given import view as given_view
    from attncli.reports import arrays
    from attncli.reports import compute as report_compute
    from attncli.studies import attend

    flags = attention.Flags(
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
        given = attention.gather(source, flags)
        if target:
            cli_output.keep_inputs(target[0], given.sources)
        problem = given.pose()
        labels = given.labels(problem)
        view = given_view.view(
            problem, batch=batch, head=head, rows=rows, keys=keys, top=top, heatmap=heatmap,
            steps=steps, full=full, time=time,
        )  # fmt: skip
        machine = shown in ("json", groups.LINES)
        want = arrays.wanted(problem, view, names, machine, grad_output is not None)
        result = attend.solve(
            problem, backend=backend, device=device, threads=threads, want=want,
            grad_output=attention.upstream(grad_output), progress=progress,
        )  # fmt: skip
        report = report_compute.compute_report(
            result, labels, view, names, notes=given.notes, progress=progress
        )
        return report, labels

    source = None
    if bundle is not None:
        source = files.read_many(bundle, lines=shown == groups.LINES)
    if isinstance(source, files.Records):
        refuse_lines(source, format, {"-o": target, "--steps": steps, "--heatmap": heatmap})
        shown = groups.LINES
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
        cli_output.say_wrote(target[0], names or ("output",))
    raise typer.Exit(report.exit_code)
