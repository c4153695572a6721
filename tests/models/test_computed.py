"""Gates, temperature, chunks, two lists of RoPE's factors, DeBERTa's terms, linear attention."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from attncli.attention.rope import Rope
from attncli.attention.rope_scaling import frequencies
from attncli.errors import InputError
from attncli.measures.circuits import layer_facts
from attncli.models.finding import load
from attncli.models.layer import Disentangled, Layer, Temperature
from attncli.studies.compare.layers import compare_layer
from attncli.studies.layer import multihead
from tests.support.layers import QKVO, apart, one, states

E, H, D = 24, 4, 6


def gated(rows: int = H * D, **config: Any) -> Layer:
    """AFMoE's layer: gate_proj beside the others."""
    own = [("layers.0.self_attn.gate_proj.weight", (rows, E))]
    members = {"model_type": "afmoe", "num_attention_heads": H} | config
    return one(*apart("layers.0.self_attn", QKVO, *[(E, E)] * 4), *own, config=members)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("rows", [H * D, H])
def test_a_gate_multiplies_channels_or_heads(rows: int) -> None:
    layer, x = gated(rows), states(7, E)
    made = multihead(x, layer)
    gate = sigmoid(x @ layer.tensor("layers.0.self_attn.gate_proj.weight").T)
    heads = np.asarray(made.heads).swapaxes(0, 1)  # (L, H, D), before the gate
    side = (heads * gate.reshape(7, H, -1)).reshape(7, E)
    np.testing.assert_allclose(made.concat, side, atol=1e-12)
    weight = layer.tensor("layers.0.self_attn.o_proj.weight").astype(float)
    np.testing.assert_allclose(made.output, side @ weight.T, atol=1e-12)
    parts = [np.linalg.norm(side[:, h * D : (h + 1) * D] @ weight[:, h * D : (h + 1) * D].T,
             axis=-1) for h in range(H)]  # fmt: skip
    np.testing.assert_allclose(made.contributions, parts, atol=1e-10)


def test_half_of_the_querys_rows_may_be_the_gates() -> None:
    shapes = ((2 * H * D, E), (E, E), (E, E), (E, E))
    config = {"model_type": "qwen3_next", "num_attention_heads": H, "layer_types": ["full"]}
    doubled = one(*apart("layers.0.self_attn", QKVO, *shapes), config=config)
    assert doubled.head_dim == D and doubled.packing == "per head [q, gate]" and doubled.gated
    made = doubled.projections()
    whole = doubled.tensor("layers.0.self_attn.q_proj.weight").reshape(H, 2, D, E)
    assert made.gate is not None
    np.testing.assert_array_equal(made.query, whole[:, 0].reshape(-1, E))
    np.testing.assert_array_equal(made.gate, whole[:, 1].reshape(-1, E))
    single = one(*apart("layers.0.self_attn", QKVO, *[(E, E)] * 4), config=config)
    assert single.packing == "separate" and not single.gated


def test_a_gate_of_a_family_that_has_none_is_refused() -> None:
    layer = gated(model_type="llama")
    with pytest.raises(InputError, match="tensors beside it are not used: gate_proj"):
        multihead(states(3, E), layer)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_gated_layer_is_judged_with_its_gate(dtype: str) -> None:
    layer, x = gated(), states(30, E).astype(np.float32)
    made = multihead(x, layer, dtype=dtype)
    assert compare_layer(made, {"output": made.output}).passed
    weights = apart("layers.0.self_attn", QKVO, *[(E, E)] * 4)
    plain = one(*weights, config={"model_type": "afmoe", "num_attention_heads": H}, arch="afmoe")
    found = compare_layer(made, {"output": multihead(x, plain, dtype=dtype).output})
    assert "the heads' outputs are not gated" in str(found)


