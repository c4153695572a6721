"""Gradients against torch autograd, finite differences, their definition, and their own words."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import attncli
from attncli import engines
from attncli.attention import definition
from attncli.attention.gradients import Gradients, float_masks, upstream
from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.engines import How, reference
from attncli.engines.numpy import backward as numpy_backward
from attncli.engines.numpy.backward_tiles import KeyTile
from attncli.engines.numpy.forward import Tiling
from attncli.studies.attend import solve
from tests.support.gradients_budget import assert_gradients_within_budget, over_mask
from tests.support.problems import problems

Array = np.ndarray[Any, np.dtype[Any]]
ALL = ("biases", "score_norm")
ENGINES = [
    name
    for name, row in engines.ENGINES.items()
    if row.backward and not row.partial and not engines.missing(name)
]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def upward(problem: Problem, seed: int = 0) -> Array:
    return upstream(f"random:{seed}", problem)


def backward(engine: str, problem: Problem, grad: Array) -> Gradients:
    found = engines.load_backward(engine).backward(problem, grad, want=ALL)
    assert isinstance(found, Gradients)
    return found


def autograd(problem: Problem, grad: Array) -> dict[str, Array]:
    """The same gradients by PyTorch's autograd through a plain softmax, in float64."""
    torch = pytest.importorskip("torch")
    p, each = problem, problem.heads // problem.kv_heads

    def leaf(array: Any) -> Any:
        return torch.tensor(np.array(array, np.float64), requires_grad=True)

    q, k, v = leaf(p.query), leaf(p.key), leaf(p.value)
    keep = torch.tensor(p.mask.dense())
    bias = np.zeros(keep.shape)
    if p.mask.has_bias:
        for b, h in np.ndindex(p.batch, p.heads):
            bias[b, h] = p.mask.bias(b, h, 0, p.queries, 0, p.keys)
    added = leaf(np.where(keep, bias, 0))
    s = p.scale * q @ k.repeat_interleave(each, 1).mT
    if p.softcap is not None:
        s = p.softcap * torch.tanh(s / p.softcap)
    z = torch.where(keep, s + added, -torch.inf)
    sink = None if p.sink is None else leaf(p.sink)
    if sink is not None:
        z = torch.cat([z, sink[:, None, None].expand(*z.shape[:3], 1)], -1)
    # a dead row: its weights are 0, and nothing flows through it
    alive = (z > -torch.inf).any(-1, keepdim=True)
    weights = torch.where(alive, torch.where(alive, z, 0.0).softmax(-1), 0.0)
    out = weights[..., : p.keys] @ v.repeat_interleave(each, 1)
    out.backward(torch.tensor(np.asarray(grad, np.float64)))
    found = {"query": q.grad, "key": k.grad, "value": v.grad, "bias": added.grad}
    if sink is not None:
        found["sink"] = sink.grad
    return {name: np.asarray(tensor) for name, tensor in found.items()}


def size(problem: Problem) -> float:
    """How far rounding to float64 can reach: scores and keys of this size."""
    q, k = (np.abs(np.asarray(a, np.float64)).max(initial=1) for a in (problem.query, problem.key))
    return float(q * k * max(q, k) * problem.width * problem.queries * 3)


