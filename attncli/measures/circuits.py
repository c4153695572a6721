"""Heads judged by their weights alone: the QK and OV circuits of Elhage et al. 2021.

A head's scores are xᵀ·A·y with A = W_Qᵀ W_K, and it writes B = W_O W_V of what it reads. A and B
are (E, E) but of rank D: their singular values are those of D×D products of QR factors, and the
inner product of two of them is one of D×D blocks. Nothing here is E×E.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, TypeVar

import numpy as np

from attncli.attention.shares import Exchange
from attncli.measures.copying import Words, at_layer, words_of
from attncli.measures.folding import gain_of, parts_of
from attncli.measures.statistic import WEIGHTS, statistic
from attncli.models.layer import Layer
from attncli.resources import Job, Progress, run_jobs, stages

Array = np.ndarray[Any, np.dtype[Any]]
OfCircuits = TypeVar("OfCircuits", bound=Callable[..., Array])

SIMILAR = 1 << 38  # multiply-adds of a layer's head similarity that are worth it
NORMAL = 0.6745  # of the median absolute deviation, the share of a normal's standard deviation


@dataclass(frozen=True, eq=False)
class Circuits:
    """What the decompositions of one layer's weights gave, by head.

    The norm before the projections and the biases are within. ``sizes`` are the Frobenius norms of
    W_Q, W_K, W_V and W_O (NaN without) as they are, ``(H)`` each; ``lost`` ``(H)`` counts numbers
    that are not finite; ``qk``, ``ov`` ``(H, r)`` are singular values; ``cosine`` ``(H)`` is the
    largest of the QK circuit with that of ``other`` ``(H)``; ``copies``, ``matches`` ``(H)`` are of
    the eigenvalues of circuits from tokens to tokens, NaN where there are no embeddings.
    """

    layer: Layer
    sizes: tuple[Array, Array, Array, Array]
    lost: Array
    qk: Array
    ov: Array
    cosine: Array
    other: Array
    copies: Array
    matches: Array


@dataclass(frozen=True, eq=False)
class WeightFacts:
    """What the weights of one layer say: its statistics by name, each ``(H)``."""

    layer: Layer
    values: Mapping[str, Array]

    def __getitem__(self, name: str) -> Array:
        return self.values[name]

    def of_head(self, head: int) -> dict[str, float | int]:
        """Return the numbers of one head by name."""
        return {name: array[head].item() for name, array in self.values.items()}


def of_circuits(**facts: Any) -> Callable[[OfCircuits], OfCircuits]:
    """Register a formula of circuits, ``(H)``; NaN for a head whose weights are not finite."""

    def register(formula: OfCircuits) -> OfCircuits:
        @wraps(formula)
        def known(circuits: Circuits) -> Array:
            return np.asarray(formula(circuits) * np.where(circuits.lost > 0, np.nan, 1.0))

        statistic("weights", **facts)(known)
        return formula

    return register


# -- of one layer -----------------------------------------------------------------------------


@of_circuits(source="Elhage et al. 2021", heading="logit", keep=9)
def largest_logit(circuits: Circuits) -> Array:
    """‖W_Q W_Kᵀ‖₂·scale: of two inputs of norm 1, RoPE at distance 0."""
    return np.asarray(circuits.qk[:, 0] * abs(circuits.layer.scale))


@of_circuits(source="Henry et al. 2020", keep=1)
def logit_bound(circuits: Circuits) -> Array:
    """D·max|g_q|·max|g_k|·scale, what qk-norm allows at most; NaN without.

    Normed queries and keys have norm √D before their gains.
    """
    layer = circuits.layer
    if layer.query_norm is None or layer.key_norm is None:
        return np.full(layer.heads, np.nan)
    most = [float(np.abs(gain_of(layer, n)).max()) for n in (layer.query_norm, layer.key_norm)]
    return np.full(layer.heads, most[0] * most[1] * layer.head_dim * abs(layer.scale))


@of_circuits(source="Roy & Vetterli 2007", heading="QK rank", keep=8)
def qk_rank(circuits: Circuits) -> Array:
    """The effective rank of W_Q W_Kᵀ."""
    return effective_ranks(circuits.qk)


@of_circuits(source="Elhage et al. 2021", heading="‖OV‖₂", keep=8)
def ov_norm(circuits: Circuits) -> Array:
    """‖W_O W_V‖₂."""
    return np.asarray(circuits.ov[:, 0])


@of_circuits(source="Roy & Vetterli 2007", heading="OV rank", keep=6)
def ov_rank(circuits: Circuits) -> Array:
    """The effective rank of W_O W_V."""
    return effective_ranks(circuits.ov)


@of_circuits(heading="‖W_Q‖", keep=4)
def query_norm(circuits: Circuits) -> Array:
    """The Frobenius norm of W_Q."""
    return circuits.sizes[0]


@of_circuits(heading="‖W_K‖", keep=4)
def key_norm(circuits: Circuits) -> Array:
    """The Frobenius norm of W_K."""
    return circuits.sizes[1]


@of_circuits(heading="‖W_V‖", keep=4)
def value_norm(circuits: Circuits) -> Array:
    """The Frobenius norm of W_V."""
    return circuits.sizes[2]


@of_circuits(heading="‖W_O‖", keep=4)
def output_norm(circuits: Circuits) -> Array:
    """The Frobenius norm of W_O; NaN without."""
    return circuits.sizes[3]


@of_circuits(unit="cosine", heading="QK alike", keep=7)
def similarity(circuits: Circuits) -> Array:
    """The largest |cosine| of the QK circuit with another head's; NaN where not looked at."""
    return circuits.cosine


