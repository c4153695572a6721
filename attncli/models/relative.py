"""Where a layer's learned bias by position lies, and of what kind it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from attncli.files.bundle import Bundle
from attncli.models import config as configs
from attncli.models.families import Family
from attncli.models.layer import Lack, PositionBias
from attncli.models.matching import Found


def relative_of(
    found: Found, bundle: Bundle, config: Mapping[str, Any], family: Family | None,
    names: Collection[str], lacks: list[Lack],
) -> PositionBias | None:  # fmt: skip
    """Return the bias of a layer; what of it is missing is added to ``lacks``."""
    grid = found.tensors.get("grid")
    if grid is not None:
        return _grid(grid, bundle, lacks)
    if not (family and family.bias == "buckets"):
        return None
    name = found.tensors.get("relative") or shared_table(found.parent, names)
    if name is None:
        lacks.append(
            Lack("its relative position bias is missing (relative_attention_bias is not there)")
        )
        return None
    distance = configs.number(config, "relative_attention_max_distance")
    return PositionBias(
        "buckets", name, "decoder" not in found.parent.split("."), int(distance or 128)
    )


def shared_table(parent: str, names: Collection[str]) -> str | None:
    """T5's block 0 has the table for its whole stack, MPNet's encoder for all its layers."""
    parts = parent.split(".")
    at = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    if at is not None:
        sibling = [*parts[:at], "0", *parts[at + 1 :], "relative_attention_bias", "weight"]
        if ".".join(sibling) in names:
            return ".".join(sibling)
    for end in range(len(parts), -1, -1):
        name = ".".join([*parts[:end], "relative_attention_bias", "weight"])
        if name in names:
            return name
    return None


def _grid(name: str, bundle: Bundle, lacks: list[Lack]) -> PositionBias | None:
    """A table of (2h − 1)(2w − 1) offsets, and 3 more where there is a class token."""
    cells = bundle.header(name).shape[0]
    for extra in (0, 3):
        side = round((cells - extra) ** 0.5)
        if side * side == cells - extra and side % 2:
            return PositionBias("grid", name, window=((side + 1) // 2,) * 2)
    lacks.append(
        Lack(f"its relative position bias is not computed: {name} has {cells} rows, no square")
    )
    return None
