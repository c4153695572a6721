"""The options of ``attncli mask`` alone."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from typing import Annotated

import typer

from attncli.attention.words import DIALECTS
from attncli.cli.groups import Count, Labels, Padding, Polarity, Text
from attncli.cli.options import (
    MASK,
    SAVE,
    SHOW,
    SIZE,
    Group,
    at_least_one,
    at_least_zero,
    one_of,
    option,
    said,
)

Expressions = Annotated[
    list[str],
    typer.Argument(
        metavar="EXPR...", show_default=False,
        help="Mask expressions, or files with a mask tensor; all must allow.",
    ),
]  # fmt: skip


class Size(Group, panel=SIZE):
    """How large a mask is, where nothing else says it."""

    length: Annotated[
        Count, option("-l", metavar="L", callback=at_least_zero, help="Queries and keys.")
    ] = None
    query_length: Annotated[
        Count, option(metavar="LQ", callback=at_least_zero, help="Queries.")
    ] = None
    key_length: Annotated[Count, option(metavar="LK", callback=at_least_zero, help="Keys.")] = None
    batch_size: Annotated[
        Count,
        option(
            metavar="B", callback=at_least_one,
            help="Batch elements (default: what the mask says).",
        ),
    ] = None  # fmt: skip
    heads: Annotated[
        Count,
        option(metavar="H", callback=at_least_one, help="Heads (default: what the mask says)."),
    ] = None
    past: Annotated[
        Count,
        option(
            metavar="N", callback=at_least_zero,
            help="Keys that a cache holds before the new ones.",
        ),
    ] = None  # fmt: skip
    kv_lengths: Annotated[
        Text, option(metavar="LIST", help="Valid keys of each batch element.")
    ] = None


class Against(Group, panel=MASK):
    """Another mask."""

    against: Annotated[
        Text,
        option(
            metavar="EXPR", help="Compare with another mask cell by cell; exit 1 where they differ."
        ),
    ] = None


class Described(Size, Labels, Padding, Polarity, Against):
    """What the masks are, besides their expressions."""


class ViewAs(Group, panel=SHOW):
    """How the mask is drawn."""

    view: Annotated[
        Text,
        option(**one_of("grid", "tokens"), help="A grid, or the tokens as each query meets them."),
    ] = None


class Additive(Group, panel=SAVE):
    """Numbers in place of truth values."""

    additive: Annotated[
        bool, option("--additive", help="Save float: 0 where kept, -inf where hidden.")
    ] = False


class Dialect(Group, panel=SAVE):
    """Another library's words."""

    dialect: Annotated[
        Text,
        option(
            "--for", **one_of(*DIALECTS),
            help="Say it as another library takes it: tensors (with its polarity and dtype) or "
            "arguments.",
        ),
    ] = None  # fmt: skip


DIFFERING = {
    "heatmap": said(help="What is kept of each block, or what is added, as a map of shades."),
    "output": said(help="Save the mask, bool True = keep, as attn_mask (or as --for says)."),
}
