"""Heads judged by their weights alone: the QK and OV circuits of Elhage et al. 2021.

A head's scores are xᵀ·A·y with A = W_Qᵀ W_K, and it writes B = W_O W_V of what it reads. A and B
are (E, E) but of rank D: their singular values are those of D×D products of QR factors, and the
inner product of two of them is one of D×D blocks. Nothing here is E×E.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from attncli.models.layer import Layer, Norm, Projections
from attncli.resources import Job, Progress, processors, run_jobs

Array = np.ndarray[Any, np.dtype[Any]]

SIMILAR = 1 << 38  # multiply-adds of a layer's head similarity that are worth it
NORMAL = 0.6745  # of the median absolute deviation, the share of a normal's standard deviation

OUTLYING = ("largest_logit", "ov_norm")  # what heads are compared in
JUDGED = (
    "nonfinite_weights", *OUTLYING, "logit_outlier", "ov_outlier", "qk_rank_share",
    "qk_similarity",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class WeightFacts:
    """What the weights of one layer say; every array is ``(H,)``.

    ``largest_logit``: ‖W_Q,h W_K,hᵀ‖₂·|scale|, the gain of the norm before them and the biases
    within, RoPE at distance 0;
    ``logit_bound`` what qk-norm allows at most (NaN without); ``ov_norm`` ‖W_O,h W_V,h‖₂;
    ``qk_rank``, ``ov_rank`` their effective ranks; ``query_norm`` … Frobenius norms;
    ``similarity`` the largest |cosine| of the QK circuit with another head's and ``similar_head``
    which (NaN and −1 where not looked at); ``nonfinite`` how many weights are NaN or infinite.
    """

    layer: Layer
    largest_logit: Array
    logit_bound: Array
    ov_norm: Array
    qk_rank: Array
    ov_rank: Array
    query_norm: Array
    key_norm: Array
    value_norm: Array
    output_norm: Array
    similarity: Array
    similar_head: Array
    nonfinite: Array

    #: The numbers of a head, in the order of tables.
    NAMES = (
        "largest_logit", "logit_bound", "qk_rank", "ov_norm", "ov_rank", "query_norm", "key_norm",
        "value_norm", "output_norm", "similarity", "similar_head", "nonfinite",
    )  # fmt: skip

    def of_head(self, head: int) -> dict[str, float | int]:
        """Return the numbers of one head by name."""
        return {name: getattr(self, name)[head].item() for name in self.NAMES}


def weight_facts(
    layers: Sequence[Layer], *, threads: int | None = None, progress: Progress | None = None
) -> list[WeightFacts]:
    """Return the facts of each layer; ``threads`` layers at a time, one thread to each.

    These are decompositions of small matrices, which BLAS's own threads slow down. As many
    layers' weights are in memory as there are threads.
    """
    found: list[WeightFacts | None] = [None] * len(layers)

    def measure(n: int) -> None:
        found[n] = layer_facts(layers[n])

    jobs: list[Job] = [partial(measure, n) for n in range(len(layers))]
    run_jobs(jobs, threads or processors(), limit_blas=True, progress=progress)
    return [one for one in found if one is not None]


def layer_facts(layer: Layer) -> WeightFacts:
    """Return the facts of a layer, in its weights' precision (float32 at least)."""
    made = layer.projections()
    heads, groups = layer.heads, layer.kv_heads
    q = made.query.reshape(heads, -1, made.query.shape[1])  # (H, D, E)
    k = made.key.reshape(groups, -1, made.key.shape[1])  # (G, D, Ek)
    v = made.value.reshape(groups, -1, made.value.shape[1])  # (G, Dv, Ev)
    o = None
    if made.output is not None:
        o = made.output.T.reshape(heads, -1, made.output.shape[0])  # (H, Dv, Eo)
    parts = [q, k, v] if o is None else [q, k, v, o]
    own = np.arange(heads) // (heads // groups)  # the key/value head of each head
    bad = [_nonfinite(part) for part in parts]
    lost = bad[0] + bad[1][own] + bad[2][own] + (bad[3] if o is not None else 0)
    sizes = [_norms(q), _norms(k)[own], _norms(v)[own]]
    sizes.append(np.full(heads, np.nan) if o is None else _norms(o))
    q, k, v = _folded(layer, made, q, k, v)
    spoilt = [_nonfinite(part) > 0 for part in (q, k, v)]  # by a norm's gain or a bias as well
    lost = np.maximum(lost, spoilt[0] | spoilt[1][own] | spoilt[2][own])
    if lost.any():  # they would stop the decompositions
        q, k, v = (np.nan_to_num(part, nan=0, posinf=0, neginf=0) for part in (q, k, v))
        o = None if o is None else np.nan_to_num(o, nan=0, posinf=0, neginf=0)
    qk = _values(_factors(q), _factors(k)[own])
    right = _factors(v)[own]
    ov = np.linalg.svd(right, compute_uv=False) if o is None else _values(_factors(o), right)
    similar, other = _similarity(q, k, own)
    known = np.where(lost > 0, np.nan, 1.0)
    return WeightFacts(
        layer=layer,
        largest_logit=qk[:, 0] * abs(layer.scale) * known,
        logit_bound=_bound(layer) * known,
        ov_norm=ov[:, 0] * known,
        qk_rank=effective_ranks(qk) * known,
        ov_rank=effective_ranks(ov) * known,
        query_norm=sizes[0] * known,
        key_norm=sizes[1] * known,
        value_norm=sizes[2] * known,
        output_norm=sizes[3] * known,
        similarity=similar * known,
        similar_head=other,
        nonfinite=lost,
    )


