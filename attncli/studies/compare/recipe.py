"""What a layer's output is made from, to be made again: exactly, or as a plain implementation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np

from attncli.attention.problem import float_dtype
from attncli.attention.rope import Rope
from attncli.attention.rope_scaling import frequencies
from attncli.models.layer import Layer, Projections
from attncli.models.stages import Way
from attncli.studies.layer import MultiheadResult, Posed, pose_layer

Array = np.ndarray[Any, np.dtype[Any]]

STATES = ("x", "memory", "memory_value")


#: What follows the output projection: from the recipe, b, rows and the output ``(n, Eo)``.
End = Callable[["Recipe", int, Array, Array], Array]


@dataclass(frozen=True, eq=False)
class Out:
    """What becomes of the heads' outputs: ``weight`` ``(Eo, H·Dv)``, ``bias`` ``(Eo,)``, ends.

    ``untransposed``: the heads ``(H, L, Dv)`` are read as ``(L, H·Dv)`` as they lie.
    """

    weight: Array | None
    bias: Array | None
    ends: tuple[End, ...] = ()
    untransposed: bool = False

    @cached_property
    def reach(self) -> Array:
        """|W| as it is multiplied from the right, ``(H·Dv, Eo)``."""
        assert self.weight is not None
        return np.abs(self.weight).T


@dataclass(frozen=True, eq=False)
class Recipe:
    """A layer, its weights, and the arguments that ``pose_layer`` takes besides, in float64."""

    layer: Layer
    weights: Projections
    asked: Mapping[str, Any]
    _plain: dict[Any, Posed] = field(default_factory=dict, init=False)
    _lock: Any = field(default_factory=Lock, init=False)

    @classmethod
    def of(cls, made: MultiheadResult) -> Recipe:
        """Return what a result was made from."""
        asked = dict(made.posing.keywords)
        rounded = None if asked["dtype"] is None else float_dtype(asked["dtype"])
        for name in STATES:
            if asked[name] is not None:
                given = np.asarray(asked[name])
                asked[name] = given.astype(rounded or given.dtype).astype(np.float64)
        return cls(made.layer, made.projections, {**asked, "dtype": None})

    @cached_property
    def states(self) -> Array:
        """The hidden states, ``(B, L, E)``."""
        x: Array = self.asked["x"]
        if x.ndim == 2:
            return x[None]
        return x.swapaxes(0, 1) if self.asked["seq_first"] else x

    @cached_property
    def out(self) -> Out:
        """What the layer does with its heads' outputs."""
        own = self.weights
        weight = None if own.output is None else own.output.astype(np.float64)
        bias = None if own.output_bias is None else own.output_bias.astype(np.float64)
        return Out(weight, bias if weight is not None else None)

    @cached_property
    def exact(self) -> Posed:
        """The attention of the layer in float64. Raises AttnError where it cannot be posed."""
        return pose_layer(self.layer, **self.asked, weights=self.weights)

    def plain(self, own: np.dtype[Any], way: Way) -> Posed:
        """Return the attention as a plain implementation that computes in ``own`` poses it.

        Hidden states and weights are rounded to a half type first, as a model loaded in it has
        them; the angles of RoPE are float32's, as nearly everywhere.
        """
        with self._lock:
            if (own, way) not in self._plain:
                self._plain[own, way] = self._posed(own, way)
            return self._plain[own, way]

    def _posed(self, own: np.dtype[Any], way: Way) -> Posed:
        layer, asked = self.layer, {**self.asked, "dtype": own.name}
        if own.itemsize < 8:
            layer = replace(layer, rope=self._single(layer.rope, way.low))
            if asked["rope"] not in (None, "none"):
                asked["rope"] = self._single(Rope.of(asked["rope"]), way.low)
        return pose_layer(layer, **asked, weights=rounded(self.weights, own), way=way)

    def _single(self, rope: Rope | None, low: np.dtype[Any] | None) -> Rope | None:
        """Return RoPE with a table of cos and sin that were computed in float32."""
        if rope is None or rope.cos is not None:
            return rope
        given = self.asked["positions"] if rope.positions is None else rope.positions
        last = self.exact.problem.keys
        if given is not None:
            given = np.asarray(given)
            if given.size and (given.dtype.kind == "f" or given.min() < 0):
                return rope
            last = int(given.max(initial=-1)) + 1
        width = rope.dim or self.layer.head_dim
        inverse, factor = frequencies(width, rope.theta, rope.scaling, last)
        # longer than there are keys: a table by position, not rows of the keys
        places = np.arange(max(last, self.exact.problem.keys) + 2, dtype=np.float32)
        angle = places[:, None] * inverse.astype(np.float32)
        cos, sin = (
            (turn(angle) * np.float32(factor)).astype(low or np.float32)
            for turn in (np.cos, np.sin)
        )
        return replace(rope, scaling=None, cos=cos, sin=sin)


def rounded(weights: Projections, own: np.dtype[Any]) -> Projections:
    """Return weights as a model in a half type has them; others stay as they are."""
    if own.itemsize > 2:
        return weights
    kept: dict[str, Any] = {name: as_kept(array, own) for name, array in vars(weights).items()}
    return Projections(**kept)


def as_kept(array: Array | None, own: np.dtype[Any]) -> Array | None:
    """Return an array rounded to ``own``, in what it is computed in."""
    if array is None:
        return None
    with np.errstate(over="ignore"):
        return array.astype(own).astype(np.float64 if own.itemsize > 4 else np.float32)
