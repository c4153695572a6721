"""Attention layers: shipped checkpoints, and random weights under the names of families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from attncli.files.bundle import Bundle
from attncli.models.finding import find_layers
from attncli.models.layer import Layer

CASES = Path(__file__).parents[1] / "cases"
LAYERS = np.load(CASES / "layers.npz")
GPT2 = {"model_type": "gpt2", "n_head": 4}
LLAMA = {
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}
CONFIGS: dict[str, dict[str, Any]] = {"tiny_gpt2": GPT2, "tiny_llama_gqa": LLAMA}
BERT = "self.query self.key self.value output.dense"
QKVO = "q_proj k_proj v_proj o_proj"
WIDE = ((48, 32), (24, 32), (24, 32), (32, 48))


def saved(case: str) -> dict[str, Any]:
    """The attention tensors of a shipped checkpoint."""
    start = case + "/"
    return {
        n.removeprefix(start): LAYERS[n] for n in LAYERS.files if n.startswith(start) and ".w" in n
    } | {
        n.removeprefix(start): LAYERS[n] for n in LAYERS.files if n.startswith(start) and ".b" in n
    }


def checkpoint(folder: Path, case: str = "tiny_llama_gqa", **config: Any) -> Path:
    """A folder as people have it: model.safetensors and config.json."""
    folder.mkdir(exist_ok=True)
    save_file(saved(case), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIGS[case] | config))
    return folder


def states(*shape: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def bundle_of(*tensors: tuple[str, tuple[int, ...]], **more: tuple[int, ...]) -> Bundle:
    """Random tensors of these names and shapes."""
    rng = np.random.default_rng(0)
    shapes = dict(tensors) | more
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    return Bundle("weights.safetensors", "arrays", arrays)


def one(*tensors: tuple[str, tuple[int, ...]], config: Any = None, **options: Any) -> Layer:
    found = find_layers(bundle_of(*tensors), config, **options)
    assert len(found) == 1
    return found[0]


def apart(parent: str, leaves: str, *shapes: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """``q k v o`` under a parent; square and 8 wide unless shapes are given."""
    sizes = shapes or ((8, 8),) * 4
    start = f"{parent}." if parent else ""
    return [(f"{start}{n}.weight", s) for n, s in zip(leaves.split(), sizes, strict=False)]


def llama_bundle(layers: int = 3, heads: int = 4, width: int = 6, **change: Any) -> Bundle:
    """Llama-named layers of normal weights; ``change`` are tensors in place of some."""
    rng = np.random.default_rng(11)
    tensors = {
        f"layers.{n}.self_attn.{role}_proj.weight": rng.normal(
            size=(16, heads * width) if role == "o" else (heads * width, 16)
        )
        for n in range(layers)
        for role in "qkvo"
    }
    return Bundle("weights", "arrays", {**tensors, **change})
