"""Attention weights recognised by their names, apart and fused."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.errors import InputError
from attncli.models.finding import load
from attncli.studies.layer import multihead
from tests.support.layers import BERT, apart, bundle_of, one

PREFIXES = ("", "module.", "_orig_mod.module.", "bert.", "model.bert.", "text_encoder.bert.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_do_not_matter(prefix: str) -> None:
    layer = one(*apart(f"{prefix}encoder.layer.3.attention", BERT), heads=2)
    assert (layer.layout, layer.index, layer.kind) == ("BERT", 3, "self")
    assert layer.name == f"{prefix}encoder.layer.3.attention"


APART = {
    "BERT": ("layer.0.attention", BERT),
    "ViT": ("layer.0.attention", "attention.query attention.key attention.value output.dense"),
    "ALBERT": ("albert_layers.0.attention", "query key value dense"),
    "OpenAI Whisper": ("blocks.0.attn", "query key value out"),
    "DistilBERT": ("layer.0.attention", "q_lin k_lin v_lin out_lin"),
    "DeBERTa-v2": (
        "layer.0.attention",
        "self.query_proj self.key_proj self.value_proj output.dense",
    ),
    "T5": ("block.0.layer.0.SelfAttention", "q k v o"),
    "Llama": ("layers.0.self_attn", "q_proj k_proj v_proj o_proj"),
    "BART": ("layers.0.self_attn", "q_proj k_proj v_proj out_proj"),
    "Phi": ("layers.0.self_attn", "q_proj k_proj v_proj dense"),
    "Meta Llama": ("layers.0.attention", "wq wk wv wo"),
    "CTRL": ("h.0.multi_head_attention", "Wq Wk Wv dense"),
}


@pytest.mark.parametrize("name", APART)
def test_separate_layouts(name: str) -> None:
    parent, leaves = APART[name]
    tensors = apart(parent, leaves, (12, 8), (6, 8), (6, 8), (8, 12))
    layer = one(*tensors, heads=4)
    assert (layer.layout, layer.packing, layer.name) == (name, "separate", parent)
    assert (layer.heads, layer.kv_heads, layer.head_dim) == (4, 2, 3)
    made = layer.projections()
    for ours, (tensor, _) in zip(
        (made.query, made.key, made.value, made.output), tensors, strict=True
    ):
        np.testing.assert_array_equal(ours, bundle_of(*tensors).tensors[tensor])
    without = one(*tensors[:3], heads=4)
    assert without.projections().output is None and without.output_dim == 12
    assert "no output projection" in " ".join(without.notes)


FUSED = {
    # leaf, output, rows for 4 heads of 3 and 2 key/value heads; arch; order of blocks of 3 rows
    "gpt2": ("c_attn", "c_proj", 24, "Q|K|V columns (in, out)", "qqqqkkvv"),
    "nanogpt": ("c_attn", "c_proj", 24, "Q|K|V rows", "qqqqkkvv"),
    "gpt_bigcode": ("c_attn", "c_proj", 24, "per group [g][q…q, k, v]", "qqkvqqkv"),
    "falcon": ("query_key_value", "dense", 24, "per group [g][q…q, k, v]", "qqkvqqkv"),
    "gpt_neox": ("query_key_value", "dense", 36, "per head [h][q, k, v]", "qkvqkvqkvqkv"),
    "phi3": ("qkv_proj", "o_proj", 24, "Q|K|V rows", "qqqqkkvv"),
    "codegen": ("qkv_proj", "out_proj", 36, "4 blocks of [q, v, k]", "qvkqvkqvkqvk"),
    "modernbert": ("Wqkv", "Wo", 36, "Q|K|V rows", "qqqqkkkkvvvv"),
    "mpt": ("Wqkv", "out_proj", 24, "Q|K|V rows", "qqqqkkvv"),
    "timm": ("qkv", "proj", 36, "Q|K|V rows", "qqqqkkkkvvvv"),
    "deberta": ("self.in_proj", "output.dense", 36, "per head [h][q, k, v]", "qkvqkvqkvqkv"),
}


@pytest.mark.parametrize("arch", FUSED)
def test_fused_layouts(arch: str) -> None:
    """Each block of 3 rows holds the number of its place: they come back in q, k, v order."""
    leaf, output, rows, packing, order = FUSED[arch]
    blocks = np.repeat(np.arange(rows // 3), 3).astype(np.float32)
    weight = np.repeat(blocks[:, None], 8, axis=1)  # (R, E)
    out = np.arange(8 * 12, dtype=np.float32).reshape(8, 12)
    if arch == "gpt2":
        weight, out = weight.T, out.T
    arrays = {
        f"h.0.attn.{leaf}.weight": weight,
        f"h.0.attn.{leaf}.bias": blocks,
        f"h.0.attn.{output}.weight": out,
    }
    layer = load(arrays, arch=arch, heads=4)
    assert layer.packing == packing and layer.kv_heads == (2 if rows == 24 else 4)
    made = layer.projections()
    for part, values, bias in (
        ("q", made.query, made.query_bias),
        ("k", made.key, made.key_bias),
        ("v", made.value, made.value_bias),
    ):
        want = np.repeat([i for i, what in enumerate(order) if what == part], 3)
        assert bias is not None
        np.testing.assert_array_equal(bias, want)
        np.testing.assert_array_equal(values, np.repeat(want[:, None], 8, axis=1))
    np.testing.assert_array_equal(made.output, np.arange(96).reshape(8, 12))
    assert layer.parameters == made.parameters


def test_torch_attention_packed_and_apart() -> None:
    packed = one(
        ("in_proj_weight", (24, 8)),
        ("in_proj_bias", (24,)),
        ("out_proj.weight", (8, 8)),
        ("out_proj.bias", (8,)),
        ("bias_k", (1, 1, 8)),
        ("bias_v", (1, 1, 8)),
        heads=2,
    )
    assert packed.layout == "torch MultiheadAttention" and packed.tensors["bias_k"] == "bias_k"
    separate = one(
        *((f"a.{n}_proj_weight", (8, w)) for n, w in zip("qkv", (8, 6, 4), strict=True)),
        ("a.in_proj_bias", (24,)),
        ("a.out_proj.weight", (8, 8)),
        heads=2,
    )
    assert (separate.model_dim, separate.key_input, separate.value_input) == (8, 6, 4)
    made = separate.projections()
    assert made.key.shape == (8, 6) and made.key_bias is not None and made.key_bias.shape == (8,)


def test_arrays_by_hand() -> None:
    layer = one(
        ("W_Q", (8, 8)), ("W_K", (8, 8)), ("W_V", (8, 8)), ("W_O", (8, 8)), ("b_q", (8,)), heads=2
    )
    assert layer.layout == "arrays" and layer.projections().query_bias is not None
    assert "weights are taken as (out, in)" in layer.notes[0]


def test_arrays_by_hand_with_whole_words() -> None:
    names = ("W_query", "W_key", "W_value", "W_out")
    layer = one(*((name, (8, 8)) for name in names), ("b_query", (8,)), heads=2)
    assert layer.layout == "arrays" and layer.tensors["output"] == "W_out"
    assert layer.projections().query_bias is not None


def test_timm_biases_beside_a_fused_weight() -> None:
    layer = one(
        ("blocks.0.attn.qkv.weight", (24, 8)),
        ("blocks.0.attn.proj.weight", (8, 8)),
        ("blocks.0.attn.q_bias", (8,)),
        ("blocks.0.attn.v_bias", (8,)),
        heads=2,
    )
    made = layer.projections()
    assert made.query_bias is not None and made.value_bias is not None and made.key_bias is None
    # windows of Swin's odd blocks are shifted
    swin = one(("layers.0.blocks.1.attn.qkv.weight", (24, 8)), heads=2)
    with pytest.raises(InputError, match="windows are shifted"):
        multihead(np.ones((3, 8)), swin)


CROSS = (
    "decoder.layers.0.encoder_attn",
    "decoder.block.0.layer.1.EncDecAttention",
    "layer.0.crossattention",
    "blocks.0.cross_attn",
    "layers.0.cross_attention",
)


@pytest.mark.parametrize("parent", CROSS)
def test_cross_attention_by_its_name(parent: str) -> None:
    config = {"model_type": "t5" if "Enc" in parent else "bart", "num_heads": 2}
    layer = one(*apart(parent, "q k v o"), config=config)
    assert layer.kind == "cross" and not layer.causal and layer.relative is None


def test_mask_buffers_are_no_biases() -> None:
    tensors = [
        ("h.0.attn.c_attn.weight", (8, 24)),
        ("h.0.attn.c_attn.bias", (24,)),
        ("h.0.attn.c_proj.weight", (8, 8)),
        ("h.0.attn.bias", (1, 1, 16, 16)),
        ("h.0.attn.masked_bias", ()),
    ]
    layer = one(*tensors, config={"model_type": "gpt2", "n_head": 2})
    assert not layer.lacks and "h.0.attn.bias" not in layer.tensors.values()


def test_neighbours_that_change_the_result_are_named() -> None:
    tensors = [
        *apart("layers.0.attention", "q_proj k_proj v_proj out_proj"),
        ("layers.0.attention.gru_rel_pos_linear.weight", (8, 4)),
    ]
    layer = one(*tensors, heads=2, config={"model_type": "bart"})
    lack = "tensors beside it are not used: gru_rel_pos_linear.weight"
    assert lack in [what for what, _ in layer.lacks]
    with pytest.raises(InputError, match="not used: gru_rel_pos_linear") as error:
        multihead(np.ones((3, 8)), layer)
    assert "--arch bart goes ahead" in str(error.value.hint)
    made = multihead(np.ones((3, 8)), one(*tensors, heads=2, arch="bart"))
    assert made.warnings == (lack,)
