"""A capture leaves a model as it found it, and says what it cannot see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import attncli  # noqa: E402
from attncli.errors import InputError  # noqa: E402
from attncli.studies.model.interface import LISTENERS  # noqa: E402
from tests.support.families import build, inputs  # noqa: E402


@pytest.fixture(scope="module")
def llama() -> Any:
    return build("llama")


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_the_model_is_as_before_also_after_an_exception(llama: Any) -> None:
    before = llama.config._attn_implementation, hooks(llama)

    def broken() -> None:
        assert llama.config._attn_implementation == "attncli"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), attncli.capture(llama):
        broken()
    assert (llama.config._attn_implementation, hooks(llama)) == before
    assert not LISTENERS


def test_two_captures_of_one_model_are_refused(llama: Any) -> None:
    with attncli.capture(llama):
        with pytest.raises(InputError, match="captured already"), attncli.capture(llama):
            pass
        with torch.no_grad():
            llama(**inputs("llama", llama))  # the first one is still open
    assert not LISTENERS


@pytest.mark.parametrize("key", ["gptj", "bloom"])
def test_a_model_that_does_not_ask_is_refused_by_name(key: str) -> None:
    model = build(key)
    with pytest.raises(InputError) as caught, attncli.capture(model):
        raise AssertionError("it ran")
    assert type(model).__name__ in caught.value.message


def test_what_is_no_model_is_refused() -> None:
    with (
        pytest.raises(InputError, match="expected a model"),
        attncli.capture(torch.nn.Linear(2, 2)),
    ):
        pass


def test_a_backward_pass_raises_and_gives_no_wrong_gradients(llama: Any) -> None:
    with attncli.capture(llama):
        loss = llama(**inputs("llama", llama)).last_hidden_state.sum()
        with pytest.raises(InputError, match="no gradients"):
            loss.backward()


def test_dropout_is_refused() -> None:
    model = build("bert").train()
    with pytest.raises(InputError, match="drops 10 %"), attncli.capture(model):
        model(**inputs("bert", model))


def test_what_was_seen_is_a_line(llama: Any) -> None:
    with attncli.capture(llama) as seen:
        assert repr(seen) == "<Seen: 0 layers>"
        llama(torch.tensor([[1, 2, 3]]))
    assert repr(seen).startswith(f"<Seen: {len(seen.layers)} layer") and len(repr(seen)) < 80


def test_what_heads_look_at_has_the_words_of_the_text(llama: Any) -> None:
    with torch.no_grad(), attncli.capture(llama, words=lambda ids: [f"w{i}" for i in ids]) as seen:
        llama(input_ids=torch.arange(5, 17).reshape(1, 12))
    tokens = {role.token for layer in seen.layers for head in layer.heads for role in head.roles}
    assert tokens - {None} <= {f"w{i}" for i in range(5, 17)}
    assert "induction_mass" in seen.layers[0].statistics


def test_a_cache_is_seen_call_by_call(llama: Any) -> None:
    given = torch.arange(5, 10).reshape(1, 5)
    with torch.no_grad(), attncli.capture(llama) as seen:
        past = llama(input_ids=given, use_cache=True).past_key_values
        llama(input_ids=given[:, :1], past_key_values=past)
    assert [layer.name for layer in seen.layers] == ["0", "1", "0.call2", "1.call2"]
    assert [layer.shape[2:] for layer in seen.layers] == [(5, 5)] * 2 + [(1, 6)] * 2


def test_told_takes_the_place_of_statistics(llama: Any) -> None:
    found = []

    def told(name: str, problem: Any, labels: Any) -> None:
        found.append((name, problem.query.shape))

    with torch.no_grad():
        want = llama(**inputs("llama", llama))
        with attncli.capture(llama, told=told) as seen:
            llama(**inputs("llama", llama))
    assert [name for name, _ in found] == ["layers.0.self_attn", "layers.1.self_attn"]
    assert not seen.layers and want is not None


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_attend_takes_tensors_of_torch(dtype: str) -> None:
    q = torch.randn(1, 2, 5, 4, requires_grad=True).to(getattr(torch, dtype))
    keep = torch.tril(torch.ones(5, 5, dtype=torch.bool))
    found = attncli.attend(q, attn_mask=keep, sink=torch.zeros(2))
    same = attncli.attend(q.detach().double().numpy(), mask="causal", sink=[0, 0], dtype=dtype)
    assert found.output.dtype.name == dtype
    np.testing.assert_array_equal(found.output, same.output)


def test_attend_takes_dlpack() -> None:
    class Elsewhere:
        def __init__(self, array: Any) -> None:
            self.array = array

        def __dlpack__(self, **more: Any) -> Any:
            return self.array.__dlpack__(**more)

        def __dlpack_device__(self) -> Any:
            return self.array.__dlpack_device__()

    q = np.random.default_rng(0).normal(size=(3, 4))
    np.testing.assert_array_equal(attncli.attend(Elsewhere(q)).output, attncli.attend(q).output)
