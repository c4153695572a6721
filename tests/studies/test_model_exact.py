"""Every statistic of a captured model, against the weights of its own eager attention."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import attncli  # noqa: E402
from attncli.studies.attend import run  # noqa: E402
from attncli.studies.health import TOLD  # noqa: E402
from attncli.studies.many import Many  # noqa: E402
from attncli.studies.model.capture import Seen  # noqa: E402
from tests.support import families  # noqa: E402
from tests.support.eager import eager_calls, summaries, truth  # noqa: E402

Array = np.ndarray[Any, np.dtype[Any]]

LENGTH = 13
_MLA = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=8,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4,
    num_experts_per_tok=2, n_group=2, topk_group=1, n_shared_experts=1, first_k_dense_replace=1,
    q_lora_rank=16, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=6,
    max_position_embeddings=64,
)  # fmt: skip
_HYBRID = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_attention_heads=4,
    num_key_value_heads=2, pad_token_id=0,
)  # fmt: skip
#: Model types that tests.support.families has not: latent attention, and attention beside Mamba.
MORE: Mapping[str, dict[str, Any]] = {
    "deepseek_v2": _MLA,
    "deepseek_v3": _MLA,
    "jamba": {
        **_HYBRID, "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "num_experts": 2,
        "num_experts_per_tok": 1, "use_mamba_kernels": False, "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "falcon_h1": {
        **_HYBRID, "num_hidden_layers": 2, "head_dim": 8, "mamba_d_ssm": 32, "mamba_n_heads": 4,
        "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8,
    },
}  # fmt: skip
DECODERS = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "cohere2", "olmo2", "phi3",
    "gpt_oss", "gpt2", "gpt_neox", "gpt_bigcode", "opt", "deepseek_v2", "deepseek_v3", "jamba",
    "falcon_h1",
)  # fmt: skip
ENCODERS = (
    "bert", "roberta", "distilbert", "albert", "electra", "esm", "modernbert", "nomic_bert",
    "gemma3_text!both",
)  # fmt: skip
PAIRS = ("bart", "marian", "pegasus", "t5", "umt5", "gpt2!cross")
SENSES = ("vit", "dinov2", "beit", "wav2vec2", "whisper")
#: What depends on the distance of query and key.
PLACED = {
    "mean_distance", "diagonal_mass", "previous_mass", "next_mass", "local_mass", "top_offset",
    "offset_mass",
}  # fmt: skip
#: What depends on tokens; the names of patches are such, and none comes again.
REPEATS = {"induction_mass", "duplicate_mass", "repeat_previous_mass"}


@pytest.fixture(autouse=True)
def more(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, config in MORE.items():
        monkeypatch.setitem(families.FAMILIES, key, config)


def words(ids: list[int]) -> list[str]:
    return [f"w{one}" for one in ids]


class Told:
    """What a capture says of each call, what `inspect` says, and what the model was given."""

    def __init__(self, model: Any, given: dict[str, Any]) -> None:
        many, outputs = Many(), []
        listener_answer = Seen.answer

        def answer(*args: Any) -> Array:
            outputs.append(listener_answer(*args))
            return outputs[-1]

        def told(path: str, problem: Any, labels: Any) -> Any:
            many.add(path, problem, labels, batches=range(problem.batch))
            return run(replace(problem, dtype=np.dtype(np.float64)))  # as capture does

        with (
            torch.no_grad(), warnings.catch_warnings(), pytest.MonkeyPatch.context() as patched,
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            with attncli.capture(model, words=words, told=told):
                model(**given)
            patched.setattr(Seen, "answer", answer)
            with attncli.capture(model, words=words) as seen:
                model(**given)
        self.seen, self.many = seen.layers, many.layers
        self.outputs = [torch.from_numpy(one).float().transpose(1, 2) for one in outputs]


def assert_true(model: Any, given: dict[str, Any]) -> None:
    told = Told(model, given)
    with eager_calls(told.outputs) as calls:
        model(**given)
    assert len(calls) == len(told.seen) == len(told.many) > 0
    names = {module: name for name, module in model.named_modules()}
    for call, layer, one in zip(calls, told.seen, told.many, strict=True):
        assert layer.module == names[call.module] and layer.shape == call.weights.shape
        apart = is_cross(layer.module)
        heads, _, keys = call.weights.shape[1:]
        ids, real = sequence(layer.module, given, call.weights.shape[0], call.weights.shape[2])
        real_keys = real
        if apart:  # keys of the encoder
            real_keys = sequence("encoder", given, len(real), keys)[1]
        found = truth(call, real, real_keys, None if apart else ids, not apart, seed=0)
        group = np.arange(heads) // (heads // call.key.shape[1])
        want: dict[str, Any] = {**summaries(found, group), **found.heads}
        told_only = {*one.found} - {*want}  # where positions mean nothing: told, as nothing
        assert {*want} <= {*one.found} and (
            told_only == PLACED if apart else told_only <= (REPEATS if ids is None else set())
        ), layer.name
        for name in told_only - {"top_offset"}:
            numbers = one.found[name]
            every = [*numbers.values()] if isinstance(numbers, Mapping) else [numbers]
            assert np.isnan(every).all(), f"{layer.name} {name}"
        without = {name for name in want if "grad" not in name} - {"vanishing_share"}
        assert {*layer.statistics} == without | (told_only & REPEATS)
        for statistics in (one.found, layer.statistics):
            for name in statistics.keys() & want.keys():
                assert_close(statistics[name], want[name], f"{layer.name} {name}")


def assert_close(got: Any, want: Any, name: str) -> None:
    """Every number to a relative 2e-5; what is 0 may be a rounding."""
    if isinstance(want, Mapping):
        assert {*got} == {*want}, name
        for quantile in want:
            assert_close(got[quantile], want[quantile], f"{name} {quantile}")
    else:
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-13, err_msg=name)


def sequence(
    module: str, given: dict[str, Any], batch: int, length: int
) -> tuple[Array | None, Array]:
    """The tokens of a module's queries, where there are any, and which are no padding."""
    side = "decoder_" if "decoder" in module and "decoder_input_ids" in given else ""
    ids, mask = given.get(f"{side}input_ids"), given.get(f"{side}attention_mask")
    real = np.ones((batch, length), bool) if mask is None else mask.numpy() != 0
    return None if ids is None else ids.numpy(), real


