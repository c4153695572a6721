"""One model in the names, packings and forms of several libraries: its circuits are the same.

Composition, copying and matching of a model as transformers saves it, against the same weights as
GGUF, Flax, TransformerLens and Megatron have them; and layers whose weights are FP8, int8 or
adapted beneath latents, gates and Conv1D.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attncli.measures.circuits import weight_facts
from attncli.measures.composition import compositions
from attncli.models.finding import every_layer
from attncli.models.layer import Layer
from attncli.models.stream import output_norm, streams
from attncli.studies.layer import multihead
from attncli.studies.weight_changes import unseen_tensors
from tests.support import gguf_files, zoo

pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]
CASES = Path(__file__).parents[1] / "cases" / "named"


def tensors(model: Any) -> Arrays:
    return {name: tensor.detach().numpy() for name, tensor in model.state_dict().items()}


def flax(model: Any) -> tuple[Arrays, dict[str, Any]]:
    """BERT as transformers' Flax saved it: kernels, scales, embeddings."""
    found = {}
    for name, array in tensors(model).items():
        stem, _, leaf = name.rpartition(".")
        kind = "scale" if "LayerNorm" in stem else "kernel"
        kind = "embedding" if stem.endswith("_embeddings") else kind
        turned = array.T if kind == "kernel" and leaf == "weight" else array
        found[f"params/{stem}.{kind if leaf == 'weight' else leaf}".replace(".", "/")] = turned
    return found, model.config.to_dict()


def lens(model: Any) -> tuple[Arrays, dict[str, Any]]:
    """GPT-2 as TransformerLens has it, nothing folded."""
    own, heads, width = tensors(model), model.config.n_head, model.config.n_embd
    made = {
        "embed.W_E": own["wte.weight"], "unembed.W_U": own["wte.weight"].T,
        "ln_final.w": own["ln_f.weight"], "ln_final.b": own["ln_f.bias"],
    }  # fmt: skip
    for n in range(model.config.n_layer):
        attn, block = f"blocks.{n}.attn", f"h.{n}.attn"
        parts = np.split(own[f"{block}.c_attn.weight"], 3, axis=1)
        biases = np.split(own[f"{block}.c_attn.bias"], 3)
        for letter, part, bias in zip("QKV", parts, biases, strict=True):
            made[f"{attn}.W_{letter}"] = part.reshape(width, heads, -1).transpose(1, 0, 2)
            made[f"{attn}.b_{letter}"] = bias.reshape(heads, -1)
        made[f"{attn}.W_O"] = own[f"{block}.c_proj.weight"].reshape(heads, -1, width)
        made[f"{attn}.b_O"] = own[f"{block}.c_proj.bias"]
        made[f"blocks.{n}.ln1.w"] = own[f"h.{n}.ln_1.weight"]
        made[f"blocks.{n}.ln1.b"] = own[f"h.{n}.ln_1.bias"]
    config = dict(
        d_model=width, d_head=width // heads, n_heads=heads, n_ctx=64, normalization_type="LN",
        positional_embedding_type="standard", eps=1e-5,
    )  # fmt: skip
    return made, config


def megatron(model: Any) -> tuple[Arrays, dict[str, Any]]:
    """Llama as Megatron-Core has it."""
    own, config = tensors(model), model.config
    groups, model_dim = config.num_key_value_heads, config.hidden_size
    made = {"embedding.word_embeddings.weight": own["embed_tokens.weight"]}
    for n in range(config.num_hidden_layers):
        attn, block = f"decoder.layers.{n}.self_attention", f"layers.{n}"
        each = [own[f"{block}.self_attn.{letter}_proj.weight"].reshape(groups, -1, model_dim)
                for letter in "qkv"]  # fmt: skip
        made[f"{attn}.linear_qkv.weight"] = np.concatenate(each, axis=1).reshape(-1, model_dim)
        made[f"{attn}.linear_proj.weight"] = own[f"{block}.self_attn.o_proj.weight"]
        norm = own[f"{block}.input_layernorm.weight"]
        made[f"{attn}.linear_qkv.layer_norm_weight"] = norm
    said = dict(
        num_attention_heads=config.num_attention_heads, num_query_groups=groups, num_layers=4,
        group_query_attention=True, kv_channels=config.head_dim, normalization="RMSNorm",
        position_embedding_type="rope", rotary_base=10000,
    )  # fmt: skip
    return made, said


def scores(layers: list[Layer]) -> Array:
    return np.concatenate([one.scores.ravel() for one in compositions(streams(layers))])


def statistic(layers: list[Layer], name: str) -> Array:
    return np.concatenate([one[name] for one in weight_facts(layers)])


