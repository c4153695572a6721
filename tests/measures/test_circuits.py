"""Heads by their weights alone: against E×E matrices made the long way."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from attncli.files.bundle import Bundle
from attncli.measures.circuits import JUDGED, OF_LAYERS, judged, layer_facts, weight_facts
from attncli.measures.policy import POLICY
from attncli.models.finding import find_layers
from attncli.models.random import random_weights
from tests.support.layers import GPT2, LLAMA, saved
from tests.support.ranks import Exchange, Threads

RNG = np.random.default_rng(11)


def long_way(layer: Any, h: int) -> tuple[Any, Any]:
    """A = [W_Q, b_Q/√E]ᵀ W_K and B = W_O W_V of one head, in float64; a key's bias falls out."""
    made, d, dv = layer.projections(), layer.head_dim, layer.value_dim
    g = h // (layer.heads // layer.kv_heads)
    q, k = (a.astype(float) for a in (made.query[h * d : h * d + d], made.key[g * d : g * d + d]))
    if made.query_bias is not None:
        bias = made.query_bias[h * d : h * d + d, None].astype(float)
        q = np.hstack([q, bias / math.sqrt(q.shape[1])])
    v = made.value[g * dv : g * dv + dv].astype(float)
    o = np.eye(dv) if made.output is None else made.output[:, h * dv : h * dv + dv].astype(float)
    return q.T @ k, o @ v


def entropy_rank(matrix: Any, rank: int) -> float:
    values = np.linalg.svd(matrix, compute_uv=False)[:rank]
    share = values / values.sum()
    return math.exp(-(share * np.log(share)).sum())


CASES = {
    "gpt2, fused and transposed": lambda: find_layers(files_of("tiny_gpt2"), GPT2)[1],
    "llama, grouped": lambda: find_layers(files_of("tiny_llama_gqa"), LLAMA)[0],
    "wider heads than the model": lambda: random_weights(0, 8, 2, head_dim=12),
    "a memory of another width": lambda: random_weights(0, 8, 2, memory_dim=5),
    "without an output": lambda: find_layers(
        Bundle("x", "arrays", {n: RNG.normal(size=(8, 6)) for n in ("wq", "wk", "wv")}), heads=2
    )[0],
}


def files_of(case: str) -> Bundle:
    return Bundle(case, "arrays", saved(case))


@pytest.mark.parametrize("case", CASES)
def test_circuits_are_those_made_the_long_way(case: str) -> None:
    layer = CASES[case]()
    facts = layer_facts(layer)
    pairs = [long_way(layer, h) for h in range(layer.heads)]
    rank = min(layer.head_dim, *pairs[0][0].shape)
    tight = dict(rtol=3e-5)
    for h, (a, b) in enumerate(pairs):
        logit = np.linalg.norm(a, 2) * layer.scale
        np.testing.assert_allclose(facts["largest_logit"][h], logit, **tight)
        np.testing.assert_allclose(facts["ov_norm"][h], np.linalg.norm(b, 2), **tight)
        np.testing.assert_allclose(facts["qk_rank"][h], entropy_rank(a, rank), **tight)
        np.testing.assert_allclose(facts["ov_rank"][h], entropy_rank(b, rank), **tight)
    flat = np.array([a.ravel() / np.linalg.norm(a) for a, _ in pairs])
    cosine = np.abs(flat @ flat.T)
    np.fill_diagonal(cosine, -1)
    np.testing.assert_allclose(facts["similarity"], cosine.max(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(facts["similar_head"], cosine.argmax(1))


def test_no_two_inputs_of_norm_one_have_a_larger_logit() -> None:
    layer = random_weights(1, 8, 2)
    facts, w = layer_facts(layer), layer.projections()
    x, y = (u / np.linalg.norm(u, axis=1, keepdims=True) for u in RNG.normal(size=(2, 5000, 8)))
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        logits = ((x @ w.query[part].T) * (y @ w.key[part].T)).sum(1) * layer.scale
        largest = facts["largest_logit"][h]
        assert 0.5 * largest < np.abs(logits).max() <= largest * 1.001


def test_norms_and_a_bound_by_qk_norm() -> None:
    arrays = {f"self_attn.{n}_proj.weight": RNG.normal(size=(8, 8)) for n in "qkvo"}
    gains = {f"self_attn.{n}_norm.weight": RNG.normal(size=4) for n in "qk"}
    layer = find_layers(Bundle("x", "arrays", arrays | gains), {
        "model_type": "qwen3", "num_attention_heads": 2, "num_key_value_heads": 2,
    })[0]  # fmt: skip
    facts = layer_facts(layer)
    most = [np.abs(g).max() for g in gains.values()]
    np.testing.assert_allclose(facts["logit_bound"], most[0] * most[1] * 4 * 0.5)
    for role, name in zip("qkv", ("query", "key", "value"), strict=True):
        whole = arrays[f"self_attn.{role}_proj.weight"]
        own = [np.linalg.norm(whole[:4]), np.linalg.norm(whole[4:])]
        np.testing.assert_allclose(facts[f"{name}_norm"], own)
    out = arrays["self_attn.o_proj.weight"]
    own = [np.linalg.norm(out[:, :4]), np.linalg.norm(out[:, 4:])]
    np.testing.assert_allclose(facts["output_norm"], own)
    assert np.isnan(layer_facts(random_weights(0, 8, 2))["logit_bound"]).all()


def test_every_rule_on_weights_reads_what_is_judged() -> None:
    facts = [layer_facts(random_weights(0, 8, 2))]
    names = set(next(judged(facts))[0])
    assert set(JUDGED) < names | {"similar_head"}
    rules = [rule for rule in POLICY if rule.statistic in JUDGED]
    assert {rule.statistic for rule in rules} == set(JUDGED)
    assert all(rule.source for rule in rules)


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_that_take_layers_in_turn_know_all(ranks: int) -> None:
    layers = [random_weights(n, 8, heads) for n, heads in enumerate((2, 4, 1, 8, 2, 4, 2))]
    alone, group = weight_facts(layers), Threads(ranks)
    with ThreadPoolExecutor(ranks) as pool:
        own = [Exchange(group, rank, ranks) for rank in range(ranks)]
        found = list(pool.map(lambda one: weight_facts(layers, threads=1, exchange=one), own))
    for facts in found:
        for one, right in zip(facts, alone, strict=True):
            for name in OF_LAYERS:
                np.testing.assert_array_equal(one[name], right[name], err_msg=name)
