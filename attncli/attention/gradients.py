"""Gradients: what an engine's ``backward`` returns, and the upstream gradient it starts from.

With P the weights, dO the upstream gradient and δ_i = dO_i·o_i (FlashAttention, Dao et al. 2022):

    dP = dO·Vᵀ     dZ = P∘(dP − δ)     dS = dZ∘(1 − (c/cap)²)
    dQ = scale·dS·K     dK = scale·dSᵀ·Q     dV = Pᵀ·dO     dsink = −Σ_i p_sink,i·δ_i

A sink has no value, so that δ is Σ_j p_ij dp_ij over the keys alone, with a sink too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from attncli.attention.pose import canonical, turn
from attncli.attention.problem import Problem
from attncli.attention.rope import Rope
from attncli.errors import InputError

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class WeightSums:
    """Sums of the weights of rows with a choice (no padding, two visible keys, a finite lse).

    received ``(B, H, Lk)``: Σ_i p_ij; diagonals ``(B, H, Lq + Lk − 1)``: Σ_i p_ij of the cells with
    j = i + n − (Lq − 1), where i counts from 0; distance ``(B, H, Lq)``: Σ_j p_ij |i−j|, of
    positions; tiny, cells ``(B, H)``: visible cells with p < 2⁻²⁴, and all. Where positions are not
    known, distance and diagonals say nothing.
    """

    received: Array
    diagonals: Array
    distance: Array
    tiny: Array
    cells: Array


@dataclass(frozen=True)
class Gradients:
    """The gradients of Σ output∘grad_output.

    As an engine returns them: query ``(B, H, Lq, D)``, key ``(B, G, Lk, D)``, value
    ``(B, G, Lk, Dv)``, heads of a group summed; sink ``(H,)`` or None; ``biases`` one for each
    float mask tensor, ``(B or 1, H or 1, Lq or 1, Lk or 1)``, summed over what was broadcast, when
    asked for; score_norm ``(B, H, Lq)``, the norm of each row of dS, when asked for. ``sums`` of
    the weights, made again for them, where they were asked for and the engine makes them. query,
    key and value may be None where nobody reads them. All but sink in the arithmetic's dtype.
    ``restored`` rounds them, brings them into the shapes of the inputs and splits a cache off, as
    past_key and past_value; ``norms`` are then ``row_norms``.
    """

    query: Array | None
    key: Array | None
    value: Array | None
    sink: Array | None = None
    biases: tuple[Array, ...] = ()
    score_norm: Array | None = None
    sums: WeightSums | None = None
    past_key: Array | None = None
    past_value: Array | None = None
    norms: Mapping[str, Array] = field(default_factory=dict)

    @property
    def bias(self) -> Array | None:
        """The gradient of ``attn_mask``, the last float mask, or None when not asked for."""
        return self.biases[-1] if self.biases else None


def upstream(spec: Any, problem: Problem) -> Array:
    """Return the gradient of the output, ``(B, H, Lq, Dv)`` in the arithmetic's dtype.

    ``spec``: ``"ones"``, ``"random"`` or ``"random:SEED"`` (unit normal; the seed is 0 unless
    given), or an array in the shape of the output. Raises InputError for anything else.
    """
    p = problem
    shape = (p.batch, p.heads, p.queries, p.value_width)
    if isinstance(spec, str):
        seeded = re.fullmatch(r"random(?::(\d{1,18}))?", spec)
        if spec == "ones":
            return np.ones(shape, p.dtype)
        if seeded:
            return np.random.default_rng(int(seeded[1] or 0)).standard_normal(shape).astype(p.dtype)
        raise InputError(
            f"unknown gradient of the output '{spec}'",
            "it must be ones, random, random:SEED with a whole number, or a tensor like the output",
        )
    array = np.asanyarray(spec)
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise InputError(
            f"the gradient of the output has dtype {array.dtype}", "expected real numbers"
        )
    expected = p.family.restore(np.broadcast_to(np.float32(0), shape)).shape
    if array.shape != expected:
        hint = "give one number for each of the output's"
        if sorted(array.shape) == sorted(expected):
            hint += "; its dimensions stand in another order"
        elif p.value_width != p.width and array.shape[-1:] == (p.width,):
            hint += "; its last dimension is the value's width, not the query's"
        raise InputError(
            f"the gradient of the output is {array.shape} but the output is {expected}", hint
        )
    with np.errstate(over="ignore"):
        return canonical("grad_output", array, p.family, p.heads).astype(p.dtype)


def restored(
    gradients: Gradients, problem: Problem, norms: Mapping[str, Array] = MappingProxyType({})
) -> Gradients:
    """Return gradients of an engine in the shapes of the inputs, rounded to the result's dtype.

    key and value have key/value heads; what came as a cache is past_key and past_value; with RoPE,
    query and key are those before they were turned. Self-attention's three stay apart: their sum
    is the gradient of the one tensor that came in. ``norms`` are those of ``row_norms``: before
    rounding, and of the turned query and key.
    """
    p, g = problem, gradients
    query, key, value = g.query, g.key, g.value
    assert query is not None and key is not None and value is not None, "they were not asked for"
    if p.rope is not None:
        query, key = turned_back(p.rope, query, key, p)

    def rounded(array: Array) -> Array:
        with np.errstate(over="ignore"):
            return array.astype(p.result_dtype, copy=False)

    def shaped(array: Array) -> Array:
        return p.family.restore(rounded(array))

    return replace(
        g,
        query=shaped(query),
        key=shaped(key[:, :, p.past :]),
        value=shaped(value[:, :, p.past :]),
        biases=tuple(rounded(bias) for bias in g.biases),
        past_key=shaped(key[:, :, : p.past]) if p.past else None,
        past_value=shaped(value[:, :, : p.past]) if p.past else None,
        score_norm=None if g.score_norm is None else p.family.restore_rows(g.score_norm),
        norms={name: p.family.restore_rows(rows) for name, rows in norms.items()},
    )


def turned_back(rope: Rope, query: Array, key: Array, p: Problem) -> tuple[Array, Array]:
    """Turn by RoPE's transpose, J·R(θ)·J where J negates the second channel of each pair."""
    sign = np.ones(p.width, p.dtype)
    sign[rope.pairs(p.width)[1]] = -1
    query, key = turn(rope, query * sign, key * sign, p.mask, p.past, p.dtype)
    return query * sign, key * sign


