"""The options that commands share: their names, help and place in ``--help``."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from typing import Annotated

import typer

from attncli import engines
from attncli.cli.options import at_least_one, one_of, option

FORMATS = ("table", "json", "csv", "markdown")
LINES = "ndjson"  # of commands that answer line by line
SAVED = (
    "output", "weights", "scores", "softcapped", "masked", "lse", "query", "key", "value",
    "present_key", "present_value", "row_statistics", "grad_query", "grad_key", "grad_value",
)  # fmt: skip
FLOATS = ("float64", "float32", "float16", "bfloat16")

TENSORS = "Tensors (REF is PATH, PATH::NAME or - for standard input)"
MASK = "Mask"
ATTENTION = "Attention"
ROPE = "Rotary positions"
ENGINE = "Engine"
SHOW = "What to show"
SAVE = "Output"


Text = str | None

Bundle = Annotated[
    Text,
    typer.Argument(
        metavar="[BUNDLE]",
        help="One file with the tensors by name, or a single tensor, or - for standard input.",
        show_default=False,
    ),
]
Query = Annotated[Text, option("--query", "-q", metavar="REF", panel=TENSORS, help="Queries.")]
Key = Annotated[
    Text, option("--key", "-k", metavar="REF", panel=TENSORS, help="Keys; missing: the queries.")
]
Value = Annotated[
    Text, option("--value", "-v", metavar="REF", panel=TENSORS, help="Values; missing: the keys.")
]
PastKey = Annotated[
    Text, option(metavar="REF", panel=TENSORS, help="Cached keys, put before the new ones.")
]
PastValue = Annotated[
    Text, option(metavar="REF", panel=TENSORS, help="Cached values, put before the new ones.")
]
KvLengths = Annotated[
    Text,
    option(
        "--kv-lengths", metavar="LIST|REF", panel=TENSORS,
        help="Valid keys of each batch element, as in 18,13,15 (padded cache).",
    ),
]  # fmt: skip
Layout = Annotated[
    Text,
    option(
        **one_of("bhld", "blhd"), panel=TENSORS,
        help="Order of the dimensions: (B, H, L, D) or (B, L, H, D).",
    ),
]  # fmt: skip
Heads = Annotated[
    int | None,
    option(
        metavar="H",
        callback=at_least_one,
        panel=TENSORS,
        help="Unpack (L, H·D) or (B, L, H·D) into H heads.",
    ),
]
KvHeads = Annotated[
    int | None,
    option(
        "--kv-heads",
        metavar="G",
        callback=at_least_one,
        panel=TENSORS,
        help="Key/value heads, if fewer.",
    ),
]
Tokens = Annotated[
    Text,
    option(
        metavar="TEXT|@FILE", panel=TENSORS,
        help="Labels of queries and keys: text split on blanks, or a file with one a line or a "
        "JSON list.",
    ),
]  # fmt: skip
QueryTokens = Annotated[
    Text,
    option("--query-tokens", metavar="TEXT|@FILE", panel=TENSORS, help="Labels of the queries."),
]
KeyTokens = Annotated[
    Text, option("--key-tokens", metavar="TEXT|@FILE", panel=TENSORS, help="Labels of the keys.")
]

Mask = Annotated[
    list[str] | None,
    option(
        "--mask", "-m", metavar="EXPR", panel=MASK,
        help="A mask expression, such as 'causal & window(128)'; repeatable: all must allow.",
    ),
]  # fmt: skip
Causal = Annotated[bool, option("--causal", panel=MASK, help="The same as --mask causal.")]
AttnMask = Annotated[
    Text,
    option(
        "--attn-mask", metavar="REF", panel=MASK,
        help="A mask tensor: bool True = keep, float = added to the scores.",
    ),
]  # fmt: skip
MaskPolarity = Annotated[
    Text,
    option("--mask-polarity", **one_of("keep", "ignore"), panel=MASK,
            help="What True means in --attn-mask (default: keep)."),
]  # fmt: skip

Scale = Annotated[
    Text,
    option(metavar="FLOAT|auto|none", panel=ATTENTION,
            help="Factor of the scores; auto is 1/√D of the query (the default)."),
]  # fmt: skip
Softcap = Annotated[
    float | None,
    option(metavar="C", panel=ATTENTION, help="c·tanh(score/c), before the mask."),
]
Sink = Annotated[
    Text,
    option(metavar="FLOAT|REF", panel=ATTENTION,
            help="An extra logit per head in the denominator, without a value: one number for "
            "all, or one per head as in 0,0.5."),
]  # fmt: skip
Dtype = Annotated[
    Text,
    option("--dtype", **one_of(*FLOATS, metavar="DTYPE"), panel=ATTENTION,
            help="Arithmetic type: float64, float32, float16 or bfloat16 (default: the inputs', "
            "accumulated in float32 at least)."),
]  # fmt: skip
SoftmaxDtype = Annotated[
    Text,
    option("--softmax-dtype", **one_of(*FLOATS, metavar="DTYPE"), panel=ATTENTION,
            help="Round the softmax to this type."),
]  # fmt: skip

Rope = Annotated[
    Text,
    option("--rope", **one_of("half", "interleaved"), panel=ROPE,
           help="Turn queries and new keys by their positions first."),
]  # fmt: skip
RopeTheta = Annotated[
    float | None, option("--rope-theta", metavar="T", panel=ROPE, help="Its base (default: 10000).")
]
RopeDim = Annotated[
    int | None,
    option("--rope-dim", metavar="N", panel=ROPE, help="Channels that turn, the first ones.",
           callback=at_least_one),
]  # fmt: skip
RopeScaling = Annotated[
    Text,
    option("--rope-scaling", metavar="JSON", panel=ROPE,
           help="""As in config.json: '{"rope_type": "linear", "factor": 2}'; also dynamic, """
           "llama3, yarn."),
]  # fmt: skip
Positions = Annotated[
    Text, option("--positions", metavar="REF", panel=ROPE, help="Positions of the new keys.")
]
RopeCos = Annotated[
    Text, option("--rope-cos", metavar="REF", panel=ROPE, help="Cosines given, not computed.")
]
RopeSin = Annotated[
    Text, option("--rope-sin", metavar="REF", panel=ROPE, help="Sines given, not computed.")
]

_ABOUT = ", ".join(f"{name} {row.about}" for name, row in engines.ENGINES.items() if row.about)
Backend = Annotated[
    str,
    option("--backend", **one_of(*engines.ENGINES), panel=ENGINE,
           help=f"The engine (default: {engines.DEFAULT}); {_ABOUT}."),
]  # fmt: skip
Device = Annotated[
    str,
    option("--device", metavar="auto|cpu|cuda[:N]", panel=ENGINE,
           help="Where torch runs (default: auto, a GPU if there is one)."),
]  # fmt: skip
Threads = Annotated[
    int | None, option(metavar="N", callback=at_least_one, panel=ENGINE, help="At most N threads.")
]
Time = Annotated[bool, option("--time", panel=ENGINE, help="Time, GFLOP/s, peak memory, engine.")]

GradOutput = Annotated[
    Text,
    option("--grad-output", metavar="ones|random[:SEED]|REF", panel=ENGINE,
           help="Also dQ, dK, dV, for this gradient of the output."),
]  # fmt: skip

Batch = Annotated[
    Text,
    option(metavar="SELECTION", panel=SHOW, help="Batch elements, as 3, 0:16, 1,4 or -1."),
]
Head = Annotated[Text, option(metavar="SELECTION", panel=SHOW, help="Heads.")]
Rows = Annotated[Text, option(metavar="SELECTION", panel=SHOW, help="Queries.")]
Keys = Annotated[Text, option(metavar="SELECTION", panel=SHOW, help="Keys.")]
Top = Annotated[
    int | None,
    option(metavar="N", callback=at_least_one, panel=SHOW,
            help="The N strongest keys of each row instead of a matrix."),
]  # fmt: skip
Heatmap = Annotated[bool, option("--heatmap", panel=SHOW, help="Weights as a map of shades.")]
Steps = Annotated[
    bool,
    option("--steps", panel=SHOW, help="The stages one after the other, with their formulas."),
]
Full = Annotated[bool, option("--full", panel=SHOW, help="Whole tables, without ellipses.")]

Output = Annotated[
    Text,
    option("--output", "-o", metavar="FILE", panel=SAVE,
            help="Save to .npz, .safetensors, .json or .npy, whole whatever --rows and the like "
            "select; - is standard output in place of the report, as .npz, with --json as .json; "
            "-.json and so on name another."),
]  # fmt: skip
Include = Annotated[
    Text,
    option(metavar="LIST", panel=SAVE, autocompletion=lambda: list(SAVED),
            help=f"What to save and to put into JSON: {', '.join(SAVED)} (default: output)."),
]  # fmt: skip
Format = Annotated[
    Text,
    option("--format", **one_of(*FORMATS), panel=SAVE, help="What standard output carries."),
]
FormatOrLines = Annotated[
    Text,
    option("--format", **one_of(*FORMATS, LINES), panel=SAVE,
           help="What standard output carries. ndjson: read one problem a line and answer each at "
           "once (found out by itself, but for the first line)."),
]  # fmt: skip
Json = Annotated[bool, option("--json", panel=SAVE, help="The same as --format json.")]
Color = Annotated[
    Text,
    option("--color", **one_of("auto", "always", "never"), panel=SAVE,
            help="Colour (default: auto, on a terminal without NO_COLOR)."),
]  # fmt: skip
NoColor = Annotated[bool, option("--no-color", panel=SAVE, help="The same as --color never.")]
