"""The kernel of tiled.py with a fault: keys behind the last whole tile are not read."""

from __future__ import annotations

from functools import partial

import tiled
from wire import answer


def whole_tiles(length):
    """Wrong: ``length // TILE`` forgets the last tile where the length is no multiple of TILE."""
    return tiled.tiles(length)[: length // tiled.TILE]


attention = partial(tiled.attention, key_tiles=whole_tiles)

if __name__ == "__main__":
    answer(attention)
