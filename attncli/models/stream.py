"""The residual stream: which layers write to one, and which norms lie on the way between them.

Names alone decide, as everywhere in this room. What a norm divides by is not within: it is one
number a token, and no score of composition depends on it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from attncli.errors import InputError
from attncli.models.joint import STREAMS
from attncli.models.layer import Layer, Norm
from attncli.models.layouts import GAINS
from attncli.models.matching import is_number, numbers

Array = np.ndarray[Any, np.dtype[Any]]

#: Norms of an attention's output, before it is added, and what in the block tells them from norms
#: before the MLP.
OUTPUT = (
    ("post_self_attn_layernorm", ""),  # GLM 4
    ("post_attention_layernorm", "post_feedforward_layernorm"),  # Gemma 2, OLMo 2, EXAONE 4
    ("post_attention_layernorm", "pre_mlp_layernorm"),  # AFMoE
    ("feedforward_layer_norm", "post_feedforward_layernorm"),  # OLMo Hybrid, as it is saved
    ("post_attention_norm", "post_ffw_norm"),  # GGUF
    ("post_norm1", "post_norm2"),  # HyperCLOVA X
)
#: What multiplies that output, a number a channel (LayerScale, Touvron et al. 2021): DINOv2, BEiT,
#: timm's ViT, timm's BEiT.
SCALE = "scale"  # the kind of such a norm, which does not norm
SCALES = ("layer_scale1.lambda1", "lambda_1", "ls1.gamma", "gamma_1")


class After(NamedTuple):
    """The norms of a post-norm block: behind the sums of self and cross-attention, the last one."""

    self: str
    cross: str
    last: str


AFTER = (
    After("attention.output.LayerNorm", "crossattention.output.LayerNorm", "output.LayerNorm"),
    After("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),  # BART
    After("sa_layer_norm", "", "output_layer_norm"),  # DistilBERT
    After("attention.LayerNorm", "", "output.LayerNorm"),  # MPNet
    After("layer_norm", "", "final_layer_norm"),  # wav2vec 2.0
    After("ln_1", "", "ln_2"),  # GPT
    After("norm1", "norm2", "norm3"),  # torch's decoder
    After("norm1", "", "norm2"),  # torch's encoder, Nomic's BERT
    After("layer_norm1", "", "layer_norm2"),  # XLM
    After("attn_output_norm", "", "layer_output_norm"),  # GGUF
)
#: A block of T5 has its attentions below numbers of their own.
NUMBERED = ("SelfAttention", "EncDecAttention")


@dataclass(frozen=True)
class Stream:
    """Layers that write to one residual stream, in the order in which they do.

    ``name`` is what their paths have in common, ``width`` E. ``between[n]`` are the norms that lie
    on the stream itself, between the sums of layer n and what layer n + 1 (or the end) reads: of
    post-norm blocks. ``centred``: every reader takes the mean away, so that none sees it.
    """

    name: str
    layers: tuple[Layer, ...]
    between: tuple[tuple[Norm, ...], ...]

    @property
    def width(self) -> int:
        """E, of what is written and read."""
        return self.layers[0].model_dim

    @property
    def centred(self) -> bool:
        """Whether no reader sees the mean."""
        return all(one.input_norm is not None and one.input_norm.centred for one in self.layers)

    def carried(self, rows: Array, start: int, stop: int) -> Array:
        """Return what is left of ``(…, E)``, written by layer ``start``, where ``stop`` reads."""
        for norm in chain.from_iterable(self.between[start:stop]):
            rows = through(rows, norm, self.layers[0])
        return rows

    def returned(self, rows: Array, start: int, stop: int) -> Array:
        """Return ``(…, E)``, which reads where ``stop`` does, as it reads what ``start`` writes."""
        for norm in reversed([*chain.from_iterable(self.between[start:stop])]):
            rows = through(rows, norm, self.layers[0], back=True)
        return rows

    @property
    def post_norm(self) -> bool:
        """Whether norms lie behind the sums."""
        return any(self.between)


def through(rows: Array, norm: Norm, layer: Layer, back: bool = False) -> Array:
    """Return ``(…, E)`` behind a norm of the layer's checkpoint: centred and times its gain.

    ``back``: of rows that read what it returns, as they read what it takes. Raises InputError
    where its gain is no number a channel.
    """
    gain: Any = 1
    for name in norm.weights:
        gain = layer.tensor(name).astype(rows.dtype, copy=False)
        if gain.shape != (rows.shape[-1],):
            raise InputError(
                f"'{name}' is {gain.shape}", f"expected a number a channel: ({rows.shape[-1]},)"
            )
        gain = gain + 1 if norm.kind.endswith("+1") else gain
    rows = rows * gain if back else rows
    if norm.centred:
        rows = rows - rows.mean(-1, keepdims=True)
    return rows if back else rows * gain


def streams(layers: Sequence[Layer]) -> list[Stream]:
    """Return the residual streams of a checkpoint, those of one layer too.

    Encoder and decoder, the parts of a composed model, the stages of Swin, text and image of joint
    attention are streams of their own. A layer without an output projection, or one that writes
    another width than it reads, is in none.
    """
    found: dict[tuple[str, int, str], list[Layer]] = {}
    for layer in layers:
        if "output" in layer.tensors and layer.output_dim == layer.model_dim:
            key = _parts(layer.name)[0], layer.model_dim, STREAMS.get(layer.layout, "")
            found.setdefault(key, []).append(layer)
    made = []
    for (name, *_), some in found.items():
        some.sort(key=lambda one: (numbers(one.name), one.kind == "cross"))
        made.append(Stream(name, tuple(some), _between(some)))
    return made


def side_by_side(layer: Layer, other: Layer) -> bool:
    """Whether both read one and the same sum: SD3's second attention, beside the joint one."""
    return layer.kind == "joint" and other.kind == "self" and block_of(layer) == block_of(other)


