"""Attention weights alone: the problem gives them back, and every statistic that needs no more."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from attncli.attention.definition import stages
from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.attention.weights import of_weights
from attncli.errors import InputError
from attncli.measures.evidence import Evidence, words_of
from attncli.measures.policy import POLICY
from attncli.studies.attend import solve
from attncli.studies.health import TOLD, head_of
from attncli.studies.many import Many

TOKENS = [list("abcabdabc"), list("xyxyxyzxy")]


def drawn(seed: int, mask: str = "", keys: int = 9, **how: Any) -> Problem:
    rng = np.random.default_rng(seed)
    query = 3 * rng.normal(size=(2, 4, 9, 8))
    key, value = rng.normal(size=(2, 2, 2, keys, 8))
    return pose(query, key, value, mask=[masker(mask)] if mask else [], **how)


def weights_of(p: Problem) -> np.ndarray:
    """By the definition, (B, H, Lq, Lk)."""
    shape = p.batch, p.heads
    every = [stages(p, b, h)["weights"] for b, h in np.ndindex(shape)]
    return np.stack(every).reshape(*shape, p.queries, p.keys)


def softmax(scores: np.ndarray) -> np.ndarray:
    e = np.exp(scores - scores.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def evidence(p: Problem, backend: str = "numpy") -> Evidence:
    result = solve(p, want=("output", "lse", "row_statistics"), backend=backend)
    found = result.evidence
    object.__setattr__(found, "words", words_of(TOKENS, TOKENS, 2) if p.keys == 9 else None)
    return found


def assert_alike(got: Evidence, want: Evidence) -> None:
    names = got.known(TOLD)
    assert {"entropy", "jacobian_frobenius", "sink_mass", "head_similarity"} <= {*names}
    assert set(want.known(TOLD)) - set(names) == {
        name for name, need in got.missing(want.known(TOLD)).items() if need in ("scored", "output")
    }
    for name in names:
        ours, theirs = got.summary(name), want.summary(name)
        if not isinstance(ours, dict):
            ours, theirs = {"": ours}, {"": theirs}
        for quantile, values in ours.items():
            np.testing.assert_allclose(
                values, theirs[quantile], rtol=1e-10, atol=1e-14, err_msg=f"{name} {quantile}"
            )
    for b, h in np.ndindex(got.problem.batch, got.problem.heads):
        both = [
            head_of(one, one.summaries(names), b, h, TOKENS if got.words else None, POLICY)
            for one in (got, want)
        ]
        assert [role.name for role in both[0].roles] == [role.name for role in both[1].roles]
        assert both[0].placed == pytest.approx(both[1].placed, abs=1e-12)


MASKS = [
    "", "causal", "window(2, 0)", "window(1, 2)", "padding(9, 6)", "padding(5, 9, left)",
    "causal & padding(9, 6, left)", "causal & padding(4, 9)",
]  # fmt: skip


@pytest.mark.parametrize("sink", [None, [0.5, -1.0, 2.0, 0.0]], ids=["", "sink"])
@pytest.mark.parametrize("mask", MASKS)
def test_every_statistic_is_that_of_query_and_key(mask: str, sink: Any) -> None:
    p = drawn(len(mask), mask, sink=sink, softcap=5.0 if sink else None)
    weights = weights_of(p)
    said, notes = of_weights(weights, [masker(mask)] if mask else [])
    assert_alike(evidence(said), evidence(p))
    assert not any("look like" in note for note in notes)
    seen, notes = of_weights(weights)
    assert_alike(evidence(seen), evidence(p))
    assert seen.mask.text == mask and any("look like" in note for note in notes) == bool(mask)


@pytest.mark.parametrize("mask", ["dilated(2)", "blocks(3)", "segments(0,0,0,1,1,1,2,2,2)"])
def test_a_mask_without_a_name_is_its_zeros(mask: str) -> None:
    p = drawn(1, mask)
    seen, notes = of_weights(weights_of(p))
    assert "are 0 in every head and taken as hidden" in notes[0]
    np.testing.assert_array_equal(seen.mask.dense(), p.mask.dense())
    assert_alike(evidence(seen), evidence(p))


def test_other_numbers_of_queries_and_keys() -> None:
    p = drawn(2, "causal(bottom_right)", keys=14)
    seen, _ = of_weights(weights_of(p))
    assert seen.mask.text == "causal(bottom_right)" and seen.mask.positions() == (5, 5)
    assert_alike(evidence(seen), evidence(p))
    seen, notes = of_weights(weights_of(drawn(2, keys=5)))
    assert seen.mask.text == "" and not notes and seen.shapes == {"weights": (2, 4, 9, 5)}


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_other_engines_give_the_same(backend: str) -> None:
    if backend == "torch":
        pytest.importorskip("torch")
    p = drawn(3, "causal", sink=[0.5, -1.0, 2.0, 0.0])
    seen, _ = of_weights(weights_of(p))
    ours, theirs = evidence(seen, backend), evidence(p)
    for name in ("entropy", "max_weight", "jacobian_trace"):
        np.testing.assert_allclose(
            ours.summary(name)["median"], theirs.summary(name)["median"], rtol=1e-6
        )


def test_what_transformers_gives_a_padded_row() -> None:
    """A row of nothing but sentinels weighs all keys alike, the hidden ones too."""
    p = drawn(4, "causal & padding(9, 6, left)")
    weights = weights_of(p)
    weights[1, :, :3] = 1 / 9
    seen, _ = of_weights(weights)
    assert seen.mask.text == "causal & padding(9, 6, left)"
    assert_alike(evidence(seen), evidence(p))
    real = np.ones((2, 9), bool)
    real[1, :3] = False
    from attncli.attention.tensors import padding_masker

    told, notes = of_weights(weights, [padding_masker(real)])
    assert_alike(evidence(told), evidence(p))
    assert "causal" in notes[0]


def test_where_every_row_weighs_alike_the_last_key_is_no_padding() -> None:
    weights = np.tril(np.ones((1, 2, 6, 6)))
    seen, _ = of_weights(weights / weights.sum(-1, keepdims=True))
    assert seen.mask.text == "causal"


def test_families_and_ranks() -> None:
    weights = weights_of(drawn(5))
    for array in (weights, weights[0], weights[0, 0]):
        problem, _ = of_weights(array)
        assert problem.shapes == {"weights": array.shape}
        done = solve(problem, want=("weights",))
        np.testing.assert_allclose(done.weights, array, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_low_precision(dtype: str) -> None:
    kind = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    p = drawn(6, "causal")
    seen, notes = of_weights(weights_of(p).astype(kind))
    assert seen.mask.text == "causal" and seen.sink is None and len(notes) == 1
    ours, theirs = evidence(seen), evidence(p)
    np.testing.assert_allclose(
        ours.summary("entropy")["median"], theirs.summary("entropy")["median"], rtol=1e-2
    )


def test_zeros_by_underflow_are_seen() -> None:
    rng = np.random.default_rng(7)
    scores = np.where(np.tri(64), 6 * rng.normal(size=(2, 64, 64)), -np.inf)
    half = softmax(scores).astype(np.float16)
    lost = int((np.tri(64, dtype=bool) & (half == 0).all(0)).sum())
    assert lost > 50
    seen, notes = of_weights(half)
    assert seen.mask.text == "causal" and f"{lost} of 2080 cells" in notes[1]
    rows = solve(seen, want=("row_statistics",)).rows
    assert rows is not None
    np.testing.assert_array_equal(rows.n[0, 0], np.arange(1, 65))


def test_rows_of_nothing_and_rows_that_are_lost() -> None:
    weights = weights_of(drawn(8))
    weights[1, 2] = 0  # a pruned head
    weights[0, 1, 3, 2] = np.nan
    problem, _ = of_weights(weights)
    result = solve(problem, want=("lse", "row_statistics"))
    found = result.evidence
    assert found.summary("dead_rows").tolist() == [[0, 0, 0, 0], [0, 0, 9, 0]]
    assert found.summary("nonfinite").tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    assert "9 of 72 rows are all 0" in result.warnings[0]
    assert "1 of 72 rows have weights that are NaN or infinite" in result.warnings[1]
    many = Many()
    many.add("x", problem, batches=(0, 1))
    levels = {head.name: head.verdict.findings for head in many.heads}
    assert [f.name for f in levels["1/x.2"]] == ["dead"]
    assert [f.name for f in levels["0/x.1"]] == ["not_finite"]


def test_what_is_not_known_is_what_asks_for_it() -> None:
    problem, _ = of_weights(weights_of(drawn(9)))
    found = solve(problem, want=("output", "lse", "row_statistics")).evidence
    missing = found.missing(TOLD)
    assert missing["logit_max"] == missing["overflow_room"] == "scored"
    assert missing["rank_residual"] == "output" and missing["vanishing_share"] == "norms"
    for name in missing:
        with pytest.raises((AssertionError, KeyError)):
            found.values(name)


def test_dropout_is_said() -> None:
    rng = np.random.default_rng(10)
    weights = weights_of(drawn(10))
    problem, notes = of_weights(weights * (rng.random(weights.shape) > 0.1) / 0.9)
    assert "dropout left on" in notes[0] and problem.sink is None


GOOD = softmax(np.random.default_rng(0).normal(size=(2, 3, 6, 6)))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.log(GOOD), "negative numbers.*look like scores"),
        (5 * np.exp(GOOD), "do not sum to 1.*look like scores"),
        (100 * GOOD, "do not sum to 1"),
        (GOOD.swapaxes(-1, -2), "is transposed"),
        (0.9 * GOOD.swapaxes(-1, -2) + 0.1 * GOOD.swapaxes(-1, -2), "is transposed"),
        (GOOD[0, 0, 0], "1 dimensions"),
        (GOOD[None], "5 dimensions"),
        (GOOD[:, :0], "is empty"),
        (GOOD + 0j, "complex128"),
    ],
)
def test_what_are_no_weights(weights: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        of_weights(weights)


def test_masks_that_they_were_not_made_with() -> None:
    with pytest.raises(InputError, match=r"query 0 gives 0\.\d+ to key 1, which it hides"):
        of_weights(GOOD, [masker("causal")])
    with pytest.raises(InputError, match="adds to scores"):
        of_weights(GOOD, [masker("alibi")])


def test_a_said_mask_is_taken_as_it_is() -> None:
    weights = weights_of(drawn(11, "causal"))
    problem, notes = of_weights(weights, recognise=False)
    assert not notes and problem.mask.dense().all()
    problem, _ = of_weights(weights, [masker("window(8, 1)")])
    assert problem.mask.text == "window(8, 1)"
