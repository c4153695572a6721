"""Hidden states through a layer's projections to queries, keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attncli.attention.rope import Rope
from attncli.errors import InputError
from attncli.models.disentangled import content_bias
from attncli.models.latent import joined, lowered
from attncli.models.layer import Layer, Norm, Projections, Temperature
from attncli.models.stages import EXACT, Way, linear, normed, normed_heads, split

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Heads:
    """What attention is computed from, canonical: query ``(B, H, L, D)``, key ``(B, G, Lk, D)``,
    value ``(B, G, Lk, Dv)``.

    ``rope`` is still to turn query and key (``problem.pose`` does). The last ``added`` keys are
    torch's bias_k and zeros. ``cross``: keys are made from a memory. ``batched``: x had a batch,
    ``given_dtype`` is its type. ``gate`` ``(B, H, L, Dv or 1)`` multiplies the heads' outputs.
    ``bias`` ``(B, H, L, L)`` is what content adds to the scores.
    """

    query: Array
    key: Array
    value: Array
    rope: Rope | None
    added: int
    cross: bool
    batched: bool
    given_dtype: np.dtype[Any]
    weights: Projections
    gate: Array | None = None
    bias: Array | None = None

    def gated(self, output: Array) -> Array:
        """Return heads' outputs ``(B, H, L, Dv)`` as the output projection takes them."""
        return output if self.gate is None else output * self.gate.astype(output.dtype)


def project(
    x: Any,
    layer: Layer,
    memory: Any = None,
    memory_value: Any = None,
    *,
    seq_first: bool = False,
    rope: Rope | Mapping[str, Any] | str | None = None,
    positions: Any = None,
    past: int = 0,
    add_zero_attn: bool = False,
    input_norm: str = "auto",
    dtype: np.dtype[Any] | None = None,
    weights: Projections | None = None,
    way: Way = EXACT,
) -> Heads:
    """Return queries, keys and values of hidden states, normed and clipped as the layer does.

    x, memories and ``input_norm`` as in ``multihead``; ``weights`` in place of the layer's own.
    Computed in float64 where x (or ``dtype``) is, else in float32. Raises InputError where widths,
    lengths or batches do not fit.
    """
    other = None
    if layer.joint is not None:
        if memory is None or memory_value is not None:
            raise InputError(
                f"{layer.label} is joint attention: two streams, one softmax",
                "give --memory alone, the other stream's hidden states",
            )
        other = project(
            memory, layer.joint.stream, seq_first=seq_first, rope="none", input_norm=input_norm,
            dtype=dtype, way=way,
        )  # fmt: skip
        memory = None
    states = _states(layer, x, memory, memory_value, seq_first, dtype)
    given_dtype = states.query.dtype
    wide = given_dtype.itemsize == 8
    arithmetic: np.dtype[Any] = np.dtype(np.float64 if wide else np.float32)
    cross = memory is not None
    if layer.input_norm is not None and input_norm == "auto":
        states = _normed(states, layer, layer.input_norm, arithmetic, way)
    weights = layer.projections() if weights is None else weights
    query, key, value, shared = states.query, states.key, states.value, None
    if layer.latent is not None:
        if memory_value is not None:
            raise InputError(
                "memory_value is given to a layer with latents",
                "its keys and values come from one: leave --memory-value out",
            )
        query, key, shared = lowered(query, key, layer, weights, arithmetic, way)
        value = key
    q, k, v = (
        split(linear(x, weight, bias, arithmetic, way), heads)
        for x, weight, bias, heads in (
            (query, weights.query, weights.query_bias, layer.heads),
            (key, weights.key, weights.key_bias, layer.kv_heads),
            (value, weights.value, weights.value_bias, layer.kv_heads),
        )
    )
    k = k if shared is None else joined(k, shared)
    turn = _rope(layer, rope, positions, cross)
    if layer.norm_after_rope and turn is not None:
        gap = np.zeros((*k.shape[:2], past, k.shape[3]), k.dtype)  # the past is turned already
        q, k = turn.apply(q, np.concatenate([gap, k], axis=2), past=past, dtype=arithmetic)
        k, turn = k[:, :, past:], None
    if layer.query_norm is not None:
        q = normed_heads(q, layer.query_norm, layer, arithmetic, way)
    if layer.key_norm is not None:
        k = normed_heads(k, layer.key_norm, layer, arithmetic, way)
    if layer.temperature is not None:
        q = way.kept(q * _temperature(layer.temperature, positions, past, q))
    if layer.clip is not None:  # after the norms, as OLMoE does; OLMo and MPT have none
        q, k, v = (np.clip(part, -layer.clip, layer.clip) for part in (q, k, v))
    if other is not None and layer.joint is not None:
        q, k, v, turn = _both(q, k, v, other, layer.joint.first, turn, arithmetic)
    more = _added(layer, k, v, add_zero_attn)
    if more is not None:
        k, v = (np.concatenate(pair, axis=2) for pair in zip((k, v), more, strict=True))
    added = 0 if more is None else int(more[0].shape[2])
    gate = None
    if weights.gate is not None:
        gate = linear(states.query, weights.gate, weights.gate_bias, arithmetic, way)
        gate = way.kept(split(_sigmoid(gate), layer.heads))
    bias = None if layer.disentangled is None or cross else content_bias(q, k, layer, weights, way)
    return Heads(q, k, v, turn, added, cross, states.batched, given_dtype, weights, gate, bias)


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray(1 / (1 + np.exp(-x)))


