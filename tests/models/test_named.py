"""Checkpoints as other libraries name and pack them, against what those libraries compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli.studies.layer import multihead

HERE = Path(__file__).parents[1] / "cases" / "named"

#: What a file does not say: heads; that modules are Flax's or Keras' own, and no model's with RoPE.
SAID: dict[str, dict[str, Any]] = {
    "flax.npz": {"arch": "flax"},
    "keras.npz": {"arch": "keras"},
    "timm_eva.safetensors": {"heads": 3, "rope": "none"},
    "torchvision_vit.safetensors": {"heads": 3},
}


def answers(name: str) -> dict[str, dict[str, np.ndarray]]:
    """What the library gave, by layer: x, output, and memory where there is one."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(HERE / f"{name}.answers.npz") as kept:
        for key in kept.files:
            layer, what = key.split("|")
            found.setdefault(layer, {})[what] = kept[key]
    return found


CASES = [
    (path.name, layer)
    for path in sorted(HERE.iterdir())
    if not path.name.endswith((".py", ".answers.npz", "__pycache__"))
    for layer in answers(path.name.split(".")[0])
    if layer != "rope"
]


@pytest.mark.parametrize(("file", "layer"), CASES)
def test_a_layer_is_what_its_library_computes(file: str, layer: str) -> None:
    pytest.importorskip("torch")
    every = answers(file.split(".")[0])
    told, said = every[layer], dict(SAID.get(file, {}))
    if "rope" in every:  # as the pipeline gives it
        said["rope"] = {"style": "interleaved", **every["rope"]}
    x, memory = told["x"].astype(float), told.get("memory")
    made = multihead(x, str(HERE / file), layer=layer, memory=memory, **said)
    size = np.abs(told["output"]).max()  # its float32 rounds
    assert told["output"].std() > 0.1
    np.testing.assert_allclose(made.output, told["output"], rtol=0, atol=2e-6 * size)
    assert not made.warnings
