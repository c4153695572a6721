"""The options of ``attncli compute`` alone."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

import math
from typing import Annotated

import typer

from attncli.cli import groups
from attncli.cli.groups import Text
from attncli.cli.groups.expected import Judging
from attncli.cli.options import CHECK, TENSORS, Group, at_least_zero, option
from attncli.errors import InputError

TIMEOUT = 60.0


def _positive(param: typer.CallbackParam, number: float | None) -> float | None:
    """Let a time that can pass through."""
    if number is not None and not 0 < number < math.inf:
        raise InputError(f"{param.opts[0]} is {number:g}", "expected a number of seconds above 0")
    return number


class Cases(Group, panel=CHECK):
    """A kernel's test set."""

    cases: Annotated[
        Text,
        option(
            metavar="DIR|FILE.jsonl",
            help="Write a kernel's test set there: NDJSON of problems of every kind that kernels "
            "get wrong, their tensors and right answers in .safetensors beside it.",
        ),
    ] = None
    seed: Annotated[
        int, option(metavar="N", callback=at_least_zero, help="Of --cases (default: 0).")
    ] = 0


class Layer(Group, panel=TENSORS):
    """Which problem of a file that holds many."""

    layer: Annotated[
        Text, option(metavar="N|NAME", help="The layer of a file of many: layers.N.query, ….")
    ] = None


class Candidate(Group, panel=CHECK):
    """Whose answers to a test set are judged, and how."""

    candidate: Annotated[
        Text,
        option(
            metavar="DIR",
            help="Judge the answers that lie there: ID.npy, .npz, .safetensors, .json or .pt for "
            "the case of that id.",
        ),
    ] = None
    timeout: Annotated[
        float | None,
        option(
            metavar="SECONDS", callback=_positive,
            help=f"How long COMMAND may take for a case (default: {TIMEOUT:g}).",
        ),
    ] = None  # fmt: skip


class Others(groups.Posed, groups.Softmax, groups.Gradient, Judging):
    """All that an answer of somebody else is judged by."""


Command = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[-- COMMAND…]",
        help="Judge the answers of a command: each problem is an .npz on its standard input, "
        "its answer an .npz or .npy on its standard output.",
        show_default=False,
    ),
]
