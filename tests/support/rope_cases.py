"""What transformers makes of RoPE: its frequencies, and tensors that it turned.

    python -m tests.support.rope_cases   makes tests/cases/rope.npz anew (transformers, torch)

tests/cases/rope.npz holds these, so that the tests need no transformers, and ``tiny_llama_*``: the
first sequence of layer 0 of a random LlamaForCausalLM (8 query heads, 2 key heads, transformers
5.23 eager), query and key before and after RoPE, its cos and sin, and the output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

FILE = Path(__file__).parents[1] / "cases" / "rope.npz"
WIDTH = 16
POSITIONS = np.array([[0, 1, 2, 3, 4, 5], [30, 2, 7, 7, 39, 11]])

#: name: theta, longest sequence, the scaling in config.json's words.
SCALINGS: dict[str, tuple[float, int, dict[str, Any] | None]] = {
    "default": (10000.0, 40, None),
    "linear": (10000.0, 40, {"rope_type": "linear", "factor": 4.0}),
    "dynamic": (10000.0, 100, {
        "rope_type": "dynamic", "factor": 2.0, "max_position_embeddings": 32,
    }),
    "dynamic_short": (10000.0, 20, {
        "rope_type": "dynamic", "factor": 2.0, "max_position_embeddings": 32,
    }),
    "llama3": (500000.0, 40, {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }),
    "yarn": (10000.0, 40, {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096,
    }),
    "yarn_qwen": (1000000.0, 40, {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
        "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.25, "truncate": False,
    }),
    "yarn_deepseek": (10000.0, 40, {
        "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096,
        "mscale": 0.707, "mscale_all_dim": 1.0,
    }),
}  # fmt: skip


def query() -> Array:
    """A ``(2, 3, 6, 16)`` query to turn, float32."""
    return np.random.default_rng(0).normal(size=(2, 3, 6, WIDTH)).astype(np.float32)


def made_by_transformers() -> dict[str, Array]:
    """Frequencies and factor of every scaling; turned queries of Llama, GPT-NeoX and GPT-J."""
    import torch
    from transformers import GPTNeoXConfig, LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.gpt_neox import modeling_gpt_neox as neox
    from transformers.models.gptj import modeling_gptj as gptj
    from transformers.models.llama import modeling_llama as llama

    found: dict[str, Array] = {}
    x, positions = torch.tensor(query()), torch.tensor(POSITIONS)
    for name, (theta, length, scaling) in SCALINGS.items():
        given = dict(scaling or {"rope_type": "default"})
        config = LlamaConfig(
            hidden_size=WIDTH * 3, num_attention_heads=3, head_dim=WIDTH,
            max_position_embeddings=given.pop("max_position_embeddings", 131072),
            rope_parameters={"rope_theta": theta, **given},
        )  # fmt: skip
        if scaling is None:
            inverse, factor = llama.LlamaRotaryEmbedding.compute_default_rope_parameters(config)
        else:
            inverse, factor = ROPE_INIT_FUNCTIONS[given["rope_type"]](config, seq_len=length)
        found[f"{name}_inverse"] = inverse.numpy()
        found[f"{name}_factor"] = np.array(factor)
        cos, sin = llama.LlamaRotaryEmbedding(config)(x, positions)
        found[f"{name}_turned"] = llama.apply_rotary_pos_emb(x, x, cos, sin)[0].numpy()
    config = GPTNeoXConfig(
        hidden_size=WIDTH * 3, num_attention_heads=3,
        rope_parameters={
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5,
        },
    )  # fmt: skip
    cos, sin = neox.GPTNeoXRotaryEmbedding(config)(x, positions)
    found["neox_turned"] = neox.apply_rotary_pos_emb(x, x, cos, sin)[0].numpy()
    for name, dim in (("gptj", WIDTH), ("gptj_partial", 6)):
        table = gptj.create_sinusoidal_positions(64, dim)[positions]  # (B, L, dim)
        sin, cos = table.split(dim // 2, dim=-1)
        by_length = x.transpose(1, 2)  # (B, L, H, D)
        turned = gptj.apply_rotary_pos_emb(by_length[..., :dim], sin, cos)
        turned = torch.cat([turned, by_length[..., dim:]], dim=-1)
        found[f"{name}_turned"] = turned.transpose(1, 2).numpy()
    return found


if __name__ == "__main__":
    kept = dict(np.load(FILE))
    np.savez_compressed(FILE, **kept | made_by_transformers())
