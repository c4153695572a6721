"""Multi-head latent attention (MLA, DeepSeek-V2 2024): narrow latents between states and heads.

    c_q = norm(x·W_DQ)      q = c_q·W_UQ                        its last channels turn
    c   = norm(x·W_DKV)     k = [c·W_UK, x·W_KR], v = c·W_UV    W_KR's channels turn

What is computed is this expanded form. Absorbed, the same scores are (q·W_UK)·c: one key/value
head, as wide as the latent and the turned channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from attncli.errors import InputError
from attncli.models import config as configs
from attncli.models.families import Family
from attncli.models.layer import Latent, Layer, Norm, Projections
from attncli.models.shapes import Said, Sizes
from attncli.models.stages import EXACT, Way, linear, normed

Array = np.ndarray[Any, np.dtype[Any]]
Shape = tuple[int, ...]

EPS = 1e-6  # of the latents' norms, in all families: config.json's is that of others


def latent_sizes(
    name: str, shapes: Mapping[str, Shape | None], said: Said, config: Mapping[str, Any]
) -> Sizes:
    """Return heads and widths from the shapes of ``query``, ``down``, ``up`` and ``output``.

    Each head has D = n + r rows of query, n + v of up and v inputs of the output, where r is what
    down has beyond the latent. Raises InputError where they do not go together.
    """
    query, down, up, output = (shapes[role] for role in ("query", "down", "up", "output"))
    assert query is not None and down is not None and up is not None
    turned = down[0] - up[1]
    heads, source = 0, "the weights"
    if output is not None and turned > 0:  # H·r = H·(n + r) − (H·(n + v) − H·v)
        heads, rest = divmod(query[0] - up[0] + output[1], turned)
        heads = 0 if rest else heads
    stated = said.flag_heads or (said.config_heads or ("", 0))[1]
    if output is None or turned == 0:
        heads, source = stated, "--heads" if said.flag_heads else "config.json"
    if heads < 1:
        raise InputError(
            f"{name}: nothing says how many heads its {query[0]} query rows hold",
            "give --heads H or --config FILE",
        )
    width = query[0] // heads
    value = up[0] // heads - (width - turned)
    parts = (query[0] - heads * width, up[0] - heads * (width - turned + value))
    wrong = turned < 0 or value < 1 or width <= turned or any(parts)
    if wrong or (output is not None and output[1] != heads * value):
        raise InputError(
            f"{name}: its latent attention does not go together: queries {query}, "
            f"kv_a_proj_with_mqa {down}, kv_b_proj {up}, output {output}",
            f"with {heads} heads of width D, values v and r turned channels: H·D, rank + r, "
            "H·(D − r + v) and H·v rows",
        )
    if said.flag_heads not in (None, heads):
        raise InputError(
            f"--heads is {said.flag_heads} but the weights of {name} have {heads}", "leave it out"
        )
    notes: tuple[str, ...] = ()
    if stated not in (0, heads):
        notes = (f"config.json says heads {stated}, the weights {heads}: the weights won",)
    for member, number in (("qk_rope_head_dim", turned), ("v_head_dim", value)):
        told = configs.count(config, (member,))
        if told is not None and told[1] != number:
            notes += (f"config.json says {member} {told[1]}, the weights {number}",)
    return Sizes(heads, heads, width, value, source, notes)


def latent_of(
    name: str, shapes: Mapping[str, Shape | None],
    norms: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]], family: Family,
) -> Latent:  # fmt: skip
    """Return the record of a layer's latents; InputError where a norm is missing."""

    def norm(role: str) -> Norm:
        if role not in norms:
            leaf = "q_a_layernorm" if role.startswith("query") else "kv_a_layernorm"
            raise InputError(f"{name} has no {leaf}", "each latent is normed before it is used")
        return Norm("rms", *norms[role], EPS)

    down, up, query_down = shapes["down"], shapes["up"], shapes["query_down"]
    assert down is not None and up is not None
    rank = up[1]
    found = Latent(rank, down[0] - rank, norm("down_norm"))
    if query_down is not None:
        found = replace(found, query_norm=norm("query_down_norm"))
    if "gains" in family.latent and query_down is not None:  # LongCat-Flash
        model = down[1]
        gains = (model / rank) ** 0.5, (model / query_down[0]) ** 0.5
        found = replace(found, gain=gains[0], query_gain=gains[1])
    return found


def lowered(
    query: Array, key: Array, layer: Layer, weights: Projections, dtype: Any, way: Way = EXACT
) -> tuple[Array, Array, Array]:
    """Return what queries, keys and values are made from, and the turned part of all keys.

    ``(B, L, rq)``, ``(B, L, rank)``, ``(B, L, turned)``.
    """
    latent = layer.latent
    assert latent is not None and weights.down is not None
    if weights.query_down is not None and latent.query_norm is not None:
        query = linear(query, weights.query_down, weights.query_down_bias, dtype, way)
        query = normed(query, latent.query_norm, layer, way) * query.dtype.type(latent.query_gain)
    down = linear(key, weights.down, weights.down_bias, dtype, way)
    narrow, shared = down[..., : latent.rank], down[..., latent.rank :]
    return query, normed(narrow, latent.norm, layer, way) * down.dtype.type(latent.gain), shared


def joined(key: Array, shared: Array) -> Array:
    """Return keys ``(B, H, L, D)`` of their own channels and those that all heads share."""
    wide = np.broadcast_to(shared[:, None], (*key.shape[:3], shared.shape[-1]))
    return np.concatenate([key, wide], axis=-1)


def expanded(layer: Layer, weights: Projections) -> Projections:
    """Return projections from hidden states: the products of a layer's, its latents not normed.

    Their gains are within. What has no latents comes back as it is.
    """
    latent = layer.latent
    if latent is None or weights.down is None:
        return weights

    def gain(norm: Norm, more: float) -> Array:
        return np.asarray(layer.tensor(norm.weights[0]) * np.float32(more))[:, None]

    query, bias = weights.query, weights.query_bias
    if weights.query_down is not None and latent.query_norm is not None:
        scaled = gain(latent.query_norm, latent.query_gain)
        if weights.query_down_bias is not None:
            bias = query @ (scaled[:, 0] * weights.query_down_bias)
        query = query @ (scaled * weights.query_down)
    down = gain(latent.norm, latent.gain) * weights.down[: latent.rank]
    shared = weights.down[latent.rank :]
    own = (weights.key @ down).reshape(layer.heads, -1, down.shape[1])
    each = np.broadcast_to(shared, (layer.heads, *shared.shape))
    key = np.concatenate([own, each], axis=1).reshape(-1, down.shape[1])
    return Projections(
        query, key, weights.value @ down, weights.output, bias, None, None, weights.output_bias
    )
