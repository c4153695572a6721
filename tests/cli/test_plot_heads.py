"""--plot of what has heads and no maps: a checkpoint, and two that are compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.program import Door

pytest.importorskip("matplotlib")

CALLS = {
    "inspect w.npz --heads 2": ">logit<",
    "inspect w.npz --heads 2 --map ov_norm": "‖OV‖₂",
    "inspect w.npz --heads 2 --compare v.npz": ">QK circuit<",
    "inspect a.npz --compare b.npz": "JS",
}


@pytest.mark.parametrize("call", CALLS)
def test_layers_and_heads_are_drawn(door: Door, tmp_path: Path, call: str) -> None:
    rng = np.random.default_rng(0)
    for name in "wv":
        weights: dict[str, Any] = {
            f"model.layers.{n}.self_attn.{k}_proj.weight": rng.normal(size=(8, 8))
            for n in range(2) for k in "qkvo"
        }  # fmt: skip
        np.savez(tmp_path / f"{name}.npz", **weights)
    for name in "ab":
        layers: dict[str, Any] = {
            f"layers.{n}.{k}": rng.normal(size=(1, 2, 5, 4))
            for n in range(2) for k in ("query", "key", "value")
        }  # fmt: skip
        np.savez(tmp_path / f"{name}.npz", **layers)
    ran = door(*call.split(), "--plot", "x.svg", "--report", "x.html")
    assert ran.code == 0, ran.err
    drawn = (tmp_path / "x.svg").read_text()
    assert CALLS[call] in drawn and "layer" in drawn
    assert (tmp_path / "x.html").stat().st_size > 0
