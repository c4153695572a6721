"""The options that commands share: their names, help and place in ``--help``."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from attncli.errors import FileError, InputError

FORMATS = ("table", "json", "csv", "markdown")
SAVED = (
    "output", "weights", "scores", "softcapped", "masked", "lse", "query", "key", "present_key",
    "present_value", "row_statistics",
)  # fmt: skip
SUFFIXES = (".npz", ".safetensors", ".json", ".npy")

TENSORS = "Tensors (REF is PATH, PATH::NAME or - for standard input)"
MASK = "Mask"
ATTENTION = "Attention"
ENGINE = "Engine"
SHOW = "What to show"
SAVE = "Output"


class Command(TyperCommand):
    """A command whose help lists its options group by group, in plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each ``rich_help_panel``, in the order of the options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record:
                name = "Arguments" if param.param_type_name == "argument" else "Others"
                panel = getattr(param, "rich_help_panel", None) or name
                groups.setdefault(panel, []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records, col_max=26)


def nearest(word: str, words: Collection[str]) -> str:
    """Return a hint that names the nearest of ``words``, or all of them."""
    near = get_close_matches(word, words, 1, 0.5)
    return f"did you mean '{near[0]}'? " * bool(near) + f"(one of {', '.join(words)})"


def one_of(*words: str) -> dict[str, Any]:
    """Return the settings of an option that takes one of ``words``."""

    def check(word: str | None) -> str | None:
        if word is not None and word not in words:
            raise typer.BadParameter(f"'{word}' is unknown: {nearest(word, words)}")
        return word

    return {"metavar": "|".join(words), "callback": check, "autocompletion": lambda: list(words)}


def _option(*names: str, help: str, panel: str, **settings: Any) -> Any:
    return typer.Option(
        *names, help=help, rich_help_panel=panel, show_default=False, **settings
    )


Text = str | None

Bundle = Annotated[
    Text,
    typer.Argument(
        metavar="[BUNDLE]",
        help="One file with the tensors by name, or a single tensor, or - for standard input.",
        show_default=False,
    ),
]
Query = Annotated[Text, _option("--query", "-q", metavar="REF", panel=TENSORS, help="Queries.")]
Key = Annotated[
    Text, _option("--key", "-k", metavar="REF", panel=TENSORS, help="Keys; missing: the queries.")
]
Value = Annotated[
    Text, _option("--value", "-v", metavar="REF", panel=TENSORS, help="Values; missing: the keys.")
]
PastKey = Annotated[
    Text, _option(metavar="REF", panel=TENSORS, help="Cached keys, put before the new ones.")
]
PastValue = Annotated[
    Text, _option(metavar="REF", panel=TENSORS, help="Cached values, put before the new ones.")
]
KvLengths = Annotated[
    Text,
    _option(
        "--kv-lengths", metavar="LIST|REF", panel=TENSORS,
        help="Valid keys of each batch element, as in 18,13,15 (padded cache).",
    ),
]  # fmt: skip
Layout = Annotated[
    Text,
    _option(
        **one_of("bhld", "blhd"), panel=TENSORS,
        help="Order of the dimensions: (B, H, L, D) or (B, L, H, D).",
    ),
]  # fmt: skip
Heads = Annotated[
    int | None,
    _option(
        metavar="H", min=1, panel=TENSORS, help="Unpack (L, H·D) or (B, L, H·D) into H heads."
    ),
]
KvHeads = Annotated[
    int | None,
    _option("--kv-heads", metavar="G", min=1, panel=TENSORS, help="Key/value heads, if fewer."),
]
Tokens = Annotated[
    Text,
    _option(
        metavar="TEXT|@FILE", panel=TENSORS,
        help="Labels of queries and keys: text split on blanks, or a file with one a line or a "
        "JSON list.",
    ),
]  # fmt: skip
QueryTokens = Annotated[
    Text,
    _option("--query-tokens", metavar="TEXT|@FILE", panel=TENSORS, help="Labels of the queries."),
]
KeyTokens = Annotated[
    Text, _option("--key-tokens", metavar="TEXT|@FILE", panel=TENSORS, help="Labels of the keys.")
]

Mask = Annotated[
    list[str] | None,
    _option(
        "--mask", "-m", metavar="EXPR", panel=MASK,
        help="A mask expression, such as 'causal & window(128)'; repeatable: all must allow.",
    ),
]  # fmt: skip
Causal = Annotated[bool, _option("--causal", panel=MASK, help="The same as --mask causal.")]
AttnMask = Annotated[
    Text,
    _option(
        "--attn-mask", metavar="REF", panel=MASK,
        help="A mask tensor: bool True = keep, float = added to the scores.",
    ),
]  # fmt: skip
MaskPolarity = Annotated[
    Text,
    _option("--mask-polarity", **one_of("keep", "ignore"), panel=MASK,
            help="What True means in --attn-mask (default: keep)."),
]  # fmt: skip

Scale = Annotated[
    Text,
    _option(metavar="FLOAT|auto|none", panel=ATTENTION,
            help="Factor of the scores; auto is 1/√D of the query (the default)."),
]  # fmt: skip
Softcap = Annotated[
    float | None,
    _option(metavar="C", panel=ATTENTION, help="c·tanh(score/c), before the mask."),
]
Sink = Annotated[
    Text,
    _option(metavar="FLOAT|REF", panel=ATTENTION,
            help="An extra logit per head in the denominator, without a value."),
]  # fmt: skip
FLOATS = ("float64", "float32", "float16", "bfloat16")
Dtype = Annotated[
    Text,
    _option("--dtype", **one_of(*FLOATS), panel=ATTENTION,
            help="Arithmetic type (default: the inputs', accumulated in float32 at least)."),
]  # fmt: skip
SoftmaxDtype = Annotated[
    Text,
    _option("--softmax-dtype", **one_of(*FLOATS), panel=ATTENTION,
            help="Round the softmax to this type."),
]  # fmt: skip

