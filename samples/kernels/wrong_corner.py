"""The kernel of tiled.py with a fault: causal is aligned at the first query, not at the last."""

from __future__ import annotations

from functools import partial

import tiled
from wire import answer


def top_left(queries, keys):
    """Wrong where queries and keys differ in number: query 0 sees key 0 alone."""
    return 0


attention = partial(tiled.attention, corner=top_left)

if __name__ == "__main__":
    answer(attention)
