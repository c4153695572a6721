"""Maps of many layers: made while a layer's tensors are at hand, and kept small."""

from __future__ import annotations

from math import isqrt

import numpy as np

from attncli.attention.view import Labels, View
from attncli.reports.blocks import Heatmap, head_key
from attncli.reports.maps import MAP_BLOCKS, heatmaps
from attncli.reports.selection import select
from attncli.studies.health import Examination
from attncli.studies.many import LayerHealth

CELLS = 1 << 25  # of all maps, two bytes each
FEWEST = 32  # blocks a side, however many heads there are
LAYERS = 64  # where nobody knows how many come
TOGETHER = "batch elements are judged together; the map is of the first"


class KeptMaps:
    """The maps of layers that come one after the other; ``layers`` is how many, 0 not known."""

    def __init__(self, layers: int = 0) -> None:
        self.maps: list[Heatmap] = []
        self._layers = layers or LAYERS

    def add(self, layer: LayerHealth, done: Examination, labels: Labels) -> None:
        """Keep a map of each head of a layer that has been examined: of its largest weights."""
        problem = done.result.problem
        batches = layer.batches if layer.batches is not None else (0,) * bool(problem.batch)
        heads = max(1, len(batches) * problem.heads * self._layers)
        most = min(MAP_BLOCKS, max(FEWEST, isqrt(CELLS // heads)))
        view = View(batch=tuple(batches))
        chosen = select(problem, view)
        chosen = chosen._replace(shown=tuple(chosen.pairs))
        together = layer.batches is None and problem.batch > 1
        maps = heatmaps(problem, done.evidence.lse, labels, view, chosen, most=most)
        for one, (b, h) in zip(maps, chosen.shown, strict=True):
            title = f"{one.title.replace('Weights', f'Weights · {layer.name}', 1)}"
            self.maps.append(
                one._replace(
                    title=title, values=one.values.astype(np.float16),
                    head=head_key(0 if layer.batches is None else b, h, layer.name),
                    notes=[TOGETHER] if together else [],
                )
            )  # fmt: skip
