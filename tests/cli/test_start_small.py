"""A small call loads what it needs, and nothing looks for cycles meanwhile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.support.program import environment

#: What a plain problem has no use for, in any format.
UNUSED = (
    "attncli.attention.biases", "attncli.attention.gradients", "attncli.attention.language",
    "attncli.attention.packed", "attncli.attention.patterns", "attncli.attention.rope",
    "attncli.files.sglang", "attncli.measures.policy", "attncli.models", "attncli.studies.compare",
    "attncli.studies.health", "numpy.fft", "numpy.ma", "numpy.polynomial", "numpy.random",
    "threadpoolctl",
)  # fmt: skip
#: What is there for people, not for programs.
FOR_EYES = ("attncli.render.terminal", "attncli.render.paint", "attncli.reports.stability")

CALL = """import sys; sys.argv = ['attncli', *{words!r}]
{before}
from attncli.cli import main
code = main()
print(file=sys.stderr)
print({what}, file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    path = str(tmp_path / "qkv.npz")
    np.savez(path, **{n: rng.normal(size=(2, 16, 8)) for n in ("query", "key", "value")})
    return path


def said(words: Sequence[str], what: str, before: str = "") -> list[str]:
    """The words that the expression ``what`` makes at the end of a call of the program."""
    code = CALL.format(words=list(words), what=what, before=before)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout
    return done.stderr.splitlines()[-1].split()


def loaded(words: Sequence[str], names: Sequence[str]) -> list[str]:
    return said(words, f"*(set({names!r}) & set(sys.modules))")


def test_a_plain_report_for_programs_loads_little(bundle: str) -> None:
    assert loaded(["compute", bundle, "--json"], (*UNUSED, *FOR_EYES)) == []


def test_a_plain_report_for_eyes_loads_little(bundle: str) -> None:
    assert loaded(["compute", bundle], UNUSED) == []
    assert sorted(loaded(["compute", bundle], FOR_EYES)) == sorted(FOR_EYES)


def test_what_is_asked_for_is_loaded(bundle: str) -> None:
    words = ["compute", bundle, "--causal", "--grad-output", "ones", "--json"]
    asked = ("attncli.attention.language", "attncli.attention.gradients")
    assert sorted(loaded(words, asked)) == sorted(asked)


def test_nothing_looks_for_cycles_in_a_small_call(bundle: str) -> None:
    before = "import gc; seen = []; gc.callbacks.append(lambda phase, info: seen.append(phase))"
    before += "\nfrom attncli.cli import cycles; seen.clear()"
    assert said(["compute", bundle, "--json"], "len(seen) // 2", before) == ["0"]
    assert said(["compute", bundle, "--json"], "gc.get_threshold()[0]", before) == ["70000"]


def test_what_is_left_at_the_end_is_not_looked_at() -> None:
    code = "import gc, atexit, sys\n"
    code += "atexit.register(lambda: print(gc.get_freeze_count() > 1000))\n"  # runs last
    code += "import attncli.cli"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout == "True\n"
