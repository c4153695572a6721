"""The options, each said once: name, type, default, help, and the group they belong to.

A command lists groups; those of one command alone stand in its own file.
"""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from typing import Annotated

import typer

from attncli.attention.words import FLOATS, LAYOUTS, POLARITIES, ROPE_STYLES
from attncli.cli.options import (
    ATTENTION,
    ENGINE,
    MASK,
    ROPE,
    SAVE,
    SHOW,
    TENSORS,
    Group,
    at_least_one,
    one_of,
    option,
    said,
)
from attncli.engines import AUTO, DEFAULT, ENGINES
from attncli.errors import series
from attncli.render import FORMATS, LINES, PICTURES
from attncli.reports.words import INCLUDABLE, SCALES, SMALL

Text = str | None
Float = float | None
Count = int | None

Bundle = Annotated[
    Text,
    typer.Argument(
        metavar="[BUNDLE]",
        help="One file with the tensors by name, or a single tensor, or - for standard input.",
        show_default=False,
    ),
]

# -- tensors ----------------------------------------------------------------------------------


class Tensors(Group, panel=TENSORS):
    """Queries, keys and values."""

    query: Annotated[Text, option("-q", metavar="REF", help="Queries.")] = None
    key: Annotated[Text, option("-k", metavar="REF", help="Keys; missing: the queries.")] = None
    value: Annotated[Text, option("-v", metavar="REF", help="Values; missing: the keys.")] = None


class Cache(Group, panel=TENSORS):
    """What was there before."""

    past_key: Annotated[
        Text, option(metavar="REF", help="Cached keys, put before the new ones.")
    ] = None
    past_value: Annotated[
        Text, option(metavar="REF", help="Cached values, put before the new ones.")
    ] = None
    kv_lengths: Annotated[
        Text,
        option(
            metavar="LIST|REF",
            help="Valid keys of each batch element, as in 18,13,15 (padded cache).",
        ),
    ] = None


class Layout(Group, panel=TENSORS):
    """How the tensors lie."""

    layout: Annotated[
        Text,
        option(**one_of(*LAYOUTS), help="Order of the dimensions: (B, H, L, D) or (B, L, H, D)."),
    ] = None


class Heads(Group, panel=TENSORS):
    """How many heads there are."""

    heads: Annotated[
        Count,
        option(
            metavar="H", callback=at_least_one, help="Unpack (L, H·D) or (B, L, H·D) into H heads."
        ),
    ] = None
    kv_heads: Annotated[
        Count, option(metavar="G", callback=at_least_one, help="Key/value heads, if fewer.")
    ] = None


class Labels(Group, panel=TENSORS):
    """Tokens of queries and keys."""

    tokens: Annotated[
        Text,
        option(
            metavar="TEXT|@FILE",
            help="Labels of queries and keys: text split on blanks, or a file with one a line or "
            "a JSON list.",
        ),
    ] = None
    query_tokens: Annotated[Text, option(metavar="TEXT|@FILE", help="Labels of the queries.")] = (
        None
    )
    key_tokens: Annotated[Text, option(metavar="TEXT|@FILE", help="Labels of the keys.")] = None


# -- attention --------------------------------------------------------------------------------


class Mask(Group, panel=MASK):
    """Who sees whom."""

    mask: Annotated[
        list[str] | None,
        option(
            "-m", metavar="EXPR",
            help="A mask expression, such as 'causal & window(128)', or none; repeatable: all must "
            "allow.",
        ),
    ] = None  # fmt: skip
    causal: Annotated[
        bool, option("--causal", help="--mask causal (fewer queries: -m 'causal(bottom_right)').")
    ] = False
    attn_mask: Annotated[
        Text,
        option(metavar="REF", help="A mask tensor: bool True = keep, float = added to the scores."),
    ] = None

    @property
    def expressions(self) -> list[str]:
        """The mask expressions, ``--causal`` as the last of them."""
        return [*(self.mask or ()), *(["causal"] if self.causal else [])]


class Padding(Group, panel=MASK):
    """Which keys are real."""

    key_padding_mask: Annotated[
        Text,
        option(
            metavar="REF",
            help="Which keys are real, (B, Lk): bool or 0/1, or float that is added.",
        ),
    ] = None


