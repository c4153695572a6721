"""The table of the engines is all that the rest of the program knows of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection
from types import ModuleType

import numpy as np
import pytest

import attncli
from attncli import engines
from attncli.attention.problem import Problem
from attncli.engines import ENGINES, Attended, EngineRow, How
from attncli.errors import InputError, Unavailable


@pytest.fixture
def zero(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """An engine that somebody adds: a module and a row."""

    def attend(p: Problem, want: Collection[str], how: How) -> Attended:
        shape = (p.batch, p.heads, p.queries)
        return Attended(np.zeros((*shape, p.value_width)), np.zeros(shape), kernel="none")

    module = ModuleType("attncli.engines.zero")
    module.missing, module.attend = (lambda: None), attend  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(ENGINES, "zero", EngineRow("zero", "zero", None))
    return module


@pytest.mark.usefixtures("zero")
def test_a_module_and_a_row_are_an_engine() -> None:
    result = attncli.attend(np.ones((2, 3)), backend="zero")
    assert (result.engine.backend, result.engine.kernel) == ("zero", "none")
    assert not result.output.any()
    with pytest.raises(Unavailable, match=r"'zero' runs on the CPU(.|\n)*--backend torch"):
        attncli.attend(np.ones((2, 3)), backend="zero", device="cuda")
    with pytest.raises(Unavailable, match="'zero' has no gradients"):
        attncli.attend(np.ones((2, 3)), backend="zero", want=("gradients",))
    with pytest.raises(InputError, match=r"'ze'(.|\n)*auto, reference, numpy, fused, torch, zero"):
        attncli.attend(np.ones((2, 3)), backend="ze")


def test_an_engine_that_cannot_run_says_why(
    zero: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zero, "missing", lambda: "there is no zero")
    assert engines.missing("zero") == "there is no zero"
    with pytest.raises(Unavailable, match="'zero' cannot run here: there is no zero"):
        engines.there("zero")


def test_the_table_loads_no_numbers() -> None:
    code = "import attncli.engines, sys; print({'numpy', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
