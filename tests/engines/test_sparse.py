"""Masks of which little is seen: queries and keys brought together by class, and views of cells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attncli import engines
from attncli.attention.classes import ascending, in_order, ranked
from attncli.attention.gradients import float_masks, upstream
from attncli.attention.language import masker, tensor_masker
from attncli.attention.masks import Extent, Mask
from attncli.attention.packed import Packed
from attncli.attention.pose import pose
from attncli.attention.predicates import EMPTY, FULL
from attncli.attention.problem import Masker, Problem
from attncli.engines import How, arranged, fused, reference
from attncli.engines.fused import forward, plan
from attncli.engines.fused.backward import backward
from attncli.studies.attend import solve
from tests.support.budget import assert_within_budget, rows_are_right
from tests.support.builds import BUILDS, needs_fused
from tests.support.gradients_budget import assert_gradients_within_budget
from tests.support.problems import mask_expressions, problems, tensors

pytestmark = needs_fused
Array = np.ndarray[Any, np.dtype[Any]]
ALL = ("output", "lse", "row_statistics")
INTERLEAVED = ("dilated(3)", "dilated(7) & causal", "dilated(2) & window(40, 9)",
               "blocks(60) & dilated(4)", "segments({ids})", "segments({ids}) & causal",
               "alibi & dilated(5)", "dilated(90)", "dilated(3) & ~causal",
               "segments({ids}) & random(0.4, 3)")  # fmt: skip


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small problems are worth it, too."""
    monkeypatch.setattr(arranged, "LEAST", 0)
    monkeypatch.setattr(arranged, "ROWS", 0)


def interleaved(name: str, length: int, seed: int = 0) -> Masker:
    ids = np.random.default_rng(seed).integers(0, 4, length)
    return masker(name.format(ids=", ".join(map(str, ids))))


def judge(p: Problem, threads: int = 2, backend: str = "fused") -> None:
    result = solve(p, backend=backend, threads=threads, want=ALL)
    assert_within_budget(result)
    assert result.attended.rows is not None
    rows_are_right(p, result.attended.rows)


@pytest.mark.parametrize("mask", INTERLEAVED)
@pytest.mark.parametrize("sink", [None, 1.0])
def test_what_is_sorted_comes_back(build: str, small: None, mask: str, sink: float | None) -> None:
    q, k, v = tensors((2, 2, 1, 130, 130, 16, 8))
    k[:, :, 40:80] = k[:, :, :40]  # ties
    p = pose(q, k, v, mask=interleaved(mask, 130), sink=sink)
    assert arranged.arranged(p) is not None
    judge(p)
    grad = upstream("random", p)
    assert_gradients_within_budget(p, grad, backward(p, grad, None, (), How(3)))


@pytest.mark.parametrize("mask", INTERLEAVED)
def test_numpy_sorts_too(small: None, mask: str) -> None:
    p = pose(*tensors((2, 2, 1, 200, 200, 16, 8)), mask=interleaved(mask, 200), sink=1.0)
    judge(p, backend="numpy")
    load, grad = engines.load_backward("numpy"), upstream("random", p)
    assert_gradients_within_budget(p, grad, load.backward(p, grad))
    kept = engines.load("numpy").attend(p, ("weights", "row_statistics"))
    right = reference.attend(p, ("weights",))
    np.testing.assert_allclose(kept.stages["weights"], right.stages["weights"], atol=1e-5)
    assert_gradients_within_budget(p, grad, load.backward(p, grad, kept))


@pytest.mark.parametrize("mask", INTERLEAVED)
def test_ties_still_go_to_the_earlier_key(build: str, small: None, mask: str) -> None:
    q, k, v = tensors((1, 2, 1, 150, 150, 8, 4))
    p = pose(q * 0, k, v, mask=interleaved(mask, 150))
    got, want = forward.attend(p, ALL, How(1)).rows, reference.attend(p, ALL).rows
    assert got is not None and want is not None
    np.testing.assert_array_equal(got.top_j, want.top_j)
    np.testing.assert_array_equal(got.first, want.first)


def test_ids_of_their_own_in_each_batch_element(build: str, small: None) -> None:
    ids = np.random.default_rng(0).integers(0, 3, (2, 120))
    text = ", ".join(str(row.tolist()) for row in ids)
    q, k, v = tensors((2, 2, 1, 120, 120, 8, 8))
    keep = np.random.default_rng(1).random((2, 120, 120)) < 0.7  # by head
    for masks in ([masker(f"segments([{text}])")],
                  [masker(f"segments([{text}]) & causal"), tensor_masker(keep)]):  # fmt: skip
        p = pose(q, k, v, mask=masks)
        assert arranged.arranged(p) is not None
        judge(p)
        grad = upstream("random", p)
        norm = ("score_norm",)
        found, right = backward(p, grad, None, norm), reference.backward(p, grad, want=norm)
        assert_gradients_within_budget(p, grad, found)
        assert found.score_norm is not None and right.score_norm is not None
        np.testing.assert_allclose(found.score_norm, right.score_norm, 1e-4, 1e-6)
        again = backward(p, grad, forward.attend(p, ("row_statistics",)), (), How(2))
        assert_gradients_within_budget(p, grad, again)


