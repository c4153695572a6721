"""``attncli multihead``: from hidden states and a layer's weights to heads and output."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attncli.cli import groups, options
from attncli.cli import output as cli_output
from attncli.cli.output import refuse_lines, save, stream_answers
from attncli.errors import InputError

if TYPE_CHECKING:
    from attncli import files
    from attncli.attention.view import Labels, View
    from attncli.models.layer import Layer
    from attncli.reports.blocks import Report


STATES = "Hidden states (REF is PATH, PATH::NAME or - for standard input)"
WEIGHTS = "Weights"
EXTRA = ("heads", "concat")
SAVED = ("output", *EXTRA, *(name for name in groups.SAVED if name != "output"))
EXAMPLE = "attncli multihead --random-weights 0 --model-dim 8 --heads 2 --tokens 'the cat sat'"
Ref = str | None

X = Annotated[
    Ref,
    typer.Argument(
        metavar="[X]", show_default=False,
        help="Hidden states (L, E) or (B, L, E): a tensor, or a file that names them "
        "hidden_states or x; - is standard input. With --random-weights, --model-dim and --tokens "
        "a random vector for each word.",
    ),
]  # fmt: skip
Memory = Annotated[
    Ref,
    options.option("--memory", metavar="REF", panel=STATES,
                   help="What keys and values are made from: cross-attention."),
]  # fmt: skip
MemoryValue = Annotated[
    Ref,
    options.option("--memory-value", metavar="REF", panel=STATES,
                   help="What values are made from, if not the memory."),
]  # fmt: skip
SeqFirst = Annotated[
    bool, options.option("--seq-first", panel=STATES, help="X is (L, B, E), torch's default.")
]
Weights = Annotated[
    Ref,
    options.option(
        "--weights", "-w", metavar="REF", panel=WEIGHTS,
        help="A file, a checkpoint's folder, or its part: PATH::PREFIX. Also a bundle with wq, "
        "wk, wv, wo (out, in) and bq … bo.",
    ),
]  # fmt: skip
LayerChoice = Annotated[
    str | None,
    options.option("--layer", metavar="N|NAME", panel=WEIGHTS,
                   help="Which layer, by its number or (a part of) its name."),
]  # fmt: skip
List = Annotated[
    bool,
    options.option("--list", panel=WEIGHTS,
                   help="List every attention layer of the weights; needs no X."),
]  # fmt: skip
Arch = Annotated[
    str,
    options.option("--arch", metavar="auto|MODEL_TYPE", panel=WEIGHTS,
                   help="A model_type in place of config.json's, such as llama or gpt2."),
]  # fmt: skip
Config = Annotated[
    Ref,
    options.option("--config", metavar="FILE", panel=WEIGHTS,
                   help="The config.json, when it is not beside the weights."),
]  # fmt: skip
Heads = Annotated[
    int | None,
    options.option("--heads", metavar="H", panel=WEIGHTS, callback=options.at_least_one,
                   help="How many heads, when config.json and the weights do not say."),
]  # fmt: skip
KvHeads = Annotated[
    int | None,
    options.option("--kv-heads", metavar="G", panel=WEIGHTS, callback=options.at_least_one,
                   help="Key/value heads, if fewer."),
]  # fmt: skip
HeadDim = Annotated[
    int | None,
    options.option("--head-dim", metavar="D", panel=WEIGHTS, callback=options.at_least_one,
                   help="Width of a head."),
]  # fmt: skip
InputNorm = Annotated[
    str,
    options.option("--input-norm", **options.one_of("auto", "none"), panel=WEIGHTS,
                   help="auto (default): X is what transformers calls hidden states; the norm "
                   "before the projections, if any, is applied first. none: X is normed."),
]  # fmt: skip
RandomWeights = Annotated[
    int | None,
    options.option("--random-weights", metavar="SEED", panel=WEIGHTS,
                   callback=options.at_least_zero,
                   help="Random weights (Glorot uniform) in place of a checkpoint: for learning."),
]  # fmt: skip
ModelDim = Annotated[
    int | None,
    options.option("--model-dim", metavar="N", panel=WEIGHTS, callback=options.at_least_one,
                   help="Width of the model with --random-weights (default: X's)."),
]  # fmt: skip
Mask = Annotated[
    list[str] | None,
    options.option(
        "--mask", "-m", metavar="EXPR|none", panel=groups.MASK,
        help="In place of the layer's own mask; repeatable: all must allow.",
    ),
]  # fmt: skip
AttnMask = Annotated[
    Ref,
    options.option(
        "--attn-mask", metavar="REF", panel=groups.MASK,
        help="A mask tensor besides the layer's own: bool, or float that is added. (L, Lk), "
        "(H, L, Lk), torch's (B·H, L, Lk) or (B, H, L, Lk).",
    ),
]  # fmt: skip
KeyPadding = Annotated[
    Ref,
    options.option("--key-padding-mask", metavar="REF", panel=groups.MASK,
                   help="Which keys are real, (B, Lk): bool or 0/1, or float that is added."),
]  # fmt: skip
Polarity = Annotated[
    str | None,
    options.option(
        "--mask-polarity", **options.one_of("keep", "ignore"), panel=groups.MASK,
        help="What True means in these two (default: keep, as in transformers and SDPA; "
        "torch.nn.MultiheadAttention's mean ignore).",
    ),
]  # fmt: skip
ZeroAttn = Annotated[
    bool,
    options.option("--add-zero-attn", panel=groups.MASK,
                   help="One more key and value of zeros, as in torch's layer."),
]  # fmt: skip
Scale = Annotated[
    str | None,
    options.option("--scale", metavar="FLOAT|auto|none", panel=groups.ATTENTION,
                   help="Factor of the scores (default: the layer's; auto is 1/√D)."),
]  # fmt: skip
Softcap = Annotated[
    float | None,
    options.option("--softcap", metavar="C", panel=groups.ATTENTION,
                   help="c·tanh(score/c), before the mask; 0 is none (default: the layer's)."),
]  # fmt: skip
Sink = Annotated[
    str | None,
    options.option("--sink", metavar="FLOAT|REF", panel=groups.ATTENTION,
                   help="An extra logit per head, without a value; -inf is none (default: the "
                   "layer's)."),
]  # fmt: skip
Rope = Annotated[
    str | None,
    options.option("--rope", **options.one_of("half", "interleaved", "none"), panel=groups.ROPE,
                   help="How queries and keys turn (default: the layer's; the options below "
                   "change parts of that)."),
]  # fmt: skip
Include = Annotated[
    str | None,
    options.option(
        "--include", metavar="LIST", panel=groups.SAVE, autocompletion=lambda: list(SAVED),
        help=f"What to save and to put into JSON: {', '.join(SAVED)} (default: output). With "
        "query,key,value compute and inspect read it. In JSON, heads are each head's output.",
    ),
]  # fmt: skip


def multihead(
    x: X = None,
    memory: Memory = None,
    memory_value: MemoryValue = None,
    seq_first: SeqFirst = False,
    tokens: groups.Tokens = None,
    query_tokens: groups.QueryTokens = None,
    key_tokens: groups.KeyTokens = None,
    weights: Weights = None,
    layer: LayerChoice = None,
    list_layers: List = False,
    arch: Arch = "auto",
    config: Config = None,
    heads: Heads = None,
    kv_heads: KvHeads = None,
    head_dim: HeadDim = None,
    input_norm: InputNorm = "auto",
    random_weights: RandomWeights = None,
    model_dim: ModelDim = None,
    mask: Mask = None,
    causal: groups.Causal = False,
    attn_mask: AttnMask = None,
    key_padding_mask: KeyPadding = None,
    mask_polarity: Polarity = None,
    add_zero_attn: ZeroAttn = False,
    past_key: groups.PastKey = None,
    past_value: groups.PastValue = None,
    kv_lengths: groups.KvLengths = None,
    scale: Scale = None,
    softcap: Softcap = None,
    sink: Sink = None,
    dtype: groups.Dtype = None,
    softmax_dtype: groups.SoftmaxDtype = None,
    rope: Rope = None,
    rope_theta: groups.RopeTheta = None,
    rope_dim: groups.RopeDim = None,
    rope_scaling: groups.RopeScaling = None,
    positions: groups.Positions = None,
    rope_cos: groups.RopeCos = None,
    rope_sin: groups.RopeSin = None,
    backend: groups.Backend = "numpy",
    device: groups.Device = "auto",
    threads: groups.Threads = None,
    time: groups.Time = False,
    batch: groups.Batch = None,
    head: groups.Head = None,
    rows: groups.Rows = None,
    keys: groups.Keys = None,
    top: groups.Top = None,
    heatmap: groups.Heatmap = False,
    full: groups.Full = False,
    output: groups.Output = None,
    include: Include = None,
    format: groups.FormatOrLines = None,
    json: groups.Json = False,
    color: groups.Color = None,
    no_color: groups.NoColor = False,
) -> None:
    """From hidden states and pretrained weights to heads and output, without the model's code.

    X is projected to queries, keys and values, each head attends, and the heads' outputs are
    projected back: concat(o_1 … o_H)·W_O. Layers are recognised by the names and shapes of their
    weights and by config.json beside them; what these say of mask, scale, RoPE and the like is
    used and shown, and an option overrides it.

    Prints the layer and how it was recognised, a row a head (what it looks at, its share of the
    output, which head is most like it), how alike the heads are, and the output.

    \b
    Examples:
      attncli multihead hidden.npy -w checkpoint/ --layer 0
      attncli multihead -w checkpoint/ --list
      attncli multihead x.npy --memory y.npy -w t5/ --layer block.0.layer.1
      attncli multihead x.npy -w ckpt -o qkv.json --include query,key,value
      attncli multihead x.npy --random-weights 0 --heads 2 --causal
    """
    shown = cli_output.format_of(format, json)
    when = "never" if no_color else color or "auto"
    _check_weights(weights, random_weights, model_dim, layer, list_layers)
    if list_layers:
        assert weights is not None
        _show_layers(
            weights, shown, when, full=full, config=config, arch=arch,
            sizes={"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim},
        )  # fmt: skip
        return
    names = cli_output.names_of(include, SAVED)
    machine = shown in ("json", groups.LINES)
    cli_output.check_view(shown, top=top, heatmap=heatmap, steps=False)
    target = None
    if output is not None:
        target = cli_output.target_of(
            output, names or ("output",), json=machine, is_terminal=sys.stdout.isatty
        )
    if x is None and random_weights is None:
        raise InputError("nothing to project: no X, the hidden states", f"to try it: {EXAMPLE}")
    if "-" in (x, memory) and sys.stdin is not None and sys.stdin.isatty():
        cli_output.say('reading {"x": [[…], …]} from the keyboard; Ctrl-D ends it')

    from attncli import files, render
    from attncli.cli.given import states
    from attncli.cli.given import view as given_view
    from attncli.files.formats import WRITABLE
    from attncli.models import finding
    from attncli.reports import multihead as report_multihead
    from attncli.studies import layer as studie_layer
    from attncli.studies.bundle import flags_of
    from attncli.studies.heads import head_facts

    flags = states.StateFlags(
        memory=memory, memory_value=memory_value, seq_first=seq_first, tokens=tokens,
        query_tokens=query_tokens, key_tokens=key_tokens, heads=heads, kv_heads=kv_heads,
        head_dim=head_dim, mask=(*(mask or ()), *(["causal"] if causal else [])),
        attn_mask=attn_mask, key_padding_mask=key_padding_mask, mask_polarity=mask_polarity,
        add_zero_attn=add_zero_attn, past_key=past_key, past_value=past_value,
        kv_lengths=kv_lengths, scale=scale, softcap=softcap, sink=sink, dtype=dtype,
        softmax_dtype=softmax_dtype, rope=rope, rope_theta=rope_theta, rope_dim=rope_dim,
        rope_scaling=rope_scaling, positions=positions, rope_cos=rope_cos, rope_sin=rope_sin,
    )  # fmt: skip
    learning = None
    if random_weights is not None:
        learning = states.Learning(random_weights, model_dim)
    loaded: list[Layer] = []  # once, however many lines of NDJSON there are

    def layer_for(given: "states.States") -> "Layer":
        if learning is not None:
            return given.random_layer(learning)
        if not loaded:
            assert weights is not None
            loaded.append(
                finding.load(weights, config=config, layer=layer, arch=arch, **given.sizes())
            )
        return loaded[0]

    def answer(
        source: "files.Bundle | None", progress: Callable[[float], None] | None
    ) -> "tuple[Report, Labels]":
        given = states.gather_states(source, flags, learning)
        own = layer_for(given)
        if target:
            bundle = [own.bundle.source] if own.bundle else []
            cli_output.keep_inputs(target[0], [*given.sources, *bundle])

        def look(problem: Any) -> "tuple[Labels, View]":
            view = given_view.view(
                problem, batch=batch, head=head, rows=rows, keys=keys, top=top, heatmap=heatmap,
                full=full, time=time,
            )  # fmt: skip
            return given.labels(problem, own), view

        made = studie_layer.multihead(
            given.x, own, **given.arguments, rope=given.rope(own), input_norm=input_norm,
            backend=backend, device=device, threads=threads, progress=progress,
            want=lambda p: report_multihead.layer_wanted(p, look(p)[1], names, machine),
        )  # fmt: skip
        labels, view = look(made.attention.problem)
        facts = head_facts(made, labels.key, threads=threads, progress=progress)
        report = report_multihead.multihead_report(
            made, facts, labels, view, names, notes=given.notes_for(own),
            warnings=given.warnings, counted=learning is not None,
        )  # fmt: skip
        return report, labels

    source = None if x is None else files.read_many(x, lines=shown == groups.LINES)
    if isinstance(source, files.Records):
        refuse_lines(source, format, {"-o": target, "--heatmap": heatmap})
        machine = True
        stream_answers(source, lambda one: answer(one, None)[0], "multihead")
        return
    with render.progress("heads") as progress:
        report, labels = answer(source, progress)
    render.show_warnings(report.warnings)
    if target:
        save(*target, report, labels)
    if target is None or target[0] != "-":
        render.show(report, shown, color=when)
    if target and target[0] != "-":
        cli_output.say_wrote(target[0], names or ("output",))
        if report.options and (form := WRITABLE[target[1]]).many and not form.options:
            cli_output.say(f"it holds no options: read it with {flags_of(report.options)}")
    raise typer.Exit(report.exit_code)


def _check_weights(
    weights: str | None, seed: int | None, model_dim: int | None, layer: str | None, listing: bool
) -> None:
    """Raise InputError unless it is said, once, where the weights come from."""
    if weights is not None and seed is not None:
        raise InputError("--weights and --random-weights are both given", "leave one of them out")
    if weights is None and listing:
        raise InputError("--list needs --weights", "as in: attncli multihead -w FOLDER --list")
    if weights is None and seed is None:
        raise InputError(
            "nothing says where the weights are: no --weights",
            f"-w FILE or FOLDER; or, without a checkpoint: {EXAMPLE}",
        )
    if model_dim is not None and seed is None:
        raise InputError(
            "--model-dim is given without --random-weights", "weights from a file have a width"
        )
    if layer is not None and seed is not None:
        raise InputError("--layer is given with --random-weights", "these are one layer")


def _show_layers(
    weights: str, shown: str, color: str, *, full: bool, sizes: dict[str, Any], **how: Any
) -> None:
    from attncli import render
    from attncli.models import finding
    from attncli.reports.layers import layers_report

    found, skipped = finding.every_layer(weights, **how, **sizes)
    render.show(layers_report(found, skipped, weights, full=full), shown, color=color)
