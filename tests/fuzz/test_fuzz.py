"""A little of each target, always the same: ``python -m tests.fuzz`` is the long run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.__main__ import attack
from tests.fuzz.calls import workplace
from tests.fuzz.targets import TARGETS

INPUTS = {
    "file": 3000, "document": 3000, "mask": 4000, "command": 120, "lines": 40, "page": 20,
    "policy": 500, "checkpoint": 50, "parts": 40, "candidate": 8,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # of libraries and of Python's parser, as people do
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_but_answers_and_errors(target: str, tmp_path: Path) -> None:
    with workplace(str(tmp_path)):
        taken, faults = attack(target, 0, INPUTS[target], 120.0)
    assert taken == INPUTS[target]
    assert not faults, faults[0]