LLAMA_4 = {
    "model_type": "llama4_text", "num_attention_heads": H, "attention_chunk_size": 4,
    "no_rope_layers": [1, 0], "floor_scale": 3, "attn_scale": 0.3,
}  # fmt: skip


def llama4(index: int, **config: Any) -> Layer:
    path = f"layers.{index}.self_attn"
    return one(*apart(path, QKVO, *[(E, E)] * 4), config=LLAMA_4 | config)


def test_llama_4_has_chunks_where_it_turns_and_temperature_where_it_does_not() -> None:
    turned, plain = llama4(0), llama4(1)
    assert turned.mask == "chunks(4)" and turned.rope is not None and turned.temperature is None
    assert turned.query_norm is not None and turned.norm_after_rope
    assert plain.mask == "causal" and plain.rope is None and plain.query_norm is None
    assert plain.temperature == Temperature(0.3, 3.0, 1)
    assert llama4(0, attention_chunk_size=None).mask == "causal"
    assert llama4(1, attn_temperature_tuning=False).temperature is None


def test_a_temperature_grows_by_steps() -> None:
    at = Temperature(0.3, 3.0, 1).at(np.arange(7))
    expected = [1 + 0.3 * math.log(1 + (p + 1) // 3) for p in range(7)]
    np.testing.assert_allclose(at, expected)
    x = states(7, E)
    layer = llama4(1)
    hot = multihead(x, layer, want=("output", "scores"))
    cold = multihead(x, llama4(1, attn_temperature_tuning=False), want=("output", "scores"))
    assert hot.attention.stages is not None and cold.attention.stages is not None
    np.testing.assert_allclose(
        hot.attention.stages["scores"], cold.attention.stages["scores"] * at[:, None], atol=1e-12
    )


@pytest.mark.parametrize("index", [0, 1])
def test_a_cache_goes_on_where_it_ended(index: int) -> None:
    layer, x = llama4(index), states(11, E)
    whole = multihead(x, layer)
    past = {"past_key": whole.key[:, :6], "past_value": whole.value[:, :6]}
    np.testing.assert_allclose(multihead(x[6:], layer, **past).output, whole.output[6:], atol=1e-12)
    given = multihead(x, layer, positions=np.arange(11))
    np.testing.assert_allclose(given.output, whole.output, atol=1e-12)
    with pytest.raises(InputError, match="positions is"):
        multihead(x, layer, positions=np.arange(5))


@pytest.mark.parametrize("polarity", ["keep", "ignore"])
def test_chunks_begin_at_the_first_real_token(polarity: str) -> None:
    layer, x = llama4(0, use_qk_norm=False), states(9, E)
    padded = np.concatenate([np.full((3, E), 5.0), x])
    mask = np.arange(12)[None] >= 3
    mask = mask if polarity == "keep" else ~mask
    made = multihead(padded, layer, key_padding_mask=mask, mask_polarity=polarity)
    alone = multihead(x, layer, positions=np.arange(3, 12))
    np.testing.assert_allclose(made.output[3:], alone.output, atol=1e-12)


LONG = {
    "rope_type": "longrope", "short_factor": [1.0, 1.5, 2.0], "long_factor": [2.0, 4.0, 8.0],
    "original_max_position_embeddings": 16, "factor": 4.0,
}  # fmt: skip


def test_longrope_takes_its_long_factors_past_the_original_length() -> None:
    plain = 10000.0 ** -(np.arange(0, 6, 2) / 6)
    for length, factors in ((0, "short_factor"), (16, "short_factor"), (17, "long_factor")):
        inverse, factor = frequencies(6, 10000.0, LONG, length)
        np.testing.assert_allclose(inverse, plain / np.array(LONG[factors]))
        assert factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(16)))
    assert frequencies(6, 1e4, LONG | {"attention_factor": 1.3}, 5)[1] == 1.3
    assert Rope(scaling=LONG).text == "half, θ 10000, longrope ×4"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"long_factor": None}, "needs long_factor"),
        ({"short_factor": [1.0, -1.0, 2.0]}, "positive numbers, one for each pair"),
        ({"short_factor": 2.0}, "positive numbers, one for each pair"),
    ],
)
def test_longrope_that_is_not_whole_is_an_error(change: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        Rope(scaling={n: v for n, v in (LONG | change).items() if v is not None})
    assert message in f"{error.value.message} {error.value.hint}"


def test_longrope_has_a_factor_for_each_pair() -> None:
    with pytest.raises(InputError, match="has 3 factors but 4 pairs"):
        frequencies(8, 1e4, LONG, 5)


def test_rope_turns_from_a_channel_on() -> None:
    x = states(1, 1, 5, 10)
    rest = Rope("interleaved", dim=4).apply(x[..., 3:], x[..., 3:])[0]
    turned = Rope("interleaved", dim=4, start=3).apply(x, x)[0]
    np.testing.assert_array_equal(turned, np.concatenate([x[..., :3], rest], -1))
    with pytest.raises(InputError, match="4 channels from channel 8"):
        Rope(dim=4, start=8).apply(x, x)


DEBERTA = {
    "model_type": "deberta-v2", "num_attention_heads": H, "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"], "position_buckets": 4, "max_relative_positions": 9,
    "share_att_key": True, "norm_rel_ebd": "layer_norm",
}  # fmt: skip