Backend = Annotated[
    str,
    _option("--backend", **one_of("reference", "numpy"), panel=ENGINE,
            help="The engine (default: numpy); reference is plain and float64."),
]  # fmt: skip
Threads = Annotated[
    int | None, _option(metavar="N", min=1, panel=ENGINE, help="At most N threads.")
]
Time = Annotated[
    bool, _option("--time", panel=ENGINE, help="Time, GFLOP/s, peak memory, engine.")
]

Batch = Annotated[
    Text,
    _option(metavar="SELECTION", panel=SHOW, help="Batch elements, as 3, 0:16, 1,4 or -1."),
]
Head = Annotated[Text, _option(metavar="SELECTION", panel=SHOW, help="Heads.")]
Rows = Annotated[Text, _option(metavar="SELECTION", panel=SHOW, help="Queries.")]
Keys = Annotated[Text, _option(metavar="SELECTION", panel=SHOW, help="Keys.")]
Top = Annotated[
    int | None,
    _option(metavar="N", min=1, panel=SHOW,
            help="The N strongest keys of each row instead of a matrix."),
]  # fmt: skip
Heatmap = Annotated[
    bool, _option("--heatmap", panel=SHOW, help="Weights as a map of shades.")
]
Steps = Annotated[
    bool,
    _option("--steps", panel=SHOW, help="The stages one after the other, with their formulas."),
]
Full = Annotated[bool, _option("--full", panel=SHOW, help="Whole tables, without ellipses.")]

Output = Annotated[
    Text,
    _option("--output", "-o", metavar="FILE", panel=SAVE,
            help="Save to .npz, .safetensors, .json or .npy; - is standard output as .npz, "
            "-.json and so on as another."),
]  # fmt: skip
Include = Annotated[
    Text,
    _option(metavar="LIST", panel=SAVE, autocompletion=lambda: list(SAVED),
            help=f"What to save and to put into JSON: {', '.join(SAVED)} (default: output)."),
]  # fmt: skip
Format = Annotated[
    Text,
    _option("--format", **one_of(*FORMATS), panel=SAVE, help="What standard output carries."),
]
Json = Annotated[bool, _option("--json", panel=SAVE, help="The same as --format json.")]
Color = Annotated[
    Text,
    _option("--color", **one_of("auto", "always", "never"), panel=SAVE,
            help="Colour (default: auto, on a terminal without NO_COLOR)."),
]  # fmt: skip
NoColor = Annotated[bool, _option("--no-color", panel=SAVE, help="The same as --color never.")]


def format_of(format: str | None, json: bool) -> str:
    """Return the format that ``--format`` and ``--json`` agree on; InputError when they do not."""
    if json and format not in (None, "json"):
        raise InputError(f"--json and --format {format} contradict each other", "give one of them")
    return "json" if json else format or "table"


def names_of(include: str | None) -> tuple[str, ...] | None:
    """Split the names of ``--include``; InputError for one that cannot be saved."""
    if include is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in include.split(",") if name.strip()))
    for name in names:
        if name not in SAVED:
            raise InputError(f"--include: nothing is called '{name}'", nearest(name, SAVED))
    if not names:
        raise InputError("--include names nothing", f"name some of {', '.join(SAVED)}")
    return names


def target_of(
    output: str, names: Sequence[str], *, json: bool, is_terminal: Callable[[], bool]
) -> tuple[str, str]:
    """Return the path and the suffix that ``--output`` means, before anything is computed.

    Raises FileError where nothing can be written.
    """
    path = "-" if output == "-" or output in {f"-{s}" for s in SUFFIXES} else output
    suffix = os.path.splitext(output)[1].lower()
    if path == "-":
        suffix = output[1:] or (".json" if json else ".npz")
    if suffix not in SUFFIXES:
        raise FileError(
            f"{output} ends in '{suffix}'" if suffix else f"{output} has no suffix",
            f"the suffix says the format: {', '.join(SUFFIXES)}",
        )
    if suffix == ".npy" and (len(names) > 1 or "row_statistics" in names):
        raise FileError(
            f".npy takes exactly one array, but --include asks for {', '.join(names)}",
            "write .npz, .safetensors or .json",
        )
    if path == "-":
        if suffix != ".json" and is_terminal():
            raise FileError(
                f"{suffix} is binary and standard output is a terminal",
                "redirect it (> FILE), or write text: -o -.json",
            )
        return path, suffix
    folder = os.path.dirname(os.path.realpath(path))
    if os.path.isdir(path):
        raise FileError(f"{path} is a folder", f"name a file: {os.path.join(path, 'out.npz')}")
    if not os.path.isdir(folder):
        raise FileError(f"no such folder: {os.path.dirname(path)}", "make it first: mkdir -p")
    there = os.path.exists(path)
    writable = os.access(path if there else folder, os.W_OK)
    if not writable or (os.path.isfile(path) and not os.access(folder, os.W_OK)):
        raise FileError(f"no permission to write {path}", "choose another folder")
    return path, suffix


def keep_inputs(output: str, sources: Collection[str]) -> None:
    """Raise FileError when ``output`` is one of the files that were read, under any name."""
    if output == "-" or not os.path.isfile(output):
        return
    for source in sources:
        if os.path.exists(source) and os.path.samefile(source, output):
            same = "" if source == output else f" (it is {source})"
            raise FileError(
                f"-o {output} would overwrite an input{same}", "write to another file"
            )
