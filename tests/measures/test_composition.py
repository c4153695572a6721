"""Composition of heads: as TransformerLens has it, as whole matrices have it, as it was planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.files.bundle import Bundle
from attncli.measures import composition as measure
from attncli.measures.composition import KINDS, Composition, compositions
from attncli.models.finding import find_layers
from attncli.models.stream import streams
from attncli.studies.layer import multihead
from tests.support.layers import llama_bundle
from tests.support.lens import SAVED, layers_of

Array = np.ndarray[Any, np.dtype[Any]]
RNG = np.random.default_rng(5)


def only(bundle: Bundle, config: Any = None, **more: Any) -> Composition:
    found = compositions(streams(find_layers(bundle, config, **more)))
    assert len(found) == 1
    return found[0]


def long_way(writer: Array, reader: Array) -> float:
    """‖B A‖/(‖B‖ ‖A‖) of whole matrices."""
    size = np.linalg.norm(writer) * np.linalg.norm(reader)
    return float(np.linalg.norm(reader @ writer) / size)


@pytest.mark.parametrize("kind", ["ln", "rms"])
def test_scores_are_those_of_transformer_lens(kind: str) -> None:
    """Norms folded, LayerNorm's writers centred, grouped heads."""
    found = compositions(streams(layers_of(kind)))[0]
    assert found.channels == 15 - (kind == "ln")
    for n, name in enumerate(KINDS):
        theirs = SAVED[f"{kind}/scores.{name}"].reshape(12, 12)
        later = ~np.isnan(found.scores[n])
        np.testing.assert_array_equal(later, theirs > 0)
        np.testing.assert_allclose(found.scores[n][later], theirs[later], rtol=2e-5)


def gemma(width: int = 18, heads: int = 4, groups: int = 2, d: int = 4) -> tuple[Bundle, Any]:
    """Two layers of Gemma 2 with qk-norm: gains before, on queries and keys, and behind."""
    tensors = {}
    for n in range(2):
        block = f"model.layers.{n}"
        for name, shape in (
            ("self_attn.q_proj", (heads * d, width)), ("self_attn.k_proj", (groups * d, width)),
            ("self_attn.v_proj", (groups * d, width)), ("self_attn.o_proj", (width, heads * d)),
            ("input_layernorm", (width,)), ("post_attention_layernorm", (width,)),
            ("pre_feedforward_layernorm", (width,)), ("post_feedforward_layernorm", (width,)),
            ("self_attn.q_norm", (d,)), ("self_attn.k_norm", (d,)),
        ):  # fmt: skip
            tensors[f"{block}.{name}.weight"] = RNG.normal(size=shape)
    config = {"model_type": "gemma3_text", "num_attention_heads": heads, "head_dim": d,
              "num_key_value_heads": groups}  # fmt: skip
    return Bundle("gemma", "arrays", tensors), config


def test_gains_before_and_behind_are_within() -> None:
    bundle, config = gemma()
    found = only(bundle, config)
    w = {name: array + array.ndim % 2 for name, array in bundle.tensors.items()}  # 1 + gain

    def circuits(n: int, h: int) -> tuple[Array, Array]:
        at = f"model.layers.{n}."
        q, k, v = (w[f"{at}self_attn.{r}_proj.weight"] for r in "qkv")
        o, g = w[f"{at}self_attn.o_proj.weight"], h // 2
        before = np.diag(w[f"{at}input_layernorm.weight"])
        q, k, v = q[4 * h : 4 * h + 4], k[4 * g : 4 * g + 4], v[4 * g : 4 * g + 4]
        q, k = (np.diag(w[f"{at}self_attn.{r}_norm.weight"]) @ m for r, m in (("q", q), ("k", k)))
        behind = np.diag(w[f"{at}post_attention_layernorm.weight"])
        return before @ q.T @ k @ before, behind @ o[:, 4 * h : 4 * h + 4] @ v @ before

    for i in range(4):
        for j in range(4):
            written, (qk, ov) = circuits(0, i)[1], circuits(1, j)
            for n, read in enumerate((qk.T, qk, ov)):
                assert found.scores[n, i, 4 + j] == pytest.approx(long_way(written, read), rel=1e-5)


def test_norms_on_the_stream_are_within() -> None:
    """BERT: centred and scaled twice a layer; not once for all, since a gain has no mean."""
    width, d, tensors = 12, 4, {}
    for n in range(3):
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            tensors[f"encoder.layer.{n}.attention.{name}.weight"] = RNG.normal(size=(width, width))
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            tensors[f"encoder.layer.{n}.{name}.weight"] = RNG.normal(size=width)
            tensors[f"encoder.layer.{n}.{name}.bias"] = RNG.normal(size=width)
    config = {"model_type": "bert", "num_attention_heads": 3}
    found = only(Bundle("bert", "arrays", tensors), config)
    away = np.eye(width) - 1 / width
    way = np.eye(width)
    for n in range(2):
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            way = np.diag(tensors[f"encoder.layer.{n}.{name}.weight"]) @ away @ way
    at = "encoder.layer.{}.attention.{}.weight".format
    for i in range(3):
        for j in range(3):
            one, other = slice(d * i, d * i + d), slice(d * j, d * j + d)
            written = (
                way @ tensors[at(0, "output.dense")][:, one] @ tensors[at(0, "self.value")][one]
            )
            qk = tensors[at(2, "self.query")][other].T @ tensors[at(2, "self.key")][other]
            score = found.scores[1, i, 6 + j]
            assert score == pytest.approx(long_way(written, qk), rel=1e-5)


