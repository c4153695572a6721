"""Models of transformers captured, against the weights of their own eager attention."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import attncli  # noqa: E402
from attncli.errors import InputError  # noqa: E402
from attncli.studies.model import interface  # noqa: E402
from attncli.studies.model.interface import Place, problem_of  # noqa: E402
from tests.support import families  # noqa: E402

Array = np.ndarray[Any, np.dtype[Any]]

MLA = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=8,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4,
    num_experts_per_tok=2, n_group=2, topk_group=1, n_shared_experts=1, first_k_dense_replace=1,
    q_lora_rank=16, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=6,
    max_position_embeddings=64,
)  # fmt: skip
MODELS = (
    "llama", "mistral", "gemma2", "gpt_oss", "gpt2", "qwen3", "vit", "deepseek_v3", "whisper", "t5",
    "bert", "bart", "gpt2!cross", "gpt_neox", "modernbert", "albert", "gemma3_text!both",
)  # fmt: skip
PADDED = ("llama", "mistral", "gpt_oss", "qwen3", "gpt_neox")


def build(key: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, dict[str, Any]]:
    monkeypatch.setitem(families.FAMILIES, "deepseek_v3", MLA)
    model = families.build(key)
    return model, families.inputs(key, model)


def eager(model: Any, given: dict[str, Any]) -> tuple[Any, list[Array]]:
    """The output, and the weights of every call in order, ``(B, H, Lq, Lk)``."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = model(**given, output_attentions=True)
    if out.get("encoder_attentions") is not None:
        weights = [*out.encoder_attentions]
        for own, other in zip(out.decoder_attentions, out.cross_attentions, strict=True):
            weights += [own, other]
    elif out.get("cross_attentions"):
        pairs = zip(out.attentions, out.cross_attentions, strict=True)
        weights = [one for pair in pairs for one in pair]
    else:
        weights = [*out.attentions]
    return out, [one.double().numpy() for one in weights]


def rows_of(weights: Array) -> dict[str, Array]:
    """Statistics of rows by their definitions, NaN where there is no choice."""
    rest = 1 - weights.sum(-1, keepdims=True)  # a sink's
    p = np.concatenate([weights, np.where(rest > 1e-5, rest, 0)], -1)
    logs = np.log(p, where=p > 0, out=np.zeros_like(p))
    squares = (p**2).sum(-1)
    found = {
        "entropy": -(p * logs).sum(-1),
        "max_weight": weights.max(-1),
        "jacobian_trace": 1 - squares,
        "jacobian_frobenius": np.sqrt(squares - 2 * (p**3).sum(-1) + squares**2),
        "first_key_mass": weights[..., 0],
    }
    choice = (weights > 0).sum(-1) >= 2
    return {name: np.where(choice, values, np.nan) for name, values in found.items()}