def _both(
    q: Array, k: Array, v: Array, other: Heads, first: bool, turn: Rope | None, dtype: Any
) -> tuple[Array, Array, Array, None]:
    """Return x's queries, and keys and values of both streams, turned as one sequence."""
    if len(other.query) != len(q) or other.key.shape[3] != k.shape[3]:
        raise InputError(
            f"x has a batch of {len(q)} and memory one of {len(other.query)}",
            "both streams have the same batch",
        )
    start = other.query.shape[2] if first else 0
    own = slice(start, start + q.shape[2])

    def beside(mine: Array, theirs: Array) -> Array:
        return np.concatenate((theirs, mine) if first else (mine, theirs), axis=2)

    q, k, v = beside(q, other.query), beside(k, other.key), beside(v, other.value)
    if turn is not None:
        q, k = turn.apply(q, k, past=0, dtype=dtype)
    return q[:, :, own], k, v, None


@dataclass(frozen=True)
class _States:
    """Hidden states ``(B, L, E)``."""

    query: Array
    key: Array
    value: Array
    batched: bool


def _states(
    layer: Layer, x: Any, memory: Any, memory_value: Any, seq_first: bool,
    dtype: np.dtype[Any] | None,
) -> _States:  # fmt: skip
    query = _hidden("x", x, seq_first, dtype)
    if memory is None and layer.kind == "cross":
        raise InputError(
            f"{layer.label} is cross-attention: its keys and values come from elsewhere",
            "give --memory, the other sequence's hidden states",
        )
    if memory is None and memory_value is not None:
        raise InputError("memory_value is given without memory", "give --memory, for the keys")
    key = query if memory is None else _hidden("memory", memory, seq_first, dtype)
    value = key
    if memory_value is not None:
        value = _hidden("memory_value", memory_value, seq_first, dtype)
    batched = query.ndim == 3
    for name, array in (("memory", key), ("memory_value", value)):
        if array.ndim != query.ndim or (batched and len(array) != len(query)):
            raise InputError(
                f"{name} is {array.shape} but x is {query.shape}",
                "give both with or without a batch dimension, and the same batch",
            )
    if value.shape[-2] != key.shape[-2]:
        raise InputError(
            f"memory_value is {value.shape} but memory is {key.shape}",
            "each key needs one value: their lengths must match",
        )
    key_name = "x" if memory is None else "memory"
    value_name = key_name if memory_value is None else "memory_value"
    wanted = (
        ("x", query, layer.model_dim, ""),
        (key_name, key, layer.key_input, "keys"),
        (value_name, value, layer.value_input, "values"),
    )
    for name, array, width, what in wanted:
        if array.shape[-1] != width:
            made = f" for its {what}" if what else ""
            hint = "it must be what this layer was made for"
            if array.ndim == 2 and array.shape[0] == width:
                hint = "if it is stored as (width, length), transpose it first"
            elif what == "values" and memory_value is None:
                hint = "give --memory-value, what the values are made from"
            elif what == "keys" and memory is None:
                hint = "give --memory, what keys and values are made from"
            raise InputError(
                f"{name} is {array.shape[-1]} wide, {array.shape}, but {layer.label} takes "
                f"{width}{made}",
                hint,
            )
    if not batched:
        query, key, value = query[None], key[None], value[None]
    return _States(query, key, value, batched)