def _folded(
    layer: Layer, made: Projections, q: Array, k: Array, v: Array
) -> tuple[Array, Array, Array]:
    """Return the projections with the norm before them and the biases within, ``(…, D, E + 1)``.

    W(g∘x + b) + c is (W∘g)x + (Wb + c): the gain belongs to the columns, the rest is one more
    column, whose input is constant. It is divided by √E, since a norm leaves inputs of norm √E and
    these numbers are those of norm 1. Where the norm centres x, W∘g sees no mean. A key's
    constant adds the same to all scores of a row and falls out of the softmax, unless RoPE turns
    it; a value's is added to every output, and is no part of what a head reads.
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
            gain = layer.tensor(norm.weights[0])
            part = part * (gain + 1 if norm.kind.endswith("+1") else gain)
        return part - part.mean(-1, keepdims=True) if norm.centred else part, constant

    def joined(part: Array, constant: Array) -> Array:
        column = constant[..., None] / np.sqrt(part.shape[-1], dtype=part.dtype)
        return np.concatenate([part, column], axis=-1)  # (…, D, E + 1)

    own = layer.kind == "self"  # a cross layer's keys and values come from another norm
    q, constant = fold(q, made.query_bias, True)
    k, falls_out = fold(k, made.key_bias, own)
    v, _ = fold(v, None, own)
    return joined(q, constant), joined(k, falls_out if layer.rope else 0 * falls_out), v


def _nonfinite(part: Array) -> Array:
    return np.asarray((~np.isfinite(part)).sum((1, 2)))


def _factors(part: Array) -> Array:
    """Return R ``(…, r, D)`` with Wᵀ = Q·R for each head of ``(…, D, E)``, r = min(D, E)."""
    return np.asarray(np.linalg.qr(part.swapaxes(1, 2), mode="r"))


def _values(left: Array, right: Array) -> Array:
    """Return the singular values of each Wᵀ W′, ``(H, r)``, from the factors of both."""
    return np.linalg.svd(left @ right.swapaxes(1, 2), compute_uv=False)


def _norms(part: Array) -> Array:
    return np.asarray(np.sqrt(np.einsum("hde,hde->h", part, part, dtype=np.float64)))


def effective_ranks(values: Array) -> Array:
    """exp H(σ/Σσ) of singular values ``(H, r)``; NaN where all are 0."""
    total = values.sum(-1, keepdims=True, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = values / total
        return np.asarray(np.exp(-np.where(share > 0, share * np.log(share), 0 * share).sum(-1)))


def _similarity(q: Array, k: Array, own: Array) -> tuple[Array, Array]:
    """Return the largest |cosine| of a head's A = W_Qᵀ W_K with another's, and which.

    ⟨A_h, A_g⟩ = Σ (W_Q,g W_Q,hᵀ) ∘ (W_K,g W_K,hᵀ): D×D products.
    """
    heads, width, model = q.shape
    if heads < 2 or (heads * width) ** 2 * model > SIMILAR:
        return np.full(heads, np.nan), np.full(heads, -1)
    flat_q, flat_k = q.reshape(heads * width, -1), k.reshape(len(k) * width, -1)
    inner = np.empty((heads, heads))
    for h in range(heads):
        queries = (flat_q @ q[h].T).reshape(heads, width, width)
        keys = (flat_k @ k[own[h]].T).reshape(len(k), width, width)[own]
        inner[h] = np.einsum("gij,gij->g", queries, keys, dtype=np.float64)
    size = np.sqrt(np.maximum(inner.diagonal(), 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.abs(inner / np.outer(size, size))
    np.fill_diagonal(cosine, -1)
    known = np.where(np.isnan(cosine), -1, cosine)
    best = known.argmax(1)
    most = known[np.arange(heads), best]
    return np.where(most < 0, np.nan, most), np.where(most < 0, -1, best)


def _bound(layer: Layer) -> Array:
    """Return D·max|g_q|·max|g_k|·scale: normed queries and keys have norm √D before their gains."""
    if layer.query_norm is None or layer.key_norm is None:
        return np.full(layer.heads, np.nan)
    gains = [_gain(layer, norm) for norm in (layer.query_norm, layer.key_norm)]
    return np.full(layer.heads, gains[0] * gains[1] * layer.head_dim * abs(layer.scale))


def _gain(layer: Layer, norm: Norm) -> float:
    weights = np.concatenate([np.atleast_1d(layer.tensor(name)).ravel() for name in norm.weights])
    return float(np.abs(weights + (norm.kind == "rms+1")).max())


def judged(facts: Sequence[WeightFacts]) -> Iterator[list[dict[str, float]]]:
    """Yield for each layer what ``verdicts`` judges of its heads, outliers among all heads too."""
    logit, writes = (_outlying([getattr(one, n) for one in facts]) for n in OUTLYING)
    for n, one in enumerate(facts):
        width = min(one.layer.head_dim, one.layer.model_dim)
        yield [
            {
                "nonfinite_weights": float(one.nonfinite[h]),
                "largest_logit": float(one.largest_logit[h]),
                "ov_norm": float(one.ov_norm[h]),
                "logit_outlier": float(logit[n][h]),
                "ov_outlier": float(writes[n][h]),
                "qk_rank_share": float(one.qk_rank[h]) / width,
                "qk_similarity": float(one.similarity[h]),
                "similar_head": int(one.similar_head[h]),
            }
            for h in range(one.layer.heads)
        ]


def _outlying(values: Sequence[Array]) -> list[Array]:
    """Return robust z-scores of log x among all heads, a layer after the other, ``(H,)`` each.

    0.6745·(x − median)/MAD (Iglewicz & Hoaglin 1993); NaN where nothing spreads.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = [np.log(some) for some in values]
        every = np.concatenate(logs)
        good = every[np.isfinite(every)]
        if not good.size:
            return [np.full(some.shape, np.nan) for some in logs]
        middle = np.median(good)
        spread = np.median(np.abs(good - middle))
        scores = [NORMAL * (some - middle) / spread for some in logs]
    return [np.where(np.isfinite(z), z, np.nan) for z in scores]
