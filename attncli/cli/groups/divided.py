"""The options of work that is divided among processes, or in time."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

import re
from typing import Annotated

import typer

from attncli.attention.words import AXES
from attncli.cli.groups import Text
from attncli.cli.options import ENGINE, Group, one_of, option
from attncli.errors import InputError


def _part(param: typer.CallbackParam, text: str | None) -> str | None:
    """Let ``2/8`` and None pass."""
    found = None if text is None else re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if text is not None and not (found and 1 <= int(found[1]) <= int(found[2])):
        raise InputError(f"--part is '{text}'", "expected the second of eight as 2/8")
    return text


class Shard(Group, panel=ENGINE):
    """Several processes at once."""

    shard: Annotated[
        Text,
        option(
            **one_of(*AXES),
            help="Divide it among the processes that torchrun starts: torchrun --nproc-per-node 2 "
            "-m attncli …; each reads its own part.",
        ),
    ] = None


class Part(Group, panel=ENGINE):
    """One part after the other."""

    part: Annotated[
        Text,
        option(
            metavar="I/N", callback=_part,
            help="Of N parts of the keys compute the I-th alone, and save it (-o).",
        ),
    ] = None  # fmt: skip


class Merge(Group, panel=ENGINE):
    """All parts together."""

    merge: Annotated[
        bool, option("--merge", help="Join the parts that are given: --merge part*.safetensors.")
    ] = False


def numbers(part: str) -> tuple[int, int]:
    """Return which part, from 1, and of how many."""
    one, of = map(int, part.split("/"))
    return one, of
