"""Multi-head latent attention: as it is computed, absorbed as kernels do; bad checkpoints."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.attention.rope import rotate
from attncli.attention.rope_scaling import frequencies
from attncli.errors import InputError
from attncli.measures.circuits import circuits_of
from attncli.models.finding import find_layers
from attncli.models.latent import expanded
from attncli.models.layer import Layer
from attncli.studies.compare.layers import compare_layer
from attncli.studies.layer import multihead
from tests.support.layers import bundle_of, one, states

H, N, R, V, RANK, QUERY, E, L = 5, 10, 6, 7, 18, 14, 24, 9
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
CONFIG = {"model_type": "deepseek_v3", "num_attention_heads": H, "rope_parameters": YARN}
SHAPES = {
    "q_a_proj": (QUERY, E), "q_a_layernorm": (QUERY,), "q_b_proj": (H * (N + R), QUERY),
    "kv_a_proj_with_mqa": (RANK + R, E), "kv_a_layernorm": (RANK,),
    "kv_b_proj": (H * (N + V), RANK), "o_proj": (E, H * V),
}  # fmt: skip


def tensors(**change: Any) -> list[tuple[str, tuple[int, ...]]]:
    shapes = {**SHAPES, **change}
    return [(f"layers.0.self_attn.{n}.weight", s) for n, s in shapes.items() if s is not None]


def latent(config: Any = None, **change: Any) -> Layer:
    return one(*tensors(**change), config=config or CONFIG)


def weight(layer: Layer, leaf: str) -> Any:
    return layer.tensor(f"layers.0.self_attn.{leaf}.weight").astype(np.float64)


def rms(x: Any, gain: Any) -> Any:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * gain


def test_the_sizes_are_those_of_the_weights() -> None:
    layer = latent()
    assert (layer.heads, layer.kv_heads, layer.head_dim, layer.value_dim) == (H, H, N + R, V)
    assert layer.heads_source == "the weights" and layer.mask == "causal"
    assert layer.latent is not None and (layer.latent.rank, layer.latent.turned) == (RANK, R)
    assert layer.rope is not None and (layer.rope.dim, layer.rope.start) == (R, N)
    assert layer.rope.style == "interleaved" and "from channel 10" in layer.rope.text
    assert layer.parameters == sum(int(np.prod(s)) for s in SHAPES.values())


def test_the_scale_has_the_square_of_yarns_mscale() -> None:
    assert latent().scale == pytest.approx((0.1 * np.log(40) + 1) ** 2 / np.sqrt(N + R))
    for settings in ({**YARN, "mscale_all_dim": 0}, {"rope_type": "default", "rope_theta": 1e4}):
        plain = latent({**CONFIG, "rope_parameters": settings})
        assert plain.scale == pytest.approx(1 / np.sqrt(N + R))


def absorbed(layer: Layer, x: Any) -> Any:
    """The same layer with one key/value head: the latent beside the turned channels."""
    assert layer.rope is not None
    q = rms(x @ weight(layer, "q_a_proj").T, weight(layer, "q_a_layernorm"))
    q = (q @ weight(layer, "q_b_proj").T).reshape(L, H, N + R).swapaxes(0, 1)  # (H, L, D)
    down = x @ weight(layer, "kv_a_proj_with_mqa").T
    narrow = rms(down[:, :RANK], weight(layer, "kv_a_layernorm"))
    up = weight(layer, "kv_b_proj").reshape(H, N + V, RANK)
    inverse, factor = frequencies(R, 1e4, layer.rope.scaling)
    angle = np.arange(L)[:, None] * inverse
    turn = np.cos(angle) * factor, np.sin(angle) * factor
    query = np.concatenate([q[..., :N] @ up[:, :N], rotate(q[..., N:], *turn, "interleaved")], -1)
    key = np.concatenate([narrow, rotate(down[:, RANK:], *turn, "interleaved")], -1)
    scores = query @ key.T * layer.scale
    scores = np.where(np.tri(L, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    heads = (weights @ narrow) @ up[:, N:].swapaxes(1, 2)  # (H, L, V)
    return heads.swapaxes(0, 1).reshape(L, H * V) @ weight(layer, "o_proj").T


def test_the_absorbed_form_gives_the_same() -> None:
    layer, x = latent(), states(L, E)
    made = multihead(x, layer)
    assert made.key.shape == (H, L, N + R) and made.value.shape == (H, L, V)
    np.testing.assert_allclose(made.output, absorbed(layer, x), rtol=0, atol=1e-11)


def test_a_cache_gives_what_the_whole_gives() -> None:
    layer, x = latent(), states(L, E)
    whole = multihead(x, layer)
    some = multihead(
        x[5:], layer, past_key=whole.key[:, :5], past_value=whole.value[:, :5],
        positions=np.arange(5, L),
    )  # fmt: skip
    np.testing.assert_allclose(some.output, whole.output[5:], atol=1e-12)


def test_rope_that_is_given_turns_the_last_channels() -> None:
    layer, x = latent(), states(L, E)
    assert layer.rope is not None
    given = {"style": "interleaved", "theta": 1e4, "scaling": layer.rope.scaling}
    np.testing.assert_array_equal(
        multihead(x, layer, rope=given).output, multihead(x, layer).output
    )


def test_the_circuit_is_that_of_the_products() -> None:
    layer = latent()
    whole = expanded(layer, layer.projections())
    assert whole.query.shape == (H * (N + R), E) == whole.key.shape
    down = weight(layer, "kv_a_layernorm")[:, None] * weight(layer, "kv_a_proj_with_mqa")[:RANK]
    query = weight(layer, "q_b_proj") @ (
        weight(layer, "q_a_layernorm")[:, None] * weight(layer, "q_a_proj")
    )
    up = weight(layer, "kv_b_proj").reshape(H, N + V, RANK)
    shared = weight(layer, "kv_a_proj_with_mqa")[RANK:]
    found = circuits_of(layer).qk[:, 0]
    for h in range(H):
        key = np.concatenate([up[h, :N] @ down, shared])
        circuit = query[h * (N + R) : (h + 1) * (N + R)].T @ key
        assert found[h] == pytest.approx(np.linalg.norm(circuit, 2), rel=1e-4)


BROKEN = {
    "no norm of the latent": (dict(kv_a_layernorm=None), "has no kv_a_layernorm"),
    "no norm of the queries'": (dict(q_a_layernorm=None), "has no q_a_layernorm"),
    "half of kv_b_proj": (dict(kv_b_proj=(H * (N + V) - 1, RANK)), "how many heads|go together"),
    "another rank": (dict(kv_b_proj=(H * (N + V), RANK + 7)), "how many heads|go together"),
    "another output": (dict(o_proj=(E, H * V + 3)), "how many heads|go together"),
    "no down projection": (dict(kv_a_proj_with_mqa=None), "no attention layer that is known"),
    "no up projection": (dict(kv_b_proj=None), "no attention layer that is known"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_checkpoint_is_an_error_that_says_so(what: str) -> None:
    change, message = BROKEN[what]
    with pytest.raises(InputError, match=message) as error:
        latent(**change)
    assert error.value.hint


def test_what_does_not_fit_is_refused() -> None:
    layer = latent()
    with pytest.raises(InputError, match="layer with latents"):
        multihead(states(L, E), layer, memory=states(4, E), memory_value=states(4, E))
    with pytest.raises(InputError, match="--heads is 4 but"):
        find_layers(bundle_of(*tensors()), CONFIG, heads=4)
    other = latent({**CONFIG, "num_attention_heads": 3, "v_head_dim": 8})
    assert any("heads 3" in note for note in other.notes)
    assert any("v_head_dim 8" in note for note in other.notes)


def test_without_a_config_nothing_is_assumed() -> None:
    layer = one(*tensors())
    with pytest.raises(InputError, match="nothing says its model_type") as error:
        multihead(states(L, E), layer)
    assert "--arch deepseek_v3 where it is built like that" in str(error.value.hint)


@pytest.mark.parametrize(
    ("words", "change"),
    [("--scale", {"scale": 1 / np.sqrt(N + R)}), ("--rope", {"rope": "none"})],
)
def test_a_layer_that_was_computed_otherwise_is_explained(words: str, change: Any) -> None:
    layer, x = latent(), states(24, E).astype(np.float32)
    wrong = multihead(x, layer, **change).output
    found = compare_layer(multihead(x, layer), {"output": wrong})
    assert not found.passed
    assert any(words in one.text and one.passed for one in found.explanations)
