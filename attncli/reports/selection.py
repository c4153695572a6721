"""Which part of a result a report is about, and how much of it is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple, TypeVar

import numpy as np

from attncli.attention.problem import Problem
from attncli.attention.view import View
from attncli.errors import InputError, listed
from attncli.reports.blocks import Gap

Array = np.ndarray[Any, np.dtype[Any]]
Indices = Sequence[int]
One = TypeVar("One")


class Selection(NamedTuple):
    """The indices a View means; ``(batch, head)`` pairs are ``pairs`` for whole-head tables.

    ``shown`` are the pairs whose matrices are printed: the first unless more were asked for.
    """

    batch: Indices
    head: Indices
    rows: Indices
    keys: Indices
    shown: tuple[tuple[int, int], ...]

    @property
    def pairs(self) -> Iterator[tuple[int, int]]:
        """Every selected (batch, head)."""
        return product(self.batch, self.head)

    @property
    def cells(self) -> int:
        """How many weights are selected."""
        return len(self.batch) * len(self.head) * len(self.rows) * len(self.keys)


def select(problem: Problem, view: View) -> Selection:
    """Return the selected indices; InputError for one that does not exist."""
    sizes = {
        "batch": (problem.batch, "batch elements"),
        "head": (problem.heads, "heads"),
        "rows": (problem.queries, "queries"),
        "keys": (problem.keys, "keys"),
    }
    chosen: dict[str, Indices] = {}
    for name, (size, things) in sizes.items():
        wanted: Indices | None = getattr(view, name)
        for index in wanted or ():
            if not 0 <= index < size:
                raise InputError(
                    f"--{name} {index} does not exist: there are {size} {things}",
                    f"choose from 0 to {size - 1}" if size else None,
                )
        chosen[name] = range(size) if wanted is None else wanted
    if view.top is not None and view.top < 1:
        raise InputError(f"--top is {view.top}", "it must be at least 1")
    first_batch = chosen["batch"] if view.batch is not None else chosen["batch"][:1]
    first_head = chosen["head"] if view.head is not None else chosen["head"][:1]
    return Selection(**chosen, shown=tuple(product(first_batch, first_head)))


def selection(name: str, text: str | None, size: int) -> tuple[int, ...] | None:
    """Return the indices of ``3``, ``0:16``, ``1,4``, ``-1`` or ``0:4,10`` among ``size``.

    Slices are Python's; an index or a slice that hits nothing raises InputError.
    """
    if text is None:
        return None
    chosen: dict[int, None] = {}
    for part in text.split(","):
        pieces = [piece.strip() for piece in part.split(":")]
        try:
            numbers = [int(piece) if piece else None for piece in pieces]
            if len(pieces) > 3 or pieces == [""] or numbers[2:] == [0]:
                raise ValueError
        except ValueError:
            layer, dot, head = part.strip().partition(".")
            both = name == "--head" and dot and layer.isdecimal() and head.isdecimal()
            raise InputError(
                f"{name}: '{part.strip()}' is no selection",
                f"head {head} of layer {layer}: --layer {layer} --head {head}" if both
                else "write an index (3, -1), a range (0:16), or several (1,4)",
            ) from None  # fmt: skip
        index = numbers[0]
        if len(numbers) > 1:
            hits = range(size)[slice(*numbers)]
        elif index is not None and -size <= index < size:
            hits = range(index % size, index % size + 1)
        else:
            hits = range(0)
        if not hits:
            valid = (
                f"expected 0 to {size - 1}, or {-size} to -1 from the end"
                if size
                else "there are none"
            )
            ends = [n for n in numbers if n is not None]
            if len(numbers) == len(ends) == 2 and ends[0] >= ends[1]:
                low, high = ends[1], max(ends[0], ends[1] + 1)
                raise InputError(
                    f"{name}: {part.strip()} is an empty range",
                    f"write it as {low}:{high}; {valid}",
                )
            raise InputError(f"{name}: {part.strip()} is out of range", valid)
        chosen.update(dict.fromkeys(hits))
    return tuple(chosen)


def is_whole(view: View) -> bool:
    """Return whether everything is selected."""
    return view.batch is view.head is view.rows is view.keys is None


def with_numbers(
    what: str,
    every: Sequence[One],
    numbers: Sequence[int],
    text: str | None,
    names: Sequence[Sequence[str]] = (),
) -> list[One]:
    """Return those whose number ``--layer``, ``--head``, … selects; ``what`` is its name.

    Where they have ``names``, whole parts of one of these select, too: ``decoder``,
    ``decoder.0``. Raises InputError where there is none among some.
    """
    if every and names and text is not None and any(c.isalpha() for c in text):
        return _called(what, every, text, names)
    wanted = selection(f"--{what}", text, 1 + max(numbers, default=-1))
    pairs = zip(every, numbers, strict=True)
    some = [one for one, number in pairs if wanted is None or number in wanted]
    if every and not some:
        raise InputError(
            f"--{what}: no {what} has the number {text}",
            f"there are {listed(map(str, sorted({*numbers})), 20)}",
        )
    return some


def _called(
    what: str, every: Sequence[One], text: str, names: Sequence[Sequence[str]]
) -> list[One]:
    paths = [[f".{name}." for name in own] for own in names]
    chosen: set[int] = set()
    for part in text.split(","):
        sought = f".{part.strip().strip('.')}."
        hits = {n for n, own in enumerate(paths) if any(sought in path for path in own)}
        if not hits:
            known = dict.fromkeys(own[0] for own in names)
            raise InputError(f"--{what}: no {what} is called '{part.strip()}'",
                             f"there are {listed(known, 20)}")  # fmt: skip
        chosen |= hits
    return [one for n, one in enumerate(every) if n in chosen]


def selection_of(view: View) -> dict[str, Any]:
    """Return the member that says which part was selected, if one was."""
    if is_whole(view):
        return {}
    names = ("batch", "head", "rows", "keys")
    return {"selection": {n: list(s) for n in names if (s := getattr(view, n)) is not None}}


def excerpt(indices: Indices, whole: bool, limit: int, edge: int) -> tuple[Array, Gap | None]:
    """Return the indices to show, all or those at both ends, and what is left out between."""
    if whole or len(indices) <= limit:
        return np.asarray(indices, np.int64), None
    ends = [*indices[:edge], *indices[len(indices) - edge :]]
    return np.asarray(ends, np.int64), Gap(edge, len(indices) - 2 * edge)
