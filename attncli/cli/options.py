"""The options that commands share: their names, help and place in ``--help``."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

import os
import sys
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from attncli.errors import FileError, InputError

FORMATS = ("table", "json", "csv", "markdown")
LINES = "ndjson"  # of commands that answer line by line
SAVED = (
    "output", "weights", "scores", "softcapped", "masked", "lse", "query", "key", "value",
    "present_key", "present_value", "row_statistics", "grad_query", "grad_key", "grad_value",
)  # fmt: skip
FLOATS = ("float64", "float32", "float16", "bfloat16")
SUFFIXES = (".npz", ".safetensors", ".json", ".npy")

TENSORS = "Tensors (REF is PATH, PATH::NAME or - for standard input)"
MASK = "Mask"
ATTENTION = "Attention"
ROPE = "Rotary positions"
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
                name = "Arguments" if param.param_type_name == "argument" else "Help"
                panel = getattr(param, "rich_help_panel", None) or name
                groups.setdefault(panel, []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records, col_max=26)


def nearest(word: str, words: Collection[str]) -> str:
    """Return a hint that names the nearest of ``words``, or all of them."""
    near = get_close_matches(word, words, 1, 0.5)
    return (f"did you mean '{near[0]}'? " if near else "") + f"(one of {', '.join(words)})"


def one_of(*words: str, metavar: str | None = None) -> dict[str, Any]:
    """Return the settings of an option that takes one of ``words``."""

    def check(param: typer.CallbackParam, word: str | None) -> str | None:
        if word is not None and word not in words:
            raise InputError(f"unknown {param.opts[0]} '{word}'", nearest(word, words))
        return word

    return {
        "metavar": metavar or "|".join(words),
        "callback": check,
        "autocompletion": lambda: list(words),
    }


def at_least_one(param: typer.CallbackParam, number: int | None) -> int | None:
    """Let positive integers and None pass, as an option's callback."""
    if number is not None and number < 1:
        raise InputError(f"{param.opts[0]} is {number}", "it must be at least 1")
    return number


def at_least_zero(param: typer.CallbackParam, number: int | None) -> int | None:
    """Let integers from 0 on and None pass, as an option's callback."""
    if number is not None and number < 0:
        raise InputError(f"{param.opts[0]} is {number}", "it must be at least 0")
    return number


def option(*names: str, help: str, panel: str, **settings: Any) -> Any:
    """Return a Typer option in a group of the help, without its default."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **settings)


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

Backend = Annotated[
    str,
    option("--backend", **one_of("reference", "numpy", "torch"), panel=ENGINE,
           help="The engine (default: numpy); reference is plain float64, torch needs PyTorch."),
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


def format_of(format: str | None, json: bool) -> str:
    """Return the format that ``--format`` and ``--json`` agree on; InputError when they do not."""
    if json and format not in (None, "json"):
        raise InputError(f"--json and --format {format} contradict each other", "give one of them")
    return "json" if json else format or "table"


def names_of(include: str | None, saved: Sequence[str] = SAVED) -> tuple[str, ...] | None:
    """Split the names of ``--include``; InputError for one that is not among ``saved``."""
    if include is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in include.split(",") if name.strip()))
    for name in names:
        if name not in saved:
            raise InputError(f"--include: nothing is called '{name}'", nearest(name, saved))
    if not names:
        raise InputError("--include names nothing", f"name some of {', '.join(saved)}")
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
    try:
        folder = os.path.dirname(os.path.realpath(path))
    except FileNotFoundError:
        raise FileError(
            f"{path} cannot be written: the current folder was deleted", "write to a whole path"
        ) from None
    if os.path.isdir(path):
        raise FileError(f"{path} is a folder", f"name a file: {os.path.join(path, 'out.npz')}")
    if not os.path.isdir(folder):
        link = f"{path} is a link into a folder that is not there: " if os.path.islink(path) else ""
        named = folder if link else os.path.dirname(path)
        raise FileError(
            f"{link}{named}" if link else f"no such folder: {named}",
            f"make it first: mkdir -p {named}",
        )
    there = os.path.exists(path)
    writable = os.access(path if there else folder, os.W_OK)
    if not writable or (os.path.isfile(path) and not os.access(folder, os.W_OK)):
        raise FileError(f"no permission to write {path}", "choose another folder")
    return path, suffix


def keep_inputs(output: str, sources: Collection[str]) -> None:
    """Raise FileError when ``output`` is one of the files that were read, under any name."""
    if output == "-" or not os.path.isfile(output):
        return
    # a reference may name a tensor as well as its file
    for source in dict.fromkeys(s for r in sources for s in (r, r.rpartition("::")[0]) if s):
        if os.path.exists(source) and os.path.samefile(source, output):
            same = "" if source == output else f" (it is {source})"
            raise FileError(f"-o {output} would overwrite an input{same}", "write to another file")


def say(text: str) -> None:
    """Print a line on standard error, if there is one."""
    if sys.stderr is not None:  # print() would take standard output instead
        print(text, file=sys.stderr)


def say_wrote(path: str, names: Collection[str]) -> None:
    """Say on standard error what was written, after all that stands on standard output."""
    if sys.stdout is not None:
        sys.stdout.flush()
    say(f"wrote {path} ({', '.join(names)})")


def check_view(shown: str, *, top: int | None, heatmap: bool, steps: bool) -> None:
    """Raise InputError for ways to show a result that exclude each other."""
    asked = {"--steps": steps, "--heatmap": heatmap, "--top": top is not None}
    named = [name for name, given in asked.items() if given]
    if steps and len(named) > 1:
        raise InputError(f"--steps and {named[1]} are two ways to show a result", "choose one")
    if named and named[0] != "--top" and shown not in ("table", "markdown"):
        raise InputError(
            f"{named[0]} is for people to look at: {shown} has no place for it",
            f"leave out {named[0]}, or --format {shown}",
        )
