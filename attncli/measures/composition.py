"""How much a head reads of what an earlier head writes: Q-, K- and V-composition.

Elhage et al. 2021: ‖B A‖_F/(‖B‖_F ‖A‖_F) of the writer's A = W_O W_V and the reader's B: W_Kᵀ W_Q
for Q, W_Qᵀ W_K for K, W_O W_V for V; norms between them within, biases not. A of rank D is a
``(D, E)`` factor times one with orthonormal columns, which changes no norm, and so is B: a pair is
one D×E×D product, and nothing here is E×E.

What chance gives is known exactly. For a random rotation U of the n channels, ‖B U A‖²_F has the
mean ‖A‖²‖B‖²/n, whatever their singular values, and, as the rotation of a symmetric matrix without
trace has no preferred direction among (n − 1)(n + 2)/2 of them, the variance
2(tr a² − 1/n)(tr b² − 1/n)/((n − 1)(n + 2)) for a = AAᵀ/‖A‖² and b = BᵀB/‖B‖².
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from attncli.measures.folding import Parts, parts_of
from attncli.measures.statistic import Statistic, statistic
from attncli.models.layer import Layer
from attncli.models.stream import Stream, side_by_side
from attncli.resources import Job, Progress, run_jobs, stages

Array = np.ndarray[Any, np.dtype[Any]]

KINDS = ("Q", "K", "V")
ROOM = 1 << 28  # bytes of writers that are kept while all readers pass by
ROWS = 1024  # of writers that one product takes

#: Statistics of a pair of heads and a kind of composition.
PAIRS: dict[str, Statistic] = {}


@dataclass(frozen=True, eq=False)
class Composition:
    """The scores of one stream: ``scores``, ``deviations`` ``(3, N, N)`` by kind, writer, reader.

    ``heads`` are (layer of the stream, head) of the N; NaN where the reader is not later, or reads
    no such thing, or one of the two is 0 or not finite. ``channels`` is n, E less the mean if no
    reader sees it.
    """

    stream: Stream
    heads: tuple[tuple[int, int], ...]
    scores: Array
    deviations: Array
    channels: int

    @property
    def chance(self) -> float:
        """1/√n, the root mean square of the score in random orientation."""
        return float(self.channels**-0.5)


@statistic("weights", source="Elhage et al. 2021", keep=9, table=PAIRS)
def score(score: Array, chance: float, deviations: Array) -> Array:
    """‖B A‖_F/(‖B‖_F ‖A‖_F): how much of what the earlier head writes the later one reads."""
    return score


@statistic("weights", source="Elhage et al. 2021", heading="above chance", keep=8, table=PAIRS)
def above_chance(score: Array, chance: float, deviations: Array) -> Array:
    """The score less 1/√E, its root mean square for matrices in random orientation."""
    return score - chance


@statistic("weights", keep=7, table=PAIRS)
def deviations(score: Array, chance: float, deviations: Array) -> Array:
    """Standard deviations of score² above its mean 1/E, with these singular values at random."""
    return deviations


class Side(NamedTuple):
    """What heads write, or read, as matrices M of a norm that is theirs: of a head baseᵀ·factor.

    ``base`` ``(G, D, E)``; ``factors`` ``(G, r, D, D)`` of each head of a group, None where they
    are within. ``size`` ‖M‖²_F and ``spread`` tr (MMᵀ)²/‖M‖⁴_F ``(H,)``: NaN of heads whose weights
    are not finite, the latter else from 1/D to 1.
    """

    base: Array
    factors: Array | None
    size: Array
    spread: Array


def compositions(
    streams: Sequence[Stream], *, only: Collection[int] | None = None, threads: int | None = None,
    progress: Progress | None = None,
) -> list[Composition]:  # fmt: skip
    """Return the scores of each stream with two layers or more.

    ``only``: pairs of which one layer has such a number. ``threads`` readers are in memory at a
    time, and ROOM bytes of writers.
    """
    some = [one for one in streams if len(one.layers) > 1]
    parts = stages(progress, [len(one.layers) ** 2 for one in some])
    return [_of_stream(one, only, threads, part) for one, part in zip(some, parts, strict=False)]


def _of_stream(
    stream: Stream, only: Collection[int] | None, threads: int | None, progress: Progress | None
) -> Composition:
    layers = stream.layers
    heads = tuple((n, h) for n, one in enumerate(layers) for h in range(one.heads))
    starts = np.cumsum([0, *(one.heads for one in layers)])
    channels = stream.width - stream.centred
    shape = (len(KINDS), len(heads), len(heads))
    found, scatter = np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    wanted = [only is None or one.index in only for one in layers]

    def at(n: int) -> slice:
        return slice(int(starts[n]), int(starts[n + 1]))

    blocks = _blocks(layers[:-1])
    parts = stages(progress, [len(layers) - block.start for block in blocks])
    for block, part in zip(blocks, parts, strict=False):
        writers: dict[int, Side] = {}

        def write(n: int, into: dict[int, Side] = writers) -> None:
            into[n] = writers_of(layers[n], stream.centred)

        def read(n: int, block: range = block, of: dict[int, Side] = writers) -> None:
            earlier = [
                w for w in block
                if w < n and (wanted[w] or wanted[n]) and not side_by_side(layers[w], layers[n])
            ]  # fmt: skip
            readers = readers_of(layers[n], stream.centred) if earlier else {}
            for w in earlier:
                between = stream.post_norm
                writer = _side(stream.carried(of[w].base, w, n)) if between else of[w]
                for kind, reader in readers.items():
                    place = KINDS.index(kind), at(w), at(n)
                    found[place], scatter[place] = scored(writer, reader, channels)

        jobs: list[Job] = [partial(write, n) for n in block]
        run_jobs(jobs, threads, False, None)
        # the last readers have most to do
        jobs = [partial(read, n) for n in range(len(layers) - 1, block.start, -1)]
        run_jobs(jobs, threads, False, part)
    return Composition(stream, heads, found, scatter, channels)


def _blocks(layers: Sequence[Layer]) -> list[range]:
    """Return runs of layers whose writers fit into ROOM."""
    found, start, size = [], 0, 0
    for n, one in enumerate(layers):
        own = 4 * one.heads * one.value_dim * one.output_dim
        if n > start and size + own > ROOM:
            found.append(range(start, n))
            start, size = n, 0
        size += own
    return [*found, range(start, len(layers))]


def writers_of(layer: Layer, centred: bool = False) -> Side:
    """Return what the heads of a layer write; ``centred``: without its mean, which nobody sees."""
    parts = parts_of(layer)
    output = _output(parts, centred)
    rows = _root(parts.value)[_groups(layer)].swapaxes(1, 2) @ output  # (H, Dv, E)
    rows[parts.lost > 0] = np.nan
    return _side(rows)


def readers_of(layer: Layer, centred: bool = False) -> dict[str, Side]:
    """Return what the heads of a layer read of the stream, by kind; a cross layer's only query."""
    parts = parts_of(layer)
    own, groups = _groups(layer), layer.kv_heads
    q, k = parts.query[..., :-1], parts.key[..., :-1]  # without what is constant
    gone = np.where(parts.lost > 0, np.nan, 1).astype(q.dtype)[:, None, None]
    found = {"Q": _side(_root(k)[own].swapaxes(1, 2) @ (q * gone))}
    if layer.kind == "cross":
        return found
    found["K"] = _side(k, _root(q) * gone, groups)
    found["V"] = _side(parts.value, _root(_output(parts, centred)) * gone, groups)
    return found


