"""A watch of a training loop: the same step, the statistics of captures, nothing left behind."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import torch.nn.functional as F  # noqa: E402

import attncli  # noqa: E402
from attncli.errors import InputError  # noqa: E402
from attncli.measures.pooled import pooled  # noqa: E402
from attncli.studies.attend import run  # noqa: E402
from attncli.studies.model import device_rows  # noqa: E402
from attncli.studies.model.watch import WATCHED  # noqa: E402
from tests.support.families import build, inputs  # noqa: E402

NAMES = ("logit_max", "entropy", "saturated_share")


class Plain(torch.nn.Module):  # type: ignore[misc, name-defined]
    """One layer of attention that calls PyTorch itself."""

    def __init__(self, heads: int = 4, groups: int = 2, width: int = 8) -> None:
        super().__init__()
        self.q = torch.nn.Linear(16, heads * width)
        self.k = torch.nn.Linear(16, groups * width)
        self.v = torch.nn.Linear(16, groups * width)
        self.o = torch.nn.Linear(heads * width, 16)
        self.width = width
        self.seen: list[tuple[Any, Any, Any]] = []

    def forward(self, x: Any, **how: Any) -> Any:
        q, k, v = (
            one(x).unflatten(-1, (-1, self.width)).transpose(1, 2)
            for one in (self.q, self.k, self.v)
        )
        self.seen.append((q.detach(), k.detach(), v.detach()))
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=True, **how)
        return self.o(out.transpose(1, 2).flatten(2))


def gradients(model: Any, run: Any, seed: int = 0) -> list[Any]:
    torch.manual_seed(seed)  # dropout
    model.zero_grad()
    out = run(model)
    out = out if torch.is_tensor(out) else out.last_hidden_state
    (out * torch.linspace(-1, 1, out.shape[-1])).sum().backward()
    grads = [one.grad.clone() for one in model.parameters() if one.grad is not None]
    return [out.detach(), *grads]


def assert_same(ours: list[Any], theirs: list[Any]) -> None:
    assert len(ours) == len(theirs) > 2
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def told(record: Any) -> dict[str, dict[str, list[float]]]:
    """What attncli's statistics of a captured problem would say, rows of the batch pooled."""
    return {
        name: {
            one: (v["mean"] if isinstance(v, dict) else v)[0].tolist()
            for one, v in evidence.summaries(NAMES).items()
        }
        for name, evidence in record.items()
    }


def assert_told(ours: Any, theirs: Any) -> None:
    assert list(ours) == list(theirs) and ours
    for layer, found in ours.items():
        for name in NAMES:
            want = theirs[layer][name]
            np.testing.assert_allclose(found[name], want, rtol=1e-4, atol=1e-6, err_msg=name)


def quiet(step: int, record: Any) -> None:
    pass


# -- the step is the same -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "how"),
    [("llama", "sdpa"), ("llama", "eager"), ("bert", "sdpa"), ("gemma2", "eager"), ("t5", "eager")],
)
def test_gradients_are_the_same_to_the_last_bit(key: str, how: str) -> None:
    model = build(key).train()  # dropout and all
    model.set_attn_implementation(how)
    given = inputs(key, model)
    before = gradients(model, lambda m: m(**given))
    with attncli.watch(model, every=1, log=quiet) as seen:
        assert model.config._attn_implementation == how
        assert_same(gradients(model, lambda m: m(**given)), before)
    assert len(seen.records) == 1


def test_gradients_of_plain_models_are_the_same_to_the_last_bit() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 9, 16)
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    for model in (Plain(), torch.nn.TransformerEncoder(layer, 2)):
        before = gradients(model, lambda m: m(x))
        with attncli.watch(model, every=1, log=quiet) as seen:
            assert_same(gradients(model, lambda m: m(x)), before)
        assert len(seen.records) == 1
    assert list(seen.records[0][1]) == ["layers.0.self_attn", "layers.1.self_attn"]


def test_checkpointing_is_told_once_and_is_the_same() -> None:
    model = build("llama").train()
    given = inputs("llama", model)
    before = gradients(model, lambda m: m(**given))
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable()
    with attncli.watch(model, every=1, log=quiet) as seen:
        assert_same(gradients(model, lambda m: m(**given)), before)
    assert list(seen.records[0][1]) == ["layers.0.self_attn", "layers.1.self_attn"]


# -- the numbers are those of attncli -------------------------------------------------------------