class Polarity(Group, panel=MASK):
    """How a mask tensor is meant."""

    mask_polarity: Annotated[
        Text,
        option(
            **one_of(*POLARITIES),
            help="What True means in these mask tensors (default: keep).",
        ),
    ] = None


class Attention(Group, panel=ATTENTION):
    """From scores to weights."""

    scale: Annotated[
        Text,
        option(
            metavar="FLOAT|auto|none",
            help="Factor of the scores; auto is 1/√D of the query (the default).",
        ),
    ] = None
    softcap: Annotated[
        Float, option(metavar="C", help="c·tanh(score/c), before the mask; 0 is none.")
    ] = None
    sink: Annotated[
        Text,
        option(
            metavar="FLOAT|REF",
            help="An extra logit per head in the denominator, without a value: one number for "
            "all, or one per head as in 0,0.5.",
        ),
    ] = None
    dtype: Annotated[
        Text,
        option(
            **one_of(*FLOATS, metavar="DTYPE"),
            help=f"Arithmetic type: {', '.join(FLOATS[:-1])} or {FLOATS[-1]} (default: the "
            "inputs', accumulated in float32 at least).",
        ),
    ] = None


class Softmax(Group, panel=ATTENTION):
    """The softmax's own arithmetic."""

    softmax_dtype: Annotated[
        Text, option(**one_of(*FLOATS, metavar="DTYPE"), help="Round the softmax to this type.")
    ] = None


class Rope(Group, panel=ROPE):
    """Rotary positions."""

    rope: Annotated[
        Text,
        option(
            **one_of(*ROPE_STYLES, "none"),
            help="Turn queries and new keys by their positions first.",
        ),
    ] = None
    rope_theta: Annotated[Float, option(metavar="T", help="Its base (default: 10000).")] = None
    rope_dim: Annotated[
        Count,
        option(metavar="N", callback=at_least_one, help="Channels that turn, the first ones."),
    ] = None
    rope_scaling: Annotated[
        Text,
        option(
            metavar="JSON",
            help="""As in config.json: '{"rope_type": "linear", "factor": 2}'; also dynamic, """
            "llama3, yarn.",
        ),
    ] = None
    positions: Annotated[Text, option(metavar="REF", help="Positions of the new keys.")] = None
    rope_cos: Annotated[Text, option(metavar="REF", help="Cosines given, not computed.")] = None
    rope_sin: Annotated[Text, option(metavar="REF", help="Sines given, not computed.")] = None


# -- engine -----------------------------------------------------------------------------------


_ABOUT = ", ".join(f"{name} {row.about}" for name, row in ENGINES.items() if row.about)


class Engine(Group, panel=ENGINE):
    """Who computes, and where."""

    backend: Annotated[
        str,
        option(
            **one_of(DEFAULT, *ENGINES),
            help=f"The engine (default: {DEFAULT}, the first of {', '.join(AUTO)} that can); "
            f"{_ABOUT}.",
        ),
    ] = DEFAULT
    device: Annotated[
        str,
        option(
            metavar="auto|cpu|cuda[:N]",
            help="Where torch runs (default: auto, a GPU if there is one).",
        ),
    ] = "auto"
    threads: Annotated[
        Count, option(metavar="N", callback=at_least_one, help="At most N threads.")
    ] = None


class Gradient(Group, panel=ENGINE):
    """The way back."""

    grad_output: Annotated[
        Text,
        option(
            metavar="ones|random[:SEED]|REF",
            help="Also dQ, dK, dV, for this gradient of the output.",
        ),
    ] = None


class Timing(Group, panel=ENGINE):
    """How long it took."""

    time: Annotated[bool, option("--time", help="Time, GFLOP/s, peak memory, engine.")] = False


# -- what to show -----------------------------------------------------------------------------


class Elements(Group, panel=SHOW):
    """Which batch elements and heads."""

    batch: Annotated[
        Text, option(metavar="SELECTION", help="Batch elements, as 3, 0:16, 1,4 or -1.")
    ] = None
    head: Annotated[Text, option(metavar="SELECTION", help="Heads.")] = None