def deberta(*left_out: str, **config: Any) -> Layer:
    parent, leaves = "encoder.layer.0.attention", "self.query_proj self.key_proj self.value_proj"
    more = [
        ("encoder.rel_embeddings.weight", (8, E)), ("encoder.LayerNorm.weight", (E,)),
        ("encoder.LayerNorm.bias", (E,)),
    ]  # fmt: skip
    names = [*apart(parent, f"{leaves} output.dense", *[(E, E)] * 4), *more]
    some = [pair for pair in names if pair[0] not in left_out]
    return one(*some, config=DEBERTA | config)


@pytest.mark.parametrize(("buckets", "longest"), [(256, 512), (4, 9), (0, 5)])
def test_distances_have_the_rows_that_transformers_gives_them(buckets: int, longest: int) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from transformers.models.deberta_v2 import modeling_deberta_v2 as theirs

    length = 700
    q = torch.zeros(1, length, 1)
    far = theirs.build_relative_position(q, q, bucket_size=buckets or -1, max_position=longest)
    terms = Disentangled("", ("c2p",), longest, buckets)
    expected = (far[0] + terms.span).clamp(0, 2 * terms.span - 1)
    np.testing.assert_array_equal(terms.rows(length), expected.numpy())


def test_the_terms_are_a_bias_that_goes_along() -> None:
    layer = deberta()
    assert layer.scale == pytest.approx(1 / math.sqrt(3 * D)) and not layer.lacks
    made = multihead(states(6, E), layer, want=("output", "masked", "scores"))
    stages = made.attention.stages
    assert stages is not None
    table = layer.tensor("encoder.rel_embeddings.weight").astype(float)
    centred = table - table.mean(-1, keepdims=True)
    centred /= np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-7)
    normed = centred * layer.tensor("encoder.LayerNorm.weight") + layer.tensor(
        "encoder.LayerNorm.bias"
    )
    w = layer.projections()
    keys, queries = (  # (H, 8, D)
        (normed @ part.T).reshape(8, H, D).swapaxes(0, 1) for part in (w.key, w.query)
    )
    assert layer.disentangled is not None
    at = layer.disentangled.rows(6)
    bias = np.empty((H, 6, 6))
    for h in range(H):
        for i in range(6):
            for j in range(6):
                bias[h, i, j] = made.query[h, i] @ keys[h, at[i, j]]
                bias[h, i, j] += made.key[h, j] @ queries[h, at[i, j]]
    np.testing.assert_allclose(stages["masked"] - stages["scores"], bias * layer.scale, atol=1e-10)
    rows = compare_layer(made, {"output": made.output})
    assert rows.passed


