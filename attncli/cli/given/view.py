"""What part to show, from options."""

from __future__ import annotations

from typing import Any

from attncli.attention.problem import Problem
from attncli.attention.view import View
from attncli.cli.groups import Elements
from attncli.errors import InputError


def view(problem: Problem, part: Elements, **how: Any) -> View:
    """Return the part of a problem to show; ``how`` are the other members of View."""
    sizes = {
        "batch": problem.batch, "head": problem.heads, "rows": problem.queries,
        "keys": problem.keys,
    }  # fmt: skip
    chosen: dict[str, Any] = {
        n: selection(f"--{n}", getattr(part, n, None), size) for n, size in sizes.items()
    }
    return View(**chosen, **how)


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
            raise InputError(
                f"{name}: '{part.strip()}' is no selection",
                "write an index (3, -1), a range (0:16), or several (1,4)",
            ) from None
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
