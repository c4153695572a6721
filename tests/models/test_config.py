"""What config.json says of a layer, in its older forms and where it is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli.errors import InputError
from attncli.models.finding import find_layers
from attncli.studies.layer import multihead
from tests.support.layers import QKVO, WIDE, apart, bundle_of, one

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
    arrays = dict(bundle_of(*tensors).tensors)
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
        bundle_of(
            *apart("text_model.encoder.layers.0.self_attn", leaves),
            *apart("vision_model.encoder.layers.0.self_attn", leaves),
        ),
        config,
    )
    assert (text.heads, text.causal, vision.heads, vision.causal) == (2, True, 4, False)


BAD_MEMBERS: dict[str, tuple[dict[str, Any], str]] = {
    "theta": ({"rope_theta": "x"}, 'rope_theta is "x"'),
    "scaling": ({"rope_scaling": [1]}, r"rope_scaling is \[1\]"),
    "parameters": ({"rope_parameters": 3}, "rope_parameters is 3"),
    "rotary_dim": ({"rotary_dim": "x"}, 'rotary_dim is "x"'),
    "scalar": ({"model_type": "gemma2", "query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
    "window": ({"model_type": "mistral", "sliding_window": -3}, "sliding_window is -3"),
    "a word": ({"model_type": "mistral", "sliding_window": "x"}, 'sliding_window is "x"'),
    "types": ({"layer_types": "full_attention"}, 'layer_types is "full_attention"'),
    "a type": ({"layer_types": [1]}, r"layer_types is \[1\]"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads is 0"),
    "fewer": ({"num_attention_heads": -4}, "num_attention_heads is -4"),
    "four": ({"num_attention_heads": "four"}, 'num_attention_heads is "four"'),
    "huge": ({"rope_theta": 10**400}, "rope_theta is 1000"),
    "half": ({"model_type": "gemma2", "sliding_window_pattern": 0.5}, "window_pattern is 0.5"),
    "empty": ({"model_type": "gemma3_text", "sliding_window_pattern": ""}, 'window_pattern is ""'),
    "nope": ({"model_type": "smollm3", "no_rope_layer_interval": 0.5}, "interval is 0.5"),
    "kinds": (
        {"model_type": "gpt_neo", "attention_types": [["local", "x"]]}, r"attention_types is \[\["
    ),
    "kind": ({"model_type": "gpt_neo", "attention_layers": 3}, "attention_layers is 3"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD_MEMBERS)
def test_bad_members_of_a_config_are_named(what: str) -> None:
    members, message = BAD_MEMBERS[what]
    config = {"model_type": "llama", "num_attention_heads": 2, **members}
    with pytest.raises(InputError, match=f"config.json: .*{message}") as error:
        one(*apart("layers.0.self_attn", QKVO), config=config)
    assert "expected a" in str(error.value.hint)


#: A member that another family's code reads, and a value at which it would be another layer.
STRANGE: dict[str, tuple[str, Any]] = {
    "attention_multiplier": ("llama", 0.5),
    "query_pre_attn_scalar": ("llama", 64),
    "attn_logit_softcapping": ("llama", 2.0),
    "no_rope_layers": ("llama", [0, 0]),
    "clip_qkv": ("llama", 0.3),
    "partial_rotary_factor": ("qwen3", 0.5),
    "layer_types": ("mistral", ["full_attention"]),
}


@pytest.mark.parametrize("name", STRANGE)
def test_a_member_that_a_family_s_code_does_not_read_changes_nothing(name: str) -> None:
    family, value = STRANGE[name]
    config = {"model_type": family, "num_attention_heads": 2, "sliding_window": None}
    tensors = apart("layers.0.self_attn", QKVO)
    plain, strange = (one(*tensors, config=c) for c in (config, config | {name: value}))
    assert f"{name} of config.json: {family} does not read it" in strange.notes
    for part in ("scale", "softcap", "rope", "clip", "window", "causal"):
        assert repr(getattr(plain, part)) == repr(getattr(strange, part)), part


def test_a_config_that_says_it_is_not_causal_hides_nothing(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    from attncli.studies.layer import multihead

    torch.manual_seed(0)
    model = transformers.LlamaModel(transformers.LlamaConfig(
        hidden_size=16, num_attention_heads=2, num_hidden_layers=1, intermediate_size=8,
        vocab_size=9, attn_implementation="eager", is_causal=False,
    )).eval()  # fmt: skip
    with torch.no_grad():
        theirs = model(torch.arange(6)[None], output_hidden_states=True, output_attentions=True)
    model.save_pretrained(tmp_path)
    x = theirs.hidden_states[0].numpy()
    made = multihead(x, str(tmp_path), layer=0, want=("output", "weights"))
    np.testing.assert_allclose(made.weights, theirs.attentions[0].numpy(), atol=1e-6)
