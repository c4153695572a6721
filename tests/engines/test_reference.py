"""The specification against PyTorch, against a pretrained layer, and against its own words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import attncli
from attncli.attention import definition
from attncli.attention.problem import Problem
from attncli.engines import reference
from tests.support.problems import problems

CASES = Path(__file__).parents[1] / "cases"


def torch_sdpa(problem: Problem) -> np.ndarray:
    """PyTorch's scaled_dot_product_attention in float64, ``(B, H, Lq, Dv)``."""
    torch = pytest.importorskip("torch")
    q, k, v = (
        torch.tensor(np.asarray(x, np.float64)) for x in (problem.query, problem.key, problem.value)
    )
    mask = None
    if not problem.mask.trivial:
        keep = problem.mask.dense()
        bias = np.zeros(keep.shape)
        extent = problem.mask.extent
        for b, h in np.ndindex(keep.shape[:2]):
            added = problem.mask.bias(b, h, 0, extent.queries, 0, extent.keys)
            if added is not None:
                bias[b, h] = added
        mask = torch.tensor(np.where(keep, bias, -np.inf))
    with torch.no_grad():
        return np.asarray(
            torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, scale=problem.scale, enable_gqa=True
            )
        )


@given(problems(dtypes=("float64",)))
@settings(max_examples=300, deadline=None)
def test_reference_agrees_with_torch_sdpa(problem: Problem) -> None:
    if problem.softcap is not None or problem.sink is not None:
        return
    output = reference.attend(problem, {"output"}).output
    # both are float64: a few roundings of sums of values of size one
    scale = max(1.0, np.abs(np.asarray(problem.query, np.float64)).max(initial=0) ** 2)
    assert np.abs(output - torch_sdpa(problem)).max() < 1e-11 * scale


@given(problems(dtypes=("float64",)))
@settings(max_examples=100, deadline=None)
def test_stages_follow_the_definition(problem: Problem) -> None:
    stage = definition.stages(problem, 0, 0)
    q = np.asarray(problem.query[0, 0])
    k = np.asarray(problem.key[0, problem.group(0)])
    for i in range(problem.queries):
        for j in range(problem.keys):
            s = problem.scale * sum(q[i, d] * k[j, d] for d in range(problem.width))
            assert stage["scores"][i, j] == pytest.approx(s, rel=1e-9, abs=1e-9)
            c = s if problem.softcap is None else problem.softcap * np.tanh(s / problem.softcap)
            assert stage["softcapped"][i, j] == pytest.approx(c, rel=1e-9, abs=1e-9)
            if not problem.mask.dense()[0, 0, i, j]:
                assert stage["masked"][i, j] == -np.inf
                assert stage["weights"][i, j] == 0
    total = stage["weights"].sum(1)
    if problem.sink is None:
        alive = stage["keep"].any(1)
        np.testing.assert_allclose(total, np.where(alive, 1, 0), atol=1e-12)
    else:
        assert (total <= 1 + 1e-12).all()


LENGTHS = np.array([18, 13, 15])


def minilm() -> dict[str, np.ndarray]:
    """Query, key, value of the sample and what transformers made of them in float32."""
    sample = CASES.parent.parent / "samples" / "minilm.safetensors"
    return dict(np.load(CASES / "minilm_layer2.npz")) | load_file(sample)


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_a_pretrained_layer_is_reproduced(backend: str) -> None:
    case = minilm()
    result = attncli.attend(
        case["query"], case["key"], case["value"], kv_lengths=LENGTHS, backend=backend,
        want=("output", "weights", "lse"),
    )  # fmt: skip
    real = np.arange(18) < LENGTHS[:, None]
    assert result.weights is not None
    for ours, theirs in ((result.weights, case["weights"]), (result.output, case["out"])):
        error = np.abs(ours - theirs)[np.broadcast_to(real[:, None, :, None], ours.shape)]
        assert error.max() < 4e-6  # float32 PyTorch against float64 differs by as much


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_masked_means_not_read(backend: str) -> None:
    q = np.ones((2, 3))
    k, v = np.eye(3), np.arange(9.0).reshape(3, 3)
    k[2], v[2] = np.nan, np.inf
    hidden = attncli.attend(q, k, v, mask="prefix(2)", backend=backend, want=("row_statistics",))
    np.testing.assert_allclose(hidden.output, [[1.5, 2.5, 3.5]] * 2)
    assert attncli.statistics(hidden)["nonfinite"].sum() == 0
    seen = attncli.attend(q, k, v, backend=backend, want=("row_statistics",))
    assert np.isnan(seen.output).all()
    assert attncli.statistics(seen)["nonfinite"].sum() == 2
    assert any("key has 3 values" in w for w in seen.warnings)
    k[2] = 0
    infinite = attncli.attend(q, k, v, backend=backend)
    assert np.isposinf(infinite.output).all()


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_a_row_that_sees_no_key_is_zero(backend: str) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4))
    mask = np.array([[1, 1, 0], [0, 0, 0], [1, 1, 1]], bool)
    result = attncli.attend(
        x, attn_mask=mask, backend=backend, want=("weights", "lse", "row_statistics")
    )
    assert result.weights is not None and result.row_statistics is not None
    assert (result.output[1] == 0).all()
    assert (result.weights[1] == 0).all()
    assert result.lse[1] == -np.inf
    assert np.isnan(result.row_statistics["entropy"][1])
    assert attncli.statistics(result)["dead_rows"].item() == 1
    assert any("1 of 3 rows see no key" in w for w in result.warnings)


@pytest.mark.parametrize("backend", ["reference", "numpy"])
@given(seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_the_order_of_keys_and_what_is_masked_do_not_matter(backend: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(n, 4)) for n in (3, 6, 6))
    keep = rng.random((3, 6)) < 0.7
    order = rng.permutation(6)
    plain = attncli.attend(q, k, v, attn_mask=keep, backend=backend).output
    mixed = attncli.attend(q, k[order], v[order], attn_mask=keep[:, order], backend=backend).output
    np.testing.assert_allclose(mixed, plain, atol=1e-13)
    hidden = ~keep.any(0)
    k[hidden], v[hidden] = 1e300, -1e300
    again = attncli.attend(q, k, v, attn_mask=keep, backend=backend).output
    np.testing.assert_allclose(again, plain, atol=1e-13)


def test_finite_sentinels_are_used_as_they_are_and_warned_about() -> None:
    x = np.random.default_rng(0).normal(size=(2, 4))
    mask = np.array([[0, -1e9], [-1e9, -1e9]])
    result = attncli.attend(x, attn_mask=mask, backend="reference", want=("weights",))
    assert result.weights is not None
    assert result.weights[0].tolist() == [1, 0]
    assert result.weights[1].sum() == pytest.approx(1)
    assert any("not −∞" in w for w in result.warnings)
