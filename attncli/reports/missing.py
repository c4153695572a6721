"""What is not known of heads, and why: statistics of attention weights alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attncli.errors import InputError, listed
from attncli.reports.picking import Picking

#: What a statistic needs, in words (see ``Evidence.missing``).
NEEDS = {
    "scored": "the scores", "output": "the values", "norms": "the gradients",
    "floor": "the gradients", "repeats": "tokens", "repeated": "tokens",
}  # fmt: skip
NAMED = 4  # statistics of each kind in a line


def not_known(missing: Mapping[str, str]) -> list[str]:
    """Return a line on the statistics that are not known. missing: what each of them needs."""
    needs: dict[str, list[str]] = {}
    for name, need in missing.items():
        needs.setdefault(in_words(need), []).append(name)
    told = [f"{need} ({listed(names, NAMED)})" for need, names in needs.items()]
    return [f"not known is what needs {', '.join(told)}"] if told else []


def demand_known(
    asked: Picking, found: Sequence[Mapping[str, Any]], missing: Mapping[str, str]
) -> None:
    """Raise InputError for a name asked about that no head of any layer ``found`` knows.

    missing: what the statistics need that are not known.
    """
    for one in (*asked.named, *([asked.map] if asked.map else [])):
        if one.name in missing and found and not any(one.name in some for some in found):
            raise InputError(
                f"{one.name} is not known here: it needs {in_words(missing[one.name])}",
                f"known are such as {listed(found[0], 6)}",
            )


def in_words(need: str) -> str:
    """Return what a statistic needs as people call it."""
    return NEEDS.get(need, need)