@pytest.mark.parametrize("tile", [1 << 22, 40])
@pytest.mark.parametrize(
    ("key", "padding"),
    [
        ("llama", "left"), ("llama", "right"), ("gemma2", ""), ("gpt_oss", "left"), ("mistral", ""),
        ("t5", ""), ("bart", ""), ("albert", "right"), ("vit", ""),
    ],
)  # fmt: skip
def test_records_are_the_statistics_of_captures(
    key: str, padding: str, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_rows, "CELLS", tile)
    monkeypatch.setattr(device_rows, "LEAST", 2 if tile < 100 else 8)
    model = build(key)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj.weight" in name:
                parameter.mul_(4)  # some rows are saturated
    given = inputs(key, model)
    if padding:
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        given["attention_mask"][0, slice(3) if padding == "left" else slice(-3, None)] = 0
    want: dict[str, Any] = {}

    def keep(name: str, problem: Any, labels: Any) -> Any:
        result = run(problem, want=("output", "lse", "row_statistics"))
        calls = sum(one == name or one.startswith(f"{name}.call") for one in want)
        want[f"{name}.call{calls + 1}" if calls else name] = pooled(result.evidence)
        return result

    with torch.no_grad(), attncli.capture(model, told=keep):
        model(**given)
    model.training = True  # the model alone: no dropout inside
    for how in ("sdpa", "eager") if key in ("llama", "bart", "vit") else ("eager",):
        model.set_attn_implementation(how)
        with torch.no_grad(), attncli.watch(model, every=1, log=quiet) as seen:
            model(**given)
        assert_told(seen.records[0][1], told(want))


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float"])
def test_records_of_plain_models_are_those_of_attend(mask: str) -> None:
    torch.manual_seed(1)
    model, x = Plain(), 3 * torch.randn(2, 9, 16)
    keep = torch.rand(2, 1, 9, 9) < 0.7
    how: dict[str, Any] = {
        "none": {}, "causal": {"is_causal": True}, "bool": {"attn_mask": keep},
        "float": {"attn_mask": torch.randn(4, 9, 9).masked_fill(~keep[0], -torch.inf)},
    }[mask]  # fmt: skip
    with attncli.watch(model, every=1, log=quiet) as seen:
        model(x, **how, scale=1.5)
    q, k, v = model.seen[0]
    ours = {"causal": {"mask": "causal"}}.get(mask, how)
    result = attncli.attend(q, k, v, scale=1.5, want=("output", "row_statistics"), **ours)
    assert_told(seen.records[0][1], told({"model": pooled(result.evidence)}))


# -- when, and what for ---------------------------------------------------------------------------


def test_every_counts_passes_in_training_mode() -> None:
    model, x, steps = Plain(), torch.randn(1, 5, 16), []
    seen = attncli.watch(model, every=3, log=lambda step, record: steps.append(step))
    for _ in range(7):
        model.train()(x)
        model.eval()(x)
    seen.remove()
    model.train()(x)
    assert steps == [0, 3, 6] == [step for step, _ in seen.records] and seen.passes == 7


def test_growing_logits_are_caught_before_the_loss_shows_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    torch.manual_seed(0)
    model, x, target = Plain(), torch.randn(2, 16, 16), torch.randn(2, 16, 16)
    optimizer, losses = torch.optim.SGD(model.parameters(), 1e-3), []
    with attncli.watch(model, every=2) as seen:
        for _ in range(60):
            loss = F.mse_loss(model(x), target)
            losses.append(loss.item())
            if not np.isfinite(losses[-1]):
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():  # what goes wrong: W_q grows
                model.q.weight.mul_(8)
    largest = {step: max(record["model"]["logit_max"]) for step, record in seen.records}
    alarm = min(step for step, one in largest.items() if one > 100)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("attncli: step 0: 1 layer, largest logit")
    first = next(line for line in said if "its largest logit is" in line)
    assert first.startswith(f"attncli: step {alarm}: model: ")
    assert alarm < len(losses) / 2 and not np.isfinite(losses[-1])
    assert max(losses[: alarm + 1]) < 1.1 * losses[0]


def test_a_score_that_is_not_finite_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    model = Plain()
    with torch.no_grad():
        model.q.weight[0, 0] = torch.nan
    with attncli.watch(model, every=1) as seen:
        model(torch.randn(1, 5, 16))
    largest = seen.records[0][1]["model"]["logit_max"]
    assert np.isnan(largest[0]) and np.isfinite(largest[1:]).all()
    assert "head 0: its largest logit is nan" in capsys.readouterr().err


