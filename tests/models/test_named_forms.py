"""Names and packings of other libraries that need no file: prefixes, kernels, what is refused."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.errors import FileError, InputError
from attncli.files.bundle import Bundle
from attncli.models.args import config_of
from attncli.models.finding import every_layer, load
from attncli.models.forms import CONV1D, EINSUM, HEADS_FIRST, LINEAR, Form
from attncli.studies.layer import multihead

NAMED = Path(__file__).parents[1] / "cases" / "named"
DRAW = np.random.default_rng(14)
X = DRAW.normal(size=(5, 8))


def weights(leaves: str, rows: int = 8) -> dict[str, np.ndarray]:
    return {f"{leaf}.weight": DRAW.normal(size=(rows, 8)) for leaf in leaves.split()}


@pytest.mark.parametrize("form", [LINEAR, CONV1D, HEADS_FIRST, EINSUM])
def test_a_form_is_undone(form: Form) -> None:
    """Heads 2, width 3, 5 wide: every entry comes to its place of torch's Linear."""
    sizes = {"h": 2, "d": 3, "c": 5, "r": 6}
    stored = np.arange(30).reshape([sizes[axis] for axis in form.inputs])
    made = form.linear("query", stored)
    assert made.shape == form.rows_columns("query", stored.shape) == (6, 5)
    for row, column in np.ndindex(6, 5):
        at = {"h": row // 3, "d": row % 3, "c": column, "r": row}
        assert made[row, column] == stored[tuple(at[axis] for axis in form.inputs)]
    sizes |= {"r": 5, "c": 6}
    stored = np.arange(30).reshape([sizes[axis] for axis in form.output])
    made = form.linear("output", stored)
    for row, column in np.ndindex(5, 6):
        at = {"h": column // 3, "d": column % 3, "c": column, "r": row}
        assert made[row, column] == stored[tuple(at[axis] for axis in form.output)]


@pytest.mark.parametrize(
    "prefix", ["state_dict.model.", "module.", "_orig_mod.", "module._orig_mod.model.", "net/"]
)
def test_what_wraps_a_model_is_prefix(prefix: str) -> None:
    """Lightning, DeepSpeed and DDP, torch.compile, a flattened tree."""
    plain = weights("layers.3.self_attn.q_proj layers.3.self_attn.k_proj")
    plain |= weights("layers.3.self_attn.v_proj layers.3.self_attn.o_proj")
    said: dict[str, Any] = {"config": {"model_type": "llama"}, "heads": 2}
    wrapped = multihead(X, {f"{prefix}{name}": w for name, w in plain.items()}, **said)
    assert wrapped.layer.index == 3
    np.testing.assert_array_equal(wrapped.output, multihead(X, plain, **said).output)


def test_kernels_are_transposed_weights() -> None:
    """As transformers wrote BERT for Flax: the same names, kernel (in, out), scale of a norm."""
    start, leaves = "encoder.layer.1.attention", "self.query self.key self.value output.dense"
    torchs = weights(" ".join(f"{start}.{leaf}" for leaf in leaves.split()))
    flax = {
        "params/" + name.removesuffix("weight").replace(".", "/") + "kernel": w.T
        for name, w in torchs.items()
    }
    flax["params/encoder/layer/1/attention/output/LayerNorm/scale"] = np.ones(8)
    config = {"model_type": "bert", "num_attention_heads": 2}
    made = multihead(X, _bundle(flax), config=config)
    np.testing.assert_allclose(made.output, multihead(X, torchs, config=config).output, atol=1e-12)
    assert made.layer.index == 1 and made.layer.packing == "separate (in, out)"


def _bundle(arrays: dict[str, np.ndarray]) -> Bundle:
    from attncli.files.bundle import Lazy
    from attncli.files.formats.entry import Entry

    entries = {name: Entry(lambda a=a: a) for name, a in arrays.items()}
    return Bundle("weights", "npz", Lazy(entries))


def test_matrices_by_hand_are_no_transformerlens() -> None:
    names = {f"layers.0.attn.W_{n}": DRAW.normal(size=(8, 8)) for n in "QKVO"}
    assert load(names, heads=2).layout == "arrays"
    apart = {name: DRAW.normal(size=(2, 8, 4)) for name in names}
    apart["layers.0.attn.W_O"] = DRAW.normal(size=(2, 4, 8))
    layer = load(apart)
    assert (layer.layout, layer.heads, layer.head_dim) == ("TransformerLens", 2, 4)
    with pytest.raises(InputError, match="nothing says its model_type") as error:
        multihead(X, layer)
    assert "--arch transformerlens" in str(error.value.hint)
    apart["layers.0.attn.W_O"] = DRAW.normal(size=(8, 8))
    with pytest.raises(InputError, match=r"W_O' is \(8, 8\)") as error:
        load(apart)
    assert "(heads, width, out)" in str(error.value.hint)


@pytest.mark.parametrize(("name", "output"), [("flax", "out"), ("keras", "attention_output")])
def test_modules_of_query_key_value_may_be_any_models(name: str, output: str) -> None:
    """MaxText and KerasHub turn queries under the same names: plain attention must be asked for."""
    kernels = {f"a/{n}/kernel": DRAW.normal(size=(8, 2, 4)) for n in ("query", "key", "value")}
    kernels[f"a/{output}/kernel"] = DRAW.normal(size=(2, 4, 8))
    with pytest.raises(InputError, match="nothing says its model_type") as error:
        multihead(X, _bundle(kernels))
    assert f"--arch {name} where" in str(error.value.hint)
    assert not multihead(X, _bundle(kernels), arch=name).warnings


@pytest.mark.parametrize(
    ("path", "causal"),
    [
        ("decoder.layers.0.self_attention", True),
        ("language_model.encoder.layers.0.self_attention", True),
        ("encoder.layers.0.self_attention", False),
    ],
)
def test_megatrons_decoder_alone_is_causal(path: str, causal: bool) -> None:
    names = weights(f"{path}.linear_qkv", 24) | weights(f"{path}.linear_proj")
    assert load(names, config=MEGATRON).causal == causal


def test_the_transformer_engine_has_megatrons_norm_within() -> None:
    """Its names of what test_named.py holds against Megatron's own modules."""
    pytest.importorskip("torch")
    bundle = files.read(str(NAMED / "megatron.pt"))
    name = "self_attention.linear_qkv.layer_norm_weight"
    fused = {n.replace("input_layernorm.weight", name): bundle.tensors[n] for n in bundle.tensors}
    config = config_of(bundle, None)
    x = DRAW.normal(size=(5, 12))
    made = multihead(x, fused, config=config)
    assert made.layer.input_norm is not None and name in made.layer.input_norm.weights[0]
    np.testing.assert_array_equal(made.output, multihead(x, bundle).output)


LENS = {"d_model": 8, "d_head": 4, "n_ctx": 9, "n_heads": 2}
MEGATRON = {"num_attention_heads": 2, "kv_channels": 4, "num_layers": 1}
DIFFUSERS = {"_class_name": "UNet2DConditionModel", "attention_head_dim": 8}


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ({"n_embd": 8, "block_size": 9, "n_head": 2, "use_softermax": True}, "use_softermax"),
        ({**LENS, "positional_embedding_type": "alibi"}, "positional_embedding_type 'alibi'"),
        ({**MEGATRON, "window_size": [3, 0]}, "window_size"),
        ({**MEGATRON, "position_embedding_type": "yarn"}, "position_embedding_type 'yarn'"),
        ({**MEGATRON, "tensor_model_parallel_size": 2}, "one of 2 parts"),
        ({**MEGATRON, "checkpoint_version": 1.0}, "checkpoint_version 1.0"),
        ({**DIFFUSERS, "only_cross_attention": True}, "only_cross_attention"),
    ],
)
def test_an_argument_that_is_not_computed_is_said(said: dict[str, Any], what: str) -> None:
    found = config_of(Bundle("weights", "torch", {}), said)
    assert found is not None and any(what in text for text in found[" unknown"])
    names = weights("blocks.0.attn.qkv", 24) | weights("blocks.0.attn.proj")
    with pytest.raises(InputError, match=what):
        multihead(X, names, config=said, heads=2)


