"""The options of ``attncli inspect`` alone."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from attncli.attention.words import AXES
from attncli.cli.groups import (
    LINES_TOO,
    Attention,
    Elements,
    Engine,
    Heads,
    Labels,
    Layout,
    Mask,
    Padding,
    Polarity,
    Problem,
    Rope,
    Shades,
    Text,
)
from attncli.cli.groups.model import Given
from attncli.cli.groups.multihead import Architecture, HeadDim
from attncli.cli.options import (
    FILE,
    HEALTH,
    MODEL,
    SHOW,
    TENSORS,
    Group,
    at_least_zero,
    one_of,
    option,
    said,
)
from attncli.errors import InputError, nearest

if TYPE_CHECKING:
    from attncli.measures.policy import Rule
    from attncli.models.finding import How

LEVELS = ("watch", "critical")
SAVED = ("row_statistics",)
CAPTURED = ("query", "key", "value")

Bundles = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[BUNDLE]",
        help="One file with the tensors by name, or a single tensor, or - for standard input; or "
        "several files, a folder of them, or a file of many layers: one report on all.",
        show_default=False,
    ),
]


class Changes(Group, panel=HEALTH):
    """What would be otherwise."""

    what_if: Annotated[
        list[str] | None,
        option(
            metavar="CHANGE",
            help="Also with scale=none, softcap=50, sink=0, qk_norm, qk_clip=100 or "
            "dtype=bfloat16; several together with commas; repeatable.",
        ),
    ] = None


class Sweep(Group, panel=HEALTH):
    """Why the 1/√d is there."""

    sweep_dim: Annotated[
        Text,
        option(
            metavar="D,D,…",
            help="Unit-normal Q and K of these widths, with and without 1/√d. Needs no tensors.",
        ),
    ] = None


def _failing(param: typer.CallbackParam, word: str | None) -> str | None:
    """Let watch, critical, change=NUMBER and None pass."""
    if word is not None and word not in LEVELS and change_of(word) is None:
        raise InputError(
            f"unknown {param.opts[0]} '{word}'",
            nearest(word, LEVELS, "expected watch, critical or, with --compare, change=0.1"),
        )
    return word


def change_of(word: str | None) -> float | None:
    """Return the number of ``change=0.1``, None of anything else."""
    name, _, number = (word or "").partition("=")
    try:
        limit = float(number) if name == "change" else -1.0
    except ValueError:
        return None
    return limit if 0 <= limit < float("inf") else None


def limit_of(word: str | None) -> str | float | None:
    """Return what --fail-on says: a number of a change, a level, or None."""
    change = change_of(word)
    return word if change is None else change


def refuse_change(word: str | None) -> None:
    """Raise InputError for a limit of changes where nothing is compared."""
    if change_of(word) is not None:
        raise InputError(f"--fail-on {word} has no use without --compare", "add --compare OTHER")


class Verdicts(Group, panel=HEALTH):
    """What is sick."""

    fail_on: Annotated[
        Text,
        option(
            metavar="watch|critical|change=N", callback=_failing,
            autocompletion=lambda: [*LEVELS, "change=0.1"],
            help="Exit with 1 when a head is as bad as that; with --compare also when one changed "
            "by more than N.",
        ),
    ] = None  # fmt: skip
    policy: Annotated[
        Text,
        option(
            metavar="FILE.toml",
            help="Limits of the verdicts that differ: [saturated] watch = 0.6.",
        ),
    ] = None

    def limits(self) -> "Sequence[Rule]":
        """Return the limits of the verdicts."""
        from attncli.measures import policy

        return policy.POLICY if self.policy is None else policy.read_policy(self.policy)


class Seed(Group, panel=HEALTH):
    """Where randomness begins."""

    seed: Annotated[
        int,
        option(
            metavar="N", callback=at_least_zero,
            help="Of the upstream gradient, of samples, --probe and --sweep-dim (default: 0).",
        ),
    ] = 0  # fmt: skip


class Header(Group, panel=FILE):
    """What a file says of its tensors."""

    header: Annotated[
        bool, option("--header", help="Shapes, dtypes and bytes alone: no data read.")
    ] = False


class Weights(Group, panel=TENSORS):
    """What is left where nobody has kept queries and keys."""

    attention_weights: Annotated[
        Text,
        option(
            metavar="REF",
            help="Attention weights alone, whatever they are called, in place of BUNDLE: (Lq, Lk), "
            "(H, Lq, Lk), (B, H, Lq, Lk), all layers (N, B, H, Lq, Lk), or a tensor a layer.",
        ),
    ] = None


class Reads(Given, panel=MODEL):
    """What a model reads: of somebody's, or the standard probe."""

    probe: Annotated[
        Text,
        option(
            metavar="repeat[:N]",
            help="N random tokens twice (default: 40) in place of --text: which heads find "
            "repeats (induction, duplicate token, previous token).",
        ),
    ] = None


