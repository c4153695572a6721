"""A layer's weights by head, with what lies before and behind the projections within.

W(g∘x + b) + c is (W∘g)x + (Wb + c): the gain of a norm belongs to the columns of the matrix behind
it. What a norm divides by depends on the token and is nowhere within.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from attncli.models.latent import expanded
from attncli.models.layer import Layer, Norm, Projections
from attncli.models.stream import output_norm, through

Array = np.ndarray[Any, np.dtype[Any]]


class Parts(NamedTuple):
    """The weights of a layer by head, the norm before them and the biases within.

    ``query`` ``(H, D, E + 1)``, ``key`` ``(G, D, Ek + 1)``, ``value`` ``(G, Dv, Ev)``, ``output``
    ``(H, Dv, Eo)`` or None; ``lost`` and ``sizes`` as of Circuits. Where numbers were lost, 0
    stands for what is not finite.
    """

    query: Array
    key: Array
    value: Array
    output: Array | None
    lost: Array
    sizes: tuple[Array, Array, Array, Array]


def parts_of(layer: Layer) -> Parts:
    """Return the weights of a layer by head."""
    made = expanded(layer, layer.projections())
    heads, groups = layer.heads, layer.kv_heads
    q = made.query.reshape(heads, -1, made.query.shape[1])  # (H, D, E)
    k = made.key.reshape(groups, -1, made.key.shape[1])  # (G, D, Ek)
    v = made.value.reshape(groups, -1, made.value.shape[1])  # (G, Dv, Ev)
    o = None
    if made.output is not None:
        o = made.output.T.reshape(heads, -1, made.output.shape[0])  # (H, Dv, Eo)
    own = np.arange(heads) // (heads // groups)
    lost = _nonfinite(q) + _nonfinite(k)[own] + _nonfinite(v)[own]
    lost = lost if o is None else lost + _nonfinite(o)
    sizes = _norms(q), _norms(k)[own], _norms(v)[own], np.full(heads, np.nan)
    sizes = sizes if o is None else (*sizes[:3], _norms(o))
    q, k, v = _folded(layer, made, q, k, v)
    after = output_norm(layer)
    o = o if o is None or after is None else through(o, after, layer)
    spoilt = [_nonfinite(part) > 0 for part in (q, k, v)]  # by a norm's gain or a bias as well
    lost = np.maximum(lost, spoilt[0] | spoilt[1][own] | spoilt[2][own])
    lost = lost if o is None else np.maximum(lost, _nonfinite(o) > 0)
    if lost.any():  # they would stop the decompositions
        q, k, v = (np.nan_to_num(part, nan=0, posinf=0, neginf=0) for part in (q, k, v))
        o = None if o is None else np.nan_to_num(o, nan=0, posinf=0, neginf=0)
    return Parts(q, k, v, o, lost, sizes)


def _folded(
    layer: Layer, made: Projections, q: Array, k: Array, v: Array
) -> tuple[Array, Array, Array]:
    """Return the projections with norms and the biases within, query and key ``(…, D, E + 1)``.

    What a bias or the norm's bias gives is one more column, whose input is constant. It is divided
    by √E, since a norm leaves inputs of norm √E and these numbers are those of norm 1. Where the
    norm centres x, W∘g sees no mean. A key's constant adds the same to all scores of a row and
    falls out of the softmax, unless RoPE turns it; a value's is added to every output, and is no
    part of what a head reads. Of a norm of queries or keys gain and centring are within.
    """
    norm = layer.input_norm

    def fold(part: Array, bias: Array | None, normed: bool) -> tuple[Array, Array]:
        constant = np.zeros(part.shape[:2], part.dtype)  # (…, D)
        if bias is not None:
            constant = constant + bias.reshape(constant.shape)
        if norm is None or not normed:
            return part, constant
        if norm.biases:
            constant = constant + part @ layer.tensor(norm.biases[0])
        if norm.weights:
            part = part * gain_of(layer, norm)
        return part - part.mean(-1, keepdims=True) if norm.centred else part, constant

    def joined(part: Array, constant: Array, own: Norm | None) -> Array:
        column = constant[..., None] / np.sqrt(part.shape[-1], dtype=part.dtype)
        part = np.concatenate([part, column], axis=-1)  # (…, D, E + 1)
        return part if own is None else _behind(layer, own, part)

    own = layer.kind == "self"  # a cross layer's keys and values come from another norm
    q, constant = fold(q, made.query_bias, True)
    k, falls_out = fold(k, made.key_bias, own)
    v, _ = fold(v, None, own)
    falls_out = falls_out if layer.rope else 0 * falls_out
    return joined(q, constant, layer.query_norm), joined(k, falls_out, layer.key_norm), v


def _behind(layer: Layer, norm: Norm, part: Array) -> Array:
    """Return queries' or keys' weights ``(…, D, E)`` with the gain of the norm behind them."""
    if norm.centred:
        part = part - part.mean(axis=(0, 1) if norm.full else 1, keepdims=True)
    return part * gain_of(layer, norm).reshape(-1, part.shape[1], 1) if norm.weights else part


def gain_of(layer: Layer, norm: Norm) -> Array:
    """Return what a norm multiplies by, one number a channel, all heads' in a row; 1 for none."""
    if not norm.weights:
        return np.ones(1, np.float32)
    gain = np.concatenate([np.atleast_1d(layer.tensor(name)).ravel() for name in norm.weights])
    return gain + 1 if norm.kind.endswith("+1") else gain


def _nonfinite(part: Array) -> Array:
    return np.asarray((~np.isfinite(part)).sum((1, 2)))


def _norms(part: Array) -> Array:
    return np.asarray(np.sqrt(np.einsum("hde,hde->h", part, part, dtype=np.float64)))
