"""Weights stored with scales, as adapters, packed: plain at the border, or refused.

``cases/stored`` was written by compressed-tensors, bitsandbytes and PEFT (``make.py`` there), with
what transformers' attention gives for the weights as these libraries dequantise or merge them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attncli import files
from attncli.errors import FileError, InputError
from attncli.models.finding import every_layer, holds_layers, load
from attncli.models.stored import packed
from attncli.studies.layer import multihead
from tests.support.layers import apart, bundle_of

CASES = Path(__file__).parents[1] / "cases" / "stored"
ANSWERS = np.load(CASES / "answers.npz")
STORED = {
    "fp8_block": "float8_e4m3fn, a scale a block of 48 × 32 × 4",
    "fp8_channel": "float8_e4m3fn, a scale a row × 4",
    "fp8_tensor": "float8_e4m3fn, one scale × 4",
    "int8_channel": "int8, a scale a row × 4",
    "int8": "bitsandbytes int8, a scale a row × 4",
}
ADAPTERS = {
    "lora": "LoRA of",
    "rslora": "in place of the base's: ",
    "dora": "DoRA: its rows",
    "saved": "model.layers.0.self_attn.q_proj.weight",
    "conv1d": "LoRA of",
}


@pytest.mark.parametrize("name", [*STORED, *ADAPTERS])
def test_a_layer_is_what_its_own_library_makes_of_it(name: str) -> None:
    layer = load(str(CASES / name))
    assert any({**STORED, **ADAPTERS}[name] in note for note in layer.notes), layer.notes
    assert not layer.lacks and all(
        layer.bundle.header(n).dtype not in ("int8", "float8_e4m3fn")
        for n in layer.tensors.values()
    )
    x, theirs = ANSWERS[f"{name}.x"], ANSWERS[f"{name}.output"]
    ours, exact = (multihead(x.astype(kind), layer).output for kind in (np.float32, np.float64))
    band = np.abs(ours - exact).max() + 2e-6 * np.abs(theirs).max()
    assert np.abs(exact - theirs).max() <= 2 * band
    base = "gpt2" if name == "conv1d" else "base"
    plain = multihead(x, load(str(CASES / base))).output
    assert np.abs(plain - theirs).max() > 100 * band  # the scheme is not without effect


def copied(name: str, tmp_path: Path, drop: str = "", **arrays: Any) -> str:
    """A copy of a case without the tensors whose names hold ``drop``, others in their places."""
    folder = tmp_path / name
    shutil.copytree(CASES / name, folder)
    path = next(folder.glob("*.safetensors"))
    tensors = {n: a for n, a in files.read(str(path)).tensors.items() if not drop or drop not in n}
    for part, array in arrays.items():
        tensors |= {n: array for n in tensors if n.endswith(part)}
    path.unlink()
    files.write(str(path), tensors)
    return str(folder)


def test_without_its_scale_a_weight_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="float8_e4m3fn and no scale is beside it") as caught:
        load(copied("fp8_block", tmp_path, "k_proj.weight_scale"))
    assert "k_proj.weight_scale_inv" in str(caught.value.hint)


def test_a_scale_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(7, 3\), which is no scale of"):
        load(copied("fp8_block", tmp_path, weight_scale=np.ones((7, 3), np.float32)))


def test_int8_in_an_order_of_a_gpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weight_format' is 2"):
        load(copied("int8", tmp_path, weight_format=np.full((), 2, np.uint8)))


def test_scales_of_activations_are_said_to_be_unused() -> None:
    notes = load(str(CASES / "fp8_tensor")).notes
    assert any("input_scale" in note and "not used" in note for note in notes)


@pytest.mark.parametrize("leaf", ["weight_scale_inv", "weight_scale"])
@pytest.mark.parametrize("exponents", [False, True])
def test_blocks_of_128_where_nothing_says_otherwise(leaf: str, exponents: bool) -> None:
    """DeepSeek-V3: W[i, j] = stored[i, j] · scale[i // 128, j // 128]; the last blocks are cut."""
    rng = np.random.default_rng(0)
    stored = rng.normal(size=(136, 260)).astype(ml_dtypes.float8_e4m3fn)
    scale = np.exp2(rng.integers(-6, 0, (2, 3))).astype(np.float32)
    whole = stored.astype(np.float32) * np.array(
        [[scale[i // 128, j // 128] for j in range(260)] for i in range(136)]
    )
    kept = scale.astype(ml_dtypes.float8_e8m0fnu) if exponents else scale
    arrays = {}
    for name in ("q", "k", "v"):
        arrays[f"layers.0.self_attn.{name}_proj.weight"] = stored
        arrays[f"layers.0.self_attn.{name}_proj.{leaf}"] = kept
    arrays["layers.0.self_attn.o_proj.weight"] = rng.normal(size=(260, 136)).astype(np.float32)
    layer = load(arrays, config={"model_type": "llama", "num_attention_heads": 2})
    np.testing.assert_array_equal(layer.projections().query, whole)


def test_two_numbers_in_an_int8_are_not_taken_for_one() -> None:
    weight, scale = np.ones((8, 8), np.int8), np.ones((8, 1), np.float32)
    names = [f"layers.0.self_attn.{n}_proj" for n in "qkvo"]
    arrays = {f"{n}.weight": weight for n in names} | {f"{n}.scale": scale for n in names}
    with pytest.raises(InputError, match="int8: quantised weights"):
        load(arrays, heads=2, arch="llama")


def test_a_zero_point_is_not_overlooked(tmp_path: Path) -> None:
    folder = copied("int8_channel", tmp_path)
    path = str(Path(folder) / "model.safetensors")
    tensors = dict(files.read(path).tensors)
    stem = "model.layers.0.self_attn.k_proj"
    tensors[f"{stem}.weight_zero_point"] = np.ones((16, 1), np.int8)
    Path(path).unlink()
    files.write(path, tensors)
    with pytest.raises(InputError, match="compressed-tensors weights, which are not supported"):
        load(folder)


PACKED = {
    "GPTQ or AWQ": (["qweight", "qzeros", "scales", "g_idx"], "gptqmodel"),
    "compressed-tensors": (["weight_packed", "weight_scale", "weight_shape"], "run_compressed"),
    "NVFP4": (["weight", "weight_scale", "weight_scale_2", "input_scale"], "modelopt"),
    "bitsandbytes 4-bit (nf4 or fp4)": (
        ["weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"],
        "dequantize()",
    ),
    "torchao": (["_weight_qdata", "_weight_scale"], "torchao"),
    "HQQ": (["W_q", "meta"], "hqq"),
}


@pytest.mark.parametrize("name", PACKED)
def test_packed_weights_are_refused_by_name_and_listed_without_statistics(name: str) -> None:
    leaves, way = PACKED[name]
    arrays = {
        f"layers.0.self_attn.{p}_proj.{leaf}": np.ones((8, 8), np.uint8)
        for p in "qkvo"
        for leaf in leaves
    }
    with pytest.raises(InputError) as caught:
        load(arrays, heads=2)
    assert name in caught.value.message and way in str(caught.value.hint)
    bundle = files.Bundle("weights", "arrays", arrays)
    assert not holds_layers(bundle)
    assert [n.rpartition("_proj.")[2] for n in packed(arrays)][:1] == leaves[:1]


def test_attention_beside_packed_experts_is_read() -> None:
    names = apart("model.layers.0.self_attn", "q_proj k_proj v_proj o_proj")
    bundle = bundle_of(*names)
    arrays = dict(bundle.tensors) | {
        f"model.layers.0.mlp.experts.gate_up_proj_{part}": np.ones((2, 4), np.uint8)
        for part in ("blocks", "scales")
    }
    both = files.Bundle("weights", "arrays", arrays)
    assert holds_layers(both) and list(packed(arrays)) == [
        "model.layers.0.mlp.experts.gate_up_proj_blocks"
    ]
    assert load(arrays, heads=2, arch="gpt_oss").heads == 2


def test_the_base_is_found_where_the_adapter_or_the_option_says(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    shutil.copytree(CASES / "lora", folder)
    with pytest.raises(InputError, match=r"names, '../base', is not here") as caught:
        load(str(folder))
    assert "--base FOLDER" in str(caught.value.hint)
    ours = load(str(folder), base=str(CASES / "base")).projections()
    np.testing.assert_array_equal(ours.query, load(str(CASES / "lora")).projections().query)
    with pytest.raises(InputError, match=r"adapts 'model\.layers\.0\.self_attn\.k_proj\.weight'"):
        load(str(folder), base=str(CASES / "gpt2"))
    with pytest.raises(InputError, match="is no adapter"):
        load(str(CASES / "base"), base=str(CASES / "base"))


def test_an_adapter_on_a_quantised_base() -> None:
    ours = load(str(CASES / "lora"), base=str(CASES / "fp8_channel"))
    added = (
        load(str(CASES / "lora")).projections().query
        - load(str(CASES / "base")).projections().query
    )
    low = load(str(CASES / "fp8_channel")).projections().query
    np.testing.assert_allclose(ours.projections().query, low + added, atol=1e-5)
    assert any("float8" in note for note in ours.notes)


CHANGED = {
    "peft_type": ("IA3", "peft_type is 'IA3'"),
    "init_lora_weights": ("pissa_niter_4", "changes the base itself"),
    "alora_invocation_tokens": ([1], "aLoRA"),
    "layer_replication": ([[0, 1]], "layer_replication"),
    "target_parameters": (["w"], "target_parameters"),
    "lora_bias": (True, "lora_bias"),
    "lora_alpha": ("many", "lora_alpha of"),
}


@pytest.mark.parametrize("member", CHANGED)
def test_what_an_adapter_does_otherwise_is_refused(member: str, tmp_path: Path) -> None:
    value, message = CHANGED[member]
    folder = tmp_path / "lora"
    shutil.copytree(CASES / "lora", folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {member: value, "alpha_pattern": {}}))
    with pytest.raises(InputError, match=message):
        load(str(folder), base=str(CASES / "base")).projections()


def test_an_adapter_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="q_proj has no lora_B"):
        load(copied("lora", tmp_path, "q_proj.lora_B"), base=str(CASES / "base"))
    shutil.copytree(CASES / "lora", tmp_path / "bare")
    (tmp_path / "bare" / "adapter_config.json").write_text("[]")
    with pytest.raises(FileError, match="holds no object"):
        load(str(tmp_path / "bare"))
    (tmp_path / "bare" / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"adapter_config\.json is not beside it"):
        load(str(tmp_path / "bare"))


def test_dequantised_tensors_are_not_kept() -> None:
    layer = every_layer(str(CASES / "fp8_block"))[0][0]
    assert layer.bundle is not None
    name = layer.tensors["query"]
    assert layer.bundle.tensors[name] is not layer.bundle.tensors[name]