# -- nothing is left behind, nothing is passed over -----------------------------------------------


def test_the_model_is_as_before_also_after_an_exception() -> None:
    model = build("llama").train()
    get = transformers.AttentionInterface.get_interface
    with attncli.watch(model, every=1, log=quiet):
        assert transformers.AttentionInterface.get_interface is not get
        with pytest.raises(TypeError):
            model(input_ids="no tensor")
    assert transformers.AttentionInterface.get_interface is get and not WATCHED
    assert not any(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    assert F.scaled_dot_product_attention is device_rows.SDPA


def test_an_exception_inside_a_plain_model_leaves_no_mode() -> None:
    class Broken(Plain):
        def forward(self, x: Any, **how: Any) -> Any:
            super().forward(x)
            raise ZeroDivisionError

    model = Broken()
    with attncli.watch(model, every=1, log=quiet) as seen:
        with pytest.raises(ZeroDivisionError):
            model(torch.randn(1, 5, 16))
        assert torch.overrides._get_current_function_mode() is None and not seen.records


def test_two_watches_of_one_model_are_refused_and_of_two_models_are_not() -> None:
    one, two = build("llama").train(), build("bert").train()
    with attncli.watch(one, every=1, log=quiet) as seen:
        with pytest.raises(InputError, match="watched already"):
            attncli.watch(torch.nn.Sequential(one), log=quiet)
        with attncli.watch(two, every=1, log=quiet) as other:
            one(**inputs("llama", one)), two(**inputs("bert", two))
        one(**inputs("llama", one))
    assert (len(seen.records), len(other.records)) == (2, 1) and not WATCHED


class Written(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Attention by hand."""

    def forward(self, x: Any) -> Any:
        return (x @ x.mT).softmax(-1) @ x


def test_what_cannot_be_watched_is_refused_by_name() -> None:
    for key in ("gptj", "bloom"):
        model = build(key).train()
        with pytest.raises(InputError) as caught:
            attncli.watch(model)
        assert type(model).__name__ in caught.value.message
    llama = build("llama")
    with attncli.capture(llama), pytest.raises(InputError, match="captured"):
        attncli.watch(llama)
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module"):
        attncli.watch("model")
    with pytest.raises(InputError, match="every is 0"):
        attncli.watch(llama, every=0)
    flex = copy.deepcopy(llama)
    flex.config._attn_implementation_internal = "flex_attention"
    with pytest.raises(InputError, match="flex_attention"):
        attncli.watch(flex)
    assert not WATCHED


def test_a_model_of_whose_attention_nothing_is_seen_is_refused_at_its_first_pass() -> None:
    attncli.watch(Written(), every=100, log=quiet).remove()
    model = Written()
    attncli.watch(model, every=100, log=quiet)
    with pytest.raises(InputError, match="Written ran, and none of its attention was seen"):
        model(torch.randn(1, 5, 16))
    assert not WATCHED
    model(torch.randn(1, 5, 16))


class Attending(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A module of PyTorch's own, called as ``how`` says."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
        self.how = how

    def forward(self, x: Any) -> Any:
        return self.attention(x, x, x, **self.how)[0]


def test_the_hint_for_multihead_attention_works() -> None:
    x = torch.randn(1, 5, 16)
    model = Attending()
    with attncli.watch(model, every=1, log=quiet), pytest.raises(InputError) as caught:
        model(x)
    assert "need_weights=False" in str(caught.value)
    model = Attending(need_weights=False)
    with attncli.watch(model, every=1, log=quiet) as seen:
        model(x)
    assert [*seen.records[-1][1]] == ["attention"]


def test_a_model_that_was_never_in_training_mode(capsys: Any) -> None:
    """As from_pretrained leaves it."""
    model = Attending(need_weights=False).eval()
    with attncli.watch(model, every=1) as seen:
        for _ in range(2):
            model(torch.randn(1, 5, 16)).sum().backward()
    said = capsys.readouterr().err
    assert "of 2 passes forward none was in training mode" in said and not seen.records
    with attncli.watch(model, every=1), torch.no_grad():
        model(torch.randn(1, 5, 16))
    assert not capsys.readouterr().err  # it was not trained
