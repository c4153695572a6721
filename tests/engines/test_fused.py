"""The compiled engine against the truth: any problem, on every build that runs here."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attncli
from attncli.attention.language import masker, tensor_masker
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.engines import Attended, How, fused, reference
from attncli.engines.fused import forward, plan
from attncli.errors import Unavailable
from attncli.studies.attend import solve
from tests.support.budget import assert_within_budget, rows_are_right
from tests.support.builds import BUILDS, needs_fused
from tests.support.problems import mask_expressions, problems, tensors

pytestmark = needs_fused
Array = np.ndarray[Any, np.dtype[Any]]
ALL = ("output", "lse", "row_statistics")
HALVES = ("float32", "float16", "bfloat16")
MANY = int(
    os.environ.get("ATTNCLI_EXAMPLES", "0")
)  # small problems on each build, a quarter as many large


def attended(p: Problem, threads: int = 1) -> Attended:
    return forward.attend(p, ALL, How(threads))


@functools.cache
def masked(mask: str, *shape: int) -> Problem:
    """The same problem for every build, which is judged by one truth."""
    return pose(*tensors(shape), mask=[masker(mask)])  # type: ignore[arg-type]


def judge(p: Problem, threads: int) -> None:
    result = solve(p, backend="fused", threads=threads, want=ALL)
    assert_within_budget(result)
    assert result.attended.rows is not None
    rows_are_right(p, result.attended.rows)
    bare = solve(p, backend="fused", threads=threads)
    assert_within_budget(bare, ("output",))


@pytest.mark.parametrize("name", BUILDS)
@given(problem=problems(HALVES), threads=st.sampled_from([1, 2, 3, 7]))
@settings(max_examples=MANY or 40, deadline=None)
def test_small_problems(name: str, problem: Problem, threads: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(fused.VARIABLE, name)
        judge(problem, threads)


@st.composite
def large_problems(draw: st.DrawFn) -> Problem:
    """Draw a problem of several blocks and granules, with all that a kernel can get wrong."""
    batch, groups = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    heads = groups * draw(st.sampled_from([1, 1, 2, 3]))
    queries = draw(st.sampled_from([1, 5, 47, 48, 49, 97, 200, 300]))
    keys = draw(st.sampled_from([1, 7, 8, 100, 128, 129, 260, 400]))
    width, value_width = draw(
        st.sampled_from([(64, 64), (8, 8), (1, 3), (80, 96), (24, 7), (5, 1)])
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = draw(st.sampled_from([0.0, 1e-3, 1.0, 1.0, 10.0, 1000.0]))
    dtype = draw(st.sampled_from([np.float32, np.float32, np.float16]))
    q, k, v = (
        rng.normal(size=(batch, *shape)).astype(dtype)
        for shape in ((heads, queries, width), (groups, keys, width), (groups, keys, value_width))
    )
    maskers = []
    if draw(st.booleans()):
        maskers.append(masker(draw(mask_expressions(batch, queries, keys))))
    if draw(st.integers(0, 3)) == 0:
        shape = draw(
            st.sampled_from([(queries, keys), (batch, 1, queries, keys), (heads, 1, keys)])
        )
        keep = rng.random(shape) < draw(st.sampled_from([0.1, 0.9]))
        bias = np.where(keep, rng.normal(size=shape), draw(st.sampled_from([-np.inf, -1e9])))
        maskers.append(tensor_masker(keep if draw(st.booleans()) else bias))
    return pose(
        q * dtype(spread), k, v, mask=maskers,
        scale=draw(st.sampled_from(["auto", "auto", "none", -0.5, 0.0])),
        softcap=draw(st.sampled_from([None, None, None, 0.5, 30.0])),
        sink=rng.normal(size=heads) * 3 if draw(st.integers(0, 3)) == 0 else None,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDS)
@given(problem=large_problems(), threads=st.sampled_from([1, 2, 3, 7]))
@settings(max_examples=MANY // 4 or 15, deadline=None)
def test_large_problems(name: str, problem: Problem, threads: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(fused.VARIABLE, name)
        judge(problem, threads)


MASKS = ("causal", "window(60, 3)", "dilated(3)", "random(0.3, 5)", "alibi & causal", "blocks(50)")


@pytest.mark.parametrize("mask", [None, *MASKS])
@pytest.mark.parametrize("size", [1.0, 100.0])
def test_threads_change_nothing(build: str, mask: str | None, size: float) -> None:
    p = pose(*tensors((1, 4, 2, 400, 400, 16, 8), size), mask=[masker(mask)] if mask else [])
    first = attended(p)
    for threads in (2, 3, 7):
        again = attended(p, threads)
        np.testing.assert_array_equal(first.output, again.output)
        np.testing.assert_array_equal(first.lse, again.lse)
        for name, rows in vars(first.rows).items():
            np.testing.assert_array_equal(rows, getattr(again.rows, name), name)


@pytest.mark.parametrize("rows", [48, 333])
def test_a_long_mask_is_planned_in_parts(
    build: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "ASK_CELLS", 0)
    monkeypatch.setattr(plan, "MASK_CELLS", rows * 400)
    for mask in ("causal", "window(200, 50)", "blocks(150)", "global_rows(3) | window(9)"):
        judge(masked(mask, 1, 1, 1, 400, 400, 16, 8), 2)


@pytest.mark.parametrize("where", ["query", "key", "value"])
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_those_that_see_it(
    build: str, where: str, poison: float
) -> None:
    q, k, v = tensors((1, 2, 1, 200, 200, 8, 12))
    dirty = {"query": q, "key": k, "value": v}[where]
    dirty[:, :, 150:, 3], dirty[:, :, 160, 4] = poison, -poison
    p = pose(q, k, v, mask=masker("causal"))
    got, want = attended(p), reference.attend(p, ALL)
    for mine, right in ((got.output, want.output), (got.lse, want.lse)):
        for kind in (np.isnan, np.isposinf, np.isneginf):
            np.testing.assert_array_equal(kind(mine), kind(right))
        np.testing.assert_allclose(mine[:, :, :150], right[:, :, :150], atol=1e-5)
    assert got.rows is not None and want.rows is not None
    for name in ("e1", "mean", "m2", "amax", "n"):
        mine, right = getattr(got.rows, name), getattr(want.rows, name)
        np.testing.assert_array_equal(np.isfinite(mine), np.isfinite(right), name)
        np.testing.assert_allclose(mine[:, :, :150], right[:, :, :150], 1e-4, 1e-6, err_msg=name)


def test_infinite_values_meet_as_in_the_dense_sum(build: str) -> None:
    q, k, v = tensors((1, 1, 1, 100, 100, 8, 4))
    v[0, 0, 3, 0], v[0, 0, 70, 0] = np.inf, -np.inf
    v[0, 0, 5, 1], v[0, 0, 9, 2] = np.inf, np.nan
    p = pose(q, k, v, mask=masker("causal"))
    np.testing.assert_allclose(attended(p).output, reference.attend(p, ALL).output, atol=1e-5)


def test_values_and_scores_near_the_end_of_float32(build: str) -> None:
    q, k, v = tensors((1, 1, 1, 100, 100, 8, 4))
    p = pose(q, k, v * np.float32(5e37), mask=masker("causal"))
    right = reference.attend(p, ALL).output
    np.testing.assert_allclose(attended(p).output, right, rtol=1e-4, atol=1e33)
    p = pose(q * np.float32(1e18), k * np.float32(1e18), v)
    np.testing.assert_allclose(attended(p).output, reference.attend(p, ALL).output, atol=1e-5)


@pytest.mark.parametrize("sink", [None, 2.0])
def test_dead_rows_give_zero(build: str, sink: float | None) -> None:
    keep = np.ones((180, 180), bool)
    keep[10:140] = False
    p = pose(*tensors((1, 2, 2, 180, 180, 8, 8)), mask=tensor_masker(keep), sink=sink)
    got, want = attended(p), reference.attend(p, ALL)
    assert not got.output[:, :, 10:140].any()
    assert (got.lse[:, :, 10:140] == (-np.inf if sink is None else sink)).all()
    for name, rows in vars(want.rows).items():
        ours = getattr(got.rows, name)
        assert ours.dtype == rows.dtype
        np.testing.assert_array_equal(ours[:, :, 10:140], rows[:, :, 10:140], name)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 0, 5, 4, 4), (1, 1, 1, 5, 0, 4, 4), (1, 2, 1, 5, 6, 0, 4), (1, 1, 1, 5, 6, 4, 0),
     (0, 1, 1, 5, 6, 4, 4)],
)  # fmt: skip
@pytest.mark.parametrize("sink", [None, 1.0])
def test_empty_dimensions(
    build: str, shape: tuple[int, int, int, int, int, int, int], sink: float | None
) -> None:
    p = pose(*tensors(shape), sink=sink)
    got, want = attended(p), reference.attend(p, ALL)
    np.testing.assert_allclose(got.output, want.output, atol=1e-6)
    np.testing.assert_allclose(got.lse, want.lse, rtol=1e-6)
    for name, rows in vars(want.rows).items():
        np.testing.assert_allclose(getattr(got.rows, name), rows, 1e-5, 1e-6, err_msg=name)


def test_strided_inputs_and_memory_maps(build: str, tmp_path: Any) -> None:
    q, k, v = tensors((1, 4, 4, 150, 150, 16, 16))
    np.save(tmp_path / "k.npy", k)
    lazy = np.load(tmp_path / "k.npy", mmap_mode="r")
    odd = np.frombuffer(b"x" + v.tobytes(), np.uint8)[1:].view(np.float32).reshape(v.shape)
    p = pose(q.swapaxes(1, 2).copy().swapaxes(1, 2), lazy, odd, mask=masker("causal"))
    np.testing.assert_array_equal(
        attended(p).output, attended(pose(q, k, v, mask=masker("causal"))).output
    )


@pytest.mark.parametrize("widths", [(1, 1), (3, 80), (96, 256), (576, 512)])
def test_widths(build: str, widths: tuple[int, int]) -> None:
    judge(masked("causal(top_left)", 1, 2, 1, 60, 140, *widths), 2)


@pytest.mark.parametrize("gap", [0.5, 5, 17, 25, 40, 100, 300])
@pytest.mark.parametrize("softcap", [None, 1e4])
@pytest.mark.parametrize("top", [0, 1, 130, 639, 999])
def test_sharp_rows(build: str, gap: float, softcap: float | None, top: int) -> None:
    """Σ' over the keys but the first keeps its digits however far they lie below it."""
    z = -gap - np.random.default_rng(1).random(1000).round(2)
    z[top] = 0
    p = pose(np.ones((3, 2)), np.stack([z, z * 0], 1), scale=1.0, dtype="float32", softcap=softcap)
    got, want = attended(p).rows, reference.attend(p, ALL).rows
    assert got is not None and want is not None
    for name in ("rest", "es", "rest2", "rest3", "mean", "m2", "amax", "first"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), 1e-4, err_msg=name)
    np.testing.assert_array_equal(got.top_j[..., 0], top)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e4, 1e24])