@of_circuits(source="Elhage et al. 2021", heading="copies", keep=3)
def copying(circuits: Circuits) -> Array:
    """Σλ/Σ|λ| of W_U W_O W_V W_E: 1 where tokens seen become likelier; NaN without embeddings."""
    return circuits.copies


@of_circuits(source="Elhage et al. 2021", heading="matches", keep=3)
def matching(circuits: Circuits) -> Array:
    """Σλ/Σ|λ| of W_Eᵀ W_Qᵀ W_K W_E: 1 where tokens attend to themselves and their like."""
    return circuits.matches


@statistic("weights", kind="count")
def similar_head(circuits: Circuits) -> Array:
    """Which head that is, −1 for none."""
    return circuits.other


@statistic("weights", heading="not finite", kind="count")
def nonfinite(circuits: Circuits) -> Array:
    """How many of the weights are NaN or infinite."""
    return circuits.lost


# -- among the heads of all layers ------------------------------------------------------------


@statistic("weights", kind="count")
def nonfinite_weights(layers: Sequence[WeightFacts]) -> list[Array]:
    """The same, as it is judged."""
    return [one["nonfinite"].astype(np.float64) for one in layers]


@statistic("weights", source="Iglewicz & Hoaglin 1993")
def logit_outlier(layers: Sequence[WeightFacts]) -> list[Array]:
    """The robust z-score of ln largest_logit."""
    return _outlying([one["largest_logit"] for one in layers])


@statistic("weights", source="Iglewicz & Hoaglin 1993")
def ov_outlier(layers: Sequence[WeightFacts]) -> list[Array]:
    """The robust z-score of ln ov_norm."""
    return _outlying([one["ov_norm"] for one in layers])


@statistic("weights", source="Roy & Vetterli 2007", kind="percent")
def qk_rank_share(layers: Sequence[WeightFacts]) -> list[Array]:
    """The effective rank of W_Q W_Kᵀ, of its width."""
    return [one["qk_rank"] / min(one.layer.head_dim, one.layer.model_dim) for one in layers]


@statistic("weights", unit="cosine")
def qk_similarity(layers: Sequence[WeightFacts]) -> list[Array]:
    """The same as similarity, as it is judged."""
    return [one["similarity"] for one in layers]


OF_LAYERS = tuple(one.name for one in WEIGHTS.values() if one.needs == ("circuits",))
AMONG_ALL = tuple(one.name for one in WEIGHTS.values() if one.needs == ("layers",))
ALONE = tuple(WEIGHTS.values())  # statistics of weights alone
#: What the policy judges of a head: similar_head is for its words.
JUDGED = (*AMONG_ALL, "largest_logit", "ov_norm")


def weight_facts(
    layers: Sequence[Layer], *, threads: int | None = None, progress: Progress | None = None,
    exchange: Exchange | None = None,
) -> list[WeightFacts]:  # fmt: skip
    """Return the facts of each layer; ``threads`` layers at a time, one thread to each.

    With an ``exchange`` several processes take the layers in turn.

    These are decompositions of small matrices, which BLAS's own threads slow down. As many
    layers' weights are in memory as there are threads.
    """
    own = range(len(layers))
    if exchange is not None:
        own = range(exchange.rank, len(layers), exchange.ranks)
    found: dict[int, WeightFacts] = {}
    part = stages(progress, (1, 3))
    words = words_of(layers, threads=threads, progress=next(part))

    def measure(n: int) -> None:
        known = words.get(layers[n].name)
        found[n] = layer_facts(layers[n], at_layer(*known) if known else None)

    jobs: list[Job] = [partial(measure, n) for n in own]
    run_jobs(jobs, threads, False, next(part))
    ours = [found[n] for n in own]
    return ours if exchange is None else _of_all(layers, ours, exchange)


def _of_all(
    layers: Sequence[Layer], ours: Sequence[WeightFacts], exchange: Exchange
) -> list[WeightFacts]:
    """Return the facts of all layers, of which each process has every n-th."""
    values: list[dict[str, Array]] = [{} for _ in layers]
    for name in OF_LAYERS:
        mine = np.concatenate([np.zeros(0), *(facts[name] for facts in ours)])
        for rank, every in enumerate(exchange.gathered(mine)):
            own = range(rank, len(layers), exchange.ranks)
            ends = np.cumsum([layers[n].heads for n in own])[:-1]
            for n, part in zip(own, np.split(every, ends), strict=False):
                whole = WEIGHTS[name].kind == "count"
                values[n][name] = part.astype(np.int64) if whole else part
    return [WeightFacts(layer, one) for layer, one in zip(layers, values, strict=True)]