@pytest.mark.slow
@given(problems(dtypes=("float64",)))
@settings(max_examples=200, deadline=None)
def test_gradients_agree_with_torch_autograd(problem: Problem) -> None:
    grad = upward(problem)
    theirs = autograd(problem, grad)
    for engine in ENGINES:
        ours = backward(engine, problem, grad)
        bound = 1e-14 * size(problem)
        for name in ("query", "key", "value"):
            assert np.abs(getattr(ours, name) - theirs[name]).max() < bound, (engine, name)
        if problem.sink is not None:
            assert ours.sink is not None
            assert np.abs(ours.sink - theirs["sink"]).max() < bound
        for shape, bias in zip(float_masks(problem), ours.biases, strict=True):
            assert bias.shape == shape
            assert np.abs(bias - over_mask(theirs["bias"], shape)).max() < bound


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": "causal"},
        {"softcap": 1.5, "sink": 0.3},
        {"scale": -0.7, "mask": "window(2, 1) | prefix(1)"},
        {"rope": "half"},
        {"rope": {"style": "interleaved", "dim": 2, "theta": 100.0}, "mask": "causal"},
        {"past": True, "mask": "causal", "rope": "half"},
        {"attn_mask": True, "softcap": 2.0},
        {"heads": 4, "kv_heads": 2},
    ],
    ids=str,
)
def test_gradients_are_finite_differences(engine: str, options: dict[str, Any]) -> None:
    rng, options = np.random.default_rng(3), dict(options)
    inputs = {
        "query": rng.normal(size=(4, 5, 6)), "key": rng.normal(size=(2, 5, 6)),
        "value": rng.normal(size=(2, 5, 3)),
    }  # fmt: skip
    if "heads" in options:  # packed: (L, H·D)
        inputs = {n: a.swapaxes(0, 1).reshape(5, -1) for n, a in inputs.items()}
    if options.pop("past", False):
        inputs |= {"past_key": rng.normal(size=(2, 2, 6)), "past_value": rng.normal(size=(2, 2, 3))}
    if options.pop("attn_mask", False):
        inputs["attn_mask"] = rng.normal(size=(4, 1, 5))

    def total(changed: dict[str, Array]) -> float:
        out = attncli.attend(**changed, **options, backend="reference").output
        return float((out * grad).sum())

    grad = rng.normal(size=attncli.attend(**inputs, **options).output.shape)
    found = attncli.attend(
        **inputs, **options, backend=engine, want=("gradients", "grad_bias"), grad_output=grad
    ).gradients
    assert found is not None
    for name, array in inputs.items():
        ours = getattr(found, {"attn_mask": "bias"}.get(name, name))
        assert ours.shape == array.shape
        for at in [tuple(rng.integers(n) for n in array.shape) for _ in range(6)]:
            moved = []
            for step in (1e-5, -1e-5):
                other = array.copy()
                other[at] += step
                moved.append(total(inputs | {name: other}))
            assert ours[at] == pytest.approx((moved[0] - moved[1]) / 2e-5, rel=1e-6, abs=1e-8), name


@pytest.mark.slow
@given(problems(dtypes=("float32",)))
@settings(max_examples=400, deadline=None)
def test_float32_is_within_the_error_budget(problem: Problem) -> None:
    check_budget(problem, "numpy")


@pytest.mark.slow
@given(problems(dtypes=("float16", "bfloat16")))
@settings(max_examples=600, deadline=None)
def test_half_precision_is_within_the_error_budget(problem: Problem) -> None:
    check_budget(problem, "numpy")


@given(problems(dtypes=("float64",)))
@settings(max_examples=100, deadline=None)
def test_float64_is_within_the_error_budget(problem: Problem) -> None:
    check_budget(problem, "numpy")


@pytest.mark.slow
@given(problems())
@settings(max_examples=150, deadline=None)
def test_torch_is_within_the_error_budget(problem: Problem) -> None:
    pytest.importorskip("torch")
    check_budget(problem, "torch")


def check_budget(problem: Problem, engine: str) -> None:
    grad = upward(problem)
    result = solve(
        problem, backend=engine, want=("gradients", "grad_bias"), grad_output=grad, threads=1
    )
    assert result.gradients is not None
    assert result.gradients.query.dtype == problem.result_dtype
    assert_gradients_within_budget(problem, grad, result.gradients)


def arrays(found: Gradients) -> dict[str, Array]:
    named = {n: getattr(found, n) for n in ("query", "key", "value", "sink", "score_norm")}
    named |= {f"bias {n}": bias for n, bias in enumerate(found.biases)}
    return {name: array for name, array in named.items() if array is not None}


