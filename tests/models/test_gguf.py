"""GGUF: a model of transformers, written as llama.cpp's converters write it, is read as itself."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli.attention.rope import SCALINGS
from attncli.models.finding import every_layer
from attncli.models.layer import Layer
from attncli.studies.layer import multihead

pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from tests.support import gguf_files, zoo  # noqa: E402

FACTORS = pytest.mark.skipif("longrope" not in SCALINGS, reason="RoPE by factors is not computed")
KINDS = [*gguf_files.ARCHS, "cohere!qk", "stablelm!qk", "falcon!grouped", "granitemoe!multiplier"]
KINDS = [pytest.param(kind, marks=FACTORS if kind == "apertus" else ()) for kind in KINDS]


def both(kind: str, tmp_path: Path, stored: str = "F32") -> tuple[list[Layer], list[Layer]]:
    """The layers of a model out of its folder, which test_zoo holds to be right, and out of GGUF."""
    model = zoo.build(kind)
    if kind == "starcoder2":  # GGUF has no place for its window
        model.config.sliding_window = None
    if kind in ("gemma2", "gemma3_text"):  # llama.cpp's: a key for it is not there
        model.config.query_pre_attn_scalar = model.config.head_dim
    path = str(tmp_path / "model.gguf")
    gguf_files.write(model, path, stored)
    folder = tempfile.mkdtemp(dir=tmp_path)
    model.save_pretrained(folder)
    return every_layer(folder)[0], every_layer(path)[0]


def told(layer: Layer) -> dict[str, Any]:
    names = "heads kv_heads head_dim value_dim scale softcap clip norm_after_rope"
    return {name: getattr(layer, name) for name in names.split()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_read_as_itself(kind: str, tmp_path: Path) -> None:
    theirs, ours = both(kind, tmp_path)
    theirs = [layer for layer in theirs if layer.kind == "self"]
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert told(one) == pytest.approx(told(other)) and one.mask == other.mask
        assert one.lacks == other.lacks == ()
        x = np.random.default_rng(0).normal(size=(2, 9, one.model_dim))
        made, truth = (multihead(x, layer) for layer in (one, other))
        for name in ("query", "key", "value"):
            np.testing.assert_allclose(
                getattr(made.attention.problem, name), getattr(truth.attention.problem, name),
                rtol=1e-6, atol=1e-6,
            )  # fmt: skip
        np.testing.assert_allclose(made.output, truth.output, rtol=1e-6, atol=1e-6)
