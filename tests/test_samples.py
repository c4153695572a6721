"""The kernels of samples/kernels are as right, and as wrong, as they say."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from attncli.studies.attend import posed
from attncli.studies.cases import Case, cases
from attncli.studies.cases.commands import members
from attncli.studies.compare import Comparison, compare
from tests.support.program import ROOT

KERNELS = ROOT / "samples/kernels"
#: What is said of each faulty kernel.
FAULTS = {"tile_edge": "partial tile", "wrong_corner": "causal(top_left)"}


@cache
def of_kind(name: str = "") -> list[Case]:
    """All cases of a kind, or of all."""
    return [case for case in cases() if name in ("", case.kind.name)]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """The module of the name that is given, as its own folder sees it."""
    monkeypatch.syspath_prepend(str(KERNELS))
    return __import__(request.param)


def judged(case: Case, kernel: ModuleType) -> Comparison:
    """Give a case to a kernel as a command gets it, and judge what it returns."""
    tensors = {name: array for name, array in case.tensors.items() if name != "grad_output"}
    problem = posed(**tensors, **case.options)
    import wire

    output, lse = kernel.attention(**wire.arguments(members(problem)))
    own = problem.result_dtype  # NumPy alone has no bfloat16
    return compare(problem, {"output": output.astype(own), "lse": lse}, explain=False)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["tiled"], indirect=True)
def test_the_right_one_passes_its_test_set(kernel: ModuleType) -> None:
    assert [case.id for case in of_kind() if not judged(case, kernel).passed] == []


@pytest.mark.parametrize("kernel", ["tile_edge"], indirect=True)
def test_a_tile_edge_shows_where_the_length_is_no_multiple(kernel: ModuleType) -> None:
    own = [c for c in of_kind("lengths") if "causal" not in c.id]
    failed = [c.tensors["key"].shape[2] for c in own if not judged(c, kernel).passed]
    assert sorted(set(failed)) == [1, 2, 63, 65, 127, 129, 1023, 1025]


@pytest.mark.parametrize("kernel", ["wrong_corner"], indirect=True)
def test_a_corner_shows_where_queries_and_keys_differ_in_number(kernel: ModuleType) -> None:
    own = of_kind("corners")
    failed = [c.id for c in own if not judged(c, kernel).passed]
    assert failed == [c.id for c in own if "bottom_right" in c.id]


def run_copy(folder: Path, kernel: str) -> subprocess.CompletedProcess[str]:
    """Run the tests to be copied on a kernel, as whoever copies them does."""
    for path in KERNELS.glob("*.py"):
        (folder / path.name).write_text(path.read_text("utf-8"), "utf-8")
    tests = folder / "test_my_kernel.py"
    text = tests.read_text("utf-8")
    assert "from tiled import attention" in text
    tests.write_text(text.replace("from tiled", f"from {kernel}"), "utf-8")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests.name],
        cwd=folder, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.slow
def test_the_copied_tests_pass_the_right_kernel(tmp_path: Path) -> None:
    done = run_copy(tmp_path, "tiled")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_copied_tests_say_what_is_wrong(fault: str, tmp_path: Path) -> None:
    done = run_copy(tmp_path, fault)
    assert done.returncode == 1
    assert FAULTS[fault] in done.stdout


def test_the_problem_is_what_the_walkthrough_says() -> None:
    with np.load(KERNELS / "chunk.npz") as chunk:
        assert str(chunk["mask"]) == "causal(bottom_right)"
        assert [chunk[name].shape for name in ("query", "key", "value")] == [
            (2, 24, 8), (2, 40, 8), (2, 40, 8),
        ]  # fmt: skip
