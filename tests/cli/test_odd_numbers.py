"""Odd numbers through the door: no warning of NumPy's reaches a person, and nothing breaks.

Every warning is an error in these tests, and would end the program with code 70.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Ran

Run = Callable[..., Ran]
Tensors = dict[str, Any]

ENGINES = ["numpy", "reference", *(["torch"] if importlib.util.find_spec("torch") else [])]
MODES = [
    ["compute", "--json"],
    ["compute", "--mask", "causal", "--softcap", 5, "--sink", "0.5,-3", "--grad-output", "ones"],
    ["compute", "--mask", "causal", "--steps", "--batch", 0, "--head", 0],
    ["compute", "--dtype", "float16", "--softmax-dtype", "float16", "--json"],
    ["compute", "--dtype", "float64", "--scale", "none", "--grad-output", "random"],
    ["inspect"],
    ["inspect", "--mask", "causal", "--what-if", "dtype=float16", "--what-if", "sink=0", "--json"],
]


def odd(kind: str, dtype: str, length: int) -> Tensors:
    """Two heads of queries, keys and values, odd in one way."""
    rng = np.random.default_rng(length)
    q, k, v = (rng.normal(size=(1, 2, length, 4)).astype(dtype) for _ in range(3))
    info, some = np.finfo(dtype), rng.random(k.shape) < 0.1
    changed = {
        "largest": {"query": np.full_like(q, info.max), "key": np.full_like(k, info.max)},
        "largest values": {"value": np.full_like(v, info.max)},
        "infinite keys": {"key": np.where(some, np.inf, k).astype(dtype)},
        "infinite values": {"value": np.where(some, -np.inf, v).astype(dtype)},
        "NaN": {"query": np.where(some, np.nan, q).astype(dtype)},
        "only NaN": {"query": np.full_like(q, np.nan)},
        "zeros": {"query": q * 0, "key": k * 0, "value": v * 0},
        "tiny": {"query": q * info.tiny, "value": v * info.smallest_subnormal},
        "sharp": {"query": q * 1000, "key": k * 60},
        "one key": {"key": k[:, :, :1], "value": v[:, :, :1]},
        "masks of +inf": {"attn_mask": np.where(some[0, 0, :, :1], np.inf, 0) + np.zeros(length)},
        "masks of NaN": {"attn_mask": np.where(some[0, 0, :, :1], np.nan, 0) + np.zeros(length)},
        "no key": {"attn_mask": np.zeros((length, length), bool)},
        "sentinels": {"query": q * 1000, "attn_mask": np.full((length, length), -1e4)},
    }
    return {"query": q, "key": k, "value": v, **changed[kind]}


KINDS = [
    "largest", "largest values", "infinite keys", "infinite values", "NaN", "only NaN", "zeros",
    "tiny", "sharp", "one key", "masks of +inf", "masks of NaN", "no key", "sentinels",
]  # fmt: skip


@pytest.mark.parametrize("length", [6, 200])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_warning_reaches_a_person(
    door: Run, tmp_path: Path, kind: str, dtype: str, length: int
) -> None:
    np.savez(tmp_path / "x.npz", **odd(kind, dtype, length))
    engine = ENGINES[(KINDS.index(kind) + length) % len(ENGINES)]
    for command, *options in MODES:
        if kind == "one key" and "causal" in options:
            continue  # of one key for several queries it does not say which corner
        if length > 100 and "--steps" in options:
            continue  # too many numbers to write out
        ran = door(command, "x.npz", *options, "--backend", engine)
        assert ran.code == 0, (command, options, engine, ran.err)
        assert "Warning" not in ran.err


def test_gradients_are_told_by_a_program_that_has_just_started(
    attncli: Run, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", np.eye(3))
    ran = attncli("compute", "x.npy", "--grad-output", "ones")
    assert ran.code == 0, ran.err
    assert "‖dQ‖" in ran.out
