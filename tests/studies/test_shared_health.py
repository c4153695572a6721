"""Health of attention that processes divide: every statistic is that of one process."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from attncli.attention.language import masker, tensor_masker
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.attention.shares import AXES
from attncli.studies.health import Examination, Head, examine
from attncli.studies.what_if import parse
from tests.support.problems import random_problem
from tests.support.ranks import together


def same(ours: Examination, whole: Examination) -> None:
    assert [_roles(h) for h in ours.heads] == [_roles(h) for h in whole.heads]
    assert [h.verdict.level for h in ours.heads] == [h.verdict.level for h in whole.heads]
    for name, found in whole.found.items():
        close(name, ours.found[name], found)
    np.testing.assert_allclose(ours.sample.distances, whole.sample.distances, atol=1e-7)
    np.testing.assert_allclose(ours.sample.spectral, whole.sample.spectral, atol=1e-9)
    for one, other in zip((*ours.scale, *ours.what_ifs), (*whole.scale, *whole.what_ifs),
                          strict=True):  # fmt: skip
        for name, found in other.over().statistics.items():
            close(name, one.over().statistics[name], found)
    assert ours.result.warnings == whole.result.warnings


def _roles(head: Head) -> list[Any]:
    return [replace(role, share=0.0) for role in head.roles]


def close(name: str, ours: Any, whole: Any) -> None:
    if isinstance(whole, dict):
        assert ours.keys() == whole.keys()
        for key in whole:
            close(f"{name}.{key}", ours[key], whole[key])
        return
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(ours, whole, rtol=2e-6, atol=2e-9, err_msg=name)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("seed", range(int(os.environ.get("SHARED_SEEDS", 16))))
def test_random_problems(axis: str, seed: int) -> None:
    problem, tokens = drawn(seed)
    how: dict[str, Any] = dict(tokens=tokens[1], query_tokens=tokens[0])
    whole = examine(problem, **how)
    for ours in together(problem, axis, 1 + seed % 4, lambda p: examine(p, **how)):
        same(ours, whole)


def test_more_processes_than_keys() -> None:
    problem, _ = drawn(16)
    part = random_problem(2, 6, 3, dtype="float64", mask="prefix(3)")
    for one in (problem, part):
        whole = examine(one)
        for ours in together(one, "keys", one.keys + 2, examine):
            same(ours, whole)


def drawn(seed: int) -> tuple[Problem, Any]:
    """Return a problem, and tokens of its queries and keys, or None twice."""
    rng = np.random.default_rng(seed)
    batch, groups, each = rng.integers(1, 4, 3)
    queries, keys = rng.integers(2, 40, 2)
    square = bool(rng.integers(2))
    queries = keys if square else queries
    corner = "" if square else "(bottom_right)"
    heads = int(groups * each)
    masks: list[Any] = [
        [], [masker(f"causal{corner}")], [masker("window(3, 2, bottom_right)")],
        [masker(f"padding({', '.join(str(n) for n in rng.integers(2, keys + 1, batch))})")],
        [masker("dilated(3, top_left) | prefix(2)"), masker("alibi(top_left)")],
        [tensor_masker(rng.random((batch, heads, queries, keys)) < 0.7)],
        [tensor_masker(rng.normal(size=(1, heads, 1, keys)))],
        [masker("random(0.6, 3)"), tensor_masker(rng.normal(size=(queries, keys)))],
    ]  # fmt: skip
    q, k, v = (
        rng.normal(size=(batch, h, n, d)) * size
        for h, n, d, size in ((heads, queries, 6, 2), (groups, keys, 6, 1), (groups, keys, 5, 1))
    )
    problem = pose(
        q, k, v, mask=masks[seed % len(masks)], softcap=[None, 5.0][int(rng.integers(2))],
        sink=rng.normal(size=heads) if rng.integers(2) else None,
    )  # fmt: skip
    names = [[["abcd"[n] for n in rng.integers(0, 4, size)]] for size in (queries, keys)]
    if square:
        names[0] = names[1]
    return problem, names if rng.integers(3) else (None, None)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("mask", ["causal", "causal & window(40, 0)", "padding(150, 170)", None])
def test_larger_with_what_ifs(axis: str, mask: str | None) -> None:
    problem = random_problem(4, 200, 200, groups=2, mask=mask, dtype="float64", width=16)
    tokens = [[str(n % 60) for n in range(200)]]
    what_ifs = [parse("scale=none"), parse("softcap=20"), parse("dtype=bfloat16")]
    how: dict[str, Any] = dict(tokens=tokens, what_ifs=what_ifs)
    whole = examine(problem, **how)
    for ours in together(problem, axis, 3, lambda p: examine(p, **how)):
        same(ours, whole)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("backend", ["numpy", "auto"])
def test_beyond_float64(axis: str, backend: str) -> None:
    """Large enough that float32 stays float32, and that rows are sampled."""
    problem = random_problem(2, 1500, 1500, batch=2, mask="causal", width=16)
    whole = examine(problem, backend=backend)
    (ours, *_) = together(problem, axis, 2, lambda p: examine(p, backend=backend))
    for name, found in whole.found.items():
        for key, value in found.items() if isinstance(found, dict) else [("", found)]:
            mine = ours.found[name][key] if key else ours.found[name]
            np.testing.assert_allclose(mine, value, rtol=2e-3, atol=1e-5, err_msg=f"{name} {key}")
    assert [h.verdict.level for h in ours.heads] == [h.verdict.level for h in whole.heads]
