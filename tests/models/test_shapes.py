"""Where config.json contradicts the weights, the weights win."""

from __future__ import annotations

from tests.support.layers import QKVO, WIDE, apart, one


def test_weights_win_over_a_config_that_contradicts_them() -> None:
    tensors = apart("layers.0.self_attn", QKVO, *WIDE)
    layer = one(
        *tensors,
        config={
            "num_attention_heads": 4,
            "head_dim": 8,
            "num_key_value_heads": 4,
            "model_type": "llama",
        },
    )
    assert (layer.heads, layer.kv_heads, layer.head_dim) == (4, 2, 12)
    text = " ".join(layer.notes)
    assert "head_dim 8, the weights 12 head width: the weights won" in text
    assert "num_key_value_heads 4, the weights 2" in text
    normed = [
        *tensors,
        ("layers.0.self_attn.q_norm.weight", (6,)),
        ("layers.0.self_attn.k_norm.weight", (6,)),
    ]
    layer = one(
        *normed, config={"num_attention_heads": 4, "model_type": "qwen3", "rms_norm_eps": 1e-6}
    )
    assert (layer.heads, layer.head_dim) == (8, 6) and "num_attention_heads 4" in layer.notes[0]


def test_a_hidden_size_that_contradicts_the_weights_loses() -> None:
    config = {"model_type": "llama", "num_attention_heads": 2, "hidden_size": 16}
    layer = one(*apart("layers.0.self_attn", QKVO), config=config)
    assert layer.model_dim == 8
    assert "config.json says hidden_size 16, the weights take 8: the weights won" in layer.notes
    fits = one(*apart("layers.0.self_attn", QKVO), config=config | {"hidden_size": 8})
    assert not any("hidden_size" in note for note in fits.notes)
