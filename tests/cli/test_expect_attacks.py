"""Results that are odd, right ones that were called wrong, and words that were false."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import attncli
from attncli.errors import InputError
from tests.support.program import Door, assert_bad

RNG = np.random.default_rng(100)
Q, K, V, DO = RNG.normal(size=(4, 2, 9, 8)).astype(np.float32)
TYPES = [np.float64, np.float32, ml_dtypes.bfloat16, np.float16]


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("qkv.npz", query=Q, key=K, value=V)


def lowest(dtype: Any, *, dead: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a problem masked with the lowest float, as transformers has it, and its answers."""
    seen = RNG.random((9, 9)) < 0.5
    seen[:, 0] = True
    seen[4] &= not dead
    mask = np.where(seen, 0, ml_dtypes.finfo(dtype).min).astype(dtype)
    q, k, v, do = (a.astype(dtype) for a in (Q, K, V, DO))
    problem = {"query": q, "key": k, "value": v, "attn_mask": mask, "grad_output": do}
    wide = np.float32 if np.dtype(dtype).itemsize < 4 else dtype
    q, k, v, do = (a.astype(wide) for a in (q, k, v, do))
    scale = wide(8**-0.5)
    scores = q @ k.mT * scale + mask.astype(wide)
    e = np.exp(scores - scores.max(-1, keepdims=True))
    weights = e / e.sum(-1, keepdims=True)
    slope = do @ v.mT
    slope = weights * (slope - (weights * slope).sum(-1, keepdims=True))
    found = {
        "output": weights @ v, "weights": weights, "grad_query": slope @ k * scale,
        "grad_key": slope.mT @ q * scale, "grad_value": weights.mT @ do,
    }  # fmt: skip
    return problem, {name: a.astype(dtype) for name, a in found.items()}


@pytest.mark.parametrize("dtype", TYPES)
def test_masks_of_the_lowest_float(dtype: Any) -> None:
    problem, right = lowest(dtype, dead=False)
    judged = attncli.compare(right, problem)
    assert judged.passed, judged.sentence
    assert all(np.isfinite(one.budget) for one in judged.stages.values())


@pytest.mark.parametrize("dtype", TYPES[:3])  # a half's −65504 leaves some of the score over
def test_rows_of_the_lowest_float_allow_no_nonsense(dtype: Any) -> None:
    problem, right = lowest(dtype, dead=True)
    assert attncli.compare(right, problem).passed
    for name, array in right.items():
        far = {name: array + 100 * np.ones_like(array)}
        assert not attncli.compare(far, problem, explain=False).passed, name


@pytest.mark.parametrize("factor", [1e30, 1e-30, 5e3])
def test_a_factor_of_any_size_is_named(factor: float, door: Door) -> None:
    np.save("mine.npy", np.asarray(attncli.attend(Q, K, V).output) * np.float32(factor))
    found = door("compute", "qkv.npz", "--expect", "mine.npy", "--json")
    assert found.code == 1
    words = json.loads(found.out)["expect"]["explanations"][0]["words"]
    assert words == f"the output is multiplied by {factor:.6g}"


@pytest.mark.parametrize("text", ['{"output": "hello"}', '{"output": true}', "{}"])
def test_a_file_without_numbers_is_called_so(text: str, door: Door) -> None:
    Path("words.json").write_text(text)
    call = ("compute", "qkv.npz", "--expect", "words.json")
    assert_bad(door, *call, expected="words.json holds no numbers")


def test_what_is_right_is_not_said_to_be_over_its_budget() -> None:
    q = np.array([[0, 0], [12, 0]], np.float32)  # equal weights have a larger budget than sure ones
    k = np.array([[1, 0], [-1, 0]], np.float32)
    weights = np.asarray(attncli.attend(q, k, k, scale=1, want=("weights",)).weights)
    error = np.array([[2e-8, 0], [0, 5e-18]], np.float32)
    problem = {"query": q, "key": k, "value": k, "scale": 1.0}
    judged = attncli.compare({"weights": weights + error}, problem)
    one = judged.stages["weights"]
    assert judged.passed and 0 < one.max_error <= one.budget


def test_a_test_set_is_no_stream(door: Door) -> None:
    assert_bad(door, "compute", "--cases", "-", expected="it cannot go to standard output")
    assert not Path("-").exists()


def test_tensors_that_are_no_arrays_are_refused() -> None:
    torch = pytest.importorskip("torch")
    problem = {"query": Q, "key": K, "value": V}
    dense = torch.from_numpy(V)
    for tensor, kind in ((dense.to_sparse(), "sparse"), (dense.to("meta"), "meta")):
        with pytest.raises(InputError, match=f"a {kind} tensor is no array"):
            attncli.compare(tensor, problem)
    right = torch.from_numpy(np.asarray(attncli.attend(Q, K, V).output))
    assert attncli.compare(torch._neg_view(-right), problem).passed


def test_one_stage_of_a_layer_has_its_verb() -> None:
    x = RNG.normal(size=(2, 5, 8)).astype(np.float32)
    named = {
        "in_proj_weight": RNG.normal(size=(24, 8)).astype(np.float32),
        "out_proj.weight": RNG.normal(size=(8, 8)).astype(np.float32),
    }
    layer = attncli.multihead(x, named, heads=2, want=("output", "weights"))
    far = {"output": layer.output * np.float32(1.01), "weights": layer.weights}
    assert "; weights are right: look at the values" in attncli.compare(far, layer).sentence