def layer_facts(layer: Layer, words: Words | None = None) -> WeightFacts:
    """Return the facts of a layer, in its weights' precision (float32 at least)."""
    circuits = circuits_of(layer, words)
    return WeightFacts(layer, {name: WEIGHTS[name].formula(circuits) for name in OF_LAYERS})


def circuits_of(layer: Layer, words: Words | None = None) -> Circuits:
    """Return the weights of a layer by head, decomposed."""
    parts, words = parts_of(layer), words or Words(None, None)
    q, k, v, o, lost, sizes = parts
    own = np.arange(layer.heads) // (layer.heads // layer.kv_heads)
    qk = _values(_factors(q), _factors(k)[own])
    right = _factors(v)[own]
    ov = np.linalg.svd(right, compute_uv=False) if o is None else _values(_factors(o), right)
    cosine, other = _similarity(q, k)
    copies, matches = words.copying(parts), words.matching(parts)
    return Circuits(layer, sizes, lost, qk, ov, cosine, other, copies, matches)


def _factors(part: Array) -> Array:
    """Return R ``(…, r, D)`` with Wᵀ = Q·R for each head of ``(…, D, E)``, r = min(D, E).

    Of narrow float32 weights R is the Cholesky factor of W·Wᵀ in float64: its singular values are
    as good as those of a QR decomposition in float32 (√ε₆₄ < ε₃₂ of the largest), several times
    sooner.
    """
    if part.dtype == np.float32 and part.shape[1] < part.shape[2]:
        with suppress(np.linalg.LinAlgError):  # of less than full rank
            wide = (one.astype(np.float64) for one in part)
            return np.linalg.cholesky(np.stack([one @ one.T for one in wide]), upper=True)
    return np.asarray(np.linalg.qr(part.swapaxes(1, 2), mode="r"))


def _values(left: Array, right: Array) -> Array:
    """Return the singular values of each Wᵀ W′, ``(H, r)``, from the factors of both."""
    return np.linalg.svd(left @ right.swapaxes(1, 2), compute_uv=False)


def effective_ranks(values: Array) -> Array:
    """exp H(σ/Σσ) of singular values ``(H, r)``; NaN where all are 0."""
    total = values.sum(-1, keepdims=True, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = values / total
        return np.asarray(np.exp(-np.where(share > 0, share * np.log(share), 0 * share).sum(-1)))


def _similarity(q: Array, k: Array) -> tuple[Array, Array]:
    """Return the largest |cosine| of a head's A = W_Qᵀ W_K with another's, and which.

    ⟨A_h, A_g⟩ = Σ (W_Q,g W_Q,hᵀ) ∘ (W_K,g W_K,hᵀ): D×D products.
    """
    heads, width, model = q.shape
    if heads < 2 or (heads * width) ** 2 * model > SIMILAR:
        return np.full(heads, np.nan), np.full(heads, -1)
    inner, groups, each = np.empty((heads, heads)), len(k), heads // len(k)
    for g in range(groups):  # with the groups from here on: ⟨A_h, A_g⟩ is ⟨A_g, A_h⟩
        queries = _products(q[g * each : (g + 1) * each], q[g * each :])  # (each, D, rest, D)
        queries = queries.reshape(each, width, groups - g, each, width)
        keys = _products(k[g : g + 1], k[g:])[0]  # (D, groups − g, D)
        found = np.einsum("aigbj,igj->agb", queries, keys, dtype=np.float64).reshape(each, -1)
        inner[g * each : (g + 1) * each, g * each :] = found
        inner[g * each :, g * each : (g + 1) * each] = found.T
    size = np.sqrt(np.maximum(inner.diagonal(), 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosine = np.abs(inner / np.outer(size, size))
    np.fill_diagonal(cosine, -1)
    known = np.where(np.isnan(cosine), -1, cosine)
    best = known.argmax(1)
    most = known[np.arange(heads), best]
    return np.where(most < 0, np.nan, most), np.where(most < 0, -1, best)


def _products(ours: Array, others: Array) -> Array:
    """Return the products of all rows of some heads, ``(n, D, E)`` and ``(m, D, E)``, with all of
    others: ``(n, D, m, D)``.
    """
    flat = ours.reshape(-1, ours.shape[-1]) @ others.reshape(-1, others.shape[-1]).T
    return flat.reshape(*ours.shape[:2], *others.shape[:2])


def judged(facts: Sequence[WeightFacts]) -> Iterator[list[dict[str, float]]]:
    """Yield for each layer what ``policy`` judges of its heads, outliers among all heads too."""
    among = {name: WEIGHTS[name].formula(facts) for name in AMONG_ALL}
    for n, one in enumerate(facts):
        found = {name: among[name][n] if name in among else one[name] for name in JUDGED}
        found["similar_head"] = one["similar_head"]
        yield [
            {name: array[h].item() for name, array in found.items()} for h in range(one.layer.heads)
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
