"""What lies before and behind the projections is part of a head's circuits, where it can be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.files.bundle import Bundle
from attncli.measures.circuits import layer_facts
from attncli.measures.folding import parts_of
from attncli.models.finding import find_layers
from attncli.reports.weights import asides

RNG = np.random.default_rng(3)
D, HEADS, WIDTH = 4, 3, 10
PLACE = "model.layers.0."


def layer(model_type: str, **more: Any) -> Any:
    """A layer of random weights and the norms that are ``more``: a shape each."""
    shapes = {f"self_attn.{r}_proj": (HEADS * D, WIDTH) for r in "qkv"}
    shapes |= {"self_attn.o_proj": (WIDTH, HEADS * D), "input_layernorm": (WIDTH,)}
    shapes |= {name.replace("__", "."): shape for name, shape in more.items()}
    tensors = {f"{PLACE}{name}.weight": RNG.normal(size=shape) for name, shape in shapes.items()}
    config = {"model_type": model_type, "num_attention_heads": HEADS, "head_dim": D}
    return find_layers(Bundle("x", "arrays", tensors), config)[0]


@pytest.mark.parametrize(
    ("model_type", "shape"), [("qwen3", (D,)), ("olmo2", (HEADS * D,)), ("cohere", (HEADS, D))]
)
def test_gains_of_qk_norm_are_within(model_type: str, shape: tuple[int, ...]) -> None:
    """A gain a channel, a gain a channel of all heads, LayerNorm of each head."""
    one = layer(model_type, self_attn__q_norm=shape, self_attn__k_norm=shape)
    w = {name.removeprefix(PLACE): array for name, array in one.bundle.tensors.items()}
    facts = layer_facts(one)
    before = np.eye(WIDTH)
    if one.input_norm is not None:
        before = np.diag(w["input_layernorm.weight"])
        before = before @ (np.eye(WIDTH) - one.input_norm.centred / WIDTH)
    for h in range(HEADS):
        sides = []
        for role in "qk":
            gain = np.broadcast_to(w[f"self_attn.{role}_norm.weight"].reshape(-1, D), (HEADS, D))
            part = w[f"self_attn.{role}_proj.weight"][D * h : D * h + D] @ before
            if one.query_norm.centred:
                part = part - part.mean(0)
            sides.append(gain[h][:, None] * part)
        largest = np.linalg.norm(sides[0].T @ sides[1], 2) * one.scale
        assert facts["largest_logit"][h] == pytest.approx(largest, rel=1e-6)
    assert "gains of qk-norm within, not what it divides by" in asides([one])


def test_a_centred_norm_over_all_heads_takes_their_common_mean() -> None:
    one = layer("stablelm", self_attn__q_norm=(HEADS * D,), self_attn__k_norm=(HEADS * D,))
    if not (one.query_norm.centred and one.query_norm.full):
        pytest.fail(f"{one.query_norm}")
    query = parts_of(one).query
    gain = one.tensor(one.query_norm.weights[0]).reshape(HEADS, D, 1)
    assert np.abs((query / gain).sum((0, 1))).max() < 1e-6
    assert np.abs((query / gain).sum(1)).max() > 0.1


@pytest.mark.parametrize(
    ("model_type", "norms", "plus"),
    [
        ("gemma2", ("post_attention_layernorm", "post_feedforward_layernorm"), 1),
        ("olmo2", ("post_attention_layernorm", "post_feedforward_layernorm"), 0),
        ("hyperclovax", ("post_norm1", "post_norm2"), 0),
        ("glm4", ("post_self_attn_layernorm", "post_attention_layernorm"), 0),
        ("llama", ("post_attention_layernorm",), None),  # before the MLP
    ],
)
def test_the_gain_of_the_outputs_norm_is_within(
    model_type: str, norms: tuple[str, ...], plus: int | None
) -> None:
    one = layer(model_type, **dict.fromkeys(norms, (WIDTH,)))
    w = one.bundle.tensors
    gain = 1 if plus is None else w[f"{PLACE}{norms[0]}.weight"] + plus
    output = w[f"{PLACE}self_attn.o_proj.weight"].T.reshape(HEADS, D, WIDTH)
    np.testing.assert_allclose(parts_of(one).output, output * gain)
    assert ("the output's norm" in " ".join(asides([one]))) == (plus is not None)