def assert_alike(theirs: list[Layer], ours: list[Layer], *names: str) -> None:
    assert len(ours) == len(theirs) > 1
    expected = scores(theirs)
    assert np.isfinite(expected).sum() > 100
    np.testing.assert_allclose(scores(ours), expected, atol=2e-6)
    assert not any(unseen_tensors(a, b) for a, b in zip(theirs, ours, strict=True))
    for name in names:
        expected = statistic(theirs, name)
        assert np.isfinite(expected).all(), name
        np.testing.assert_allclose(statistic(ours, name), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "made", "names"),
    [
        ("bert", flax, ("matching", "ov_norm")),
        ("gpt2", lens, ("matching", "copying", "ov_norm")),
        ("llama", megatron, ("matching", "ov_norm")),
    ],
)
def test_a_model_has_one_set_of_circuits_whatever_library_names_it(
    tmp_path: Path, kind: str, made: Callable[[Any], Any], names: tuple[str, ...]
) -> None:
    model = zoo.build(kind)
    model.save_pretrained(tmp_path)
    arrays, config = made(model)
    assert_alike(every_layer(str(tmp_path))[0], every_layer(arrays, config=config)[0], *names)


@pytest.mark.parametrize(
    "kind", ["bert", "bloom", "gemma2", "gemma3_text", "glm4", "glm4_moe", "gpt2", "olmo2", "olmo3"]
)
def test_gguf_has_the_norms_of_its_family(tmp_path: Path, kind: str) -> None:
    """Also behind the attention and on the stream, where its names are of its own."""
    pytest.importorskip("gguf")
    model = zoo.build(kind)
    model.save_pretrained(tmp_path)
    path = str(tmp_path / "other.gguf")
    gguf_files.write(model, path, whole=True)
    assert_alike(every_layer(str(tmp_path))[0], every_layer(path)[0], "matching", "ov_norm")


def test_the_embedding_of_a_gguf_is_dequantised_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = pytest.importorskip("gguf")
    from attncli.measures import copying

    kind = gguf.GGMLQuantizationType.Q8_0
    writer, rng = gguf.GGUFWriter(str(tmp_path / "model.gguf"), "llama"), np.random.default_rng(0)
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_head_count(2)
    for name, rows in (("token_embd", 96), *((f"blk.0.attn_{n}", 32) for n in "qkv"),
                       ("blk.0.attn_output", 32)):  # fmt: skip
        array = rng.standard_normal((rows, 32), np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    layers, _ = every_layer(str(tmp_path / "model.gguf"))
    expected = statistic(layers, "copying")
    sizes: list[int] = []
    real = gguf.quants.dequantize

    def watched(data: Array, what: Any) -> Array:
        sizes.append(len(data))
        return np.asarray(real(data, what))

    monkeypatch.setattr(gguf.quants, "dequantize", watched)
    monkeypatch.setattr(copying, "CHUNK", 32 * 24)
    np.testing.assert_allclose(statistic(layers, "copying"), expected, rtol=1e-5)
    assert sizes.count(24) == 4 and max(sizes) == 32


# -- streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_image_and_text_of_joint_attention_are_streams_apart(name: str) -> None:
    some = streams(every_layer(str(CASES / name))[0])
    assert len(some) == 2
    assert {one.name.endswith(".text") for one in some[0].layers} == {True}
    assert {one.name.endswith(".text") for one in some[1].layers} == {False}


def test_attentions_side_by_side_read_nothing_of_each_other() -> None:
    """SD3's second one takes the same sum as the joint one; the next block reads both."""
    image = streams(every_layer(str(CASES / "sd3"))[0])[1]
    assert [one.name.removeprefix("transformer_blocks.") for one in image.layers] == [
        "0.attn", "0.attn2", "1.attn",
    ]  # fmt: skip
    (found,) = compositions([image])
    pairs = {
        (found.heads[w][0], found.heads[r][0])
        for w, r in zip(*np.nonzero(np.isfinite(found.scores[0])), strict=True)
    }
    assert pairs == {(0, 2), (1, 2)}


def test_two_attentions_of_a_block_write_one_after_the_other(tmp_path: Path) -> None:
    zoo.build("longcat_flash").save_pretrained(tmp_path)
    (one,) = streams(every_layer(str(tmp_path))[0])
    assert one.name == "layers"
    assert [layer.name.removeprefix("layers.") for layer in one.layers] == [
        f"{block}.self_attn.{n}" for block in (0, 1) for n in (0, 1)
    ]


def test_words_before_a_blocks_number_are_its_stacks() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"params/{side}block_{n}/attn/{leaf}/kernel": rng.normal(size=shape).astype(np.float32)
        for side in ("encoder", "decoder") for n in (10, 2)
        for leaf, shape in (*dict.fromkeys(("query", "key", "value"), (8, 2, 4)).items(),
                            ("out", (2, 4, 8)))
    }  # fmt: skip
    some = streams(every_layer(arrays, arch="flax")[0])
    assert {one.name: [layer.index for layer in one.layers] for one in some} == {
        "params.encoderblock": [2, 10], "params.decoderblock": [2, 10],
    }  # fmt: skip


