"""Circuits from tokens to tokens: of heads between embedding and logits.

Elhage et al. 2021: W_U W_O W_V W_E says which tokens become likelier where a head attends to one,
W_Eᵀ W_Qᵀ W_K W_E which token attends to which. Both are (V, V); their eigenvalues but zeros are
those of D×D products around Σ u eᵀ and Σ e eᵀ over the vocabulary, (E, E), made once a stream.
Logits count less their mean over the vocabulary, and so do scores of a query: no softmax sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any

import numpy as np

from attncli.measures.folding import Parts
from attncli.models.layer import Layer
from attncli.models.stream import Stream, streams, through
from attncli.models.vocabulary import Vocabulary, vocabulary
from attncli.resources import Job, Progress, run_jobs, stages

Array = np.ndarray[Any, np.dtype[Any]]

CHUNK = 1 << 23  # numbers of an embedding that are looked at at a time
WORTH = 1 << 40  # multiply-adds that sums over the vocabulary are worth


@dataclass(frozen=True, eq=False)
class Words:
    """What a layer's heads have to do with words.

    ``alike`` ``(E, E)`` is Σ e eᵀ as the layer reads embeddings, less their mean; ``said`` Σ u eᵀ,
    u what makes a logit of what the layer writes; None where nothing does, or a number is lost.
    """

    alike: Array | None
    said: Array | None

    def copying(self, parts: Parts) -> Array:
        """Return Σλ/Σ|λ| of W_U W_O W_V W_E of each head."""
        output, own = parts.output, _groups(parts)
        if self.said is None or output is None:
            return np.full(len(parts.query), np.nan)
        # (Dv, E) (E, E) (E, Dv)
        seen = (parts.value @ self.said.T)[own]
        return balance(output @ seen.swapaxes(1, 2))

    def matching(self, parts: Parts) -> Array:
        """Return Σλ/Σ|λ| of W_Eᵀ W_Qᵀ W_K W_E of each head."""
        if self.alike is None:
            return np.full(len(parts.query), np.nan)
        key = (parts.key[..., :-1] @ self.alike)[_groups(parts)]
        return balance(key @ parts.query[..., :-1].swapaxes(1, 2))


def balance(matrices: Array) -> Array:
    """Return Σλ/Σ|λ| of the eigenvalues of ``(H, D, D)``: 1 all positive, −1 all negative."""
    found = np.full(len(matrices), np.nan)
    some = np.isfinite(matrices).all((1, 2))
    values = np.linalg.eigvals(matrices[some].astype(np.float64))
    with np.errstate(invalid="ignore", divide="ignore"):
        found[some] = values.sum(-1).real / np.abs(values).sum(-1)
    return found


def words_of(
    layers: Sequence[Layer], *, threads: int | None = None, progress: Progress | None = None
) -> dict[str, tuple[Stream, int, Words]]:
    """Return what each layer's heads have to do with words, by its name, where an embedding is.

    The stream, the place in it, and words as its first layer reads and its last one says them:
    ``at_layer`` makes those of the layer. The embeddings are read once, in chunks.
    """
    found: dict[str, tuple[Stream, int, Words]] = {}
    known = [(one, vocabulary(one)) for one in streams(layers)]
    some = [(one, words) for one, words in known if words is not None]
    for (stream, words), part in zip(some, stages(progress, [1] * len(some)), strict=False):
        made = _made(stream, words, threads, part)
        for n, layer in enumerate(stream.layers):
            found[layer.name] = stream, n, made
    return found


def at_layer(stream: Stream, place: int, words: Words) -> Words:
    """Return the words of a stream as they are at one of its layers, norms between them within."""
    if not stream.post_norm:
        return words
    alike, said, end = words.alike, words.said, len(stream.layers)
    if alike is not None:
        alike = stream.carried(stream.carried(alike, 0, place).T, 0, place)
    if said is not None:
        said = stream.carried(said, 0, place).T
        said = stream.returned(said, place, end).T
    return Words(alike, said)


def _made(
    stream: Stream, words: Vocabulary, threads: int | None, progress: Progress | None
) -> Words:
    layer = stream.layers[0]
    alike, said = _sums(layer, words, threads, progress)

    def behind(rows: Array) -> Array:
        return rows if words.embedded is None else through(rows, words.embedded, layer)

    alike = behind(behind(alike).T)
    if said is not None:
        said = behind(said)
        said = said if words.final is None else through(said.T, words.final, layer, back=True).T
    return Words(_finite(alike), None if said is None else _finite(said))


def _finite(matrix: Array) -> Array | None:
    return matrix.astype(np.float32) if np.isfinite(matrix).all() else None


def _sums(
    layer: Layer, words: Vocabulary, threads: int | None, progress: Progress | None
) -> tuple[Array, Array | None]:
    """Return Σ (e − ē)(e − ē)ᵀ and Σ (u − ū)(e − ē)ᵀ over the vocabulary, in float64."""
    width, lock = layer.model_dim, Lock()
    names = dict.fromkeys(filter(None, (words.embedding, words.unembedding)))
    each, size = stride(layer, words), min(words.count(layer, name) for name in names)
    count = len(range(0, size, each))
    means = {name: np.zeros(width) for name in names}
    sums = {name: np.zeros((width, width)) for name in names}

    def add(start: int) -> None:
        stop = min(start + step * each, size)
        rows = {name: words.rows(layer, name, slice(start, stop, each)) for name in names}
        e = rows[words.embedding]
        made = {name: one.T @ e for name, one in rows.items()}
        with lock:
            for name, one in made.items():
                sums[name] += one
                means[name] += rows[name].sum(0, dtype=np.float64)

    step = max(1, CHUNK // width)
    jobs: list[Job] = [partial(add, start) for start in range(0, size, step * each)]
    run_jobs(jobs, threads, False, progress)
    for name in names:
        sums[name] -= np.outer(means[name], means[words.embedding]) / count
    return sums[words.embedding], sums[words.unembedding] if words.unembedding else None


def stride(layer: Layer, words: Vocabulary) -> int:
    """Return which words are taken: all (1), or every second one … of very many, very wide ones."""
    names = {words.embedding, words.unembedding} - {""}
    rows = sum(words.count(layer, name) for name in names)
    return max(1, -(-rows * layer.model_dim**2 // WORTH))


def _groups(parts: Parts) -> Array:
    heads = len(parts.query)
    return np.arange(heads) // (heads // len(parts.key))
