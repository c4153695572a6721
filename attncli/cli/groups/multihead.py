"""The options of ``attncli multihead`` alone, and what it says differently of others."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from typing import Annotated

import typer

from attncli.attention.words import ROPE_STYLES
from attncli.cli.groups import (
    LINES_TOO,
    Attention,
    Cache,
    Count,
    Engine,
    Full,
    Heads,
    Labels,
    Mask,
    Padding,
    Part,
    Polarity,
    Rope,
    Shades,
    Softmax,
    Steps,
    Text,
    Timing,
)
from attncli.cli.groups.expected import Expected, Judging
from attncli.cli.options import (
    MASK,
    STATES,
    WEIGHTS,
    Group,
    at_least_one,
    at_least_zero,
    one_of,
    option,
    said,
)
from attncli.reports.words import INCLUDABLE

SAVED = (
    "output", "heads", "concat", *(name for name in INCLUDABLE if name != "output"),
    "wq", "wk", "wv", "wo",
)  # fmt: skip

X = Annotated[
    Text,
    typer.Argument(
        metavar="[X]", show_default=False,
        help="Hidden states (L, E) or (B, L, E): a tensor, or a file that names them "
        "hidden_states or x; - is standard input. With --random-weights, --model-dim and --tokens "
        "a random vector for each word.",
    ),
]  # fmt: skip


class Hidden(Group, panel=STATES):
    """What queries, keys and values are made from, besides X."""

    memory: Annotated[
        Text, option(metavar="REF", help="What keys and values are made from: cross-attention.")
    ] = None
    memory_value: Annotated[
        Text, option(metavar="REF", help="What values are made from, if not the memory.")
    ] = None
    seq_first: Annotated[bool, option("--seq-first", help="X is (L, B, E), torch's default.")] = (
        False
    )


class Weights(Group, panel=WEIGHTS):
    """Where the weights are."""

    weights: Annotated[
        Text,
        option(
            "-w", metavar="REF",
            help="A file, a checkpoint's folder, or its part: PATH::PREFIX. Also a bundle with "
            "wq, wk, wv, wo (out, in) and bq … bo; without -w, those beside X in its file.",
        ),
    ] = None  # fmt: skip
    layer: Annotated[
        Text,
        option(metavar="N|NAME", help="Which layer, by its number or (a part of) its name."),
    ] = None


class Listing(Group, panel=WEIGHTS):
    """What layers there are."""

    list_layers: Annotated[
        bool, option("--list", help="List every attention layer of the weights; needs no X.")
    ] = False


class Architecture(Group, panel=WEIGHTS):
    """How the weights are to be understood."""

    arch: Annotated[
        str,
        option(
            metavar="auto|MODEL_TYPE",
            help="A model_type in place of config.json's, such as llama or gpt2.",
        ),
    ] = "auto"
    config: Annotated[
        Text,
        option(metavar="FILE", help="The config.json, when it is not beside the weights."),
    ] = None
    base: Annotated[
        Text,
        option(
            metavar="REF",
            help="The model of a LoRA adapter, when it is not where adapter_config.json says.",
        ),
    ] = None


class HeadDim(Group, panel=WEIGHTS):
    """How wide a head is."""

    head_dim: Annotated[
        Count, option(metavar="D", callback=at_least_one, help="Width of a head.")
    ] = None


class InputNorm(Group, panel=WEIGHTS):
    """What X is."""

    input_norm: Annotated[
        str,
        option(
            **one_of("auto", "none"),
            help="auto (default): X is what transformers calls hidden states; the norm before the "
            "projections, if any, is applied first. none: X is normed.",
        ),
    ] = "auto"


class Random(Group, panel=WEIGHTS):
    """Random weights, for learning without a checkpoint."""

    random_weights: Annotated[
        Count,
        option(
            metavar="SEED", callback=at_least_zero,
            help="Random weights (Glorot uniform) in place of a checkpoint: for learning.",
        ),
    ] = None  # fmt: skip
    model_dim: Annotated[
        Count,
        option(
            metavar="N", callback=at_least_one,
            help="Width of the model with --random-weights (default: X's).",
        ),
    ] = None  # fmt: skip


class ZeroKey(Group, panel=MASK):
    """A key that is not in X."""

    add_zero_attn: Annotated[
        bool,
        option("--add-zero-attn", help="One more key and value of zeros, as in torch's layer."),
    ] = False


class Sizes(Heads, HeadDim):
    """How many heads, and how wide."""


class Projection(
    Hidden, Labels, Cache, Sizes, Mask, Padding, Polarity, ZeroKey, Attention, Softmax, Rope
):
    """What a layer's attention is made of, besides X and the weights."""


class Lined(Projection, Engine, Timing, Judging, Part):
    """All that the answer to a line depends on, besides the weights."""


class Asked(Expected, Lined):
    """All that one answer depends on, besides the weights."""


class Pictures(Shades, Steps, Full):
    """How tables and maps are drawn."""


DIFFERING = LINES_TOO | {
    "heads": said(
        panel=WEIGHTS, help="How many heads, when config.json and the weights do not say."
    ),
    "kv_heads": said(panel=WEIGHTS),
    "mask": said(
        metavar="EXPR|none", help="In place of the layer's own mask; repeatable: all must allow."
    ),
    "attn_mask": said(
        help="A mask tensor besides the layer's own: bool, or float that is added. (L, Lk), "
        "(H, L, Lk), torch's (B·H, L, Lk) or (B, H, L, Lk)."
    ),
    "mask_polarity": said(
        help="What True means in these two (default: keep, as in transformers and SDPA; "
        "torch.nn.MultiheadAttention's mean ignore)."
    ),
    "scale": said(help="Factor of the scores (default: the layer's; auto is 1/√D)."),
    "softcap": said(help="c·tanh(score/c), before the mask; 0 is none (default: the layer's)."),
    "sink": said(
        help="An extra logit per head, without a value; -inf is none (default: the layer's)."
    ),
    "rope": said(
        **one_of(*ROPE_STYLES, "none"),
        help="How queries and keys turn (default: the layer's; the options below change parts of "
        "that).",
    ),
    "include": said(
        autocompletion=lambda: list(SAVED),
        help=f"What to save and to put into JSON: {', '.join(SAVED)} (default: output). With "
        "query,key,value compute and inspect read it. In JSON, heads are each head's output; wq, "
        "wk, wv, wo are the weights (out, in), which -w reads.",
    ),
}
