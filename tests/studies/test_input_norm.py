"""The norm before the projections: hidden states of transformers lie before it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli.errors import InputError
from attncli.models.finding import load
from attncli.studies.layer import multihead
from tests.support.layers import states


def normed_llama(kind: str = "llama", **more: Any) -> Any:
    """A layer with its norm beside it, and the two functions that x goes through."""
    rng = np.random.default_rng(4)
    start = "model.layers.0."
    arrays = {f"{start}self_attn.{n}_proj.weight": rng.standard_normal((8, 8)) for n in "qkvo"}
    arrays[f"{start}input_layernorm.weight"] = rng.uniform(0.1, 3, 8)
    config = {"model_type": kind, "num_attention_heads": 2, "rms_norm_eps": 1e-3, **more}
    gain = arrays[f"{start}input_layernorm.weight"]
    return arrays, config, gain


@pytest.mark.parametrize("kind", ["llama", "gemma", "cohere"])
def test_hidden_states_go_through_the_layers_norm_first(kind: str) -> None:
    arrays, config, gain = normed_llama(kind, layer_norm_eps=1e-3)
    x = states(2, 5, 8) * 3 + 1
    y = x - x.mean(-1, keepdims=True) if kind == "cohere" else x
    y = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-3) * (gain + (kind == "gemma"))
    layer = load(arrays, config=config)
    made = multihead(x, layer)
    np.testing.assert_allclose(
        made.output, multihead(y, layer, input_norm="none").output, atol=1e-12
    )
    name = "LayerNorm" if kind == "cohere" else "RMSNorm"
    assert made.notes[0].startswith(f"input_layernorm applied to X first ({name}")
    assert made.notes[0].endswith("ε 0.001)")
    said = multihead(y, layer, input_norm="none").notes[0]
    assert said == "input_layernorm not applied: X is taken as normed"


def test_transformers_hidden_states_give_transformers_attentions(tmp_path: Path) -> None:
    """hidden_states[i] lies before the norm of layer i."""
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    model = transformers.LlamaModel(transformers.LlamaConfig(
        hidden_size=40, num_attention_heads=5, num_key_value_heads=1, num_hidden_layers=2,
        intermediate_size=24, vocab_size=50, attn_implementation="eager",
    )).eval()  # fmt: skip
    with torch.no_grad():
        for layer in model.layers:
            layer.input_layernorm.weight.uniform_(0.1, 3)
        theirs = model(torch.arange(10)[None], output_hidden_states=True, output_attentions=True)
    model.save_pretrained(tmp_path)
    for n in range(2):
        x = theirs.hidden_states[n].numpy()
        made = multihead(x, str(tmp_path), layer=n, want=("output", "weights"))
        np.testing.assert_allclose(made.weights, theirs.attentions[n].numpy(), atol=1e-6)


def test_a_memory_of_a_self_layer_is_normed_too() -> None:
    """A query of the last token over the whole: the last row of self-attention without a mask."""
    arrays, config, _ = normed_llama()
    layer = replace(load(arrays, config=config), rope=None, causal=False)
    x = states(2, 5, 8)
    last = multihead(x[:, -1:], layer, memory=x)
    np.testing.assert_allclose(last.output, multihead(x, layer).output[:, -1:], atol=1e-12)


def test_a_cross_layer_norms_its_x_alone() -> None:
    rng = np.random.default_rng(4)
    start = "decoder.layers.0.encoder_attn"
    arrays = {
        f"{start}.{n}.weight": rng.standard_normal((8, 8))
        for n in ("q_proj", "k_proj", "v_proj", "out_proj")
    }
    arrays[f"{start}_layer_norm.weight"], arrays[f"{start}_layer_norm.bias"] = states(2, 8)
    layer = load(arrays, config={"model_type": "mbart", "decoder_attention_heads": 2})
    assert layer.input_norm is not None and layer.input_norm.name == "encoder_attn_layer_norm"
    x, memory = states(5, 8), states(4, 8, seed=2)
    y = x - x.mean(-1, keepdims=True)
    y = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-5)
    y = y * arrays[f"{start}_layer_norm.weight"] + arrays[f"{start}_layer_norm.bias"]
    plain = multihead(y, layer, memory=memory, input_norm="none")
    np.testing.assert_allclose(multihead(x, layer, memory=memory).output, plain.output, atol=1e-12)


def test_a_norm_that_is_not_there_is_said() -> None:
    arrays, config, _ = normed_llama()
    alone = {name: array for name, array in arrays.items() if "norm" not in name}
    made = multihead(states(5, 8), alone, config=config)
    assert "no norm before the projections beside it: X is taken as they do" in made.notes
    off = multihead(states(5, 8), alone, config=config, input_norm="none")
    assert "input_norm none changes nothing" in off.warnings[0]
    with pytest.raises(InputError, match="unknown input_norm 'off'"):
        multihead(states(5, 8), arrays, config=config, input_norm="off")


def test_float16_states_are_normed_in_float32() -> None:
    arrays, config, _ = normed_llama()
    x = (states(5, 8) * 300).astype(np.float16)  # squares overflow float16
    made, wide = (multihead(a, arrays, config=config) for a in (x, x.astype(np.float32)))
    assert made.output.dtype == np.float16
    np.testing.assert_array_equal(made.output, wide.output.astype(np.float16))