def some_problem(queries: int = 300, keys: int = 333, **options: Any) -> Problem:
    rng = np.random.default_rng(1)
    q = rng.normal(size=(2, 4, queries, 8))
    k, v = rng.normal(size=(2, 2, keys, 8)), rng.normal(size=(2, 2, keys, 5))
    maskers = [masker(m) for m in options.pop("masks", ())]
    return pose(q, k, v, mask=maskers, **options)


MASKS: list[tuple[str, ...]] = [
    (),
    ("causal(bottom_right)",),
    ("window(17, 5, top_left) | prefix(3)",),
    ("random(0.3, 1)",),
]


@pytest.mark.parametrize("masks", MASKS, ids=str)
def test_tiles_change_nothing_beyond_rounding(masks: tuple[str, ...]) -> None:
    problem = some_problem(masks=masks, sink=[0.1, 0, -1, 2], softcap=3.0 if masks else None)
    grad = upward(problem)
    first = arrays(backward("reference", problem, grad))
    for tiling in (None, Tiling(7, 16), Tiling(64, 128), Tiling(33, 256), Tiling(512, 1024)):
        for threads in (1, 3):
            found = numpy_backward.backward(problem, grad, None, ALL, How(threads), tiling=tiling)
            for name, array in arrays(found).items():
                np.testing.assert_allclose(array, first[name], rtol=1e-10, atol=1e-12)


def test_two_runs_and_up_to_four_threads_agree_to_the_bit() -> None:
    problem = some_problem(masks=("causal(top_left)",))
    problem = replace(problem, dtype=np.dtype(np.float32), result_dtype=np.dtype(np.float32))
    grad = upward(problem)
    first = arrays(numpy_backward.backward(problem, grad, None, ALL, How(1)))
    for threads in (1, 2, 3, 4):
        again = arrays(numpy_backward.backward(problem, grad, None, ALL, How(threads)))
        for name, array in again.items():
            np.testing.assert_array_equal(array, first[name])


def test_what_attend_returned_is_used() -> None:
    problem = some_problem()
    grad, done = upward(problem), reference.attend(problem, ())
    whole = numpy_backward.backward(problem, grad, done)
    np.testing.assert_allclose(whole.key, backward("reference", problem, grad).key, atol=1e-12)
    wrong = done._replace(lse=done.lse + np.log(2))  # all weights halved
    half = numpy_backward.backward(problem, grad, wrong)
    np.testing.assert_allclose(half.value, whole.value / 2, atol=1e-12)