@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("mask", [None, "causal", "random(0.4, 3)"])
def test_moments_of_any_size(build: str, size: float, offset: float, mask: str | None) -> None:
    rng = np.random.default_rng(3)
    query = (rng.random((300, 8)) * size).astype(np.float32)
    key = (rng.normal(size=(300, 8)) + offset).astype(np.float32)
    p = pose(query, key, mask=[masker(mask)] if mask else [])
    got, want = attended(p).rows, reference.attend(p, ALL).rows
    assert got is not None and want is not None
    n = np.maximum(want.n, 1)
    mine, right = (np.sqrt(rows.m2 / n) for rows in (got, want))
    # scores of float32 are right up to an ulp of their terms
    np.testing.assert_allclose(mine, right, 1e-5, 4 * np.finfo(np.float32).eps * want.amax.max())


def test_ties_go_to_the_earlier_key(build: str) -> None:
    q, k, v = tensors((1, 1, 1, 70, 300, 8, 8))
    k[:, :, [7, 9, 130, 299]] = 3 * q.mean() + 5
    p = pose(np.abs(q), k, v)
    rows = attended(p).rows
    assert rows is not None
    assert (rows.top_j == [7, 9]).all()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"dtype": "float64"}, "in float32 only"),
        ({"softmax_dtype": "float16"}, "softmax"),
        ({"want": ("weights",)}, "no matrix of weights"),
    ],
)
def test_what_it_cannot_compute_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(Unavailable, match=f"'fused' cannot do this: .*{why}(.|\n)*--backend numpy"):
        attncli.attend(np.ones((3, 2), np.float32), backend="fused", **options)