def output_norm(layer: Layer) -> Norm | None:
    """Return the norm or the scale of what a layer's heads write, before it is added, or None."""
    assert layer.bundle is not None
    names = layer.bundle.tensors
    for leaf in SCALES:
        scale = f"{block_of(layer)}.{leaf}"
        if scale in names:
            return Norm(SCALE, (scale,), (), 0.0, name=leaf)
    for leaf, beside in OUTPUT:
        found = norm_at(block_of(layer), leaf, names, _kind(layer))
        if found and (not beside or norm_at(block_of(layer), beside, names, "rms")):
            return found
    return None


def block_of(layer: Layer) -> str:
    """Return the path of the block that an attention is a part of."""
    return _parts(layer.name)[1]


def norm_at(parent: str, leaf: str, names: Collection[str], kind: str) -> Norm | None:
    """Return the norm of that name below ``parent``, or None where none is there.

    Of ``attentions.3`` also ``norm.3`` beside it (XLM).
    """
    path, _, last = parent.rpartition(".")
    beside = ".".join(filter(None, (path.rpartition(".")[0], leaf, last)))
    for place in (f"{parent}.{leaf}" if parent else leaf, *([beside] if last.isdigit() else [])):
        for gain, bias in GAINS:
            if f"{place}.{gain}" in names:
                biases = (f"{place}.{bias}",) if f"{place}.{bias}" in names else ()
                return Norm(kind, (f"{place}.{gain}",), biases, 0.0, name=leaf)
    return None


def _kind(layer: Layer) -> str:
    return layer.input_norm.kind if layer.input_norm else "rms"


def _parts(path: str) -> tuple[str, str]:
    """Return what the blocks of a stack have in common, and the path of the block."""
    parts = path.split(".")
    at = [n for n, part in enumerate(parts) if is_number(part)]
    if not at:
        return path, path
    last = at[-1]
    if parts[-1] in NUMBERED:
        last = at[0]
    elif last == len(parts) - 1 and len(at) > 1:  # LongCat: two attentions in a block
        last = at[-2]
    stack = [*parts[:last], parts[last].rstrip("0123456789").rstrip("_")]
    return ".".join(filter(None, stack)), ".".join(parts[: last + 1])


def _between(layers: Sequence[Layer]) -> tuple[tuple[Norm, ...], ...]:
    """Return the norms behind each layer of a stream, before the next one reads."""
    if any(one.input_norm or one.family == "unknown" or output_norm(one) for one in layers):
        return ((),) * len(layers)
    found: list[tuple[Norm, ...]] = []
    for layer, later in zip(layers, (*layers[1:], None), strict=True):
        assert layer.bundle is not None
        names, block = layer.bundle.tensors, block_of(layer)
        own: list[Norm | None] = []
        for after in AFTER:
            if layer.lacks and after.self == "layer_norm1":
                continue  # XLM that is pre-norm
            last = norm_at(block, after.last, names, "layer")
            mine = norm_at(block, after.cross if layer.kind == "cross" else after.self, names,
                           "layer")  # fmt: skip
            if last and mine:
                own = [mine] if later and block_of(later) == block else [mine, last]
                break
        found.append(tuple(filter(None, own)))
    return tuple(found)