def _side(base: Array, factors: Array | None = None, groups: int = 0) -> Side:
    """Return a Side of ``(G, D, E)`` with the factors ``(H, D, D)`` of its heads."""
    if factors is not None and len(factors) == groups:
        base, factors = factors.swapaxes(1, 2) @ base, None
    gram = np.stack([one @ one.T for one in base]).astype(np.float64)
    if factors is not None:
        factors = factors.reshape(groups, -1, *factors.shape[1:])
        wide = factors.astype(np.float64)
        gram = (wide.swapaxes(2, 3) @ gram[:, None] @ wide).reshape(-1, *gram.shape[1:])
    size = np.trace(gram, axis1=1, axis2=2)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Side(base, factors, size, np.square(gram / size[:, None, None]).sum((1, 2)))


def scored(writer: Side, reader: Side, channels: int) -> tuple[Array, Array]:
    """Return the score of each writer with each reader, and its deviations, ``(H, H′)`` both."""
    groups, width, model = reader.base.shape
    flat = reader.base.reshape(-1, model)
    each = max(1, ROWS // writer.base.shape[1])
    squares = []
    for start in range(0, len(writer.base), each):
        some = writer.base[start : start + each]
        made = some.reshape(-1, model) @ flat.T
        if reader.factors is None:
            made = made.reshape(len(some), -1, groups, width)
            squares.append(np.einsum("hvgd,hvgd->hg", made, made))
            continue
        made = made.reshape(-1, groups, width).swapaxes(0, 1)[:, None] @ reader.factors
        made = made.reshape(-1, len(some), made.shape[2] // len(some) * width)  # (H′, h, Dv·D)
        squares.append(np.einsum("ghv,ghv->hg", made, made))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        share = np.concatenate(squares) / writer.size[:, None] / reader.size
        n = channels
        left = np.maximum(writer.spread[:, None] - 1 / n, 0) * np.maximum(reader.spread - 1 / n, 0)
        scatter = np.sqrt(2 * left / ((n - 1) * (n + 2))) if n > 1 else 0 * left
        away = np.where(scatter > 0, (share - 1 / n) / scatter, np.nan)
    return np.where(np.isfinite(share), np.sqrt(share), np.nan), away


def _root(part: Array) -> Array:
    """Return L ``(H, D, D)`` with LLᵀ = WWᵀ of each W of ``(H, D, E)``: ‖YW‖_F is ‖YL‖_F."""
    gram = np.stack([one @ one.T for one in part.astype(np.float64)])
    values, vectors = np.linalg.eigh(gram)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0))[:, None]).astype(part.dtype)


def _output(parts: Parts, centred: bool) -> Array:
    """Return W_Oᵀ ``(H, Dv, E)``, without the mean of what it writes if that is ``centred``."""
    output = parts.output
    assert output is not None  # of layers in a stream
    return output - output.mean(-1, keepdims=True) if centred else output


def _groups(layer: Layer) -> Array:
    return np.arange(layer.heads) // (layer.heads // layer.kv_heads)
