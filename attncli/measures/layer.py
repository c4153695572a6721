"""Statistics of what each head adds to the output of its layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from attncli.measures.statistic import statistic, summarize

Array = np.ndarray[Any, np.dtype[Any]]


@statistic("row", source="Kobayashi et al. 2020", over="real")
def contribution_norm(added: Array) -> Array:
    """‖W_O,h o_i‖, what the head adds to a row of the output, ``(B, H, Lq)``."""
    return added


@statistic("head", heading="output", kind="percent", keep=9)
def output_share(added: Array, real: Array) -> Array:
    """The mean share of the head in the norms that all heads add, ``(B, H)``."""
    total = added.sum(1, keepdims=True)  # (B, 1, Lq)
    share = np.where(total > 0, added / total, np.nan)
    return summarize(share, real)["mean"]