def test_a_build_that_does_not_run_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fused.VARIABLE, "mmx")
    with pytest.raises(Unavailable, match=r"ATTNCLI_FUSED is 'mmx'(.|\n)*portable"):
        attncli.attend(np.ones((3, 2), np.float32), backend="fused")


def test_without_its_compiled_part_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "attncli.engines.fused._kernel")
    monkeypatch.delattr(fused, "_kernel", raising=False)
    monkeypatch.setattr(fused, "__path__", [])  # nothing lies there
    with pytest.raises(Unavailable, match="'fused' cannot run here: it was not compiled"):
        attncli.attend(np.ones((3, 2), np.float32), backend="fused")


def test_a_compiled_part_of_another_version_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "INTERFACE", -1)
    with pytest.raises(Unavailable, match="compiled for another attncli: install attncli again"):
        attncli.attend(np.ones((3, 2), np.float32), backend="fused")
    assert attncli.attend(np.ones((3, 2), np.float32)).engine.backend == "numpy"


def test_progress_is_told_and_an_interrupt_ends_all_threads() -> None:
    told: list[float] = []
    p = pose(*tensors((1, 64, 64, 600, 600, 8, 8)))
    attended_by = forward.attend(p, ("output",), How(2, progress=told.append))
    assert attended_by.rows is None and attended_by.kernel == f"{fused.build()[0]} softmax"
    assert len(told) > 1 and told == sorted(told) and told[-1] <= 1

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        forward.attend(p, ("output",), How(2, progress=interrupt))
    again = forward.attend(p, ("output",), How(2))
    np.testing.assert_array_equal(again.output, attended_by.output)