def test_what_the_terms_lack_is_said() -> None:
    for left, word in (
        ("encoder.rel_embeddings.weight", "rel_embeddings"),
        ("encoder.LayerNorm.weight", "LayerNorm"),
    ):
        with pytest.raises(InputError, match=f"relative position terms lack .*{word}"):
            multihead(states(6, E), deberta(left))
    with pytest.raises(InputError, match="terms lack pos_key, pos_query"):
        multihead(states(6, E), deberta(share_att_key=False))
    with pytest.raises(InputError, match="pos_att_type"):
        deberta(pos_att_type=["c2c"])
    with pytest.raises(InputError, match="has 8 rows but distances up to 9 need 18"):
        multihead(states(6, E), deberta(position_buckets=-1))
    past = np.zeros((H, 2, D))
    with pytest.raises(InputError, match="past_key is given but"):
        multihead(states(6, E), deberta(), past_key=past, past_value=past)


BAD_MEMBERS: dict[str, tuple[Any, str]] = {
    "floor_scale": (lambda: llama4(1, floor_scale=-3), "floor_scale is -3"),
    "no_rope_layers": (lambda: llama4(1, no_rope_layers="x"), "no_rope_layers is"),
    "attention_chunk_size": (lambda: llama4(0, attention_chunk_size=0), "chunk_size is 0"),
    "position_buckets": (lambda: deberta(position_buckets=1), "position_buckets is 1"),
    "odd buckets": (lambda: deberta(position_buckets=5), "position_buckets is 5"),
    "far": (lambda: deberta(max_relative_positions=2), "below max_relative_positions 2"),
}


@pytest.mark.parametrize("what", BAD_MEMBERS)
def test_members_that_cannot_be_are_errors(what: str) -> None:
    build, message = BAD_MEMBERS[what]
    with pytest.raises(InputError) as error:
        build()
    assert message in f"{error.value.message} {error.value.hint}"


def test_weights_alone_know_norms_without_a_gain() -> None:
    facts = layer_facts(llama4(0))
    assert np.allclose(facts["logit_bound"], D / math.sqrt(D))


def test_linear_attention_is_listed_and_refused_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = dict(apart("layers.1.self_attn", QKVO, *[(E, E)] * 4)) | {
        "layers.0.linear_attn.in_proj_qkvz.weight": (2 * E, E),
        "layers.0.linear_attn.A_log": (H,),
    }
    tensors = {n: rng.normal(size=s).astype(np.float32) for n, s in names.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"model_type": "qwen3_next", "num_attention_heads": H}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(str(tmp_path), layer=1).index == 1
    with pytest.raises(
        InputError, match=r"'0' can be read: layers.0.linear_attn is linear"
    ) as error:
        load(str(tmp_path), layer=0)
    assert "layers.1.self_attn (self)" in str(error.value.hint)
    del tensors["layers.1.self_attn.q_proj.weight"]
    with pytest.raises(InputError, match=r"no softmax attention: layers.0.linear_attn is linear"):
        load(tensors)


@pytest.mark.parametrize(
    ("leaf", "kind", "message"),
    [
        ("lambda_q1", "diffllama", "differential attention"),
        ("indexer.wq_b.weight", "deepseek_v32", "sparse attention"),
    ],
)
def test_what_else_an_attention_is_is_refused_by_name(leaf: str, kind: str, message: str) -> None:
    names = apart("layers.0.self_attn", QKVO, *[(E, E)] * 4)
    layer = one(
        *names, (f"layers.0.self_attn.{leaf}", (E,)),
        config={"model_type": kind, "num_attention_heads": H},
    )  # fmt: skip
    with pytest.raises(InputError, match=message) as error:
        multihead(states(3, E), layer)
    assert "goes ahead without it" in str(error.value.hint)
