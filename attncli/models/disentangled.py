"""Disentangled attention (DeBERTa, He et al. 2021): content meets position, both ways.

    bias_ij = (q_i·K_r[δ(i − j)] + k_j·Q_r[δ(i − j)])/√(D·n)        n = 1 + the terms there are

K_r and Q_r are projections of one table of distances; δ is clipped, or logarithmic buckets. The
terms are c2p and p2c of DeBERTa's config.json. They depend on the content, and so are made densely.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from attncli.errors import InputError, TooLarge
from attncli.models import config as configs
from attncli.models.layer import Disentangled, Layer, Norm, Projections
from attncli.models.matching import join
from attncli.models.stages import EXACT, Way, linear, normed, split
from attncli.resources import available_memory, readable_bytes

Array = np.ndarray[Any, np.dtype[Any]]

#: What projects the table of distances, below the attention: DeBERTa-v2's leaf, DeBERTa's.
LEAVES: Mapping[str, tuple[str, ...]] = {
    "pos_key": ("self.pos_key_proj", "self.pos_proj"),
    "pos_query": ("self.pos_query_proj", "self.pos_q_proj"),
}


def disentangled_of(
    parent: str, config: Mapping[str, Any], names: Collection[str]
) -> tuple[Disentangled | None, dict[str, str], str]:
    """Return the record of a layer, its tensors by role, and what of them is missing, or ''."""
    terms = configs.terms(config)
    if not config.get("relative_attention") or not terms:
        return None, {}, ""
    found: dict[str, str] = {}
    for role, leaves in LEAVES.items():
        for leaf in leaves:
            for end in ("weight", "bias"):
                name = join(parent, f"{leaf}.{end}")
                if name in names:
                    found[role + "_bias" * (end == "bias")] = name
    wanted = {"c2p": "pos_key", "p2c": "pos_query"}
    shared = bool(config.get("share_att_key"))
    lost = [] if shared else [wanted[term] for term in terms if wanted[term] not in found]
    holder = _holder(parent, names)
    if holder is None:
        lost.append("rel_embeddings")
    if lost or holder is None:
        return None, found, f"its relative position terms lack {', '.join(lost)}"
    longest = configs.number(config, "max_relative_positions") or -1.0
    if longest < 1:
        longest = configs.number(config, "max_position_embeddings") or 512.0
    size = configs.number(config, "position_buckets") or -1.0
    if size > 0 and (size < 4 or size % 2 or longest - 1 <= size // 2):
        expected = f"an even number from 4 on, its half below max_relative_positions {longest:g}"
        raise configs.wrong("position_buckets", size, expected)
    norm = None
    if "layer_norm" in str(config.get("norm_rel_ebd", "")).lower():
        weight, bias = (join(holder, f"LayerNorm.{end}") for end in ("weight", "bias"))
        if weight not in names:
            return None, found, "its relative position terms lack the table's LayerNorm"
        eps = configs.number(config, *configs.EPSILONS)
        norm = Norm("layer", (weight,), (bias,), 1e-7 if eps is None else eps)
    table = join(holder, "rel_embeddings.weight")
    return Disentangled(table, terms, int(longest), max(int(size), 0), norm, shared), found, ""


def _holder(parent: str, names: Collection[str]) -> str | None:
    """Return the encoder that holds the table of distances, above the attention."""
    parts = parent.split(".")
    for end in range(len(parts) - 1, -1, -1):
        if join(".".join(parts[:end]), "rel_embeddings.weight") in names:
            return ".".join(parts[:end])
    return None


def content_bias(
    query: Array, key: Array, layer: Layer, weights: Projections, way: Way = EXACT
) -> Array:
    """Return what is added to the scores, ``(B, H, L, L)``, of queries and keys ``(B, H, L, D)``.

    Raises TooLarge where it does not fit into memory, InputError where the table is too short.
    """
    terms = layer.disentangled
    assert terms is not None
    batch, heads, length, width = query.shape
    room, need = available_memory(), 3 * batch * heads * length**2 * query.dtype.itemsize
    if room is not None and need > room:
        raise TooLarge(
            f"the position terms of {heads} heads over {length} rows are {readable_bytes(need)}",
            f"{readable_bytes(room)} are free: give fewer rows of X",
        )
    table, dtype = layer.tensor(terms.table).astype(query.dtype), query.dtype
    if len(table) < 2 * terms.span:
        raise InputError(
            f"'{terms.table}' has {len(table)} rows but distances up to {terms.span} need "
            f"{2 * terms.span}",
            "config.json says max_relative_positions and position_buckets",
        )
    table = table[: 2 * terms.span]
    if terms.norm is not None:
        table = normed(table, terms.norm, layer, way)
    at = terms.rows(length)  # (L, L)
    scale = dtype.type(1 / math.sqrt(width * (1 + len(terms.terms))))
    found = np.zeros((batch, heads, length, length), dtype)

    def projected(role: str, own: Array, bias: Array | None) -> Array:
        if not terms.shared:
            given = layer.array(role)
            assert given is not None
            own, bias = given, layer.array(f"{role}_bias")
        return split(linear(table[None], own, bias, dtype, way), heads).swapaxes(2, 3)

    rows = np.arange(length)
    if "c2p" in terms.terms:
        met = way.kept(query @ projected("pos_key", weights.key, weights.key_bias))
        found += met[:, :, rows[:, None], at] * scale
    if "p2c" in terms.terms:
        met = way.kept(key @ projected("pos_query", weights.query, weights.query_bias))
        found += met[:, :, rows[None, :], at] * scale
    return way.kept(found)
