"""Circuits from tokens to tokens, against eigenvalues of whole matrices over the vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.files.bundle import Bundle
from attncli.measures import copying as measure
from attncli.measures.circuits import weight_facts
from attncli.models.finding import find_layers
from attncli.reports.weights import words_in
from tests.support.lens import CONFIGS, SAVED, layers_of

Array = np.ndarray[Any, np.dtype[Any]]


def balance(matrix: Array) -> float:
    values = np.linalg.eigvals(matrix)
    return float(values.sum().real / np.abs(values).sum())


@pytest.mark.parametrize("kind", ["ln", "rms"])
def test_eigenvalues_are_those_of_transformer_lens(kind: str) -> None:
    """Of W_E W_V W_O W_U and W_E W_Q W_Kᵀ W_Eᵀ, (V, V), with its weights folded and centred."""
    facts = weight_facts(layers_of(kind))
    for name in ("copying", "matching"):
        ours = np.stack([one[name] for one in facts])
        np.testing.assert_allclose(ours, SAVED[f"{kind}/{name}"], atol=2e-5, err_msg=name)


def test_chunks_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = layers_of("rms")
    whole = weight_facts(layers, threads=1)
    monkeypatch.setattr(measure, "CHUNK", 4 * 15)
    for one, other in zip(whole, weight_facts(layers, threads=3), strict=True):
        for name in ("copying", "matching"):
            np.testing.assert_allclose(one[name], other[name], atol=1e-5)


def test_of_very_many_words_some_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every third word is what a checkpoint says that has no others."""
    layers = layers_of("rms")
    tensors = dict(layers[0].bundle.tensors)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][::3]
    fewer = weight_facts(find_layers(Bundle("x", "arrays", tensors), CONFIGS["rms"]))
    monkeypatch.setattr(measure, "WORTH", 2 * 23 * 15**2 // 3 + 1)
    for one, other in zip(weight_facts(layers), fewer, strict=True):
        for name in ("copying", "matching"):
            np.testing.assert_allclose(one[name], other[name], atol=1e-5)
    assert "; 1 word of 3" in words_in(layers)[0]


RNG = np.random.default_rng(7)
BERT = {"model_type": "bert", "num_attention_heads": 2}


def bert() -> dict[str, Array]:
    """Two layers of BERT, 6 wide, and 9 words."""
    found = {
        f"encoder.layer.{n}.attention.{name}.weight": RNG.normal(size=(6, 6))
        for n in range(2) for name in ("self.query", "self.key", "self.value", "output.dense")
    }  # fmt: skip
    norms = ["embeddings.LayerNorm"] + [
        f"encoder.layer.{n}.{name}" for n in range(2)
        for name in ("attention.output.LayerNorm", "output.LayerNorm")
    ]  # fmt: skip
    found |= {f"{name}.{part}": RNG.normal(size=6) for name in norms for part in ("weight", "bias")}
    return found | {"embeddings.word_embeddings.weight": RNG.normal(size=(9, 6))}


def test_words_come_through_the_norms_on_the_stream() -> None:
    tensors = bert()
    facts = weight_facts(find_layers(Bundle("x", "arrays", tensors), BERT))
    way = tensors["embeddings.word_embeddings.weight"]
    order = ["embeddings.LayerNorm", "encoder.layer.0.attention.output.LayerNorm",
             "encoder.layer.0.output.LayerNorm"]  # fmt: skip
    ways = []
    for name in order:
        way = (way - way.mean(1, keepdims=True)) * tensors[f"{name}.weight"]
        ways.append(way)
    for n, words in ((0, ways[0]), (1, ways[2])):
        q, k = (tensors[f"encoder.layer.{n}.attention.self.{r}.weight"] for r in ("query", "key"))
        for h in range(2):
            own = slice(3 * h, 3 * h + 3)
            scores = (words @ q[own].T) @ (words @ k[own].T).T
            expected = balance(scores - scores.mean(1, keepdims=True))
            assert facts[n]["matching"][h] == pytest.approx(expected, abs=1e-5)
    assert all(np.isnan(one["copying"]).all() for one in facts)  # nothing makes logits here


def planted(tied: bool | None, head: bool = True) -> tuple[Bundle, dict[str, Any]]:
    """Two layers of four heads; 1.2 copies what it sees, 0.3 looks for its like, 0.1 for others."""
    words = np.linalg.qr(RNG.normal(size=(24, 24)))[0][:20]
    tensors = {
        f"model.layers.{n}.self_attn.{role}_proj.weight": RNG.normal(size=(24, 24))
        for n in range(2) for role in "qkvo"
    }  # fmt: skip
    name = "model.layers.{}.self_attn.{}_proj.weight".format
    tensors[name(1, "o")][:, 12:18] = tensors[name(1, "v")][12:18].T
    tensors[name(0, "k")][18:24] = tensors[name(0, "q")][18:24]
    tensors[name(0, "k")][6:12] = -tensors[name(0, "q")][6:12]
    tensors["model.embed_tokens.weight"] = words
    if head:
        tensors["lm_head.weight"] = words
    config = {"model_type": "llama", "num_attention_heads": 4}
    return Bundle("x", "arrays", tensors), config | ({} if tied is None else
                                                     {"tie_word_embeddings": tied})  # fmt: skip


def test_planted_heads_stand_first() -> None:
    facts = weight_facts(find_layers(*planted(None)))
    copying, matching = (np.stack([f[n] for f in facts]) for n in ("copying", "matching"))
    assert np.unravel_index(copying.argmax(), (2, 4)) == (1, 2)
    assert np.unravel_index(matching.argmax(), (2, 4)) == (0, 3)
    assert np.unravel_index(matching.argmin(), (2, 4)) == (0, 1)
    assert copying[1, 2] == pytest.approx(1, abs=1e-5) == matching[0, 3] == -matching[0, 1]
    assert np.sort(copying.ravel())[-2] < 0.8


@pytest.mark.parametrize(("tied", "known"), [(None, True), (True, True), (False, False)])
def test_logits_by_the_embedding_unless_config_says_otherwise(tied: Any, known: bool) -> None:
    facts = weight_facts(find_layers(*planted(tied, head=False)))
    assert np.isfinite(facts[1]["copying"]).all() == known
    assert np.isfinite(facts[1]["matching"]).all()
    if known:
        assert facts[1]["copying"][2] == pytest.approx(1, abs=1e-5)


def test_an_embedding_that_is_not_finite_or_no_number_says_nothing() -> None:
    bundle, config = planted(None)
    clean = weight_facts(find_layers(bundle, config))
    for spoilt in (np.full((20, 24), np.nan), np.zeros((20, 24), np.int8)):
        changed = Bundle("x", "arrays", {**bundle.tensors, "model.embed_tokens.weight": spoilt})
        facts = weight_facts(find_layers(changed, config))
        for one, other in zip(clean, facts, strict=True):
            assert np.isnan(other["copying"]).all() and np.isnan(other["matching"]).all()
            np.testing.assert_array_equal(one["largest_logit"], other["largest_logit"])


def test_embeddings_are_those_of_the_stream() -> None:
    """Text and image in one file: the image's layers have no words."""
    bundle, config = planted(None)
    image = {
        f"vision_tower.layers.{n}.self_attn.{r}.weight": RNG.normal(size=(24, 24))
        for n in range(2) for r in ("q_proj", "k_proj", "v_proj", "o_proj")
    }  # fmt: skip
    layers = find_layers(Bundle("x", "arrays", {**bundle.tensors, **image}), config)
    for one in weight_facts(layers):
        assert np.isfinite(one["matching"]).all() == one.layer.name.startswith("model.")
