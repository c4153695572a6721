"""Attention layers recognised by names, shapes and config.json, and held against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attncli import files
from attncli.errors import FileError, InputError
from attncli.files.bundle import Bundle
from attncli.models.finding import choose, config_beside, find_layers, labels, load
from attncli.models.layer import Layer
from attncli.studies.layer import multihead
from tests.support import families
from tests.support.budget import assert_close

LAYERS = np.load(Path(__file__).parents[1] / "cases" / "layers.npz")


def bundle(*tensors: tuple[str, tuple[int, ...]], **more: tuple[int, ...]) -> Bundle:
    """Random tensors of these names and shapes."""
    rng = np.random.default_rng(0)
    shapes = dict(tensors) | more
    arrays = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    return Bundle("weights.safetensors", "arrays", arrays)


def one(*tensors: tuple[str, tuple[int, ...]], config: Any = None, **options: Any) -> Layer:
    found = find_layers(bundle(*tensors), config, **options)
    assert len(found) == 1
    return found[0]


def apart(parent: str, leaves: str, *shapes: tuple[int, ...]) -> list[tuple[str, tuple[int, ...]]]:
    """``q k v o`` under a parent; square and 8 wide unless shapes are given."""
    sizes = shapes or ((8, 8),) * 4
    start = f"{parent}." if parent else ""
    return [(f"{start}{n}.weight", s) for n, s in zip(leaves.split(), sizes, strict=False)]


# -- every family, against transformers -------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", families.FAMILIES)
def test_a_family(key: str, tmp_path: Path) -> None:
    """Weights, heads and output of every layer, from the same hidden states, within the budget."""
    pytest.importorskip("transformers")
    some = list(families.compared(key, str(tmp_path), "numpy"))
    assert some
    for layer in some:
        assert (
            layer.layer.family == key.split("!")[0].replace("-", "_")
            or "_model" in layer.layer.family
        )
        bands = layer.bands()
        names = set()
        for name, ours, single, double in layer.results():
            names.add(name)
            if double is None:  # our reference in float64 stands in for theirs
                wide = multihead(
                    layer.single.query_input.numpy().astype(float),
                    layer.layer,
                    want=("output", "weights"),
                    backend="reference",
                    input_norm="none",
                )
                assert wide.weights is not None
                double = {"weights": wide.weights, "heads": wide.concat, "output": wide.output}[
                    name
                ]
            assert_close(f"{key} {name}", ours, double, [single], bands[name])
        shown = {"weights", "heads", "output"}
        assert names == (shown - {"weights"} if key in ("longformer", "falcon!mha") else shown)


# -- names and packings -----------------------------------------------------------------------

BERT = "self.query self.key self.value output.dense"
QKVO = "q_proj k_proj v_proj o_proj"
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
        np.testing.assert_array_equal(ours, bundle(*tensors).tensors[tensor])
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


def test_relative_bias_of_block_0_serves_its_stack() -> None:
    tensors = []
    for stack in ("encoder", "decoder"):
        for i in (0, 1):
            tensors += apart(f"{stack}.block.{i}.layer.0.SelfAttention", "q k v o")
        tensors.append(
            (f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 2))
        )
    found = find_layers(bundle(*tensors), {"model_type": "t5"})
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


# -- the order and the names of layers --------------------------------------------------------

STACKS: dict[str, tuple[list[str], list[str]]] = {
    # paths, in the order of a file; labels, in order
    "one stack": (
        [f"layers.{n}.self_attn" for n in (0, 1, 10, 11, 2)], ["0", "1", "2", "10", "11"],
    ),
    "stages of Swin": (
        ["layers.1.blocks.0.attn", "layers.0.blocks.1.attn", "layers.0.blocks.0.attn"],
        ["0.0", "0.1", "1.0"],
    ),
    "encoder and decoder": (
        ["decoder.layers.0.encoder_attn", "decoder.layers.0.self_attn",
         "decoder.layers.1.self_attn", "encoder.layers.0.self_attn"],
        ["decoder.0.encoder_attn", "decoder.0.self_attn", "decoder.1.self_attn",
         "encoder.0.self_attn"],
    ),
    "without numbers": (["self_attn"], ["0"]),
}  # fmt: skip


@pytest.mark.parametrize("what", STACKS)
def test_layers_are_called_by_their_own_numbers(what: str) -> None:
    paths, names = STACKS[what]
    found = find_layers(bundle(*(t for path in paths for t in apart(path, QKVO))), heads=2)
    assert labels(found) == names
    for name, layer in zip(names, found, strict=True):
        assert choose(found, name) is layer and choose(found, layer.name) is layer


# -- config.json in its older forms -----------------------------------------------------------

WIDE = ((48, 32), (24, 32), (24, 32), (32, 48))
OLDER: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "rope_theta": (
        {
            "model_type": "llama",
            "rope_theta": 5e5,
            "max_position_embeddings": 64,
            "rope_scaling": {"type": "linear", "factor": 2.0},
        },
        {
            "model_type": "llama",
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5},
        },
        0,
    ),
    "yarn without its length": (
        {
            "model_type": "llama",
            "max_position_embeddings": 64,
            "rope_scaling": {"rope_type": "yarn", "factor": 2.0},
            "rope_theta": 1e4,
        },
        {
            "model_type": "llama",
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 2.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 64,
            },
        },
        0,
    ),
    "Gemma 2 alternates": (
        {"model_type": "gemma2", "sliding_window": 4, "rope_theta": 1e4},
        {
            "model_type": "gemma2",
            "sliding_window": 4,
            "rope_theta": 1e4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        2,
    ),
    "Gemma 3, local": (
        {
            "model_type": "gemma3_text",
            "sliding_window": 4,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        {
            "model_type": "gemma3_text",
            "sliding_window": 4,
            "layer_types": ["sliding_attention"] * 6,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "default", "rope_theta": 3.0},
            },
        },
        4,
    ),
    "Gemma 3, global": (
        {
            "model_type": "gemma3_text",
            "sliding_window": 4,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        {
            "model_type": "gemma3_text",
            "sliding_window": 4,
            "layer_types": ["full_attention"] * 6,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
            },
        },
        5,
    ),
    "Qwen2 from max_window_layers on": (
        {
            "model_type": "qwen2",
            "sliding_window": 4,
            "use_sliding_window": True,
            "max_window_layers": 1,
            "rope_theta": 1e6,
        },
        {
            "model_type": "qwen2",
            "sliding_window": 4,
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_theta": 1e6,
        },
        1,
    ),
    "Qwen2 not using its window": (
        {
            "model_type": "qwen2",
            "sliding_window": 4,
            "use_sliding_window": False,
            "rope_theta": 1e6,
        },
        {"model_type": "qwen2", "rope_theta": 1e6},
        30,
    ),
    "Cohere2 turns only where it slides": (
        {"model_type": "cohere2", "sliding_window": 4, "rope_theta": 1e4},
        {
            "model_type": "cohere2",
            "sliding_window": 4,
            "rope_theta": 1e4,
            "layer_types": ["full_attention"] * 4,
        },
        3,
    ),
    "partial": (
        {"model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 1e3},
        {
            "model_type": "gpt_neox",
            "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 1e3},
        },
        0,
    ),
    "ModernBERT, local": (
        {
            "model_type": "modernbert",
            "local_attention": 8,
            "global_attn_every_n_layers": 3,
            "global_rope_theta": 1.6e5,
            "local_rope_theta": 1e4,
        },
        {
            "model_type": "modernbert",
            "local_attention": 8,
            "layer_types": ["sliding_attention"] * 2,
            "rope_parameters": {"sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}},
        },
        1,
    ),
    "GPT-Neo": (
        {"model_type": "gpt_neo", "attention_types": [[["global", "local"], 2]], "window_size": 4},
        {"model_type": "gpt_neo", "attention_layers": ["global", "local"] * 2, "window_size": 4},
        3,
    ),
}


@pytest.mark.parametrize("what", OLDER)
def test_older_configs_mean_the_same(what: str) -> None:
    older, newer, index = OLDER[what]
    tensors = apart(f"model.layers.{index}.self_attn", "q_proj k_proj v_proj o_proj", *WIDE)
    first, second = (
        one(*tensors, config={"num_attention_heads": 4, "head_dim": 12, **c})
        for c in (older, newer)
    )
    assert (first.window, first.mask, first.causal) == (second.window, second.mask, second.causal)
    for name in ("style", "theta", "dim", "scaling"):
        assert getattr(first.rope, name, None) == getattr(second.rope, name, None), name
    expected = {
        "rope_theta": "theta 500000",
        "Gemma 2 alternates": "window(3, 0)",
        "Gemma 3, local": "window(3, 0)",
        "ModernBERT, local": "window(4, 4)",
        "GPT-Neo": "window(3, 0)",
        "Qwen2 from max_window_layers on": "window(3, 0)",
    }.get(what, "")
    assert "window" not in expected or first.mask.endswith(expected)
    assert (first.rope is None) == (what in ("Cohere2 turns only where it slides", "GPT-Neo"))


def test_mistrals_window_counts_its_own_position() -> None:
    config = {"model_type": "mistral", "num_attention_heads": 4, "sliding_window": 3}
    tensors = apart("layers.0.self_attn", "q_proj k_proj v_proj o_proj", *WIDE)
    arrays = dict(bundle(*tensors).tensors)
    made = multihead(
        np.random.default_rng(0).standard_normal((6, 32)),
        arrays,
        config=config,
        want=("output", "weights"),
    )
    assert made.layer.mask == "causal & window(2, 0)"
    seen = made.weights[0] > 0
    np.testing.assert_array_equal(seen.sum(-1), [1, 2, 3, 3, 3, 3])
    assert seen[5, 3] and not seen[5, 2]


def test_scales() -> None:
    tensors = apart("layers.2.self_attn", "q_proj k_proj v_proj o_proj", *WIDE)
    heads = {"num_attention_heads": 4}
    for config, scale, why in (
        ({"model_type": "llama"}, 12**-0.5, "1/√12"),
        ({"model_type": "granite", "attention_multiplier": 0.25}, 0.25, "attention_multiplier"),
        ({"model_type": "gemma2", "query_pre_attn_scalar": 16}, 0.25, "query_pre_attn_scalar 16"),
        ({"model_type": "gpt_neo"}, 1.0, "none in this family"),
        ({"model_type": "opt"}, 12**-0.5, "1/√12"),  # on q already: not twice
        ({"model_type": "gpt2", "scale_attn_by_inverse_layer_idx": True}, 12**-0.5 / 3, "1/√12/3"),
    ):
        layer = one(*tensors, config=config | heads)
        assert layer.scale == pytest.approx(scale, rel=1e-15) and layer.scale_source.startswith(why)


def test_nested_configs() -> None:
    config = {
        "model_type": "clip",
        "text_config": {"model_type": "clip_text_model", "num_attention_heads": 2},
        "vision_config": {"model_type": "clip_vision_model", "num_attention_heads": 4},
    }
    leaves = "q_proj k_proj v_proj out_proj"
    text, vision = find_layers(
        bundle(
            *apart("text_model.encoder.layers.0.self_attn", leaves),
            *apart("vision_model.encoder.layers.0.self_attn", leaves),
        ),
        config,
    )
    assert (text.heads, text.causal, vision.heads, vision.causal) == (2, True, 4, False)


def test_encoder_and_decoder_have_their_own_heads() -> None:
    config = {"model_type": "bart", "encoder_attention_heads": 4, "decoder_attention_heads": 2}
    leaves = "q_proj k_proj v_proj out_proj"
    found = find_layers(
        bundle(
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
    arrays = {n: a.astype(dtype) for n, a in bundle(*tensors).tensors.items()}
    made = load(arrays, heads=2).projections()
    assert made.query.dtype == np.float32
    np.testing.assert_array_equal(
        made.query, arrays["layers.0.self_attn.q_proj.weight"].astype(float)
    )


def test_a_sharded_folder_with_its_config(tmp_path: Path) -> None:
    tensors = bundle(
        *apart("model.layers.0.self_attn", "q_proj k_proj v_proj o_proj"),
        *apart("model.layers.1.self_attn", "q_proj k_proj v_proj o_proj"),
    ).tensors
    names = sorted(tensors)
    shards = {n: f"model-{i % 2}.safetensors" for i, n in enumerate(names)}  # q apart from k
    for file in set(shards.values()):
        files.write(str(tmp_path / file), {n: tensors[n] for n in names if shards[n] == file})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "num_attention_heads": 2})
    )
    layer = load(str(tmp_path), layer=1)
    assert (layer.name, layer.heads) == ("model.layers.1.self_attn", 2)
    ref = f"{tmp_path}::model.layers.0"
    assert load(ref).name == "model.layers.0.self_attn" and config_beside(ref) is not None
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(FileError, match="holds no object"):
        load(str(tmp_path), layer=1)


# -- what can be wrong ------------------------------------------------------------------------


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


ERRORS: dict[str, tuple[list[tuple[str, tuple[int, ...]]], dict[str, Any], str, str]] = {
    "no head count": (apart("a", QKVO), {}, "how many heads its 8 query rows hold", "--heads"),
    "heads that do not divide": (
        apart("a", QKVO),
        {"heads": 3},
        "--heads 3 does not divide",
        "divide 8",
    ),
    "a width that does not divide": (
        apart("a", QKVO),
        {"head_dim": 3},
        "--head-dim 3 does",
        "divide 8",
    ),
    "heads and width": (apart("a", QKVO), {"heads": 2, "head_dim": 3}, "is 6, but", "give one"),
    "no heads": (apart("a", QKVO), {"heads": 0}, "--heads is 0", "at least 1"),
    "key/value heads": (
        apart("a", QKVO, *WIDE),
        {"heads": 4, "kv_heads": 4},
        "has 2",
        "--kv-heads",
    ),
    "heads that grouping forbids": (
        apart("a", QKVO, (24, 8), (12, 8), (12, 8), (8, 24)),
        {"heads": 3},
        "do not divide",
        "--heads",
    ),
    "config that does not divide": (
        apart("a", QKVO),
        {"config": {"num_attention_heads": 3}},
        "num_attention_heads 3",
        "--heads",
    ),
    "gated attention": (
        apart("a", QKVO, (16, 8), (4, 8), (4, 8), (8, 8)),
        {"heads": 4},
        "4 × 4",
        "gated attention",
    ),
    "fused and no config": (
        apart("a", "query_key_value dense", (24, 8), (8, 8)),
        {"heads": 2},
        "nothing says how",
        "gpt_neox",
    ),
    "fused and an unknown family": (
        apart("a", "qkv_proj o_proj", (24, 8), (8, 8)),
        {"config": {"model_type": "newone", "num_attention_heads": 2}},
        "'newone' is not known",
        "--arch",
    ),
    "c_attn that may be either": (
        apart("a", "c_attn c_proj", (24, 8), (8, 8)),
        {"heads": 2},
        "c_attn",
        "nanogpt",
    ),
    "fused of a wrong size": (
        apart("a", "Wqkv Wo", (22, 8), (8, 8)),
        {"heads": 2},
        "22 rows",
        "--heads",
    ),
    "an unknown architecture": (apart("a", QKVO), {"arch": "lama"}, "unknown .* 'lama'", "llama"),
    "a vector for a weight": (
        [(f"a.{n}_proj.weight", (8,)) for n in "qkv"],
        {"heads": 2},
        "is \\(8,\\)",
        "two",
    ),
    "a norm of another width": (
        [*apart("a", QKVO), ("a.q_norm.weight", (3,))],
        {"heads": 2},
        "is \\(3,\\)",
        "a norm has 4",
    ),
    "nothing like it": (
        [("conv.weight", (3, 3))],
        {},
        "no attention layer.*conv.weight",
        "recognised by",
    ),
    "half of it": (
        apart("h.0.attn", "q_proj k_proj"),
        {},
        "Llama \\('h.0.attn' has .* lacks v_proj.weight",
        "wq",
    ),
    "an adapter": ([("a.q_proj.lora_A.weight", (2, 8))], {}, "is an adapter", "merge"),
    "latent attention": (
        [("a.kv_a_proj_with_mqa.weight", (8, 8)), ("a.q_proj.weight", (8, 8))],
        {},
        "latent",
        "one matrix",
    ),
    "GPTQ": (
        [("a.q_proj.qweight", (1, 8)), ("a.q_proj.scales", (1, 8))],
        {},
        "GPTQ",
        "dequantised",
    ),
    "quantised beside": (
        [*apart("a", QKVO), ("a.q_proj.weight_scale", (1,))],
        {"heads": 2},
        "quantised",
        "dequantised",
    ),
    "GGUF names": ([("blk.0.attn_q.weight", (8, 8))], {}, "GGUF", "dequantised"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors_name_what_settles_them(what: str) -> None:
    tensors, options, message, hint = ERRORS[what]
    with pytest.raises(InputError, match=message) as error:
        find_layers(bundle(*tensors), **options)
    assert hint in str(error.value.hint)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, ml_dtypes.float8_e4m3fn])
def test_integer_and_float8_weights_are_refused(dtype: Any) -> None:
    arrays = {n: a.astype(dtype) for n, a in bundle(*apart("a", QKVO)).tensors.items()}
    with pytest.raises(InputError, match="quantised weights are not supported"):
        load(arrays, heads=2)


def test_several_layers_and_none_chosen() -> None:
    found = find_layers(bundle(*(t for i in range(9) for t in apart(f"h.{i}.attn", QKVO))), heads=2)
    with pytest.raises(InputError, match="9 attention layers and none is chosen") as error:
        choose(found)
    assert "h.0.attn (self)" in str(error.value.hint) and "3 more" in str(error.value.hint)
    assert choose(found, 7).name == "h.7.attn" and choose(found, "h.7") is choose(found, "7")
    with pytest.raises(InputError, match="no attention layer 'h\\.70'"):
        choose(found, "h.70")


def test_a_layer_that_cannot_be_read_does_not_hide_the_others() -> None:
    tensors = [
        *apart("h.0.attn", QKVO),
        *apart("h.1.attn", "query_key_value dense", (24, 8), (8, 8)),
    ]
    with pytest.raises(InputError, match=r"h\.1\.attn: query_key_value"):
        find_layers(bundle(*tensors), heads=2)
    skipped: list[str] = []
    found = find_layers(bundle(*tensors), heads=2, skipped=skipped)
    assert [layer.name for layer in found] == ["h.0.attn"] and skipped[0].startswith("h.1.attn")
    arrays = dict(bundle(*tensors).tensors)
    assert load(arrays, heads=2).name == "h.0.attn"
    with pytest.raises(InputError, match="no attention layer '1'") as error:
        load(arrays, heads=2, layer=1)
    assert "1 more cannot be read: h.1.attn" in str(error.value.hint)


def test_layer_types_that_are_not_computed_are_refused() -> None:
    tensors = apart("layers.0.self_attn", QKVO)
    config = {"model_type": "llama", "num_attention_heads": 2, "layer_types": ["chunked_attention"]}
    layer = one(*tensors, config=config)
    with pytest.raises(InputError, match="its layer type, chunked_attention") as error:
        multihead(np.ones((3, 8)), layer)
    assert "give --mask in its place" in str(error.value.hint)
    assert multihead(np.ones((3, 8)), layer, mask="causal & blocks(2)").output.shape == (3, 8)


def test_a_scaling_that_cannot_be_computed_is_an_error_only_when_it_is_used() -> None:
    config = {
        "model_type": "llama",
        "num_attention_heads": 2,
        "rope_theta": 1e4,
        "rope_scaling": {"rope_type": "longrope", "short_factor": [1.0, 1.0]},
    }
    layer = one(*apart("layers.0.self_attn", QKVO), config=config)
    assert layer.rope is None and "longrope" in layer.lacks[0].what
    with pytest.raises(InputError, match="longrope") as error:
        multihead(np.ones((3, 8)), layer)
    assert "--rope-cos" in str(error.value.hint)
    assert multihead(np.ones((3, 8)), layer, rope="none").output.shape == (3, 8)


def test_a_window_without_a_rule_is_refused() -> None:
    tensors = apart("layers.0.self_attn", QKVO)
    config = {"model_type": "cwm", "num_attention_heads": 2, "sliding_window": 4}
    with pytest.raises(InputError, match="which layers have its sliding_window 4"):
        multihead(np.ones((3, 8)), one(*tensors, config=config))
    for settles in ({"layer_types": ["full_attention"]}, {"use_sliding_window": False}):
        assert not one(*tensors, config=config | settles).lacks


NOT_COMPUTED: dict[str, tuple[str, Any, str, str]] = {
    # parent, config, message, architecture that goes ahead
    "an unknown type": ("layers.0.self_attn", {"model_type": "newone"}, "'newone' is not", "llama"),
    "a base class of an unknown type": (
        "layers.0.self_attn",
        {"model_type": "newone", "architectures": ["NewOneModel"], "rope_theta": 1e4},
        "'newone' is not in the table",
        "llama",
    ),
    "no config, names of many": (
        "layers.0.self_attn",
        None,
        "nothing says its model_type",
        "llama",
    ),
    "a config without a type": ("layers.0.self_attn", {}, "nothing says its model_type", "llama"),
    "an unknown whole with a known part": (
        "language_model.layers.0.self_attn",
        {"model_type": "newone", "text_config": {"model_type": "llama"}},
        "'newone' is not",
        "llama",
    ),
    "a known whole with an unknown part": (
        "vision_model.layers.0.self_attn",
        {"model_type": "clip", "vision_config": {"model_type": "newone"}},
        "'newone' is not",
        "llama",
    ),
    "a part of a whole that no config speaks of": (
        "resampler.layers.0.self_attn",
        {"model_type": "blip", "text_config": {"model_type": "llama", "num_attention_heads": 2}},
        "nothing says which part of 'blip' it is",
        "llama",
    ),
}


@pytest.mark.parametrize("what", NOT_COMPUTED)
def test_what_is_not_known_is_refused_and_goes_ahead_by_name(what: str) -> None:
    parent, config, message, arch = NOT_COMPUTED[what]
    tensors = apart(parent, QKVO)
    layer = one(*tensors, config=config, heads=2)
    x = np.random.default_rng(0).standard_normal((3, 8))
    with pytest.raises(InputError, match=message) as error:
        multihead(x, layer)
    assert f"--arch {arch} where it is built like that" in str(error.value.hint)
    named = one(*tensors, config=config, heads=2, arch=arch)
    made = multihead(x, named)
    assert not made.warnings and named.family == arch and named.causal and named.rope is not None


PARTS_NOT_COMPUTED = {
    "roformer": ({"rotary_value": True}, "layer.0.attention", "RoPE of its values"),
    "beit": ({"use_shared_relative_position_bias": True}, "layer.0.attention", "position bias"),
    "canine": ({}, "initial_char_encoder.layer.0.attention", "local attention"),
    "flaubert": ({"pre_norm": True}, "layer.0.attention", "its pre_norm"),
    "xlm": ({"causal": True}, "layer.0.attention", "its causal mask"),
    "mvp": ({"use_prompt": True}, "layer.0.attention", "keys of its prompts"),
    "deberta_v2": ({"relative_attention": True}, "layer.0.attention", "c2p, p2c"),
    "big_bird": ({"attention_type": "block_sparse"}, "layer.0.attention", "block-sparse"),
    "swin": ({}, "encoder.layers.0.blocks.1.attention", "windows are shifted"),
}


@pytest.mark.parametrize("family", PARTS_NOT_COMPUTED)
def test_a_part_of_a_family_that_is_not_computed_is_refused(family: str) -> None:
    members, parent, message = PARTS_NOT_COMPUTED[family]
    config = {"model_type": family, "num_attention_heads": 2}
    with pytest.raises(InputError, match=message) as error:
        multihead(np.ones((3, 8)), one(*apart(parent, BERT), config=config | members))
    assert f"--arch {family} goes ahead" in str(error.value.hint)
    made = multihead(
        np.ones((3, 8)), one(*apart(parent, BERT), config=config | members, arch=family)
    )
    assert any(message in warning for warning in made.warnings)
    elsewhere = one(*apart("encoder.layer.0.attention", BERT), config=config)
    assert not elsewhere.lacks


def test_names_of_one_kind_of_model_are_assumed_without_a_config() -> None:
    layer = one(*apart("encoder.layer.0.attention", BERT), heads=2)
    assert layer.family == "bert" and not layer.lacks
    assert "its names are BERT's, so bert is assumed" in layer.notes[0]


def test_an_encoder_config_that_says_decoder_is_causal() -> None:
    config = {"model_type": "bert", "num_attention_heads": 2, "is_decoder": True}
    assert one(*apart("encoder.layer.0.attention", BERT), config=config).causal


BAD_MEMBERS: dict[str, tuple[dict[str, Any], str]] = {
    "theta": ({"rope_theta": "x"}, 'rope_theta is "x"'),
    "scaling": ({"rope_scaling": [1]}, r"rope_scaling is \[1\]"),
    "parameters": ({"rope_parameters": 3}, "rope_parameters is 3"),
    "rotary_dim": ({"rotary_dim": "x"}, 'rotary_dim is "x"'),
    "scalar": ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    "window": ({"model_type": "mistral", "sliding_window": -3}, "sliding_window is -3"),
    "a word": ({"model_type": "mistral", "sliding_window": "x"}, 'sliding_window is "x"'),
    "types": ({"layer_types": "full_attention"}, 'layer_types is "full_attention"'),
    "a type": ({"layer_types": [1]}, r"layer_types is \[1\]"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    "fewer": ({"num_attention_heads": -4}, "num_attention_heads is -4"),
    "four": ({"num_attention_heads": "four"}, 'num_attention_heads is "four"'),
    "huge": ({"rope_theta": 10**400}, "rope_theta is 1000"),
}


@pytest.mark.parametrize("what", BAD_MEMBERS)
def test_bad_members_of_a_config_are_named(what: str) -> None:
    members, message = BAD_MEMBERS[what]
    config = {"model_type": "llama", "num_attention_heads": 2, **members}
    with pytest.raises(InputError, match=f"config.json: {message}") as error:
        one(*apart("layers.0.self_attn", QKVO), config=config)
    assert "expected a" in str(error.value.hint)


def test_a_hidden_size_that_contradicts_the_weights_loses() -> None:
    config = {"model_type": "llama", "num_attention_heads": 2, "hidden_size": 16}
    layer = one(*apart("layers.0.self_attn", QKVO), config=config)
    assert layer.model_dim == 8
    assert "config.json says hidden_size 16, the weights take 8: the weights won" in layer.notes
    fits = one(*apart("layers.0.self_attn", QKVO), config=config | {"hidden_size": 8})
    assert not any("hidden_size" in note for note in fits.notes)