def row_norms(gradients: Gradients) -> dict[str, Array]:
    """Return the norm of every row, float64, of gradients as an engine returns them.

    ``grad_query_norm`` ``(B, H, Lq)``, ``grad_key_norm`` and ``grad_value_norm`` ``(B, G, Lk)``;
    ``grad_score_norm`` ``(B, H, Lq)``, ‖dS_i‖. What is not there has none.
    """
    g = gradients
    tensors = {"query": g.query, "key": g.key, "value": g.value}
    found = {
        f"grad_{name}_norm": row_norm(array) for name, array in tensors.items() if array is not None
    }
    if g.score_norm is not None:
        found["grad_score_norm"] = g.score_norm
    return found


def row_norm(array: Array) -> Array:
    """Return the Euclidean norm over the last dimension, float64 ``(…)``, a row at a time."""
    found = np.empty(array.shape[:-1])
    for at in np.ndindex(array.shape[:-2]):
        for start in range(0, array.shape[-2], 1 << 14):
            part = array[at][start : start + (1 << 14)].astype(np.float64)
            with np.errstate(over="ignore", invalid="ignore"):
                found[at][start : start + (1 << 14)] = np.sqrt(np.vecdot(part, part))
    return found


def float_masks(problem: Problem) -> list[tuple[int, ...]]:
    """Return the shapes of the float mask tensors, whose gradients are ``Gradients.biases``."""
    return [tensor.shape for tensor in problem.mask.tensors()]