def is_cross(module: str) -> bool:
    return any(part in module for part in ("encoder_attn", "EncDec", "cross"))


def inputs(key: str, model: Any) -> dict[str, Any]:
    """What a model takes; few different tokens, so that they come again."""
    given = families.inputs(key, model, LENGTH)
    for name in ("input_ids", "decoder_input_ids"):
        if name in given:
            given[name] = 4 + given[name] % 6
    return given


@pytest.mark.parametrize("key", [*DECODERS, *ENCODERS, *PAIRS, *SENSES])
def test_every_statistic_is_that_of_eager_weights(key: str) -> None:
    model = families.build(key)
    assert_true(model, inputs(key, model))


def test_nothing_that_is_told_goes_without_a_truth() -> None:
    model = families.build("llama")
    assert {*Told(model, inputs("llama", model)).many[0].found} == {*TOLD}


#: Where padding lies: decoders take it on the left, with the positions that tokens have alone.
LEFT = (
    "llama", "mistral", "gemma2", "gpt_oss", "gpt2", "gpt_neox", "opt", "deepseek_v3", "falcon_h1",
    "t5", "modernbert",
)  # fmt: skip
RIGHT = ("mistral", "gpt_oss", "bert", "roberta", "albert", "modernbert", "esm", "bart", "t5")
TEXTS = ([5, 6, 7, 5, 8, 6, 7, 9, 5, 6], [8, 9, 4, 8, 9, 6])


def padded(key: str, side: str) -> dict[str, Any]:
    """TEXTS as a batch."""
    most = max(map(len, TEXTS))
    where = [slice(most - len(t), most) if side == "left" else slice(len(t)) for t in TEXTS]
    ids = torch.full((len(TEXTS), most), 1 if key in ("roberta", "opt") else 0)
    mask = torch.zeros_like(ids)
    for row, text in enumerate(TEXTS):
        ids[row, where[row]] = torch.tensor(text)
        mask[row, where[row]] = 1
    given = {"input_ids": ids, "attention_mask": mask}
    if side == "left" and key not in ("opt", "t5"):  # which know them from the mask, or have none
        given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
    return both_ways(key, given)


def both_ways(key: str, given: dict[str, Any]) -> dict[str, Any]:
    """What an encoder reads is what its decoder writes."""
    if key in PAIRS:
        given |= {f"decoder_{name}": given[name] for name in ("input_ids", "attention_mask")}
    return given


@pytest.mark.parametrize(
    ("key", "side"), [(k, "left") for k in LEFT] + [(k, "right") for k in RIGHT]
)
def test_a_padded_batch_is_as_eager_and_as_its_sentences_alone(key: str, side: str) -> None:
    model = families.build(key)
    given = padded(key, side)
    assert_true(model, given)
    batch = Told(model, given).many
    for b, text in enumerate(TEXTS):
        ids = torch.tensor([text])
        alone = Told(
            model, both_ways(key, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        )
        before = int(side == "left") * (len(max(TEXTS, key=len)) - len(text))
        for whole, own in zip(batch, alone.many, strict=True):
            for name, values in own.found.items():
                if "grad" in name or name == "vanishing_share":  # of another random gradient
                    continue
                found = whole.found[name]
                if isinstance(values, Mapping):
                    for quantile, numbers in values.items():
                        same(found[quantile][b], numbers[0], f"{own.name} {name} {quantile}")
                else:
                    moved = before if name == "sink_key" else 0
                    same(found[b] - moved, values[0], f"{own.name} {name}")


def same(got: Array, want: Array, name: str) -> None:
    """In float32 a model of a batch is no more the same than this."""
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-6, err_msg=name)
