"""What part to show, from options."""

from __future__ import annotations

from typing import Any

from attncli.attention.problem import Problem
from attncli.attention.view import View
from attncli.cli.groups import Elements
from attncli.reports.selection import selection as selection


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