def test_masked_means_not_read(engine: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v, grad = (rng.normal(size=(6, 4)) for _ in range(4))
    keep = rng.random((6, 6)) < 0.6
    keep[2], keep[:, 4], keep[0] = False, False, [True, True, False, False, False, True]
    want = {"want": ("gradients", "gradient_norms"), "attn_mask": keep, "backend": engine}
    clean = attncli.attend(q, k, v, grad_output=grad, **want).gradients
    q[2], grad[2], k[4], v[4] = np.nan, np.inf, np.inf, np.nan  # a dead row, a key nobody sees
    dirty = attncli.attend(q, k, v, grad_output=grad, **want).gradients
    assert clean is not None and dirty is not None
    for name, array in arrays(dirty).items():
        np.testing.assert_allclose(array, arrays(clean)[name], atol=1e-14, err_msg=name)
    assert (dirty.query[2] == 0).all() and (dirty.key[4] == 0).all() and (dirty.value[4] == 0).all()
    assert dirty.norms["grad_score_norm"][2] == 0


@pytest.mark.parametrize("what", ["query", "key", "value", "grad_output"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_who_sees_it_and_nobody_else(what: str, bad: float) -> None:
    rng = np.random.default_rng(0)
    given_ = {n: rng.normal(size=(1, 2, 40, 4)) for n in ("query", "key", "value", "grad_output")}
    given_[what][0, 1, 17, 2] = bad
    for softcap in (None, 3.0):
        odd = []
        for engine in ENGINES:
            found = attncli.attend(
                **given_, mask="window(3, 3)", softcap=softcap, backend=engine,
                want=("gradients", "gradient_norms"),
            ).gradients  # fmt: skip
            assert found is not None
            odd.append({n: np.isfinite(a) for n, a in arrays(found).items()})
        for other in odd[1:]:
            for name, where in odd[0].items():
                np.testing.assert_array_equal(other[name], where, err_msg=name)
        for name, where in odd[0].items():
            assert where[:, 0].all(), name  # the other head
            reach = np.flatnonzero(~where[0, 1].reshape(40, -1).all(1))
            assert np.abs(reach - 17).max(initial=0) <= 6, name
        if softcap is None or np.isnan(bad):  # a cap turns an infinite score into a finite one
            assert not odd[0]["query"].all()


@pytest.mark.parametrize("low", [-1e9, float(np.finfo(np.float32).min)])
def test_a_row_of_sentinels_that_swallow_its_scores_is_a_mean(low: float) -> None:
    rng = np.random.default_rng(0)
    q, k, v, grad = (rng.normal(size=(5, 4)).astype(np.float32) for _ in range(4))
    bias = np.zeros((5, 5), np.float32)
    bias[:, 3:], bias[1] = low, low
    found = attncli.attend(q, k, v, attn_mask=bias, want=("gradients",), grad_output=grad).gradients
    e = np.where(bias == 0, np.exp(q @ k.T / 2), 0)
    e[1] = 1
    weights = e / e.sum(1, keepdims=True)
    dp = grad @ v.T
    ds = weights * (dp - (weights * dp).sum(1, keepdims=True)) / 2
    assert found is not None
    for ours, right in (
        (found.query, ds @ k), (found.key, ds.T @ q), (found.value, weights.T @ grad),
    ):  # fmt: skip
        np.testing.assert_allclose(ours, right, atol=2e-6)


def test_sentinels_near_the_scores_keep_them_apart() -> None:
    rng = np.random.default_rng(0)
    q, k, v, grad = (rng.normal(size=(300, 4)).astype(np.float32) for _ in range(4))
    bias = np.where(rng.random((300, 300)) < 0.5, -1e4, 0).astype(np.float32)
    bias[7] = -1e4
    for softcap in (None, 2.0):
        fast, slow = (
            attncli.attend(
                q, k, v, attn_mask=bias, softcap=softcap, sink=-1e4, backend=engine,
                want=("gradients",), grad_output=grad,
            ).gradients
            for engine in ("numpy", "reference")
        )  # fmt: skip
        assert fast is not None and slow is not None
        for name, array in arrays(fast).items():
            # float32 near 1e4 has steps of 1e-3
            np.testing.assert_allclose(array, arrays(slow)[name], atol=4e-3, err_msg=name)


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 0, 4, 3, 2),
        (1, 1, 3, 0, 3, 2),
        (1, 1, 3, 4, 0, 2),
        (1, 1, 3, 4, 3, 0),
        (0, 2, 3, 4, 3, 2),
        (1, 0, 3, 4, 3, 2),
    ],
)
def test_dimensions_of_length_zero(engine: str, shape: tuple[int, ...]) -> None:
    b, h, queries, keys, width, value_width = shape
    q, k = np.ones((b, h, queries, width)), np.ones((b, h, keys, width))
    v = np.ones((b, h, keys, value_width))
    found = attncli.attend(
        q, k, v, sink=0.0, backend=engine, want=("gradients", "gradient_norms")
    ).gradients
    assert found is not None and found.sink is not None
    assert (found.query.shape, found.key.shape, found.value.shape) == (q.shape, k.shape, v.shape)
    assert found.sink.shape == (h,)
    assert (found.query == 0).all()


