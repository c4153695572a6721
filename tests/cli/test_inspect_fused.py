"""`inspect --backend fused`: an engine that is named is used, in its own arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from attncli.engines.fused import VARIABLE
from tests.support.builds import BUILDS, needs_fused
from tests.support.program import Door

pytestmark = needs_fused


def test_small_problems_too(door: Door, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(2, 30, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", query=x)
    ran = door("inspect", "x.npz", "--backend", "fused", "--json")
    assert ran.code == 0, ran.err
    engine = ran.data["engine"]
    assert (engine["backend"], engine["dtype"]) == ("fused", "float32")
    usual = door("inspect", "x.npz", "--json").data
    assert (usual["engine"]["backend"], usual["engine"]["dtype"]) == ("numpy", "float64")
    for one, other in zip(ran.data["heads"], usual["heads"], strict=True):
        one, other = (head["statistics"] for head in (one, other))
        assert one["entropy"]["mean"] == pytest.approx(other["entropy"]["mean"], rel=1e-5)
        assert one["grad_key_norm"]["p95"] == pytest.approx(other["grad_key_norm"]["p95"], rel=1e-4)


def test_float64_is_still_refused(door: Door, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", query=np.ones((3, 2)))
    ran = door("inspect", "x.npz", "--backend", "fused")
    assert (ran.code, ran.out) == (3, "")
    assert "it computes in float32 only" in ran.err


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("options", [(), ("--softcap", "1"), ("--mask", "causal")])
def test_scores_of_nothing_but_0_leave_all_room(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, build: str, options: tuple[str]
) -> None:
    monkeypatch.setenv(VARIABLE, build)
    np.savez(tmp_path / "x.npz", query=np.zeros((5, 4), np.float32), value=np.eye(5, dtype="f"))
    head = door("inspect", "x.npz", "--backend", "fused", "--json", *options).data["heads"][0]
    assert head["statistics"]["overflow_room"] == "Infinity"
    assert "overflow" not in [found["name"] for found in head["findings"]]
