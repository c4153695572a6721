"""Layers are found in folders and files, chosen by name or number, refused with what settles it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attncli import files
from attncli.errors import FileError, InputError
from attncli.models.finding import choose, config_beside, find_layers, load
from tests.support.layers import QKVO, WIDE, apart, bundle_of


def test_a_sharded_folder_with_its_config(tmp_path: Path) -> None:
    tensors = bundle_of(
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


def test_several_layers_and_none_chosen() -> None:
    found = find_layers(
        bundle_of(*(t for i in range(9) for t in apart(f"h.{i}.attn", QKVO))), heads=2
    )
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
        find_layers(bundle_of(*tensors), heads=2)
    skipped: list[str] = []
    found = find_layers(bundle_of(*tensors), heads=2, skipped=skipped)
    assert [layer.name for layer in found] == ["h.0.attn"] and skipped[0].startswith("h.1.attn")
    arrays = dict(bundle_of(*tensors).tensors)
    assert load(arrays, heads=2).name == "h.0.attn"
    with pytest.raises(InputError, match="no attention layer '1'") as error:
        load(arrays, heads=2, layer=1)
    assert "1 more cannot be read: h.1.attn" in str(error.value.hint)


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
    "half of latent attention": (
        [("a.kv_a_proj_with_mqa.weight", (8, 8)), ("a.q_proj.weight", (8, 8))],
        {},
        "lacks kv_b_proj.weight",
        "give the missing tensors",
    ),
    "GPTQ": (
        [("a.q_proj.qweight", (1, 8)), ("a.q_proj.scales", (1, 8))],
        {},
        "GPTQ",
        "gptqmodel",
    ),
    "quantised beside": (
        [*apart("a", QKVO), ("a.q_proj.weight_scale", (1,))],
        {"heads": 2},
        "quantised",
        "dequantised",
    ),
    "GGUF names": ([("blk.0.attn_q.weight", (8, 8))], {}, "GGUF", "missing tensors"),
}


@pytest.mark.parametrize("what", ERRORS)
def test_errors_name_what_settles_them(what: str) -> None:
    tensors, options, message, hint = ERRORS[what]
    with pytest.raises(InputError, match=message) as error:
        find_layers(bundle_of(*tensors), **options)
    assert hint in str(error.value.hint)
