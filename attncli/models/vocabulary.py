"""The embedding of a residual stream, and what makes logits of it: found by their names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.files.bundle import Bundle
from attncli.models.config import NESTED
from attncli.models.layer import Layer, Norm
from attncli.models.reading import FLOATS
from attncli.models.stream import Stream, norm_at

Array = np.ndarray[Any, np.dtype[Any]]

EMBEDDINGS = (
    "embed_tokens", "wte", "embedding.word_embeddings", "word_embeddings", "tok_embeddings",
    "embed_in", "tokens_embed", "token_embedding", "token_embd", "shared",
)  # fmt: skip
#: The same as whole names: of TransformerLens.
NAMED = ("embed.W_E",)
ENDS = ("weight", "embedding")  # torch's, Flax's
#: Norms between the embedding and the first layer, beside it.
EMBEDDED = (
    "LayerNorm", "norm", "word_embeddings_layernorm", "layernorm_embedding", "token_embd_norm",
)  # fmt: skip
UNEMBEDDINGS = ("lm_head", "embed_out", "output", "output_layer")
#: Those that are stored (E, V): of TransformerLens, of Flax.
TURNED = ("unembed.W_U", "lm_head.kernel")
#: Norms between the last layer and the logits, beside the stack of layers.
FINAL = (
    "norm", "ln_f", "final_layer_norm", "final_layernorm", "layer_norm", "norm_f", "output_norm",
    "embedding_norm", "ln", "ln_final",
)  # fmt: skip
_LEAVES = (*NAMED, *(f"{leaf}.{end}" for leaf in EMBEDDINGS for end in ENDS))
READERS = ("text_model",)  # parts that read and say nothing, causal (CLIP's) or not
ELSEWHERE = tuple(stem for part in ("vision_config", "audio_config") for stem in NESTED[part])


@dataclass(frozen=True)
class Vocabulary:
    """Names of the embedding ``(V, E)`` and of what makes logits, with the norms that lie between.

    ``unembedding`` ``(V, E)``, ``(E, V)`` where it is ``turned``, is '' where nothing makes logits:
    in an encoder, or where the checkpoint has no such tensor and is not ``tied``, that is, uses the
    embedding once more.
    """

    embedding: str
    embedded: Norm | None
    unembedding: str
    final: Norm | None
    tied: bool = False
    turned: bool = False

    def rows(self, layer: Layer, name: str, some: slice) -> Array:
        """Return some words of the embedding, or of the unembedding, ``(n, E)``."""
        if self.turned and name == self.unembedding:
            return layer.tensor(name).T[some]
        return layer.rows(name, some)

    def count(self, layer: Layer, name: str) -> int:
        """Return how many words the one or the other has."""
        assert layer.bundle is not None
        return layer.bundle.header(name).shape[self.turned and name == self.unembedding]


def vocabulary(stream: Stream) -> Vocabulary | None:
    """Return the vocabulary that a stream begins with, or None where no embedding is there."""
    first = stream.layers[0]
    bundle = first.bundle
    assert bundle is not None
    embedding, home = _embedding(stream, bundle)
    if not embedding:
        return None
    beside = embedding.rpartition(".")[0].rpartition(".")[0]
    kind = "layer" if first.input_norm is None else first.input_norm.kind
    unembedding = _unembedding(first, bundle, home)
    tied = unembedding is None and first.tied is not False
    stack = stream.name.rpartition(".")[0]
    final = _first(stack, FINAL, bundle, _final_kind(stream))
    reads = not first.causal or {*READERS} & {*stream.name.split(".")}
    embedded = _first(beside, EMBEDDED if reads else EMBEDDED[2:], bundle, kind)
    embedded = embedded or _first(stack, EMBEDDED[2:], bundle, kind)  # BART shares its embedding
    if reads:
        return Vocabulary(embedding, embedded, "", None)
    return Vocabulary(
        embedding, embedded,
        unembedding or (embedding if tied else ""), final, tied,
        bool(unembedding) and str(unembedding).endswith(TURNED),
    )  # fmt: skip


def _embedding(stream: Stream, bundle: Bundle) -> tuple[str, str]:
    """Return the embedding's name and the path of the part that begins with it, '' without one."""
    best = "", ""
    if any(part.startswith(ELSEWHERE) for part in stream.name.split(".")):
        return best
    for name in bundle.tensors:
        leaf = next((one for one in _LEAVES if f".{name}".endswith(f".{one}")), None)
        if leaf is None:
            continue
        home = name.removesuffix(leaf).rstrip(".").removesuffix("embeddings")
        home = home.rstrip(".")
        inside = not home or f"{stream.name}.".startswith(f"{home}.")
        longer = not best[0] or len(home) > len(best[1])
        if inside and longer and _fits(bundle, name, stream.layers[0]):
            best = name, home
    return best


def _unembedding(layer: Layer, bundle: Bundle, home: str) -> str | None:
    """Return the name of what makes logits, on the way from the stream's part to the whole.

    None without one, '' of one whose numbers cannot be read here.
    """
    while True:
        for leaf in (*(f"{one}.weight" for one in UNEMBEDDINGS), *TURNED):
            name = f"{home}.{leaf}" if home else leaf
            if name in bundle.tensors:
                return name if _fits(bundle, name, layer, leaf in TURNED) else ""
        if not home:
            return None
        home = home.rpartition(".")[0]


def _fits(bundle: Bundle, name: str, layer: Layer, turned: bool = False) -> bool:
    header = bundle.header(name)
    of_words = len(header.shape) == 2 and header.shape[not turned] == layer.model_dim
    return of_words and header.dtype in FLOATS


def _first(parent: str, leaves: tuple[str, ...], bundle: Bundle, kind: str) -> Norm | None:
    found = (norm_at(parent, leaf, bundle.tensors, kind) for leaf in leaves)
    return next(filter(None, found), None)


def _final_kind(stream: Stream) -> str:
    first = stream.layers[0]
    if first.input_norm is not None:
        return first.input_norm.kind
    return "layer" if stream.post_norm else "rms"