@pytest.mark.parametrize("kind", [
    "afmoe", "olmo_hybrid", "gemma2", "glm4", "dinov2", "axk1", "llama", "seed_oss",
])  # fmt: skip
def test_what_norms_or_scales_an_output_is_what_the_model_gives_it_to(
    tmp_path: Path, kind: str
) -> None:
    """By a hook on every module: which has the output for its input, and parameters."""
    import torch

    model = zoo.build(kind)
    model.save_pretrained(tmp_path)
    layers, _ = every_layer(str(tmp_path))
    seen = [zoo.Passed() for _ in layers]
    modules = {zoo._bytes(one.weight.detach().numpy()): (name, one)
               for name, one in model.named_modules()
               if isinstance(getattr(one, "weight", None), torch.Tensor)}  # fmt: skip
    calls: list[tuple[Any, Any]] = []
    for _, one in model.named_modules():
        one.register_forward_hook(lambda module, args, _: calls.append((module, args[:1])))
    for layer, one in zip(layers, seen, strict=True):
        list(zoo._hooks(layer, one, modules))
    with torch.no_grad():
        model(**zoo.inputs(kind, model))
    for layer, passed in zip(layers, seen, strict=True):
        takes = [module for module, args in calls
                 if args and torch.is_tensor(args[0]) and args[0].shape == passed.output.shape
                 and torch.equal(args[0], passed.output)]  # fmt: skip
        gains = [p.detach().numpy() for module in takes for p in module.parameters()]
        norm = output_norm(layer)
        assert len(gains) == bool(norm)
        if norm:
            np.testing.assert_array_equal(layer.tensor(norm.weights[0]), gains[0])


def test_layer_scale_of_beit_is_within(tmp_path: Path) -> None:
    model = zoo.build("beit")
    model.save_pretrained(tmp_path)
    scales = [p.detach().numpy() for n, p in model.named_parameters() if n.endswith("lambda_1")]
    for layer, scale in zip(every_layer(str(tmp_path))[0], scales, strict=True):
        norm = output_norm(layer)
        assert norm is not None and norm.kind == "scale"
        np.testing.assert_array_equal(layer.tensor(norm.weights[0]), scale)


# -- forms ------------------------------------------------------------------------------------


def fp8(arrays: Arrays, names: list[str]) -> tuple[Arrays, Arrays]:
    """Blocks of 16 × 8, and what they stand for."""
    rng, stored, plain = np.random.default_rng(0), dict(arrays), dict(arrays)
    for name in names:
        rows, columns = arrays[name].shape
        stored[name] = (arrays[name] * 100).astype(ml_dtypes.float8_e4m3fn)
        scale = rng.uniform(0.005, 0.02, (-(-rows // 16), -(-columns // 8))).astype(np.float32)
        stored[f"{name}_scale_inv"] = scale
        each = np.repeat(np.repeat(scale, 16, 0), 8, 1)[:rows, :columns]
        plain[name] = stored[name].astype(np.float32) * each
    return stored, plain


def int8(arrays: Arrays, names: list[str]) -> tuple[Arrays, Arrays]:
    stored, plain = dict(arrays), dict(arrays)
    for name in names:
        scale = np.abs(arrays[name]).max(1)
        stored[name] = np.rint(arrays[name] / scale[:, None] * 127).astype(np.int8)
        stored[f"{name.removesuffix('weight')}SCB"] = scale
        plain[name] = stored[name].astype(np.float32) * (scale / np.float32(127))[:, None]
    return stored, plain


@pytest.mark.parametrize("form", [fp8, int8])
@pytest.mark.parametrize(
    "kind", ["deepseek_v3", "qwen3_next", "afmoe", "bailing_hybrid", "gpt2", "deberta-v2", "falcon"]
)
def test_latents_gates_and_conv1d_in_low_numbers(
    kind: str, form: Callable[[Arrays, list[str]], tuple[Arrays, Arrays]]
) -> None:
    model = zoo.build(kind)
    arrays, config = tensors(model), model.config.to_dict()
    layers, _ = every_layer(arrays, config=config)
    names = {name for layer in layers for name in layer.tensors.values()}
    low = sorted(name for name in names if arrays[name].ndim == 2)
    stored, plain = form(arrays, low)
    said = {"quantization_config": {"weight_block_size": [16, 8]}}
    ours, _ = every_layer(stored, config=config | said)
    for one, other in zip(ours, every_layer(plain, config=config)[0], strict=True):
        assert (one.scale, one.packing, one.mask, one.lacks) == (
            other.scale, other.packing, other.mask, other.lacks,
        )  # fmt: skip
        x = np.random.default_rng(1).normal(size=(2, 5, one.model_dim)).astype(np.float32)
        np.testing.assert_array_equal(multihead(x, one).output, multihead(x, other).output)