class Cells(Group, panel=SHOW):
    """Which rows, and how much of each."""

    rows: Annotated[Text, option(metavar="SELECTION", help="Queries.")] = None
    keys: Annotated[Text, option(metavar="SELECTION", help="Keys.")] = None
    top: Annotated[
        Count,
        option(
            metavar="N", callback=at_least_one,
            help="The N strongest keys of each row instead of a matrix.",
        ),
    ] = None  # fmt: skip


class Heatmap(Group, panel=SHOW):
    """A map to look at."""

    heatmap: Annotated[bool, option("--heatmap", help="Weights as maps of shades.")] = False


class Shades(Heatmap, panel=SHOW):
    """A map to look at, and how it is shaded."""

    scale_by: Annotated[
        Text,
        option(
            **one_of(*SCALES),
            help="With --heatmap: shades up to the largest of each row or of all, in roots, or in "
            "powers of ten (default: matrix; row for causal maps beyond a screen).",
        ),
    ] = None


class Steps(Group, panel=SHOW):
    """All stages, to learn from."""

    steps: Annotated[
        bool, option("--steps", help="The stages one after the other, with their formulas.")
    ] = False


class Full(Group, panel=SHOW):
    """Nothing left out."""

    full: Annotated[bool, option("--full", help="Whole tables, without ellipses.")] = False


# -- output -----------------------------------------------------------------------------------


class Output(Group, panel=SAVE):
    """Where to save."""

    output: Annotated[
        Text,
        option(
            "-o", metavar="FILE",
            help="Save to .npz, .safetensors, .json or .npy, whole whatever --rows and the like "
            "select; - is standard output in place of the report, as .npz, with --json as .json; "
            "-.json and so on name another.",
        ),
    ] = None  # fmt: skip
    quiet: Annotated[bool, option("--quiet", help="With -o FILE: print no table.")] = False


class Include(Group, panel=SAVE):
    """What to save."""

    include: Annotated[
        Text,
        option(
            metavar="LIST", autocompletion=lambda: list(INCLUDABLE),
            help=f"What to save and to put into JSON: {', '.join(INCLUDABLE)} (default: output).",
        ),
    ] = None  # fmt: skip


JSON_HELP = (
    f"The same as --format json. Arrays of more than {SMALL:,} numbers are left out unless "
    "--include names them; its warnings say so."
)


class Drawn(Group, panel=SAVE):
    """Pictures in files."""

    plot: Annotated[
        Text,
        option(
            metavar="FILE",
            help=f"Draw it to {series(PICTURES['plot'], 'or')}, with the library matplotlib.",
        ),
    ] = None
    report: Annotated[
        Text,
        option(
            metavar="FILE",
            help="Write one page to look through in a browser, .html; it needs no network.",
        ),
    ] = None


class Format(Group, panel=SAVE):
    """What standard output carries."""

    format: Annotated[Text, option(**one_of(*FORMATS), help="What standard output carries.")] = None
    json: Annotated[bool, option("--json", help=JSON_HELP)] = False


class Color(Group, panel=SAVE):
    """Colour, where a table is printed."""

    color: Annotated[
        Text,
        option(
            **one_of("auto", "always", "never"),
            help="Colour (default: auto: on a terminal or with FORCE_COLOR; not with NO_COLOR).",
        ),
    ] = None
    no_color: Annotated[bool, option("--no-color", help="The same as --color never.")] = False

    @property
    def when(self) -> str:
        """When to print in colour: auto, always or never."""
        return "never" if self.no_color else self.color or "auto"


#: Of the commands that answer line by line.
LINES_TOO = {
    "format": said(
        **one_of(*FORMATS, LINES),
        help="What standard output carries. ndjson: read one problem a line and answer each at "
        "once (found out by itself, but for the first line).",
    )
}


# -- groups of groups -------------------------------------------------------------------------


class Posed(Tensors, Cache, Layout, Heads, Mask, Padding, Polarity, Attention, Rope):
    """What an attention problem is made of."""


class Problem(Posed, Labels):
    """What an attention problem is made of, and what its positions are called."""


class Part(Elements, Cells):
    """What part of a result to show."""


class Saved(Output, Include):
    """What to save, and where."""


class Printed(Format, Color):
    """How the report is printed."""