def test_chance_is_the_mean_of_random_rotations_and_deviations_theirs() -> None:
    """Of the very matrices, turned: mean and variance of score² as said, whatever the ranks."""
    n, heads = 12, (3, 5)
    writer, reader = RNG.normal(size=(1, heads[0], n)), RNG.normal(size=(1, heads[1], n))
    writer[0, 0] *= 4  # of a low effective rank
    squares, away = [], []
    for _ in range(4000):
        turn, r = np.linalg.qr(RNG.normal(size=(n, n)))
        turned = writer @ (turn * np.sign(np.diag(r)))
        score, deviation = measure.scored(measure._side(turned), measure._side(reader), n)
        squares.append(score[0, 0] ** 2)
        away.append(deviation[0, 0])
    assert np.mean(squares) == pytest.approx(1 / n, rel=0.02)
    assert np.mean(away) == pytest.approx(0, abs=0.06)
    assert np.std(away) == pytest.approx(1, abs=0.05)


def induction() -> Bundle:
    """Two layers without MLP: 0.1 writes which word stood before, 1.2 looks for it.

    The stream is word (8 channels), the word before (8), the copy (8), and 8 of positions.
    """
    width, d, heads = 32, 8, 3
    noise, tensors = np.random.default_rng(5), {}
    for n in range(2):
        q, k, v, o = 0.1 * noise.normal(size=(4, heads, d, width))
        if (n, 1) == (0, 1):  # previous token: by position; from word to the word before
            q[1, :, 24:], k[1, :, 24:] = np.eye(d), np.roll(np.eye(d), 1, 0)
            v[1, :, :8], o[1, :, 8:16] = np.eye(d), np.eye(d)
        else:  # induction: my word is its word before; says its word
            q[2, :, :8], k[2, :, 8:16] = np.eye(d), np.eye(d)
            v[2, :, :8], o[2, :, 16:24] = np.eye(d), np.eye(d)
        for role, part in zip("qkv", (q, k, v), strict=True):
            tensors[f"layers.{n}.self_attn.{role}_proj.weight"] = part.reshape(-1, width)
        tensors[f"layers.{n}.self_attn.o_proj.weight"] = o.reshape(-1, width).T
    return Bundle("induction", "arrays", tensors)


def test_a_planted_induction_circuit_stands_first() -> None:
    """And it is one: the second head looks at what came after the word the last time."""
    bundle = induction()
    x = np.zeros((6, 32))
    words = [0, 1, 2, 3, 4, 1]
    x[np.arange(6), words] = x[np.arange(6), np.arange(24, 30)] = 20
    for layer in find_layers(bundle, arch="torch", heads=3):
        seen = multihead(x, layer, mask="causal", want=("output", "weights"))
        x = x + seen.output
    assert seen.weights[2, 5].argmax() == 2 and seen.weights[2, 5, 2] > 0.8
    found = only(bundle, arch="torch", heads=3)
    first = np.unravel_index(np.nanargmax(found.scores), found.scores.shape)
    assert KINDS[first[0]] == "K" and found.heads[first[1]] == (0, 1)
    assert found.heads[first[2]] == (1, 2)
    assert found.deviations[first] > 10
    rest = found.scores.copy()
    rest[first] = np.nan
    assert np.nanmax(rest) < 0.8 * found.scores[first]


def test_pairs_that_nothing_is_known_of() -> None:
    """A head that is not finite, one that writes nothing: no score; all others as they were."""
    base = llama_bundle(3)
    name = "layers.{}.self_attn.{}_proj.weight".format
    spoilt, dead = base.tensors[name(0, "v")].copy(), base.tensors[name(1, "o")].copy()
    spoilt[6:12], dead[:, :6] = np.nan, 0
    found = only(base, heads=4)
    changed = Bundle("x", "arrays", {**base.tensors, name(0, "v"): spoilt, name(1, "o"): dead})
    got = only(changed, heads=4)
    gone = np.zeros((12, 12), bool)
    gone[1] = gone[4] = True
    both = ~np.isnan(found.scores) & ~gone
    both[2, :, 4] = False  # it copies nothing, either
    np.testing.assert_array_equal(np.isnan(got.scores), ~both)
    np.testing.assert_allclose(got.scores[both], found.scores[both], rtol=1e-6)


def test_blocks_of_writers_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    every = streams(find_layers(llama_bundle(6), heads=4))
    heard: list[float] = []
    whole = compositions(every, threads=1, progress=heard.append)[0]
    monkeypatch.setattr(measure, "ROOM", 1)
    apart = compositions(every, threads=3)[0]
    np.testing.assert_array_equal(apart.scores, whole.scores)
    assert heard == sorted(heard) and heard[-1] == 1
    some = compositions(every, only={2})[0]
    layer = np.array([n for n, _ in whole.heads])
    part = (layer[:, None] == 2) | (layer == 2)
    np.testing.assert_array_equal(some.scores[:, part], whole.scores[:, part])
    assert np.isnan(some.scores[:, ~part]).all()


def test_cross_attention_reads_queries_alone_and_writes() -> None:
    width, tensors = 8, {}
    for n in range(2):
        for kind in ("self_attn", "encoder_attn"):
            for role in ("q_proj", "k_proj", "v_proj", "out_proj"):
                name = f"decoder.layers.{n}.{kind}.{role}.weight"
                tensors[name] = RNG.normal(size=(width, width))
    found = only(Bundle("x", "arrays", tensors), {"model_type": "bart"}, heads=2)
    kinds = [one.kind for one in found.stream.layers]
    assert kinds == ["self", "cross", "self", "cross"]
    known = ~np.isnan(found.scores[:, ::2, ::2])
    np.testing.assert_array_equal(known[0], np.triu(np.ones((4, 4), bool), 1))
    np.testing.assert_array_equal(known[1], known[0] & (np.arange(4) == 2))
    np.testing.assert_array_equal(known[1], known[2])
