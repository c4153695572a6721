"""Captures are written whole or not at all, one problem in memory at a time."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from attncli import files
from attncli.attention.definition import stages
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.attention.view import Labels
from attncli.cli import groups
from attncli.cli.given.attention import gather
from attncli.errors import FileError
from attncli.studies.captures import Capture
from tests.support.problems import problems


def qkv(seed: int, shape: tuple[int, ...] = (3, 6, 4)) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name in ("query", "key", "value")}


def test_what_is_alike_is_said_once(tmp_path: Path) -> None:
    path = str(tmp_path / "x.safetensors")
    with Capture(path) as capture:
        for n in range(2):
            words = tuple(f"{n}{k}" for k in range(6))
            capture.add(f"layers.{n}", pose(**qkv(n), scale=0.5, softcap=n + 1.0), Labels((words,)))
    bundle = files.read(path)
    assert bundle.options["scale"] == 0.5 and "layers.0.scale" not in bundle.options
    assert [bundle.options[f"layers.{n}.softcap"] for n in range(2)] == [1, 2]
    assert bundle.options["layers.1.query_tokens"][0] == "10"
    for n in range(2):
        for name, array in qkv(n).items():
            np.testing.assert_array_equal(bundle.tensors[f"layers.{n}.{name}"], array)


def test_memory_holds_one_problem(tmp_path: Path) -> None:
    shape, count = (4, 20_000, 8), 12
    each = 3 * 4 * np.prod(shape)
    tracemalloc.start()
    with Capture(str(tmp_path / "x.safetensors")) as capture:
        for n in range(count):
            capture.add(f"layers.{n}", pose(**qkv(n, shape)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 * each < count * each


def test_a_sharded_capture_takes_the_place_of_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "capture.safetensors"
    for shard in (1 << 30, 1):
        with Capture(str(path), shard=shard) as capture:
            for n in range(2):
                capture.add(f"layers.{n}", pose(**qkv(n)))
        assert path.exists() == (capture.written == str(path)) == (shard > 1)


def test_a_failed_capture_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "capture.safetensors"
    with suppress(ZeroDivisionError), Capture(str(path)) as capture:
        capture.add("layers.0", pose(**qkv(0)))
        raise ZeroDivisionError
    assert [*tmp_path.iterdir()] == []


def test_what_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileError), Capture(str(tmp_path / "none" / "x.safetensors")) as capture:
        capture.add("layers.0", pose(**qkv(0)))
    capture = Capture(str(tmp_path / "x.npz"))
    capture.add("a", pose(**qkv(0)))
    with pytest.raises(FileError, match="two problems are called 'a'"), capture:
        capture.add("a", pose(**qkv(1)))
    assert [*tmp_path.iterdir()] == []


@pytest.mark.slow
@given(problems(), problems())
@settings(max_examples=100, deadline=None)
def test_any_problem_comes_back(one: Problem, other: Problem) -> None:
    written = {"layers.0": one, "layers.10": other}
    with TemporaryDirectory() as folder:
        path = f"{folder}/x.safetensors"
        with Capture(path) as capture:
            for name, problem in written.items():
                capture.add(name, problem)
        for name, bundle in files.problems_of(files.read(path)).items():
            given_again, problem = gather(bundle, groups.Posed()), written[name]
            again = given_again.pose()
            assert not given_again.warnings
            assert again.scale == pytest.approx(problem.scale) and again.softcap == problem.softcap
            for b, h in np.ndindex(problem.batch, problem.heads):
                got, want = (stages(p, b, h)["weights"] for p in (again, problem))
                np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-9)