@pytest.mark.parametrize("back", [False, True])
def test_buffers_that_do_not_fit_are_refused(back: bool) -> None:
    from attncli.engines.fused import _kernel

    name, one, part = BUILDS[0], (1, 1, 1, 1, 1, 4, 4), (0, 1, 0, 1, 0, 1)
    blank, scratch = np.zeros(9), np.zeros(_kernel.scratch(name, 4, 4)[back], np.uint8)
    row = blank.view(np.float32)
    buffers = [scratch, row, row, row, None, None, None]  # no mask, no bias
    buffers += (
        [row, row, row, row, blank, row, row, row, row, blank, blank, blank]
        if back
        else [row, row, blank, blank, blank, blank, None]
    )
    run = _kernel.backward if back else _kernel.attend

    def rest(at: int, other: Any) -> tuple[Any, ...]:
        return (*buffers[:at], other, *buffers[at + 1 :])

    assert run(name, tuple(buffers), one, part, 1.0, 0.0) == 0
    for at, buffer in enumerate(buffers):
        if buffer is not None:
            with pytest.raises(ValueError, match="0 bytes, expected"):
                run(name, rest(at, np.zeros(0, buffer.dtype)), one, part, 1.0, 0.0)
            if at not in ((12, 13, 14, 15) if back else (9,)):  # none of these is asked for
                with pytest.raises(ValueError, match="must be there"):
                    run(name, rest(at, None), one, part, 1.0, 0.0)
    for at, wrong in ((4, np.ones((1, 2), bool)), (6, np.ones((1, 1)))):
        with pytest.raises(ValueError, match="is no plane of 1 rows and 1 keys"):
            run(name, rest(at, wrong), one, part, 1.0, 0.0)
    with pytest.raises(ValueError, match=r"expected 1. buffers"):
        run(name, tuple(buffers[1:]), one, part, 1.0, 0.0)
    for wrong in ((0, 2, 0, 1, 0, 1), (0, 1, 0, 2, 0, 1), (0, 1, 0, 1, 0, 2), (0, 1, 0, 1, -1, 1)):
        with pytest.raises(ValueError, match="are not there"):
            run(name, tuple(buffers), one, wrong, 1.0, 0.0)
    with pytest.raises(ValueError, match="no build 'mmx'"):
        run("mmx", tuple(buffers), one, part, 1.0, 0.0)


