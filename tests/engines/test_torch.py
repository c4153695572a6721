"""The torch engine on the CPU: against the truth, and what it says when it cannot."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import attncli
from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.attention.problem import STAGES, Problem
from attncli.engines import reference
from attncli.errors import InputError, Unavailable
from attncli.studies.attend import Result, solve
from tests.support.budget import assert_within_budget, rows_are_right
from tests.support.problems import DTYPES, problems, random_problem
from tests.support.program import ROOT, environment

torch = pytest.importorskip("torch")

from attncli.engines.torch import device, forward, tiles  # noqa: E402

TILINGS = [(1, 2, 1), (3, 4, 24), (5, 100, 1 << 20)]


def run(problem: Problem, *want: str) -> Result:
    return solve(problem, backend="torch", device="cpu", want=want or ("output",))


# --- against the truth ---------------------------------------------------------------------------


@given(problems())
@settings(max_examples=100, deadline=None)
def test_output_is_within_the_error_budget(problem: Problem) -> None:
    assert_within_budget(run(problem), ("output",))


@given(problems())
@settings(max_examples=100, deadline=None)
def test_tiles_and_stages_are_within_the_error_budget(problem: Problem) -> None:
    assert_within_budget(run(problem, "output", "lse"), ("output", "lse"))
    assert_within_budget(run(problem, "output", *STAGES), ("output", "lse", *STAGES))


@given(problems(), st.sampled_from(["float16", "float32", "bfloat16"]))
@settings(max_examples=100, deadline=None)
def test_the_softmax_runs_in_the_type_asked_for(problem: Problem, kind: str) -> None:
    logits = reference.attend(problem, {"masked"}).stages["masked"].astype(np.float64)
    assume(np.abs(np.where(np.isneginf(logits), 0, logits)).max() < 6e4)  # float16 ends there
    problem = replace(problem, softmax_dtype=DTYPES[kind])
    result = run(problem, "output", "weights")
    assert kind in result.engine.kernel or "weights" in result.engine.kernel
    assert_within_budget(result, ("weights", "output", "lse"))


@pytest.mark.slow
@given(problems(), st.sampled_from(TILINGS))
@settings(max_examples=100, deadline=None)
def test_running_sums_are_right_and_tiles_change_nothing(
    problem: Problem, tiling: tuple[int, int, int]
) -> None:
    whole = run(problem, "output", "row_statistics", "weights")
    tiled = run(problem, "output", "row_statistics")
    inputs = device.Inputs.of(problem, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "GRAIN", 2)
        small = tiles.attend(problem, {"row_statistics"}, inputs, tiling=tiles.Tiling(*tiling))
    done = forward.Done(small.output, small.lse, small.rows, {}, "tiles")
    parts = forward.attended(problem, done, torch.device("cpu"), 0)
    for rows in (whole.rows, tiled.rows):
        assert rows is not None
    assert parts.rows is not None
    rows_are_right(problem, parts.rows)
    no_sink = replace(problem, sink=None)
    for want in (("row_statistics",), ("row_statistics", "weights")):
        rows = run(no_sink, *want).rows
        assert rows is not None
        rows_are_right(no_sink, rows)
    again = replace(tiled, attended=parts)
    assert_within_budget(again, ("output",))


def test_equal_logits_name_the_first_keys() -> None:
    problem = pose(np.zeros((3, 4)), np.zeros((1000, 4)), mask=masker("causal(bottom_right)"))
    rows = run(problem, "row_statistics").rows
    assert rows is not None
    assert (rows.top_j == [0, 1]).all()


# --- which way -----------------------------------------------------------------------------------

CAUSAL = "causal(top_left)"


@pytest.mark.parametrize(
    ("mask", "shape", "kernel"),
    [
        (None, {}, "sdpa flash"),
        (None, {"groups": 1}, "sdpa flash"),
        (None, {"value_width": 5}, "sdpa math"),
        (CAUSAL, {}, "sdpa flash, causal"),
        (CAUSAL, {"keys": 70}, "sdpa flash, causal"),
        (CAUSAL, {"queries": 70}, "sdpa flash, causal"),
        ("window(inf, 0)", {}, "sdpa flash, causal"),
        ("window(39, 0)", {}, "sdpa flash, causal"),
        ("window(38, 0)", {}, "sdpa flash, mask tensor"),
        ("causal(bottom_right)", {"queries": 1}, "sdpa flash"),
        ("causal(bottom_right)", {"queries": 2}, "sdpa flash, mask tensor"),
        ("padding(30)", {}, "sdpa flash"),
        ("padding(30) & causal", {}, "sdpa flash, causal"),
        ("padding(30, 40)", {}, "sdpa flash, mask tensor"),
        ("padding(0, 40)", {}, "sdpa flash, mask tensor"),
        ("padding(0)", {}, "tiles: no key is seen"),
        ("alibi", {}, "sdpa flash, mask tensor"),
        ("alibi", {"dtype": "float64"}, "sdpa flash, mask tensor"),
        ("causal | prefix(9)", {}, "sdpa flash, mask tensor"),
        (CAUSAL, {"scale": -0.5}, "sdpa flash, causal"),
        (None, {"scale": 0.0}, "tiles: scale 0"),
        (None, {"softcap": 5.0}, "tiles: softcap"),
        (None, {"sink": 0.0}, "tiles: sink"),
        (None, {"softmax_dtype": "float16"}, "tiles: softmax in float16"),
        ("window(1000, 0)", {"queries": 3000, "keys": 3000, "heads": 1, "batch": 1},
         "tiles: a mask of 1 × 1 × 3000 × 3000 cells"),
        (None, {"queries": 5000, "keys": 5000, "heads": 1, "batch": 1, "value_width": 3},
         "tiles: SDPA would make the whole matrix"),
    ],
)  # fmt: skip
def test_what_sdpa_can_say_it_says(mask: str | None, shape: dict[str, Any], kernel: str) -> None:
    problem = random_problem(mask=mask, **shape)
    result = run(problem)
    assert result.engine.kernel == kernel
    assert result.engine.device == "cpu"
    if problem.queries * problem.keys < 1 << 16:
        assert_within_budget(result, ("output",))
    else:
        other = solve(problem, want=("output",)).output
        np.testing.assert_allclose(result.output, other, atol=1e-5)  # covered by the budget above


def test_a_bias_that_a_half_cannot_hold_is_added_in_float32() -> None:
    assert run(random_problem(mask="alibi", dtype="float16", heads=2)).engine.kernel == (
        "sdpa flash, mask tensor"
    )  # slopes of powers of two
    result = run(random_problem(mask="alibi(0.1, 0.3)", dtype="float16", heads=2))
    assert result.engine.kernel == "tiles: a bias that float16 cannot hold"
    low = pose(np.ones((2, 4), np.float16), mask=masker("causal"))
    tensor = attncli.attend(
        low.query, attn_mask=np.array([0, -1e9]), backend="torch", want=("output",)
    )
    assert "cannot hold" in tensor.engine.kernel


def test_statistics_and_lse_are_made_in_tiles() -> None:
    problem = random_problem(mask=CAUSAL)
    assert run(problem, "output", "lse").engine.kernel == "tiles: lse"
    assert run(problem, "row_statistics", "lse").engine.kernel == "tiles: statistics"
    assert run(problem, "masked").engine.kernel == "tiles: masked"
    alone = run(random_problem(queries=45, mask="causal(bottom_right)"), "output")
    assert np.isneginf(alone.lse[..., :5]).all()
    assert np.isnan(alone.lse[..., 5:]).all()
    assert any("see no key" in warning for warning in alone.warnings)


# --- odd numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("want", [("output",), ("output", "lse"), ("output", "weights")])
def test_what_is_masked_is_not_read(dtype: str, want: tuple[str, ...]) -> None:
    clean = random_problem(queries=20, keys=20, mask="causal", dtype=dtype)
    dirty_key, dirty_value = clean.key.copy(), clean.value.copy()
    dirty_key[:, :, 15:] = np.nan
    dirty_value[:, :, 15:], dirty_value[:, :, 16] = np.nan, np.inf
    dirty = replace(clean, key=dirty_key, value=dirty_value)
    left, right = run(clean, *want), run(dirty, *want)
    if want == ("output",):
        assert right.engine.kernel == "tiles: numbers that are not finite"
    assert np.isfinite(right.output[:, :, :15].astype(float)).all()
    assert np.isnan(right.output[:, :, 15:].astype(float)).all()
    assert_within_budget(left, ("output",))
    assert_within_budget(right, ("output",))


@given(problems(dtypes=("float32", "float64")), st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_numbers_that_are_not_finite_do_what_the_definition_does(
    problem: Problem, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    value, key = problem.value.copy(), problem.key.copy()
    odd = rng.choice([np.nan, np.inf, -np.inf], size=value.shape)
    value = np.where(rng.random(value.shape) < 0.1, odd, value).astype(value.dtype)
    if rng.random() < 0.3:
        key[:, :, rng.integers(problem.keys)] = rng.choice([np.nan, np.inf])
    problem = replace(problem, key=key, value=value)
    right = reference.attend(problem, {"output"}).output
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "GRAIN", 2)
        patch.setitem(tiles.TILINGS, "cpu", tiles.Tiling(3, 4, 24))
        ours = problem.family.restore(right), run(problem).output
    reference_rows, found = ours
    # where a weight is too small for float32 the definition in float64 may still see it
    sure = np.isfinite(reference_rows) == np.isfinite(found)
    stage = reference.attend(problem, {"weights"}).stages["weights"]
    near = np.isfinite(stage) & (stage > 0) & (stage < 1e-30)
    assert sure.all() or near.any()
    if not near.any():
        np.testing.assert_array_equal(np.isnan(found), np.isnan(reference_rows))
        np.testing.assert_array_equal(np.isposinf(found), np.isposinf(reference_rows))


@pytest.mark.parametrize(
    "shape",
    [
        {"batch": 0}, {"heads": 0, "groups": 0}, {"queries": 0}, {"keys": 0}, {"width": 0},
        {"value_width": 0}, {"keys": 0, "sink": 0.5}, {"queries": 0, "keys": 0},
    ],
)  # fmt: skip
@pytest.mark.parametrize("want", [("output",), ("output", "lse", "row_statistics", "weights")])
def test_dimensions_of_length_zero(shape: dict[str, Any], want: tuple[str, ...]) -> None:
    problem = random_problem(**shape)
    ours, right = run(problem, *want), solve(problem, backend="reference", want=want)
    assert ours.output.shape == right.output.shape
    np.testing.assert_allclose(ours.output, right.output, atol=1e-6)
    assert (np.isneginf(ours.lse) == np.isneginf(right.lse)).all()
    if len(want) > 1:
        assert ours.rows is not None
        assert ours.rows.m.shape == ours.lse.shape
        np.testing.assert_allclose(ours.lse, right.lse, atol=1e-6)


def test_tensors_of_unlike_types_strides_and_memory() -> None:
    rng = np.random.default_rng(0)
    q = rng.normal(size=(1, 6, 2, 8)).astype(np.float16)  # (B, L, H, D)
    k = rng.normal(size=(1, 7, 2, 8)).astype(">f4")[:, :, ::-1]
    v = rng.normal(size=(1, 7, 2, 16)).astype(DTYPES["bfloat16"])[..., ::2]
    v.flags.writeable = False
    problem = pose(q, k, v, layout="blhd")
    result = run(problem)
    assert result.output.dtype == np.float32
    assert_within_budget(result, ("output",))


# --- devices, settings, absence ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "", "cuda:-1"])
@pytest.mark.parametrize("engine", ["torch", "numpy"])
def test_an_unknown_device_is_a_mistake(name: str, engine: str) -> None:
    with pytest.raises(InputError, match="must be auto, cpu, cuda or cuda:N"):
        attncli.attend(np.ones((2, 2)), backend=engine, device=name)


def test_other_engines_know_the_cpu_alone() -> None:
    with pytest.raises(Unavailable, match="--backend torch"):
        attncli.attend(np.ones((2, 2)), backend="numpy", device="cuda")
    assert attncli.attend(np.ones((2, 2)), backend="numpy", device="cpu").engine.device == "cpu"


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cuda", "cuda:1"):
        with pytest.raises(Unavailable, match=rf"'{name}' was asked for(.|\n)*--device cpu"):
            attncli.attend(np.ones((2, 2)), backend="torch", device=name)
    assert device.find_device("auto").type == "cpu"


def test_an_index_past_the_last_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "H100")
    with pytest.raises(Unavailable, match=r"there is only cuda:0 H100(.|\n)*--device"):
        device.find_device("cuda:1")
    assert str(device.find_device("cuda")) == "cuda:0"
    assert str(device.find_device("auto")) == "cuda:0"


def test_memory_that_runs_out_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(forward, "compute", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, 80 << 30))
    with pytest.raises(Unavailable, match=r"ran out of memory for 1 × 1 heads(.|\n)*1\.0 of"):
        attncli.attend(np.ones((2, 2)), backend="torch")


@pytest.mark.parametrize("failure", [None, KeyboardInterrupt])
def test_torchs_settings_are_put_back(
    failure: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, found = torch.get_num_threads(), {}
    torch.set_float32_matmul_precision("medium")

    def stop(_: float) -> None:
        found.update(
            threads=torch.get_num_threads(), precision=torch.get_float32_matmul_precision(),
            grad=torch.is_grad_enabled(),
        )  # fmt: skip
        if failure:
            raise failure

    try:
        problem = random_problem(softcap=5.0)
        if failure:
            with pytest.raises(failure):
                solve(problem, backend="torch", device="cpu", threads=1, progress=stop)
        else:
            done = solve(problem, backend="torch", device="cpu", threads=1, progress=stop)
            assert done.engine.threads == 1
        assert found == {"threads": 1, "precision": "highest", "grad": False}
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_progress_ends_at_one() -> None:
    seen: list[float] = []
    solve(random_problem(softcap=5.0), backend="torch", device="cpu", progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Unavailable, match=r"pip install 'attncli\[torch\]'"):
        attncli.attend(np.ones((2, 2)), backend="torch")


def test_the_other_engines_load_no_torch() -> None:
    code = (
        "import sys, attncli; from attncli.cli import main\n"
        "attncli.attend([[1.0, 0.0]], want=('output', 'row_statistics'))\n"
        "attncli.attend([[1.0, 0.0]], backend='reference')\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('torch', 'triton')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment())
