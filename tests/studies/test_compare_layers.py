"""A layer that was computed elsewhere: right ones pass, faults of wrong ones are named."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import attncli
from attncli.errors import InputError
from attncli.studies.compare import Comparison, Tolerance
from attncli.studies.compare.layers import compare_layer
from tests.support import honest_layers
from tests.support.faults_layers import FAULTS, LayerFault, answer, asked
from tests.support.layers import CONFIGS, LAYERS, saved

RIGHT = {world: LayerFault("right", {}, "", world) for world in ("qwen", "neox")}
FAMILIES = (
    "bert", "roformer", "t5", "bart", "gpt2", "gpt_neox", "bloom", "falcon", "llama", "llama!yarn",
    "qwen3", "gemma2", "olmo2", "cohere", "gpt_oss", "vit", "swin",
)  # fmt: skip


def assert_passes(one: honest_layers.HonestLayer) -> None:
    found = attncli.compare(one.candidate, one.made, explain=False)
    assert found.passed, f"{one.name}: {found.sentence}"
    assert found.verdict == "passed"


# -- right ones -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", honest_layers.DTYPES)
@pytest.mark.parametrize("question", honest_layers.QUESTIONS)
def test_what_torch_returns_passes(question: str, dtype: str) -> None:
    pytest.importorskip("torch")
    for seed in range(3):
        assert_passes(honest_layers.of_torch(question, dtype, seed))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("key", FAMILIES)
def test_what_transformers_returns_passes(key: str, dtype: str) -> None:
    pytest.importorskip("transformers")
    many = 0
    for one in honest_layers.of_transformers(key, dtype):
        assert_passes(one)
        many += 1
    assert many >= 2


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("case", ["tiny_gpt2", "tiny_llama_gqa"])
def test_what_transformers_returned_once_passes(case: str, index: int) -> None:
    def value(name: str) -> Any:
        return LAYERS[f"{case}/{index}/{name}"]

    padding = LAYERS[f"{case}/key_padding"]
    made = attncli.multihead(
        value("hidden_in"), saved(case), config=CONFIGS[case], layer=index, key_padding_mask=padding
    )
    real = padding.astype(bool)  # rows of padding see keys in transformers, and none here
    output = np.where(real[..., None], value("out"), made.output)
    assert attncli.compare(output, made).passed


@pytest.mark.parametrize("world", RIGHT)
@pytest.mark.parametrize("seed", range(6))
def test_a_program_of_its_own_passes(world: str, seed: int) -> None:
    assert attncli.compare(answer(RIGHT[world], seed), asked(world, seed)).passed


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_an_output_that_was_only_stored_in_a_half_type_passes(kind: Any) -> None:
    """The layer was computed in float32: less is rounded than in a model of that type."""
    found = attncli.compare(answer(RIGHT["qwen"]).astype(kind), asked("qwen"))
    assert found.passed and found.stages["output"].own == np.dtype(kind)


# -- wrong ones -------------------------------------------------------------------------------


def said(found: Comparison) -> str:
    return "\n".join(
        [*(f"{e.text} {e.words}" for e in found.explanations if e.passed), *found.located]
    )


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_named(fault: LayerFault) -> None:
    found = attncli.compare(answer(fault), asked(fault.world))
    assert not found.passed and found.stage == "output"
    assert fault.said in said(found), found.sentence


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_so_it_is_in_half_precision(fault: LayerFault) -> None:
    """It differs, and nothing that is certain is said wrongly."""
    output = answer(fault).astype(ml_dtypes.bfloat16)
    found = attncli.compare(output, asked(fault.world))
    assert not found.passed
    if found.verdict in ("explained", "located") and any(e.passed for e in found.explanations):
        assert fault.said in said(found), found.sentence


def test_the_first_stage_that_differs_is_named() -> None:
    made = asked("qwen", want=("weights", "lse"))
    fault = next(f for f in FAULTS if f.name == "no RoPE")
    wrong = asked("qwen", want=("weights", "lse"), rope="none")
    candidate = {"output": answer(fault), "weights": wrong.weights, "lse": wrong.attention.lse}
    found = attncli.compare(candidate, made)
    assert found.stage == "lse" and said(found).startswith("--rope none")


def test_a_fault_behind_the_attention_is_looked_for_there() -> None:
    made = asked("qwen", want=("weights",))
    output = made.output + np.random.default_rng(0).normal(size=made.output.shape) / 10
    found = attncli.compare({"output": output.astype(np.float32), "weights": made.weights}, made)
    assert found.stage == "output" and found.stages["weights"].passed
    assert "weights are right: look at the values and what follows them" in found.located


def test_a_fault_of_one_batch_element_is_located() -> None:
    made = asked("qwen")
    output = made.output.copy()
    output[1, 20:25] = 0
    found = attncli.compare(output, made)
    assert found.verdict == "located"
    assert "batch element 1, rows 20 to 24 alone" in found.located[0]
    assert "never written" in found.located[0]


# -- what comes in ----------------------------------------------------------------------------


def test_shapes_that_fit_are_read_and_said() -> None:
    made = asked("qwen")
    found = attncli.compare(made.output.swapaxes(0, 1).copy(), made)
    assert found.passed and any("read as (L, B, E)" in note for note in found.notes)
    flat = attncli.compare(made.output.reshape(-1, made.output.shape[-1]), made)
    assert flat.passed and any("read as (B·L, E)" in note for note in flat.notes)


def test_heads_apart_are_refused_with_what_is_wanted() -> None:
    made = asked("qwen")
    with pytest.raises(InputError) as error:
        attncli.compare(made.heads, made)
    assert "after the output projection" in (error.value.hint or "")


@pytest.mark.parametrize("name", ["grad_query", "key"])
def test_what_is_not_judged_of_a_layer_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' is not judged"):
        attncli.compare({name: np.ones((2, 3))}, asked("qwen"))


def test_a_tolerance_takes_the_place_of_the_budget() -> None:
    made = asked("qwen")
    output = made.output + np.float32(0.01)
    assert compare_layer(made, {"output": output}, tolerance=Tolerance(0, 0.011)).passed
    found = compare_layer(made, {"output": output}, tolerance=Tolerance(0, 0.009), explain=False)
    assert not found.passed and found.verdict == "unexplained"


def test_numbers_that_are_none() -> None:
    made = asked("qwen")
    output = made.output.copy()
    output[0, 3] = np.nan
    found = attncli.compare(output, made)
    assert not found.passed and "NaN" in str(found)


def test_of_all_heads_together_no_head_is_named() -> None:
    made = asked("qwen")
    data = attncli.compare(made.output + 1, made).data()["output"]
    assert "by_head" not in data and set(data["worst"]) == {"batch", "query", "channel"}