def test_shapes_come_back_in_the_family(engine: str) -> None:
    x, want = np.random.default_rng(0).normal(size=(2, 6, 12)), ("gradients", "gradient_norms")
    packed = attncli.attend(
        x, x[:, :, :6], x[:, :, :8], heads=4, kv_heads=2, backend=engine, want=want
    ).gradients
    assert packed is not None
    assert packed.query.shape == (2, 6, 12)
    assert packed.key.shape == (2, 6, 6) and packed.value.shape == (2, 6, 8)
    assert {n: a.shape for n, a in packed.norms.items()} == {
        "grad_query_norm": (2, 4, 6), "grad_score_norm": (2, 4, 6),
        "grad_key_norm": (2, 2, 6), "grad_value_norm": (2, 2, 6),
    }  # fmt: skip
    blhd = attncli.attend(
        x.reshape(2, 6, 4, 3), x[:, :, :6].reshape(2, 6, 2, 3), x[:, :, :8].reshape(2, 6, 2, 4),
        layout="blhd", backend=engine, want=want,
    ).gradients  # fmt: skip
    assert blhd is not None
    np.testing.assert_allclose(blhd.key.reshape(2, 6, 6), packed.key, atol=1e-14)
    flat = attncli.attend(x[0], backend=engine, want=want).gradients
    assert flat is not None and flat.query.shape == (6, 12)
    np.testing.assert_allclose(
        flat.norms["grad_query_norm"], np.linalg.norm(flat.query, axis=-1), atol=1e-14
    )


def test_score_norms_are_those_of_the_definition() -> None:
    problem = some_problem(20, 30, masks=("causal(bottom_right)",), softcap=2.0)
    grad = upward(problem)
    slow, fast = (backward(engine, problem, grad) for engine in ("reference", "numpy"))
    stage = definition.stages(problem, 0, 3)
    weights, dp = stage["weights"], grad[0, 3] @ problem.value[0, 1].T
    dz = weights * (dp - (weights * dp).sum(1, keepdims=True))
    ds = dz * (1 - np.tanh(stage["scores"] / 2) ** 2)
    assert slow.score_norm is not None and fast.score_norm is not None
    np.testing.assert_allclose(slow.score_norm[0, 3], np.linalg.norm(ds, axis=1), atol=1e-14)
    np.testing.assert_allclose(fast.score_norm, slow.score_norm, atol=1e-13)


def test_progress_grows_to_one_over_both_ways(engine: str) -> None:
    seen: list[float] = []
    x = np.random.default_rng(0).normal(size=(6, 300, 4))
    attncli.attend(x, backend=engine, want=("gradients",), progress=seen.append, threads=1)
    assert seen == sorted(seen) and seen[-1] == 1 and any(0 < done < 1 for done in seen)


def test_only_tiles_with_visible_cells_are_visited(monkeypatch: pytest.MonkeyPatch) -> None:
    visited = 0
    times = KeyTile.times

    def counted(self: KeyTile, name: str, rows: Array, blocks: Array, a: int, z: int) -> Array:
        nonlocal visited
        visited += len(rows) * (z - a)
        return times(self, name, rows, blocks, a, z)

    monkeypatch.setattr(KeyTile, "times", counted)
    x = np.random.default_rng(0).normal(size=(4096, 4)).astype(np.float32)
    attncli.attend(x, mask="window(256, 0)", want=("gradients",), backend="numpy")
    kept = 4096 * 257
    assert kept < visited / 2 < 2 * kept  # two products a cell: scores and dP


def test_memory_is_linear_in_the_length() -> None:
    length, width = 32768, 8
    x = np.random.default_rng(0).normal(size=(length, width)).astype(np.float32)
    tracemalloc.start()
    try:
        attncli.attend(
            x, mask="window(64, 0)", want=("gradients", "gradient_norms"), grad_output="ones"
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 * x.nbytes + 20 * 2**20  # the matrix: 4 GiB