@pytest.mark.parametrize("name", BUILDS)
@given(problem=problems(("float32", "float16")), threads=st.sampled_from([1, 2, 3]))
@settings(max_examples=60, deadline=None)
def test_any_problem(name: str, problem: Problem, threads: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(fused.VARIABLE, name)
        patch.setattr(arranged, "LEAST", 0)
        patch.setattr(arranged, "ROWS", 0)
        judge(problem, threads)
        assume(problem.dtype == problem.result_dtype and not float_masks(problem))
        grad = upstream("random", problem)
        found = backward(problem, grad, None, (), How(threads))
    assert_gradients_within_budget(problem, grad, found)


@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_what_is_not_finite_reaches_those_that_see_it(build: str, small: None, where: str) -> None:
    q, k, v = tensors((1, 2, 1, 160, 160, 8, 8))
    dirty = {"query": q, "key": k, "value": v}[where]
    dirty[:, :, 131, 3], dirty[:, :, 77, 4] = np.inf, np.nan
    p = pose(q, k, v, mask=masker("dilated(4)"))
    assert arranged.arranged(p) is not None
    got, want = forward.attend(p, ALL), reference.attend(p, ALL)
    for mine, right in ((got.output, want.output), (got.lse, want.lse)):
        np.testing.assert_allclose(mine, right, 1e-4, 1e-5)


def test_classes_without_keys_or_queries_are_dead_or_idle(build: str, small: None) -> None:
    ids = [0, 3, 1, 0, 3, 9] * 20, [0, 5, 1, 1, 0, 5] * 30
    q, k, v = tensors((1, 1, 1, 120, 180, 8, 8))
    p = pose(q, k, v, mask=masker(f"segments({ids[0]}, {ids[1]})"))
    assert arranged.arranged(p) is not None
    judge(p)
    assert np.isneginf(forward.attend(p, ()).lse).sum() == 60


@pytest.mark.parametrize("mask", ["blocks(70)", "blocks(20)", "dilated(5)", "chunks(90)",
                                  "segments({ids}) & causal"])  # fmt: skip
def test_threads_change_nothing(build: str, small: None, mask: str) -> None:
    p = pose(*tensors((1, 2, 1, 400, 400, 16, 8)), mask=interleaved(mask, 400))
    first, grad = forward.attend(p, ALL, How(1)), upstream("random", p)
    slopes = backward(p, grad, None, (), How(1))
    judge(p)
    for threads in (2, 3, 4):
        again = forward.attend(p, ALL, How(threads))
        np.testing.assert_array_equal(first.output, again.output)
        np.testing.assert_array_equal(first.lse, again.lse)
        for name, rows in vars(first.rows).items():
            np.testing.assert_array_equal(rows, getattr(again.rows, name), name)
        other = backward(p, grad, None, (), How(threads))
        for name in ("query", "key", "value"):
            np.testing.assert_array_equal(getattr(slopes, name), getattr(other, name), name)


@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences(build: str, small: None, causal: bool) -> None:
    queries, keys = np.array([0, 3, 3, 60, 150]), np.array([0, 20, 25, 90, 200])
    p = pose(*tensors((1, 2, 1, 150, 200, 8, 8)))
    p = replace(p, mask=Mask(p.mask.extent, Packed(queries, keys, causal)))
    judge(p)


def test_jobs_end_where_classes_do(small: None) -> None:
    p = pose(*tensors((1, 1, 1, 400, 400, 8, 8)), mask=masker("blocks(100)"))
    planner = plan.Planner(p, 1, 48)
    assert planner.parts(0, 48)[:3] == [(0, 48), (48, 96), (96, 100)]
    assert planner.parts(0, 384) == [(i, i + 100) for i in range(0, 400, 100)]
    for i0, i1 in planner.parts(0, 384):
        assert planner.of(0, i0, i1) == plan.Plan(i0, i1)  # all of it, and nothing to be asked
    p = replace(p, mask=masker("blocks(30)")(p.mask.extent))
    assert plan.Planner(p, 1, 48).parts(0, 384) == [(0, 210), (210, 400)]
    p = pose(*tensors((1, 1, 1, 20, 4000, 8, 8)), mask=masker(
        f"segments({[0] * 10 + [1] * 10}, {[0] * 1500 + [1] * 2500})"))  # fmt: skip
    assert plan.Planner(p, 1, 48).parts(0, 384) == [(0, 10), (10, 20)]
    assert plan.Planner(p, 1, 48).of(0, 10, 20) == plan.Plan(1500, 4000)


def test_where_it_does_not_pay_nothing_moves() -> None:
    for length, mask in ((300, "dilated(4)"), (600, "blocks(50)"), (600, "causal"),
                         (600, "segments({ids})")):  # fmt: skip
        text = ", ".join(["7"] * 599 + ["8"])
        p = pose(*tensors((1, 1, 1, length, length, 4, 4)), mask=masker(mask.format(ids=text)))
        assert arranged.arranged(p) is None
    p = pose(*tensors((1, 1, 1, 600, 600, 4, 4)), mask=masker("dilated(4)"))
    assert arranged.arranged(p) is not None
    few = pose(*tensors((1, 1, 1, 20, 20000, 4, 4)), mask=masker("dilated(4, top_left)"))
    assert arranged.arranged(few) is None


@given(data=st.data())
@settings(max_examples=400, deadline=None)
def test_classes_views_and_sorted_masks_say_what_the_mask_does(data: st.DataObject) -> None:
    batch, queries, keys = 2, data.draw(st.integers(1, 12)), data.draw(st.integers(1, 12))
    extent = Extent(batch, 1, queries, keys)
    mask = masker(data.draw(mask_expressions(batch, queries, keys)))(extent)
    dense = mask.dense()[:, 0]
    i, j = data.draw(st.integers(0, queries - 1)), data.draw(st.integers(0, keys - 1))
    view = mask.predicate.view(1, 0, i, queries, j, keys)
    if view is not None:
        np.testing.assert_array_equal(view, dense[1, i:, j:])
    found = ranked(mask)
    if not found:
        return
    same = found.queries[:, :, None] == found.keys[:, None]
    rest = Mask(extent, found.rest).dense()[:, 0]
    np.testing.assert_array_equal(dense, same & rest)
    assert (found.keys[:, 0] == 0).all()
    moved, order = in_order(mask, found)
    for b in range(batch):
        rows, columns = order.of(b)
        np.testing.assert_array_equal(moved.dense()[b, 0], dense[b][rows][:, columns])
        part = moved.dense()[b, 0, i:, j:]
        (tile,) = moved.tiles(b, 0, i, queries, np.array([j, keys]))
        assert part.all() if tile == FULL else tile != EMPTY or not part.any()
        outside = np.ones(keys, bool)
        for start, stop in moved.spans(b, 0, i, queries):
            assert 0 <= start < stop <= keys
            outside[start:stop] = False
        assert not moved.dense()[b, 0, i:][:, outside].any()
    again = ranked(moved)
    assert again is not None and ascending(again)


def test_a_bool_tensor_is_read_where_it_lies(build: str, small: None) -> None:
    blocks = np.random.default_rng(0).random((4, 5)) < 0.4
    keep = blocks.repeat(64, 0).repeat(64, 1)
    q, k, v = tensors((1, 2, 1, 256, 320, 8, 8))
    for tensor in (keep, np.stack([keep, ~keep]), keep[:, ::2].repeat(2, 1)[:, ::-1], keep[:1],
                   keep[:, :1], keep[:, :200], np.asfortranarray(keep)):  # fmt: skip
        p = pose(q, k, v, mask=tensor_masker(tensor))
        judge(p)
    planner = plan.Planner(pose(q, k, v, mask=tensor_masker(keep)), 1, 48)
    assert planner.step == 8 * 48
    assert planner.parts(0, 384) == [(i, i + 64) for i in range(0, 256, 64)]
    view = planner.of(0, 48, 96).keep
    assert view is not None and np.shares_memory(view, planner.problem.mask.predicate.tensor)


@pytest.mark.parametrize("length", [8192, 8192 + 128 + 5])
def test_more_granules_than_a_block_knows_the_states_of(build: str, length: int) -> None:
    rng = np.random.default_rng(0)
    keep = (rng.random((3, -(-length // 128))) < 0.2).repeat(128, 1)[:, :length].repeat(40, 0)
    keep[50, ::77] = ~keep[50, ::77]
    p = pose(*tensors((1, 1, 1, 120, length, 8, 8)), mask=tensor_masker(keep))
    judge(p)
    grad = upstream("random", p)
    found, right = backward(p, grad), reference.backward(p, grad)
    for name in ("query", "key", "value"):
        np.testing.assert_allclose(getattr(found, name), getattr(right, name), 1e-4, 1e-5)


@pytest.mark.parametrize("mask", ["alibi(top_left)", "alibi(0.5, 2, bottom_right)",
                                  "alibi(top_left) + alibi(1, bottom_right)"])  # fmt: skip
def test_biases_by_diagonal_are_views(build: str, mask: str) -> None:
    p = pose(*tensors((1, 2, 1, 130, 300, 16, 8)), mask=masker(mask))
    bias = plan.Planner(p, 1, 48).of(1, 48, 96).bias
    assert bias is not None and bias.strides == (-4, 4)
    right = p.mask.bias(0, 1, 48, 96, 0, 300)
    i, j = np.arange(48, 96)[:, None], np.arange(300)[None]
    cells = sum(one.at(0, 1, i, j) for one in p.mask.biases)
    np.testing.assert_array_equal(right, cells)
    np.testing.assert_array_equal(bias, cells.astype(np.float32))
    judge(p)
