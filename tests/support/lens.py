"""Models of TransformerLens in ``cases/composition``, under the names of OPT and Llama."""

from __future__ import annotations

from typing import Any

import numpy as np

from attncli.files.bundle import Bundle
from attncli.models.finding import find_layers
from attncli.models.layer import Layer
from tests.support.layers import CASES

SAVED = np.load(CASES / "composition" / "scores.npz")
HEADS, WIDTH, MODEL = 4, 5, 15
CONFIGS: dict[str, dict[str, Any]] = {
    "ln": {"model_type": "opt", "num_attention_heads": HEADS, "tie_word_embeddings": False},
    "rms": {"model_type": "llama", "num_attention_heads": HEADS, "num_key_value_heads": 2,
            "head_dim": WIDTH},
}  # fmt: skip
NAMES = {
    "ln": ("model.decoder", "self_attn_layer_norm", "out_proj", "final_layer_norm"),
    "rms": ("model", "input_layernorm", "o_proj", "norm"),
}


def bundle_of(kind: str) -> Bundle:
    """The weights of a model, as OPT or Llama has them."""
    top, norm, out, final = NAMES[kind]
    tensors = {
        f"{top}.embed_tokens.weight": SAVED[f"{kind}/embed.W_E"],
        "lm_head.weight": SAVED[f"{kind}/unembed.W_U"].T,
        f"{top}.{final}.weight": SAVED[f"{kind}/ln_final.w"],
    }
    for n in range(3):
        block, start = f"{top}.layers.{n}", f"{kind}/blocks.{n}."
        tensors[f"{block}.{norm}.weight"] = SAVED[f"{start}ln1.w"]
        for role in "QKV":
            name = f"{start}attn._W_{role}"
            heads = SAVED[name if name in SAVED.files else f"{start}attn.W_{role}"]  # (H, E, D)
            flat = heads.swapaxes(1, 2).reshape(-1, MODEL)
            tensors[f"{block}.self_attn.{role.lower()}_proj.weight"] = flat
        output = SAVED[f"{start}attn.W_O"].reshape(-1, MODEL)  # (H·D, E)
        tensors[f"{block}.self_attn.{out}.weight"] = output.T
        if kind == "ln":
            tensors[f"{block}.{norm}.bias"] = SAVED[f"{start}ln1.b"]
            tensors[f"{block}.self_attn.q_proj.bias"] = SAVED[f"{start}attn.b_Q"].ravel()
            sizes = {"k_proj": HEADS * WIDTH, "v_proj": HEADS * WIDTH, "out_proj": MODEL}
            tensors |= {f"{block}.self_attn.{n}.bias": np.zeros(s) for n, s in sizes.items()}
    return Bundle(kind, "arrays", {name: np.ascontiguousarray(a) for name, a in tensors.items()})


def layers_of(kind: str) -> list[Layer]:
    """Its attention layers."""
    return find_layers(bundle_of(kind), CONFIGS[kind])
