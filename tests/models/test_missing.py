"""Checkpoints with something missing, empty, of another length, or none that its library writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from attncli.errors import InputError
from attncli.models.finding import every_layer, load
from attncli.models.layer import Layer
from tests.support.program import Door

CASES = Path(__file__).parents[1] / "cases"
LORA = CASES / "stored" / "lora"
QKVO = ("q", "k", "v", "o")
CONFIG = {"model_type": "gpt_oss", "num_attention_heads": 2, "num_key_value_heads": 2}


def weights(layers: int = 3, drop: str = "", **change: Any) -> dict[str, Any]:
    """Layers of gpt-oss: biases, sinks, norms."""
    rng = np.random.default_rng(0)
    found = {}
    for n in range(layers):
        attn = f"layers.{n}.self_attn"
        for role in QKVO:
            found[f"{attn}.{role}_proj.weight"] = rng.normal(size=(8, 8))
            found[f"{attn}.{role}_proj.bias"] = rng.normal(size=8)
        found[f"{attn}.sinks"] = rng.normal(size=2)
        found[f"layers.{n}.input_layernorm.weight"] = rng.normal(size=8)
        found[f"{attn}.q_norm.weight"] = rng.normal(size=4)
        found[f"{attn}.k_norm.weight"] = rng.normal(size=4)
    assert not drop or drop in found
    whole = {name: a.astype(np.float32) for name, a in found.items() if name != drop}
    return whole | change


def layers_of(arrays: dict[str, Any], **config: Any) -> tuple[list[Layer], list[str]]:
    return every_layer(arrays, config={**CONFIG, **config})


@pytest.mark.parametrize(
    ("name", "leaf"),
    [
        ("self_attn.o_proj.weight", "o_proj.weight"),
        ("self_attn.q_proj.bias", "q_proj.bias"),
        ("self_attn.sinks", "sinks"),
        ("self_attn.k_norm.weight", "k_norm.weight"),
        ("input_layernorm.weight", "input_layernorm.weight"),
    ],
)
def test_what_the_other_layers_have_is_missing(name: str, leaf: str) -> None:
    layers, _ = layers_of(weights(drop=f"layers.1.{name}"))
    assert [bool(one.lacks) for one in layers] == [False, True, False]
    with pytest.raises(InputError, match=f"it has no {leaf}, as 2 layers like it do") as caught:
        layers[1].missing()
    assert "--arch gpt_oss goes ahead without it" in str(caught.value.hint)


def test_what_no_layer_has_is_none_of_them() -> None:
    plain = {n: a for n, a in weights().items() if not n.endswith(("bias", "sinks", "norm.weight"))}
    assert not any(one.lacks for one in layers_of(plain)[0])


def test_one_norm_of_queries_and_keys() -> None:
    (one,) = layers_of(weights(1, drop="layers.0.self_attn.q_norm.weight"))[0]
    with pytest.raises(InputError, match=r"it has k_norm\.weight, and no norm of the other"):
        one.missing()


def test_a_layer_without_one_of_its_inputs_is_told() -> None:
    layers, skipped = layers_of(weights(drop="layers.1.self_attn.k_proj.weight"))
    assert [one.index for one in layers] == [0, 2]
    assert skipped == ["layers.1.self_attn has no k_proj.weight"]
    with pytest.raises(InputError, match=r"can be read: layers.1.self_attn has no k_proj"):
        load(weights(drop="layers.1.self_attn.k_proj.weight"), config=CONFIG, layer="layers.1")


def test_a_gate_of_its_family_is_missing() -> None:
    arrays = {n: a for n, a in weights(2).items() if "sinks" not in n and "bias" not in n}
    for one in layers_of(arrays, model_type="afmoe")[0]:
        with pytest.raises(InputError, match=r"its gate is missing \(layers.\d.self_attn.gate_pr"):
            one.missing()


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("self_attn.q_proj.bias", (7,), r"\(7,\)"),
        ("self_attn.o_proj.bias", (0,), r"\(0,\)"),
        ("self_attn.v_proj.bias", (), r"\(\)"),
        ("input_layernorm.weight", (0,), r"\(0,\)"),
        ("input_layernorm.weight", (1, 8), r"\(1, 8\)"),
        ("self_attn.k_proj.weight", (0, 8), r"\(0, 8\): it is empty"),
    ],
)
def test_what_does_not_fit_is_refused_where_layers_are_read(
    name: str, shape: tuple[int, ...], said: str
) -> None:
    whole = f"layers.1.{name}"
    layers, skipped = layers_of(weights(**{whole: np.ones(shape, np.float32)}))
    assert [one.index for one in layers] == [0, 2]
    with pytest.raises(InputError, match=f"'{whole}' is {said}"):
        layers_of({n: a for n, a in weights(**{whole: np.ones(shape, np.float32)}).items()
                   if ".1." in n})  # fmt: skip
    assert whole in skipped[0]


def test_a_norm_on_the_stream_that_does_not_fit(door: Door, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"encoder.layer.{n}.attention.{leaf}.weight": rng.normal(size=(8, 8)).astype(np.float32)
        for n in (0, 1) for leaf in ("self.query", "self.key", "self.value", "output.dense")
    }  # fmt: skip
    for n in (0, 1):
        for leaf in ("attention.output.LayerNorm", "output.LayerNorm"):
            arrays[f"encoder.layer.{n}.{leaf}.weight"] = np.ones(8 - n, np.float32)
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_attention_heads": 2}')
    assert door("inspect", tmp_path, "--composition").code == 0  # nothing reads behind the last
    arrays["encoder.layer.0.output.LayerNorm.weight"] = np.ones(7, np.float32)
    save_file(arrays, tmp_path / "model.safetensors")
    ran = door("inspect", tmp_path, "--composition")
    assert ran.code == 2 and "LayerNorm.weight' is (7,)" in " ".join(ran.err.split())


def test_an_output_norm_that_is_infinite_loses_its_heads(door: Door, tmp_path: Path) -> None:
    arrays = {n: a for n, a in weights().items() if "sinks" not in n and "bias" not in n}
    for n in range(3):
        gain = np.full(8, np.inf if n == 0 else 1, np.float32)
        arrays[f"layers.{n}.post_attention_layernorm.weight"] = gain
        arrays[f"layers.{n}.post_feedforward_layernorm.weight"] = np.ones(8, np.float32)
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"model_type": "gemma2"}))
    ran = door("inspect", tmp_path, "--json")
    assert ran.code == 0
    assert [head["verdict"] for head in ran.data["heads"]][:2] == ["critical"] * 2


# -- adapters, and the arguments of other libraries ---------------------------------------------


def adapter(tmp_path: Path, **said: Any) -> str:
    """A copy of a LoRA case with other members; with r=0 its factors have no rank."""
    folder = tmp_path / "adapter"
    shutil.copytree(LORA, folder)
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | said))
    factors = load_file(folder / "adapter_model.safetensors")
    if said.get("r") == 0:
        factors = {n: a[:0] if "lora_A" in n else a[:, :0] for n, a in factors.items()}
    save_file(factors, folder / "adapter_model.safetensors")
    return str(folder)


BASE = str(CASES / "stored" / "base")


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (dict(alpha_pattern=["v_proj"]), "alpha_pattern is .'v_proj'."),
        (dict(alpha_pattern={"(": 3}), r"alpha_pattern has '\(', which is no expression"),
        (dict(alpha_pattern={}, lora_alpha=float("nan")), "is nan"),
        (dict(use_dora=True), "has no lora_magnitude_vector"),
        (dict(r=0), "is no update of"),
    ],
)
def test_an_adapter_that_cannot_be_is_refused(
    tmp_path: Path, said: dict[str, Any], match: str
) -> None:
    with pytest.raises(InputError, match=match):
        load(adapter(tmp_path, **said), base=BASE)


def test_a_rank_that_is_none_of_its_factors_is_told(tmp_path: Path) -> None:
    notes = load(adapter(tmp_path, r=77, rank_pattern={}), base=BASE).notes
    assert any("says rank 77, its factors have 4: the factors won" in note for note in notes)
    shutil.rmtree(tmp_path / "adapter")
    assert not any("says rank" in note for note in load(adapter(tmp_path), base=BASE).notes)


@pytest.mark.parametrize("said", [dict(normalization_type=2.5), dict(attn_scores_soft_cap="x")])
def test_arguments_that_a_library_never_writes(said: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"blocks.0.attn.W_{x}": rng.normal(size=(2, 8, 4)) for x in "QKV"}
    arrays["blocks.0.attn.W_O"] = rng.normal(size=(2, 4, 8))
    config = dict(d_model=8, d_head=4, n_heads=2, n_ctx=9) | said
    with pytest.raises(InputError, match="the arguments of TransformerLens are none"):
        every_layer(arrays, config=config)


def test_a_first_block_without_a_norm_is_modernberts_own() -> None:
    """Its embedding is normed, and layers.0.attn_norm is the identity."""
    rng = np.random.default_rng(0)
    shapes = {"Wqkv": (24, 8), "Wo": (8, 8)}
    arrays = {
        f"layers.{n}.attn.{leaf}.weight": rng.normal(size=shape)
        for n in range(3) for leaf, shape in shapes.items()
    } | {f"layers.{n}.attn_norm.weight": np.ones(8) for n in (1, 2)}  # fmt: skip
    config = {"model_type": "modernbert", "num_attention_heads": 2, "norm_eps": 1e-5}
    layers, _ = every_layer(arrays, config=config)
    assert [bool(one.input_norm) for one in layers] == [False, True, True]
    assert not any(one.lacks for one in layers)
