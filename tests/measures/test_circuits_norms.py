"""Norm gains and biases are part of the circuits; layers stand in the order of their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.files.bundle import Bundle
from attncli.measures.circuits import WeightFacts, layer_facts, weight_facts
from attncli.models.finding import find_layers
from attncli.reports.weights import weights_report
from tests.support.layers import llama_bundle
from tests.support.reports import printed


def test_layers_come_in_order_from_any_number_of_threads() -> None:
    heard: list[float] = []
    layers = find_layers(llama_bundle(5), heads=4)
    one, several = (weight_facts(layers, threads=n, progress=heard.append) for n in (1, 3))
    assert [facts.layer for facts in one] == [facts.layer for facts in several] == layers
    for first, second in zip(one, several, strict=True):
        np.testing.assert_array_equal(first["largest_logit"], second["largest_logit"])
    assert heard[-1] == 1 and all(isinstance(facts, WeightFacts) for facts in one)


NORMED = {"model_type": "llama", "num_attention_heads": 4, "rms_norm_eps": 1e-6}


def same_function(kind: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Two layers that are one function, and their config: of gains, of what falls out."""
    rng = np.random.default_rng(5)
    roles = {"gpt2": "c_attn c_proj"}.get(kind, "q_proj k_proj v_proj o_proj").split()
    gain = rng.uniform(0.1, 3, 16)
    if kind == "llama":  # a gain moved into the columns
        first = {f"layers.0.self_attn.{n}.weight": rng.normal(size=(16, 16)) for n in roles}
        first["layers.0.input_layernorm.weight"] = gain
        second = {
            n: a * gain if n.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")) else a
            for n, a in first.items()
        }
        return first, second | {"layers.0.input_layernorm.weight": np.ones(16)}, NORMED
    first = {  # GPT-2: (in, out), a centred input, the norm's bias, a key's bias that falls out
        "h.0.attn.c_attn.weight": rng.normal(size=(16, 48)),
        "h.0.attn.c_attn.bias": rng.normal(size=48),
        "h.0.attn.c_proj.weight": rng.normal(size=(16, 16)),
        "h.0.ln_1.weight": gain, "h.0.ln_1.bias": rng.normal(size=16),
    }  # fmt: skip
    weight, bias = first["h.0.attn.c_attn.weight"], first["h.0.attn.c_attn.bias"]
    moved = bias + first["h.0.ln_1.bias"] @ weight
    moved[16:32] = rng.normal(size=16)  # of keys
    second = first | {
        "h.0.attn.c_attn.weight": weight * gain[:, None] + rng.normal(size=48),  # sees no mean
        "h.0.attn.c_attn.bias": moved,
        "h.0.ln_1.weight": np.ones(16), "h.0.ln_1.bias": np.zeros(16),
    }  # fmt: skip
    return first, second, {"model_type": "gpt2", "n_head": 4}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_layers_that_are_one_function_are_judged_the_same(kind: str) -> None:
    """And they are one function: multihead says so."""
    from attncli.studies.layer import multihead

    first, second, config = same_function(kind)
    layers = [find_layers(Bundle("x", "arrays", a), config)[0] for a in (first, second)]
    x = np.random.default_rng(3).normal(size=(5, 16))
    weights = [multihead(x, layer, want=("output", "weights")).weights for layer in layers]
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-10)
    one, two = (layer_facts(layer) for layer in layers)
    for name in ("largest_logit", "qk_rank", "ov_norm", "ov_rank", "similarity"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-9, err_msg=name)


def test_a_gain_that_is_not_finite_is_found() -> None:
    arrays, _, config = same_function("llama")
    arrays["layers.0.input_layernorm.weight"] = np.full(16, np.nan)
    facts = layer_facts(find_layers(Bundle("x", "arrays", arrays), config)[0])
    assert (facts["nonfinite"] > 0).all() and np.isnan(facts["largest_logit"]).all()


def test_layers_stand_in_the_order_of_their_numbers() -> None:
    """12 layers sort as 0, 1, 10, 11, 2 …; the spoilt head is 10/0 wherever it is named."""
    found = llama_bundle(12)
    names = sorted(found.tensors)
    found.tensors["layers.10.self_attn.q_proj.weight"][:6] *= 1e9
    found = Bundle("x", "arrays", {name: found.tensors[name] for name in names})
    report = weights_report(found, heads=4)
    data = report.data()
    assert [layer["index"] for layer in data["layers"]] == list(range(12))
    worst = [head for head in data["heads"] if head["statistics"]["largest_logit"] > 1e7]
    assert [(head["layer"], head["head"]) for head in worst] == [("layers.10.self_attn", 0)]
    assert "head 10/0 watch" in printed(report)
