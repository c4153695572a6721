"""Layers that are wrong in one way each: a program of their own, with a switch for every fault.

It shares nothing with attncli. float32 throughout, as a program of that type does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from attncli.studies.layer import MultiheadResult, multihead

Array = np.ndarray[Any, np.dtype[Any]]

B, L, E, H, G, D, LAYERS = 2, 37, 64, 4, 2, 16, 3
THETA, EPS = 10000.0, 1e-6
QWEN = {
    "model_type": "qwen3", "num_attention_heads": H, "num_key_value_heads": G, "head_dim": D,
    "hidden_size": E, "rms_norm_eps": EPS, "rope_theta": THETA, "attention_bias": True,
    "num_hidden_layers": LAYERS,
}  # fmt: skip
NEOX = {
    "model_type": "gpt_neox", "num_attention_heads": H, "hidden_size": E, "rotary_pct": 1.0,
    "layer_norm_eps": 1e-5, "rotary_emb_base": THETA,
}  # fmt: skip


class LayerFault(NamedTuple):
    """What is done otherwise, and what must be said of it: options, or a part of the words."""

    name: str
    switches: Mapping[str, Any]
    said: str
    world: str = "qwen"


def checkpoint(seed: int = 0) -> dict[str, Array]:
    """Layers as Qwen3 has them, with every bias that a layer can have."""
    rng = np.random.default_rng(seed)
    found: dict[str, Array] = {}
    for n in range(LAYERS):
        at = f"model.layers.{n}"
        for role, rows in (("q", H * D), ("k", G * D), ("v", G * D), ("o", E)):
            columns = H * D if role == "o" else E
            found[f"{at}.self_attn.{role}_proj.weight"] = rng.normal(size=(rows, columns)) * 0.2
            found[f"{at}.self_attn.{role}_proj.bias"] = rng.normal(size=rows) * 0.5
        for name, width in (("self_attn.q_norm", D), ("self_attn.k_norm", D),
                            ("input_layernorm", E), ("post_attention_layernorm", E)):  # fmt: skip
            found[f"{at}.{name}.weight"] = 1 + 0.3 * rng.normal(size=width)
    return {name: array.astype(np.float32) for name, array in found.items()}


def fused(seed: int = 0) -> dict[str, Array]:
    """A layer as GPT-NeoX has it: rows of q, k, v for each head."""
    rng = np.random.default_rng(seed)
    at = "gpt_neox.layers.0.attention"
    found = {
        f"{at}.query_key_value.weight": rng.normal(size=(3 * E, E)) * 0.2,
        f"{at}.query_key_value.bias": rng.normal(size=3 * E) * 0.3,
        f"{at}.dense.weight": rng.normal(size=(E, E)) * 0.2,
        f"{at}.dense.bias": rng.normal(size=E) * 0.3,
    }
    return {name: array.astype(np.float32) for name, array in found.items()}


def states(seed: int = 1) -> Array:
    """Hidden states ``(B, L, E)``."""
    return np.random.default_rng(seed).normal(size=(B, L, E)).astype(np.float32)


def asked(world: str, seed: int = 0, **more: Any) -> MultiheadResult:
    """The layer as it is meant, by attncli."""
    x = states(seed + 1)
    if world == "neox":
        return multihead(x, fused(seed), config=NEOX, **more)
    return multihead(x, checkpoint(seed), config=QWEN, layer=1, **more)


def answer(fault: LayerFault, seed: int = 0) -> Array:
    """What the faulty program returns."""
    x = states(seed + 1)
    if fault.world == "neox":
        return neox(x, fused(seed), **fault.switches)
    return qwen(x, checkpoint(seed), **fault.switches)


def rms(x: Array, gain: Array | float) -> Array:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(EPS)) * gain


def turn(x: Array, style: str = "half", theta: float = THETA) -> Array:
    n = x.shape[-1] // 2
    inverse = (theta ** (-np.arange(n, dtype=np.float32) / n)).astype(np.float32)
    angle = np.arange(x.shape[-2], dtype=np.float32)[:, None] * inverse
    cos, sin = np.cos(angle), np.sin(angle)
    first, second = (x[..., :n], x[..., n:]) if style == "half" else (x[..., ::2], x[..., 1::2])
    parts = first * cos - second * sin, second * cos + first * sin
    if style == "half":
        return np.concatenate(parts, -1)
    return np.stack(parts, -1).reshape(x.shape)


def attend(q: Array, k: Array, v: Array, scale: float | None = None, causal: bool = True) -> Array:
    scores = q @ k.swapaxes(-1, -2) * np.float32(scale or q.shape[-1] ** -0.5)
    if causal:
        scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return (e / e.sum(-1, keepdims=True)) @ v


def split(x: Array, heads: int) -> Array:
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def qwen(
    x: Array, tensors: Mapping[str, Array], *, layer: int = 1, norms: int = 1, biases: str = "qkv",
    qk_norm: str = "qk", norm_last: bool = False, style: str = "half", theta: float = THETA,
    rope: bool = True, causal: bool = True, scale: float | None = None, tiled: bool = False,
    swap: str = "qkv", wo: str = "plain", wo_bias: int = 1, order: str = "", residual: bool = False,
    post: str = "", transposed: str = "", drop: int | None = None, noise: float = 0.0,
) -> Array:  # fmt: skip
    """A layer of Qwen3's, right unless told otherwise."""
    at = f"model.layers.{layer}"
    w = {n: tensors[f"{at}.self_attn.{n}_proj.weight"] for n in "qkvo"}
    b = {n: tensors[f"{at}.self_attn.{n}_proj.bias"] for n in "qkvo"}
    hidden = x
    for _ in range(norms):
        hidden = rms(hidden, tensors[f"{at}.input_layernorm.weight"])
    made = {}
    for to, of in zip("qkv", swap, strict=True):
        weight = w[of].T if of in transposed else w[of]
        made[to] = hidden @ weight.T + (b[of] if of in biases else 0)
    q, k, v = split(made["q"], H), split(made["k"], G), split(made["v"], G)

    def normed() -> tuple[Array, Array]:
        return tuple(
            rms(one, tensors[f"{at}.self_attn.{n}_norm.weight"]) if n in qk_norm else one
            for n, one in (("q", q), ("k", k))
        )  # type: ignore[return-value]

    if not norm_last:
        q, k = normed()
    if rope:
        q, k = turn(q, style, theta), turn(k, style, theta)
    if norm_last:
        q, k = normed()
    k, v = (np.tile(a, (1, H // G, 1, 1)) if tiled else np.repeat(a, H // G, 1) for a in (k, v))
    heads = attend(q, k, v, scale, causal)  # (B, H, L, D)
    if drop is not None:
        heads[:, drop] = 0
    if noise:
        heads[:, 3] += noise * np.random.default_rng(5).normal(size=heads[:, 3].shape)
    if order == "untransposed":
        side = heads.reshape(B, L, H * D)
    elif order == "channels":
        side = heads.transpose(0, 2, 3, 1).reshape(B, L, H * D)
    elif order == "reverse":
        side = heads[:, ::-1].swapaxes(1, 2).reshape(B, L, H * D)
    else:
        side = heads.swapaxes(1, 2).reshape(B, L, H * D)
    if wo == "none":
        out = side
    else:
        out = side @ (w["o"] if wo == "transposed" else w["o"].T) + wo_bias * b["o"]
    if post:
        out = rms(out, tensors[f"{at}.{post}.weight"])
    return (out + x if residual else out).astype(np.float32)


def neox(x: Array, tensors: Mapping[str, Array], *, packing: str = "heads", part: int = D) -> Array:
    """A layer of GPT-NeoX's; ``packing`` ``rows`` takes all q, then all k, then all v."""
    at = "gpt_neox.layers.0.attention"
    made = x @ tensors[f"{at}.query_key_value.weight"].T + tensors[f"{at}.query_key_value.bias"]
    if packing == "heads":
        q, k, v = np.moveaxis(made.reshape(B, L, H, 3, D), (3, 2), (0, 2))  # (3, B, H, L, D)
    else:
        q, k, v = (split(a, H) for a in np.split(made, 3, -1))
    q, k = (np.concatenate([turn(a[..., :part]), a[..., part:]], -1) for a in (q, k))
    side = attend(q, k, v).swapaxes(1, 2).reshape(B, L, E)
    return (side @ tensors[f"{at}.dense.weight"].T + tensors[f"{at}.dense.bias"]).astype(np.float32)


FAULTS = (
    LayerFault("X not normed", {"norms": 0}, "--input-norm none"),
    LayerFault("X normed twice", {"norms": 2}, "is applied to X twice"),
    LayerFault("no biases", {"biases": ""}, "biases of query, key and value left out"),
    LayerFault("no bias of the value", {"biases": "qk"}, "the bias of value left out"),
    LayerFault("no qk-norm", {"qk_norm": ""}, "query and key are not normed"),
    LayerFault("no k-norm", {"qk_norm": "q"}, "the key is not normed"),
    LayerFault("qk-norm after RoPE", {"norm_last": True}, "after RoPE"),
    LayerFault("RoPE interleaved", {"style": "interleaved"}, "--rope interleaved"),
    LayerFault("no RoPE", {"rope": False}, "--rope none"),
    LayerFault("another theta", {"theta": 500000.0}, "--rope-theta 500000"),
    LayerFault("mask ignored", {"causal": False}, "--mask none"),
    LayerFault("scale of the model", {"scale": E**-0.5}, "--scale 0.125"),
    LayerFault("a scale of nobody", {"scale": 0.37}, "--scale 0.37"),
    LayerFault("GQA tiled", {"tiled": True}, "(tiled)"),
    LayerFault("keys and values swapped", {"swap": "qvk"}, "projections of key and value"),
    LayerFault("query transposed", {"transposed": "q"}, "of query are transposed"),
    LayerFault("no output projection", {"wo": "none"}, "no output projection"),
    LayerFault("output projection transposed", {"wo": "transposed"}, "output projection is tr"),
    LayerFault("no output bias", {"wo_bias": 0}, "bias of the output projection is left out"),
    LayerFault("output bias twice", {"wo_bias": 2}, "bias of the output projection is added twice"),
    LayerFault("heads not transposed back", {"order": "untransposed"}, "not transposed back"),
    LayerFault("D·H read as H·D", {"order": "channels"}, "D·H is read as H·D"),
    LayerFault("heads in reverse", {"order": "reverse"}, "heads are in reverse order"),
    LayerFault("residual", {"residual": True}, "X is added"),
    LayerFault(
        "post-norm", {"post": "post_attention_layernorm"},
        "post_attention_layernorm is applied to the output",
    ),
    LayerFault(
        "post-norm and residual", {"post": "post_attention_layernorm", "residual": True},
        "post_attention_layernorm is applied to the output, and X is added",
    ),
    LayerFault("the layer before", {"layer": 0}, "--layer 0"),
    LayerFault("the layer after", {"layer": 2}, "--layer 2"),
    LayerFault("residual without a mask", {"residual": True, "causal": False}, "--mask none"),
    LayerFault("no norm, no biases", {"norms": 0, "biases": ""}, "--input-norm none"),
    LayerFault("split in blocks", {"packing": "rows"}, "is split as Q|K|V rows", "neox"),
    LayerFault("RoPE of half the channels", {"part": D // 2}, "--rope-dim 8", "neox"),
    LayerFault("head 2 is zero", {"drop": 2}, "1 head can give, 2"),
    LayerFault("head 3 is noisy", {"noise": 0.1}, "1 head can give, 3"),
)  # fmt: skip