def _hidden(name: str, array: Any, seq_first: bool, dtype: np.dtype[Any] | None) -> Array:
    """Return hidden states as float ``(L, E)`` or ``(B, L, E)``, rounded to dtype."""
    array = np.asanyarray(array)
    if array.dtype.kind in "biu":
        array = array.astype(np.float64)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise InputError(f"{name} has dtype {array.dtype}", "expected real numbers")
    if array.ndim not in (2, 3):
        raise InputError(
            f"{name} has {array.ndim} dimensions, {array.shape}",
            "expected (L, E) or (B, L, E), hidden states before they are projected into heads",
        )
    if dtype is not None:
        with np.errstate(over="ignore"):
            array = array.astype(dtype, copy=False)
    return np.asarray(array.swapaxes(0, 1) if seq_first and array.ndim == 3 else array)


def _normed(states: _States, layer: Layer, norm: Norm, dtype: Any, way: Way) -> _States:
    """Return the states as the layer's projections take them; a cross layer norms its x alone."""

    def made(x: Array) -> Array:
        return normed(x.astype(dtype, copy=False), norm, layer, way)

    query = made(states.query)
    if layer.kind == "cross":
        return replace(states, query=query)
    key = query if states.key is states.query else made(states.key)
    value = key if states.value is states.key else made(states.value)
    return replace(states, query=query, key=key, value=value)


def _rope(
    layer: Layer, given: Rope | Mapping[str, Any] | str | None, positions: Any, cross: bool
) -> Rope | None:
    if given == "none":
        return None
    turn = layer.rope if not cross else None
    if given is not None:
        turn = Rope.of(given)
        if layer.latent is not None and not turn.start:
            own = layer.latent.turned
            turn = replace(turn, dim=own, start=layer.head_dim - own)
    if positions is not None:
        if turn is None and layer.temperature is not None:
            return None
        if turn is None:
            raise InputError("positions are given but this layer has no RoPE", "give --rope")
        turn = replace(turn, positions=positions)
    return turn


def _temperature(temperature: Temperature, positions: Any, past: int, query: Array) -> Array:
    """Return what queries ``(B, H, L, D)`` are multiplied by, ``(1 or B, 1, L, 1)``."""
    batch, length = query.shape[0], query.shape[2]
    where = np.arange(past, past + length) if positions is None else np.asarray(positions)
    if where.shape not in ((length,), (1, length), (batch, length)):
        raise InputError(
            f"positions is {where.shape} but there are {length} queries in a batch of {batch}",
            f"expected one position per query: ({length},) or ({batch}, {length})",
        )
    return temperature.at(np.atleast_2d(where))[:, None, :, None].astype(query.dtype)


def _added(layer: Layer, k: Array, v: Array, zero: bool) -> tuple[Array, Array] | None:
    """Return torch's bias_k, bias_v and the zeros of add_zero_attn, ``(B, G, 1 or 2, D)``."""
    keys: list[Array] = []
    values: list[Array] = []
    for (like, found), role in (((k, keys), "bias_k"), ((v, values), "bias_v")):
        array = layer.array(role)
        if array is not None:
            if array.size != like.shape[1] * like.shape[3]:
                raise InputError(
                    f"{role} is {array.shape} but {like.shape[1]} heads are {like.shape[3]} wide",
                    f"expected {like.shape[1] * like.shape[3]} numbers",
                )
            one = array.reshape(1, like.shape[1], 1, like.shape[3]).astype(like.dtype)
            found.append(np.broadcast_to(one, (len(like), *one.shape[1:])))
        if zero:
            found.append(np.zeros((*like.shape[:2], 1, like.shape[3]), like.dtype))
    if len(keys) != len(values):
        have, miss = ("bias_k", "bias_v") if len(keys) > len(values) else ("bias_v", "bias_k")
        raise InputError(f"the layer has {have} but no {miss}", "torch's layer has both or none")
    return (np.concatenate(keys, 2), np.concatenate(values, 2)) if keys else None