@pytest.mark.parametrize("key", MODELS)
def test_captured_as_eager(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = build(key, monkeypatch)
    want, weights = eager(model, given)
    with torch.no_grad(), attncli.capture(model) as seen:
        got = model(**given)
    last = "last_hidden_state"
    assert torch.allclose(got[last], want[last], rtol=1e-4, atol=1e-4)
    assert [layer.shape for layer in seen.layers] == [one.shape for one in weights]
    assert len({layer.name for layer in seen.layers}) == len(weights)
    for layer, one in zip(seen.layers, weights, strict=True):
        for name, values in rows_of(one).items():
            for quantile, over in (("median", np.nanmedian), ("max", np.nanmax)):
                truth = over(values, axis=-1)
                found = layer.statistics[name][quantile]
                np.testing.assert_allclose(found, truth, rtol=1e-4, atol=1e-6, err_msg=name)
        assert len(layer.heads) == one.shape[0] * one.shape[1]


@pytest.mark.parametrize("key", PADDED)
def test_a_left_padded_batch_is_its_sentences_alone(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = build(key, monkeypatch)
    texts = [list(range(5, 14)), list(range(20, 25))]
    ids = torch.tensor([one if len(one) == 9 else [0] * 4 + one for one in texts])
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad(), attncli.capture(model) as seen:
        model(input_ids=ids, attention_mask=mask, position_ids=positions)
    for b, text in enumerate(texts):
        with torch.no_grad(), attncli.capture(model) as alone:
            model(input_ids=torch.tensor([text]))
        for layer, own in zip(seen.layers, alone.layers, strict=True):
            for name in ("entropy", "max_weight", "jacobian_spectral", "mean_distance"):
                for quantile in ("mean", "p05", "median", "p95"):
                    np.testing.assert_allclose(
                        layer.statistics[name][quantile][b], own.statistics[name][quantile][0],
                        rtol=1e-4, atol=1e-6, err_msg=f"{name} {quantile}",
                    )  # fmt: skip
            for name in ("rows", "rows_with_choice", "dead_rows", "logit_max", "logit_std"):
                np.testing.assert_allclose(
                    layer.statistics[name][b], own.statistics[name][0], rtol=1e-4, err_msg=name
                )
        assert not any("no key" in warning for layer in seen.layers for warning in layer.warnings)


def test_padded_rows_of_cross_attention_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = build("bart", monkeypatch)
    ids, mask = torch.arange(4, 13).reshape(1, 9), torch.ones(1, 9, dtype=torch.long)
    two = torch.cat([ids, ids]), torch.cat([mask, mask])
    two[1][1, 6:] = 0
    with torch.no_grad(), attncli.capture(model) as seen:
        model(
            input_ids=two[0], attention_mask=two[1], decoder_input_ids=two[0],
            decoder_attention_mask=two[1],
        )  # fmt: skip
    cross = [layer for layer in seen.layers if layer.name.endswith("encoder_attn")]
    assert len(cross) == 2
    for layer in cross:
        assert layer.statistics["rows"].tolist() == [[9, 9], [6, 6]]
        assert "mean_distance" not in layer.statistics  # as long as each other, yet two sequences
    places: dict[str, Any] = {}

    def told(name: str, problem: Any, labels: Any) -> None:
        places[name] = problem.mask.positions()

    with torch.no_grad(), attncli.capture(model, told=told):
        model(input_ids=ids, decoder_input_ids=ids)
    assert {at for name, at in places.items() if "encoder_attn" in name} == {None}
    assert {at for name, at in places.items() if "self_attn" in name} == {(0,)}


def test_expressions_stand_for_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = build("mistral", monkeypatch)
    with torch.no_grad(), attncli.capture(model) as seen:
        model(**given)
    assert {layer.mask for layer in seen.layers} == {"causal & window(3)"}


def place() -> Place:
    return Place("layers.0")


def call(**more: Any) -> Any:
    module = torch.nn.Module()
    q = torch.ones(1, 2, 3, 4)
    found: list[Any] = []

    class One:
        def place(self, *_: Any) -> Place:
            return place()

        def answer(self, module: Any, place: Place, problem: Any) -> Array:
            found.append(problem)
            return np.zeros((1, 2, 3, 4))

    interface.LISTENERS[module] = One()
    try:
        interface.forward(module, q, q, q, more.pop("mask", None), **more)
    finally:
        del interface.LISTENERS[module]
    return found[0]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"indices": torch.zeros(1)}, "indices"),
        ({"cu_seq_lens_q": torch.zeros(1)}, "cu_seq_lens_q"),
        ({"output_attentions": True}, "output_attentions"),
        ({"nobody_knows": 3.0}, "nobody_knows"),
        ({"dropout": 0.5}, "drops 50 %"),
        ({"sliding_window": 2}, "window of 2 keys"),
        ({"s_aux": torch.ones(1, 2)}, "sinks of shape (1, 2)"),
        ({"scaling": torch.ones(2)}, "scale of shape (2,)"),
    ],
)
def test_what_is_not_computed_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        call(**more)
    assert words in str(caught.value)


def test_what_is_harmless_or_not_asked_for_passes() -> None:
    asked = dict.fromkeys(interface.HARMLESS, 1) | {"indices": None, "output_attentions": False}
    assert call(**asked, scaling=0.25).scale == 0.25


def test_a_float_mask_and_a_bias_are_added() -> None:
    mask, bias = torch.randn(1, 1, 3, 3), torch.randn(1, 2, 3, 3)
    q = torch.ones(1, 2, 3, 4)
    p = problem_of(q, q, q, mask, causal=True, place=place(), position_bias=bias)
    assert np.allclose(p.mask.tensor(), (mask + bias).numpy())


def test_half_precision_comes_back_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, given = build("llama", monkeypatch)
    model = copy.deepcopy(model).to(torch.bfloat16)
    with torch.no_grad():
        want = model(**given).last_hidden_state
        with attncli.capture(model):
            got = model(**given).last_hidden_state
    assert got.dtype == torch.bfloat16
    assert float((got - want).abs().max()) <= 0.1 * float(want.abs().max())