class Picked(Group, panel=SHOW):
    """Which rows of a table of heads or of tensors, in what order."""

    filter: Annotated[
        list[str] | None,
        option(
            metavar="EXPR|GLOB",
            help="Heads of which this is true: 'entropy<0.5 & layer>3', entropy_p05, "
            "verdict!='ok'. Or, as '*.q_proj.*', tensors of these names. Repeatable.",
        ),
    ] = None
    sort: Annotated[
        Text,
        option(
            metavar="COLUMN",
            help="Largest first: heads by a statistic (entropy, max_weight_p95, …), tensors by "
            "bytes, max, std, nan, …; -COLUMN: smallest first.",
        ),
    ] = None


class Map(Group, panel=SHOW):
    """All heads at once."""

    map: Annotated[
        Text,
        option(
            metavar="STATISTIC",
            help="A statistic of all heads as a map in shades: a row a layer (or a batch "
            "element), a column a head.",
        ),
    ] = None


class Layers(Group, panel=SHOW):
    """Which layers of many."""

    layer: Annotated[
        Text,
        option(metavar="SELECTION", help="Layers by their numbers, or by a part of their names."),
    ] = None


class Placed(Group, panel=HEALTH):
    """Where the queries stand."""

    query_start: Annotated[
        int | None,
        option(
            metavar="N", callback=at_least_zero,
            help="The key at which query 0 stands, where no mask says it: a chunk of queries of "
            "a longer text. Without it offsets (previous token, …) of a chunk are not judged.",
        ),
    ] = None  # fmt: skip


class Compared(Group, panel=HEALTH):
    """What else there is."""

    compare: Annotated[
        Text,
        option(
            metavar="OTHER",
            help="What became of each head from BUNDLE to OTHER, largest change first: two "
            "captures, folders of them or checkpoints, or two models with --text or --ids. "
            "Statistics are those of OTHER; entropy_before, entropy_difference, change, js, "
            "output_change are names for --sort, --filter and --map.",
        ),
    ] = None


class Composed(Group, panel=HEALTH):
    """Heads of a checkpoint in pairs."""

    composition: Annotated[
        bool,
        option(
            "--composition",
            help="Of a checkpoint: which heads read what which earlier heads write, as queries, "
            "keys or values (Q-, K-, V-composition), strongest first. kind, from_layer, from_head, "
            "to_layer, to_head, score, above_chance, deviations are names for --sort, --filter, "
            "--map.",
        ),
    ] = False


class Model(Heads, HeadDim, Architecture):
    """How the weights of a checkpoint are to be understood."""

    @property
    def how(self) -> "How":
        """The same as arguments of ``models.finding``."""
        return {
            "arch": self.arch, "heads": self.heads, "kv_heads": self.kv_heads,
            "head_dim": self.head_dim, "base": self.base,
        }  # fmt: skip


class Health(Changes, Verdicts, Placed, Seed):
    """What is asked of attention."""


class Asked(Problem, Weights, Health, Engine, Elements, Picked, Map):
    """All that one answer depends on."""


class Many(
    Weights, Layout, Heads, Mask, Padding, Polarity, Attention, Rope, Labels, Verdicts, Placed,
    Seed, Engine, Layers, Elements, Picked, Map,
):  # fmt: skip
    """All that a report on many layers depends on: what it says of one, it says of each."""

    @property
    def problem(self) -> Problem:
        """The same, as what a single problem is made of."""
        return Problem(**vars(self))


class Everything(
    Problem, Weights, HeadDim, Architecture, Reads, Compared, Composed, Changes, Sweep, Verdicts,
    Placed, Seed, Header, Engine, Layers, Elements, Picked, Map, Shades,
):  # fmt: skip
    """The options of all modes, in the order of the help."""

    @property
    def reads(self) -> Reads:
        """What a model is to read."""
        return Reads(**vars(self))


DIFFERING = {
    "include": said(
        autocompletion=lambda: [*SAVED, *CAPTURED],
        help="row_statistics: the statistics of every row, into JSON or -o. Of many layers "
        "query,key,value: a capture, into -o.",
    ),
    "shard": said(
        **one_of(*AXES, "layers"),
        help="Divide it among the processes that torchrun starts: torchrun --nproc-per-node 2 -m "
        "attncli …; one problem by keys, heads or batch, a checkpoint, a model or many problems by "
        "layers.",
    ),
    **LINES_TOO,
}
