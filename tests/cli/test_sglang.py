"""Dumps of SGLang through the command line: what the README says to type."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.program import Door

torch = pytest.importorskip("torch")

LAYER = "non_intrusive__model.layers.3.self_attn.attn"


def test_a_layer_of_a_dump(tmp_path: Path, door: Door) -> None:
    draw = np.random.default_rng(0)
    arrays = {"inputs.0": draw.normal(size=(4, 8)), "inputs.1": draw.normal(size=(4, 4)),
              "inputs.2": draw.normal(size=(4, 4))}  # fmt: skip
    for n, (name, array) in enumerate(arrays.items()):
        file = f"step=0___rank=0___dump_index={n}___name={LAYER}.{name}___layer_id=3.pt"
        torch.save({"value": torch.as_tensor(array), "meta": {"step": 0}}, tmp_path / file)
    lengths = "step=0___rank=0___dump_index=9___name=seq_lens.pt"
    torch.save({"value": torch.tensor([3, 1]), "meta": {}}, tmp_path / lengths)
    layer = f"{tmp_path}::step0.rank0.model.layers.3.self_attn.attn"
    ran = door("compute", layer, "--heads", 2, "--kv-heads", 1, "--causal", "--json")
    assert ran.code == 0
    assert ran.data["mask"] == "causal & segments(0, 0, 0, 1)"
    assert any("mask, scale and softcap are not in a dump" in n for n in ran.data["notes"])
    bare = door("compute", layer)
    assert bare.code == 2
    assert "add --heads H and --kv-heads G" in bare.err
    np.testing.assert_allclose(ran.data["output"][3], np.tile(arrays["inputs.2"][3], 2))
