"""One attention layer of a checkpoint: what was recognised, and its weights in one form."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.rope import Rope
from attncli.errors import InputError
from attncli.files.bundle import Bundle, Lazy
from attncli.models.forms import LINEAR, Form

Array = np.ndarray[Any, np.dtype[Any]]

PLAIN = "attncli reads float64, float32, float16 and bfloat16 weights: save it dequantised"
PACKINGS = {
    "rows": "Q|K|V rows",
    "groups": "per group [g][q…q, k, v]",
    "codegen": "4 blocks of [q, v, k]",
}
GATED = "per head [q, gate]"


@dataclass(frozen=True)
class Norm:
    """A norm of hidden states, queries or keys: ``rms`` or ``layer``, +1 where 1 + weight scales.

    ``weights``, ``biases`` are tensor names, several where each head has its own, none where
    nothing scales. ``full`` takes the mean over all heads' channels, not each head's. ``name`` is
    the leaf of a norm of hidden states.
    """

    kind: str
    weights: tuple[str, ...]
    biases: tuple[str, ...]
    eps: float
    full: bool = False
    name: str = ""

    @property
    def centred(self) -> bool:
        """Whether it takes the mean away: LayerNorm (Ba et al. 2016), not RMSNorm."""
        return self.kind.startswith("layer")

    @property
    def words(self) -> str:
        """What it is, as in ``RMSNorm, ε 1e-06``."""
        name = "LayerNorm" if self.centred else "RMSNorm"
        return f"{name}{', 1 + gain' if self.kind.endswith('+1') else ''}, ε {self.eps:g}"


class Lack(NamedTuple):
    """A part of the layer that is known and not computed.

    ``option`` is the argument of ``multihead`` that stands in for it: ``rope``, ``mask``, or '';
    ``arch`` where nothing is known but that.
    """

    what: str
    option: str = ""


@dataclass(frozen=True)
class PositionBias:
    """A learned bias by position. ``tensor`` ``(buckets or cells, H)`` names its table.

    ``kind`` ``buckets`` (T5: logarithmic, up to ``distance``) or ``grid`` (Swin, BEiT: offsets of
    image rows and columns; ``window`` is the grid's height and width).
    """

    kind: str
    tensor: str
    bidirectional: bool = True
    distance: int = 128
    window: tuple[int, int] = (0, 0)


class Joint(NamedTuple):
    """The other stream of joint attention (Esser et al. 2024): one softmax over both.

    ``stream`` makes its queries, keys and values from ``memory``; ``first`` says that they lie
    before those of x.
    """

    stream: Layer
    first: bool


@dataclass(frozen=True)
class Latent:
    """Queries and keys through narrow latents: multi-head latent attention (DeepSeek-V2 2024).

    ``rank`` is how wide the latent of keys and values is, ``turned`` how many channels of a key
    RoPE turns, the last ones, the same in all heads. Each latent is normed, then multiplied by its
    ``gain``; ``query_norm`` is None where queries have no latent.
    """

    rank: int
    turned: int
    norm: Norm
    query_norm: Norm | None = None
    gain: float = 1.0
    query_gain: float = 1.0

    @property
    def norms(self) -> tuple[Norm, ...]:
        """The norms of both latents."""
        return (self.norm, *((self.query_norm,) if self.query_norm else ()))


@dataclass(frozen=True)
class Temperature:
    """What queries are multiplied by at position p: 1 + ``weight``·ln(1 + ⌊(p + start)/every⌋).

    Scalable softmax as Llama 4 has it (Nakanishi 2025): sharper the longer the context.
    """

    weight: float
    every: float
    start: int = 0

    def at(self, positions: Array) -> Array:
        """Return the factor at each position, float64."""
        steps = np.floor((np.asarray(positions, np.float64) + self.start) / self.every)
        return np.asarray(1 + self.weight * np.log1p(steps))


@dataclass(frozen=True)
class Disentangled:
    """Content that meets position (DeBERTa): a table of distances, which is projected like x.

    ``terms`` are c2p, p2c or both; ``buckets`` make distances past half of them logarithmic, up to
    ``longest``; 0 clips them there. ``norm`` is that of the table; ``shared`` takes the layer's own
    projections for it.
    """

    table: str
    terms: tuple[str, ...]
    longest: int
    buckets: int = 0
    norm: Norm | None = None
    shared: bool = False

    @property
    def span(self) -> int:
        """How many rows of the table there are to each side."""
        return self.buckets or self.longest

    def rows(self, length: int) -> Array:
        """Return the table's row of each query and key, ``(L, L)``; logarithms in float32."""
        at = np.arange(length)
        far = at[:, None] - at[None, :]
        if self.buckets:
            middle = self.buckets // 2
            size = np.where(np.abs(far) < middle, middle - 1, np.abs(far)).astype(np.float32)
            with np.errstate(divide="ignore"):
                ratio = np.log(size / np.float32(middle))
            ratio = ratio / np.log(np.float32((self.longest - 1) / middle)) * np.float32(middle - 1)
            steps = np.ceil(ratio) + middle
            far = np.where(size <= middle, far, np.sign(far) * steps).astype(np.int64)
        return np.asarray(np.clip(far + self.span, 0, 2 * self.span - 1))


@dataclass(frozen=True)
class Projections:
    """Weights as torch's Linear has them, ``(out, in)``, heads one after the other; or None.

    query ``(H·D, E)``, key ``(G·D, Ek)``, value ``(G·Dv, Ev)``, output ``(Eo, H·Dv)``; the biases
    ``(out,)``. float16 and bfloat16 come as float32, which holds them exactly.
    Of a layer with latents, query is made from the latent that ``query_down`` gives, key
    ``(H·(D − turned), rank)`` and value from the first ``rank`` rows of ``down``, whose others are
    the turned part of all keys. ``gate`` ``(H·Dv, E)`` or ``(H, E)`` makes what each channel or
    head of the output is multiplied by, its sigmoid.
    """

    query: Array
    key: Array
    value: Array
    output: Array | None
    query_bias: Array | None = None
    key_bias: Array | None = None
    value_bias: Array | None = None
    output_bias: Array | None = None
    down: Array | None = None
    down_bias: Array | None = None
    query_down: Array | None = None
    query_down_bias: Array | None = None
    gate: Array | None = None
    gate_bias: Array | None = None

    @property
    def parameters(self) -> int:
        """Return how many numbers there are, biases included."""
        return sum(int(a.size) for a in vars(self).values() if a is not None)


@dataclass(frozen=True)
class Layer:
    """One attention layer of a checkpoint, as recognised.

    ``name`` is the path of its parent; ``index`` the number of its block; ``kind`` self, cross or
    joint; ``family`` the model_type (``unknown`` without one); ``layout`` and ``packing`` the names
    and order of the weights. H ``heads``, G ``kv_heads``, ``head_dim`` D, ``value_dim`` Dv; x is
    ``model_dim`` wide, keys and values are made from ``key_input`` and ``value_input`` wide ones,
    the output is ``output_dim`` wide. ``window`` are keys to the left and right of the own
    position; ``chunk`` is how many positions see only each other. ``input_norm`` lies before the
    projections, on what transformers calls hidden states.
    ``lacks`` says what of the model attncli does not compute here: ``multihead`` refuses the layer,
    unless its architecture was named (``forced``); ``arch`` is the name to give. ``notes`` say what
    was assumed. ``shared`` blocks use this one layer (ALBERT). ``tensors`` are names by role,
    ``form`` how matrices are stored. ``joint`` is the other stream where a softmax is over two,
    ``joint_first`` says that a text's lies before x. ``tied`` is what config.json says of logits:
    whether the embedding makes them.
    ``siblings`` are all layers of the checkpoint, this one too, where it was chosen among them.
    """

    name: str
    index: int
    kind: str
    family: str
    layout: str
    packing: str
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    heads_source: str
    model_dim: int
    key_input: int
    value_input: int
    output_dim: int
    scale: float
    scale_source: str
    softcap: float | None = None
    causal: bool = False
    window: tuple[int, int] | None = None
    window_source: str = ""
    rope: Rope | None = None
    input_norm: Norm | None = None
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    norm_after_rope: bool = False
    relative: PositionBias | None = None
    alibi: tuple[float, ...] | None = None
    clip: float | None = None
    latent: Latent | None = None
    chunk: int | None = None
    temperature: Temperature | None = None
    disentangled: Disentangled | None = None
    shared: int = 1
    lacks: tuple[Lack, ...] = ()
    arch: str = ""
    forced: bool = False
    notes: tuple[str, ...] = ()
    form: Form = LINEAR
    joint: Joint | None = None
    joint_first: bool = False
    tied: bool | None = None
    tensors: Mapping[str, str] = field(default_factory=dict)
    bundle: Bundle | None = field(default=None, repr=False, compare=False)
    siblings: tuple[Layer, ...] = field(default=(), repr=False, compare=False)

    @property
    def label(self) -> str:
        """What to call the layer in a sentence."""
        return self.name or (
            "the layer" if self.layout == "arrays" else f"the layer ({self.layout})"
        )

    @property
    def mask(self) -> str:
        """The layer's own mask as an expression, such as ``causal & window(3, 0)``, or ''."""
        parts = ["causal"] if self.causal and not self.chunk else []
        parts += [f"chunks({self.chunk})"] if self.chunk else []
        if self.window is not None:
            parts.append(f"window({self.window[0]}, {self.window[1]})")
        return " & ".join(parts)

    @property
    def sinks(self) -> bool:
        """Whether each head has a learned sink."""
        return "sinks" in self.tensors

    @property
    def asides(self) -> tuple[str, ...]:
        """What it computes beside softmax(q·kᵀ)·v, in words."""
        heat, terms = self.temperature, self.disentangled
        return tuple(filter(None, (
            f"keys and values come from a latent {self.latent.rank} wide" if self.latent else "",
            f"queries times 1 + {heat.weight:g}·ln(1 + ⌊(position + {heat.start})/{heat.every:g}⌋)"
            if heat else "",
            f"{' and '.join(terms.terms)} of content and position are added to the scores"
            if terms else "",
            "the heads' outputs are gated: times a sigmoid of X, before they are projected"
            if self.gated else "",
        )))  # fmt: skip

    @property
    def gated(self) -> bool:
        """Whether the heads' outputs are multiplied by a sigmoid of x before they are projected."""
        return self.packing == GATED or "gate" in self.tensors

    @property
    def parameters(self) -> int:
        """Return how many numbers its tensors hold, from their headers alone."""
        assert self.bundle is not None
        latents = self.latent.norms if self.latent else ()
        norms = [n for norm in (self.query_norm, self.key_norm, *latents) if norm is not None
                 for n in (*norm.weights, *norm.biases)]  # fmt: skip
        names = {n for role, n in self.tensors.items() if role not in ("relative", "grid")}
        return sum(int(np.prod(self.bundle.header(name).shape)) for name in (*names, *norms))

    def missing(self, given: Collection[str] = ()) -> tuple[str, ...]:
        """Return what is not computed, without that which the arguments ``given`` stand in for.

        Raises InputError for it, unless the architecture was named.
        """
        found = [lack for lack in self.lacks if lack.option not in given or not lack.option]
        if found and not self.forced:
            first = found[0]
            ahead = f"--arch {self.arch} goes ahead without it, and says so"
            plain = (
                f", --arch torch for plain attention: no mask, no RoPE, scale 1/√{self.head_dim}"
            )
            hints = {
                "arch": f"--config FILE; --arch {self.arch} where it is built like that{plain}",
                "rope": f"give --rope-cos and --rope-sin, or --rope none to leave it out; {ahead}",
                "mask": f"give --mask in its place; {ahead}",
            }
            raise InputError(f"{self.label}: {first.what}", hints.get(first.option, ahead))
        return tuple(lack.what for lack in found)

    def array(self, role: str) -> Array | None:
        """Return a tensor by its role, at least float32, or None where the layer has none."""
        name = self.tensors.get(role)
        return None if name is None else self.tensor(name)

    def tensor(self, name: str) -> Array:
        """Return a tensor by its name, at least float32: exact for float16 and bfloat16."""
        assert self.bundle is not None
        return _wide(name, np.asarray(self.bundle.tensors[name]))

    def rows(self, name: str, some: slice) -> Array:
        """Return some rows of a tensor as ``tensor`` does all: the others are not read."""
        assert self.bundle is not None
        tensors = self.bundle.tensors
        found = tensors.rows(name, some) if isinstance(tensors, Lazy) else tensors[name][some]
        return _wide(name, np.asarray(found))

    def projections(self) -> Projections:
        """Read the weights and bring them into one form, whatever their packing."""
        weights, biases = self._unpacked(""), self._unpacked("_bias")
        query_bias, key_bias, value_bias = biases
        if "q_bias" in self.tensors:
            query_bias = self.array("q_bias")
        if "v_bias" in self.tensors:
            value_bias = self.array("v_bias")
        assert weights[0] is not None and weights[1] is not None and weights[2] is not None
        return Projections(
            weights[0], weights[1], weights[2], self._stored("output"),
            query_bias, key_bias, value_bias,
            *map(self.array, ("output_bias", "down", "down_bias", "query_down", "query_down_bias")),
            *(self._gate(suffix) for suffix in ("", "_bias")),
        )  # fmt: skip

    def _stored(self, role: str, suffix: str = "") -> Array | None:
        """Return a weight (out, in), or a bias (out,), however they are stored."""
        array = self.array(role + suffix)
        if array is None or suffix:
            return array if array is None or not self.form.apart else array.reshape(-1)
        return self.form.linear(role, array)

    def _unpacked(self, suffix: str) -> tuple[Array | None, ...]:
        """Return query, key and value of the weights (suffix '') or the biases ('_bias')."""
        roles = ("query", "key", "value", "qkv", "kv")
        parts = {role: self._stored(role, suffix) for role in roles}
        q, k, v = parts["query"], parts["key"], parts["value"]
        if parts["qkv"] is not None:
            q, k, v = self._split(parts["qkv"])
        if parts["kv"] is not None:
            k, v = np.split(parts["kv"], 2)
        if q is not None and self.packing == GATED:
            q = self._halves(q)[0]
        if self.latent is not None and suffix == "":
            k, v = self._expanding()
        return q, k, v

    def _gate(self, suffix: str) -> Array | None:
        """Return the weight or the bias of the gate: a projection, or half of the query's."""
        query = self.array(f"query{suffix}")
        if self.packing == GATED and query is not None:
            return self._halves(query)[1]
        return self.array(f"gate{suffix}")

    def _halves(self, query: Array) -> tuple[Array, Array]:
        """Return the rows of q and of the gate, of [h][q, gate] rows."""
        each = query.reshape(self.heads, 2, -1, *query.shape[1:])
        query, gate = each[:, 0], each[:, 1]
        return query.reshape(-1, *query.shape[2:]), gate.reshape(-1, *gate.shape[2:])

    def _expanding(self) -> tuple[Array, Array]:
        """Return what makes keys and values of the latent, from [h][k, v] rows."""
        up = self.array("up")
        assert up is not None and self.latent is not None
        each = up.reshape(self.heads, -1, self.latent.rank)
        own = self.head_dim - self.latent.turned
        key, value = each[:, :own], each[:, own:]
        return key.reshape(-1, self.latent.rank), value.reshape(-1, self.latent.rank)

    def _split(self, fused: Array) -> tuple[Array, Array, Array]:
        """Return the rows of q, k and v of ``(R, …)``, heads one after the other."""
        h, g, d = self.heads, self.kv_heads, self.head_dim
        if self.packing == PACKINGS["codegen"]:
            blocks = fused.reshape(4, 3, -1, *fused.shape[1:])  # (4, qvk, H/4·D, …)
            q, v, k = (blocks[:, i].reshape(h * d, *fused.shape[1:]) for i in range(3))
            return q, k, v
        if self.packing == PACKINGS["groups"] or self.packing.startswith("per head"):
            groups = fused.reshape(g, h // g + 2, d, *fused.shape[1:])  # (G, q…qkv, D, …)
            q = groups[:, :-2].reshape(h * d, *fused.shape[1:])
            k, v = (groups[:, i].reshape(g * d, *fused.shape[1:]) for i in (-2, -1))
            return q, k, v
        q, k, v = np.split(fused, [h * d, h * d + (len(fused) - h * d) // 2])
        return q, k, v


def _wide(name: str, array: Array) -> Array:
    """Return a weight in float32 or wider; InputError for what is none."""
    if array.dtype == np.int64:  # as JSON has whole numbers; what is quantised is narrower
        array = array.astype(np.float64)
    if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
        raise InputError(f"{name} is {array.dtype}, which is not a weight's type", PLAIN)
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array
