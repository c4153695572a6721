"""The embedding of a residual stream, and what makes logits of it: found by their names."""

from __future__ import annotations

from dataclasses import dataclass

from attncli.files.bundle import Bundle
from attncli.models.config import NESTED
from attncli.models.layer import Layer, Norm
from attncli.models.reading import FLOATS
from attncli.models.stream import Stream, norm_at

EMBEDDINGS = (
    "embed_tokens", "wte", "embedding.word_embeddings", "word_embeddings", "tok_embeddings",
    "embed_in", "tokens_embed", "token_embedding", "token_embd", "shared",
)  # fmt: skip
#: Norms between the embedding and the first layer, beside it.
EMBEDDED = (
    "LayerNorm", "norm", "word_embeddings_layernorm", "layernorm_embedding", "token_embd_norm",
)  # fmt: skip
UNEMBEDDINGS = ("lm_head", "embed_out", "output", "output_layer")
#: Norms between the last layer and the logits, beside the stack of layers.
FINAL = (
    "norm", "ln_f", "final_layer_norm", "final_layernorm", "layer_norm", "norm_f", "output_norm",
    "embedding_norm", "ln",
)  # fmt: skip
READERS = ("text_model",)  # parts that read and say nothing, causal (CLIP's) or not
ELSEWHERE = tuple(stem for part in ("vision_config", "audio_config") for stem in NESTED[part])


@dataclass(frozen=True)
class Vocabulary:
    """Names of the embedding ``(V, E)`` and of what makes logits, with the norms that lie between.

    ``unembedding`` ``(V, E)`` is '' where nothing makes logits: in an encoder, or where the
    checkpoint has no such tensor and is not ``tied``, that is, uses the embedding once more.
    """

    embedding: str
    embedded: Norm | None
    unembedding: str
    final: Norm | None
    tied: bool = False


def vocabulary(stream: Stream) -> Vocabulary | None:
    """Return the vocabulary that a stream begins with, or None where no embedding is there."""
    first = stream.layers[0]
    bundle = first.bundle
    assert bundle is not None
    embedding, home = _embedding(stream, bundle)
    if not embedding:
        return None
    beside = embedding.removesuffix(".weight").rpartition(".")[0]
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
    )  # fmt: skip


def _embedding(stream: Stream, bundle: Bundle) -> tuple[str, str]:
    """Return the embedding's name and the path of the part that begins with it, '' without one."""
    best = "", ""
    if any(part.startswith(ELSEWHERE) for part in stream.name.split(".")):
        return best
    for name in bundle.tensors:
        leaf = next((one for one in EMBEDDINGS if f".{name}".endswith(f".{one}.weight")), None)
        if leaf is None:
            continue
        home = name.removesuffix(f"{leaf}.weight").rstrip(".").removesuffix("embeddings")
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
        for leaf in UNEMBEDDINGS:
            name = ".".join(filter(None, (home, leaf, "weight")))
            if name in bundle.tensors:
                return name if _fits(bundle, name, layer) else ""
        if not home:
            return None
        home = home.rpartition(".")[0]


def _fits(bundle: Bundle, name: str, layer: Layer) -> bool:
    header = bundle.header(name)
    of_words = len(header.shape) == 2 and header.shape[1] == layer.model_dim
    return of_words and header.dtype in FLOATS


def _first(parent: str, leaves: tuple[str, ...], bundle: Bundle, kind: str) -> Norm | None:
    found = (norm_at(parent, leaf, bundle.tensors, kind) for leaf in leaves)
    return next(filter(None, found), None)


def _final_kind(stream: Stream) -> str:
    first = stream.layers[0]
    if first.input_norm is not None:
        return first.input_norm.kind
    return "layer" if stream.post_norm else "rms"