def test_a_class_of_diffusers_that_is_not_in_the_table_is_refused() -> None:
    names = weights("b.0.attn.to_q b.0.attn.to_k b.0.attn.to_v b.0.attn.to_out.0")
    with pytest.raises(InputError, match="'footransformer' is not in the table"):
        multihead(X, names, config={"_class_name": "FooTransformer", "num_attention_heads": 2})


def test_a_unet_says_heads_by_block() -> None:
    leaves = "to_q to_k to_v to_out.0"
    places = ("down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.2")
    names = [f"{at}.attentions.0.attn1.{leaf}" for at in places for leaf in leaves.split()]
    config = {"_class_name": "UNet2DConditionModel", "attention_head_dim": [1, 2, 4]}
    found, _ = every_layer(weights(" ".join(names)), config=config)
    assert [layer.heads for layer in found] == [2, 4, 4, 1]


def test_joint_attention_needs_its_other_stream() -> None:
    file, name = str(NAMED / "sd3"), "transformer_blocks.0.attn"
    x = DRAW.normal(size=(1, 4, 12))
    with pytest.raises(InputError, match="two streams") as error:
        multihead(x, file, layer=name)
    assert "--memory" in str(error.value.hint)
    with pytest.raises(InputError, match="both streams have the same batch"):
        multihead(x, file, layer=name, memory=np.ones((2, 3, 12)))
    made = multihead(x, file, layer=name, memory=np.ones((1, 3, 12)))
    assert (made.query.shape, made.key.shape) == ((1, 3, 4, 4), (1, 3, 7, 4))


