"""Stages between hidden states and heads: a projection, a norm, heads apart or side by side."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attncli.models.layer import Layer, Norm

Array = np.ndarray[Any, np.dtype[Any]]


class Way(NamedTuple):
    """How a plain implementation goes about it.

    ``low`` is a half type to which each stage is rounded, as an eager model in it does; ``seed``
    sums the channels of each projection in an order of its own.
    """

    low: np.dtype[Any] | None = None
    seed: int | None = None

    def kept(self, array: Array) -> Array:
        """Return a stage as it is kept."""
        return array if self.low is None else array.astype(self.low).astype(array.dtype)


EXACT = Way()


def linear(x: Array, weight: Array, bias: Array | None, dtype: Any, way: Way = EXACT) -> Array:
    """Return x Wᵀ + b, ``(…, out)``, computed in dtype."""
    if way.seed is not None:
        order = np.random.default_rng(way.seed).permutation(x.shape[-1])
        x, weight = x[..., order], weight[:, order]
    with np.errstate(over="ignore", invalid="ignore"):
        y: Array = x.astype(dtype, copy=False) @ weight.astype(dtype, copy=False).T
        return way.kept(y if bias is None else y + bias.astype(dtype, copy=False))


def concat(heads: Array) -> Array:
    """``(B, H, L, Dv)`` → ``(B, L, H·Dv)``."""
    merged = heads.swapaxes(-3, -2)  # (B, L, H, Dv)
    return merged.reshape(*merged.shape[:-2], merged.shape[-2] * merged.shape[-1])


def split(y: Array, heads: int) -> Array:
    """``(B, L, H·D)`` → ``(B, H, L, D)``."""
    return y.reshape(*y.shape[:2], heads, y.shape[2] // heads).swapaxes(1, 2)


def normed(x: Array, norm: Norm, layer: Layer, way: Way = EXACT) -> Array:
    """Return hidden states ``(…, E)`` normed by a norm of the layer's checkpoint."""
    return way.kept(_scaled(way.kept(_standard(x, norm)), norm, layer, x.shape[-1:], way))


def normed_heads(x: Array, norm: Norm, layer: Layer, dtype: Any, way: Way) -> Array:
    """Return queries or keys ``(B, H, L, D)`` normed, scaled and moved."""
    x = x.astype(dtype, copy=False)
    batch, heads, length, width = x.shape
    if norm.full:
        x = concat(x)  # (B, L, H·D): the mean is over all heads
    x = way.kept(_standard(x, norm))
    if norm.full:
        x = x.reshape(batch, length, heads, width).swapaxes(1, 2)  # (B, H, L, D)
    # parameters are (H or 1, 1, D)
    return way.kept(_scaled(x, norm, layer, (-1, 1, width), way))


def _standard(x: Array, norm: Norm) -> Array:
    """Return x over its root mean square (Zhang & Sennrich 2019), or standard deviation."""
    if norm.centred:
        x = x - x.mean(-1, keepdims=True)
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + x.dtype.type(norm.eps)))


def _scaled(x: Array, norm: Norm, layer: Layer, shape: tuple[int, ...], way: Way) -> Array:
    """Return x times the norm's gain, plus its bias, both brought into ``shape``."""

    def parameter(names: tuple[str, ...]) -> Array:
        array = np.concatenate([np.atleast_1d(layer.tensor(name)) for name in names])
        return way.kept(array.astype(x.dtype, copy=False)).reshape(shape)

    if norm.weights:
        gain = parameter(norm.weights)
        x = x * (gain + 1 if norm.kind.endswith("+1") else gain)
    return x + parameter(norm.biases) if norm.biases else x
