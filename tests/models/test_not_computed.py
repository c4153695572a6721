"""What of a checkpoint is not known is refused, and goes ahead by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.errors import InputError
from attncli.models.finding import choose, find_layers, labels
from attncli.studies.layer import multihead
from tests.support.layers import BERT, QKVO, apart, bundle_of, one

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
    found = find_layers(bundle_of(*(t for path in paths for t in apart(path, QKVO))), heads=2)
    assert labels(found) == names
    for name, layer in zip(names, found, strict=True):
        assert choose(found, name) is layer and choose(found, layer.name) is layer


def test_layer_types_that_are_not_computed_are_refused() -> None:
    tensors = apart("layers.0.self_attn", QKVO)
    config = {"model_type": "llama", "num_attention_heads": 2, "layer_types": ["chunked_attention"]}
    layer = one(*tensors, config=config)
    with pytest.raises(InputError, match="its layer type, chunked_attention") as error:
        multihead(np.ones((3, 8)), layer)
    assert "give --mask in its place" in str(error.value.hint)
    assert multihead(np.ones((3, 8)), layer, mask="causal & blocks(2)").output.shape == (3, 8)


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
    "deberta_v2": (
        {"relative_attention": True, "pos_att_type": ["c2p"]},
        "layer.0.attention",
        "terms lack",
    ),
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