SANITIZED = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("attncli.engines.fused._kernel", sys.argv[1])
kernel = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
from attncli.attention.language import masker, tensor_masker
from attncli.attention.pose import pose
from attncli.engines import How
from attncli.engines import fused
from attncli.engines.fused import backward, forward
import os

rng = np.random.default_rng(0)
for at in range(90):
    heads, group = int(rng.integers(1, 4)), int(rng.integers(1, 3))
    lq, lk = (int(n) for n in rng.choice([1, 7, 48, 49, 130, 200], 2))
    d, dv = (int(n) for n in rng.choice([1, 3, 8, 64, 80], 2))
    q, k, v = (
        (rng.normal(size=(heads * g, *shape)) * size).astype(np.float32)
        for g, shape, size in ((group, (lq, d), rng.choice([0, 1, 100, 1e18])), (1, (lk, d), 1),
                               (1, (lk, dv), 1))
    )
    if at % 5 == 0:
        k[0, lk // 2], v[0, -1] = np.inf, np.nan
    maskers = [masker(str(rng.choice(["causal(top_left)", "window(3, 60, bottom_right)",
                                      "random(0.2, 1)", "prefix(20)", "prefix(0)"])))]
    if at % 3 == 0:
        maskers.append(tensor_masker(np.where(rng.random((lq, lk)) < 0.7, 1.0, -np.inf)))
    p = pose(q, k, v, mask=maskers if at % 2 else [], scale=float(rng.choice([1, -1, 0])),
             softcap=20.0 if at % 7 == 0 else None, sink=[1.0] * len(q) if at % 4 == 0 else None)
    for build in kernel.builds():
        os.environ[fused.VARIABLE] = build
        for want in (("output",), ("output", "row_statistics")):
            forward.attend(p, want, How(2))
        if fused.unfit_backward(p, v, ()) is None:
            backward.backward(p, np.ones((1, *q.shape[:2], dv), np.float32), None, (), How(2))
print("clean")
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not there")
def test_no_address_and_no_behaviour_is_undefined(tmp_path: Path) -> None:
    """Random problems in a process of its own, on builds that watch what they do."""
    source = Path(fused.__file__).with_name("kernel.c")
    shared = tmp_path / "_kernel.so"
    compiled = subprocess.run(
        ["gcc", "-O1", "-g", "-shared", "-fPIC", "-fsanitize=address,undefined",
         "-fno-sanitize-recover=all", f"-I{sysconfig.get_paths()['include']}", str(source), "-o",
         str(shared), "-lm"], capture_output=True, text=True,
    )  # fmt: skip
    if compiled.returncode:
        pytest.skip(f"gcc cannot build it with sanitizers: {compiled.stderr[-300:]}")
    libraries = [
        subprocess.run(
            ["gcc", f"-print-file-name={name}"], capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED, str(shared)], capture_output=True, text=True,
        env={**os.environ, "LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0",
             "PYTHONMALLOC": "malloc"},
    )  # fmt: skip
    assert done.stdout == "clean\n", done.stderr[-3000:]
