"""From names, shapes and config.json to one layer: which of them decides, and what is assumed."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attncli.errors import InputError
from attncli.models.finding import choose, find_layers, load
from attncli.studies.layer import multihead
from tests.support.layers import LAYERS, QKVO, apart, bundle_of, one


def test_relative_bias_of_block_0_serves_its_stack() -> None:
    tensors = []
    for stack in ("encoder", "decoder"):
        for i in (0, 1):
            tensors += apart(f"{stack}.block.{i}.layer.0.SelfAttention", "q k v o")
        tensors.append(
            (f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 2))
        )
    found = find_layers(bundle_of(*tensors), {"model_type": "t5"})
    assert [layer.heads for layer in found[::2]] == [2, 2]
    assert found[0].heads_source == "the weights"
    tables = [layer.relative.tensor.split(".")[0] for layer in found if layer.relative]
    assert tables == ["encoder", "encoder", "decoder", "decoder"]
    assert [layer.relative.bidirectional for layer in found if layer.relative] == [True] * 2 + [
        False
    ] * 2
    assert [layer.causal for layer in found] == [False] * 2 + [True] * 2
    assert {layer.scale for layer in found} == {1.0}


def test_one_block_for_all_layers() -> None:
    parent = "encoder.albert_layer_groups.0.albert_layers.0.attention"
    config = {"model_type": "albert", "num_attention_heads": 2, "num_hidden_layers": 12}
    layer = one(*apart(parent, "query key value dense"), config=config)
    assert layer.shared == 12 and "one block for 12 layers" in layer.notes
    assert choose([layer], 11) is layer
    with pytest.raises(InputError, match="no attention layer '12'"):
        choose([layer], 12)


def test_encoder_and_decoder_have_their_own_heads() -> None:
    config = {"model_type": "bart", "encoder_attention_heads": 4, "decoder_attention_heads": 2}
    leaves = "q_proj k_proj v_proj out_proj"
    found = find_layers(
        bundle_of(
            *apart("model.encoder.layers.0.self_attn", leaves),
            *apart("model.decoder.layers.0.self_attn", leaves),
            *apart("model.decoder.layers.0.encoder_attn", leaves),
        ),
        config,
    )
    assert [(a.heads, a.causal, a.kind) for a in found] == [
        (4, False, "self"),
        (2, True, "self"),
        (2, False, "cross"),
    ]


def test_meta_llama_is_llama_with_interleaved_rows() -> None:
    """transformers' conversion permutes q and k; undone, Meta's own names give the same heads."""
    config = {"model_type": "llama", "num_attention_heads": 8, "rope_theta": 1e4}
    start = "tiny_llama_gqa/model.layers.0.self_attn."
    theirs = {n: LAYERS[f"{start}{n}_proj.weight"] for n in "qkvo"}

    def interleaved(weight: Any, heads: int) -> Any:
        return weight.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(heads * 16, 64)

    metas = {
        "layers.0.attention.wq.weight": interleaved(theirs["q"], 8),
        "layers.0.attention.wk.weight": interleaved(theirs["k"], 2),
        "layers.0.attention.wv.weight": theirs["v"],
        "layers.0.attention.wo.weight": theirs["o"],
    }
    x = LAYERS["tiny_llama_gqa/0/hidden_in"].astype(float)
    ours = multihead(x, metas, config={"n_heads": 8, "n_kv_heads": 2, "rope_theta": 1e4})
    assert ours.layer.family == "meta_llama" and ours.layer.rope.style == "interleaved"
    named = {f"layers.0.self_attn.{n}_proj.weight": w for n, w in theirs.items()}
    np.testing.assert_allclose(ours.output, multihead(x, named, config=config).output, atol=1e-12)


def test_nanogpt_is_gpt2_turned() -> None:
    names = ("c_attn.weight", "c_attn.bias", "c_proj.weight", "c_proj.bias")
    theirs = {n: LAYERS[f"tiny_gpt2/transformer.h.0.attn.{n}"] for n in names}
    x = LAYERS["tiny_gpt2/0/hidden_in"].astype(float)
    gpt2 = multihead(x, {f"h.0.attn.{n}": a for n, a in theirs.items()}, heads=4)
    assert gpt2.layer.family == "gpt2" and "GPT-2 is assumed" in gpt2.layer.notes[0]
    turned = {f"_orig_mod.transformer.h.0.attn.{n}": a.T for n, a in theirs.items()}
    nano = multihead(x, turned, arch="nanogpt", heads=4)
    np.testing.assert_array_equal(nano.output, gpt2.output)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_low_precision_weights_come_exactly(dtype: Any) -> None:
    tensors = apart("layers.0.self_attn", "q_proj k_proj v_proj o_proj")
    arrays = {n: a.astype(dtype) for n, a in bundle_of(*tensors).tensors.items()}
    made = load(arrays, heads=2).projections()
    assert made.query.dtype == np.float32
    np.testing.assert_array_equal(
        made.query, arrays["layers.0.self_attn.q_proj.weight"].astype(float)
    )


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, ml_dtypes.float8_e4m3fn])
def test_integer_and_float8_weights_are_refused(dtype: Any) -> None:
    arrays = {n: a.astype(dtype) for n, a in bundle_of(*apart("a", QKVO)).tensors.items()}
    with pytest.raises(InputError, match=r"quantised weights are not supported|no scale is beside"):
        load(arrays, heads=2)


def test_a_scaling_that_cannot_be_computed_is_an_error_only_when_it_is_used() -> None:
    config = {
        "model_type": "llama",
        "num_attention_heads": 2,
        "rope_theta": 1e4,
        "rope_scaling": {"rope_type": "newrope", "factor": 2.0},
    }
    layer = one(*apart("layers.0.self_attn", QKVO), config=config)
    assert layer.rope is None and "newrope" in layer.lacks[0].what
    with pytest.raises(InputError, match="newrope") as error:
        multihead(np.ones((3, 8)), layer)
    assert "--rope-cos" in str(error.value.hint)
    assert multihead(np.ones((3, 8)), layer, rope="none").output.shape == (3, 8)
