"""Rotary positions, from flags and files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attncli.cli import groups
from attncli.cli.given.reader import Reader, is_count, is_number, is_word
from attncli.cli.options import Group
from attncli.errors import InputError

if TYPE_CHECKING:
    from attncli.attention.rope import Rope

#: What belongs to a style and means nothing without one.
PARTS = tuple(name for name in groups.Rope.members if name not in ("rope", "positions"))


def rope_of(reader: Reader) -> Rope | None:
    """Return rotary positions, when a style is named; what belongs to them means nothing alone."""
    if no_rope(reader.flags):
        reader.taken |= {reader.spelt[n] for n in (*PARTS, "rope") if n in reader.spelt}
        return None
    style = reader.pick("rope", is_word)
    if style is None:
        flags = [n for n in (*PARTS, "positions") if reader.flag(n) is not None]
        lone = [f"--{n.replace('_', '-')}" for n in flags]
        if reader.bundle:
            names = [reader.spelt[n] for n in PARTS if n in reader.spelt]
            lone += [f"{reader.bundle.source}: '{name}'" for name in names]
        if lone:
            raise InputError(
                f"{lone[0]} is given without {'--rope' if lone[0][0] == '-' else 'rope'}",
                "add --rope half (Llama, GPT-NeoX) or --rope interleaved (GPT-J, Meta's files)",
            )
        return None
    from attncli.attention.rope import Rope

    tables = (reader.tensor(n, reader.flag(n)) for n in ("rope_cos", "rope_sin", "positions"))
    cos, sin, positions = (found[0] if found else None for found in tables)
    theta = reader.pick("rope_theta", is_number)
    return Rope(
        style, 10000.0 if theta is None else theta,
        reader.pick("rope_dim", is_count),
        positions, cos, sin, _scaling(reader),
    )  # fmt: skip


def no_rope(flags: Group) -> bool:
    """Whether the command line says that nothing turns.

    Raises InputError for what would be said of it beside that.
    """
    if getattr(flags, "rope", None) != "none":
        return False
    lone = next((n for n in PARTS if getattr(flags, n) is not None), None)
    if lone:
        raise InputError(
            f"--rope none and --{lone.replace('_', '-')} contradict each other",
            "leave one of them out",
        )
    return True


def _scaling(reader: Reader) -> Mapping[str, Any] | None:
    text = reader.flag("rope_scaling")
    if text is None:
        found: Mapping[str, Any] | None = reader.checked(
            "rope_scaling", lambda value: isinstance(value, dict)
        )
        return found
    import json

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InputError(
            f"--rope-scaling is '{text[:60]}'",
            """expected what config.json says: '{"rope_type": "linear", "factor": 2}'""",
        )
    return value