def test_half_of_a_second_stream_is_no_joint_attention(tmp_path: Path) -> None:
    bundle = files.read(str(NAMED / "sd3"))
    arrays = {name: bundle.tensors[name] for name in bundle.tensors if "add_k_proj" not in name}
    config = str(NAMED / "sd3" / "config.json")
    layer = load(arrays, config=config, layer="transformer_blocks.0.attn")
    assert layer.kind == "self"
    with pytest.raises(InputError, match="tensors beside it are not used: add_q_proj"):
        multihead(np.ones((4, 12)), layer)


def test_a_part_of_a_checkpoint_keeps_its_arguments() -> None:
    pytest.importorskip("torch")
    layer = load(f"{NAMED / 'nanogpt.pt'}::model", layer=1)
    assert (layer.heads, layer.heads_source) == (3, "its own model_args")


def test_a_namespace_is_read_and_no_other_class(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "ckpt.pt"
    torch.save({"args": argparse.Namespace(n=3, name="a"), "w": torch.ones(2)}, path)
    found = files.read(str(path))
    assert dict(found.options) == {"args.n": 3, "args.name": "a"}
    torch.save({"args": PurePosixPath("a"), "w": torch.ones(2)}, path)
    with pytest.raises(FileError, match=r"asks for pathlib\.PurePosixPath"):
        files.read(str(path))


class TestMetasParts:
    """One file a rank: all of them or none."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        pytest.importorskip("torch")
        return Path(shutil.copytree(NAMED / "meta", tmp_path / "meta"))

    def test_one_part_is_read_with_the_others(self, folder: Path) -> None:
        whole, part = (load(str(path)) for path in (folder, folder / "consolidated.01.pth"))
        assert (whole.heads, whole.kv_heads, whole.model_dim) == (4, 2, 24)
        assert part.projections().query.shape == whole.projections().query.shape == (24, 24)
        assert whole.bundle is not None and "2 files" in whole.bundle.notes[0]

    def test_a_part_that_is_missing_is_named(self, folder: Path) -> None:
        (folder / "consolidated.01.pth").rename(folder / "consolidated.02.pth")
        with pytest.raises(FileError, match=r"consolidated\.01\.pth is missing"):
            files.read(str(folder / "consolidated.00.pth"))

    def test_parts_of_different_tensors_are_refused(self, folder: Path) -> None:
        import torch

        path = folder / "consolidated.01.pth"
        some = torch.load(path)
        odd = some.pop("layers.0.attention.wk.weight")
        torch.save(some, path)
        with pytest.raises(FileError, match=r"wk\.weight' is in .*00\.pth alone"):
            files.read(str(folder))
        torch.save({**some, "layers.0.attention.wk.weight": odd[:, :3].clone()}, path)
        with pytest.raises(FileError, match=r"nothing says how .*wk\.weight"):
            files.read(str(folder))
