"""What the places of an image are called: its patches by row and column, before them [CLS]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Names = tuple[str, ...]


def patch_names(config: Any, size: Sequence[int], count: int) -> Names | None:
    """Return a name for each of ``count`` places, or None where they are no patches of the image.

    ``config`` is that of the model's vision part, ``size`` the height and width of what it is
    given. Tokens that are no patches stand before them, as in ViT, DeiT and DINO.
    """
    patch = getattr(config, "patch_size", None)
    high, wide = patch if isinstance(patch, list | tuple) else (patch, patch)
    if not (isinstance(high, int) and isinstance(wide, int) and high and wide):
        return None
    rows, columns = size[0] // high, size[1] // wide
    registers = tuple(f"[REG{n}]" for n in range(getattr(config, "num_register_tokens", 0) or 0))
    known: tuple[Names, ...] = ((), ("[CLS]",), ("[CLS]", *registers), ("[CLS]", "[DIST]"))
    before = next((some for some in known if len(some) == count - rows * columns), None)
    if before is None:
        return None
    return (*before, *(f"{row},{column}" for row in range(rows) for column in range(columns)))
