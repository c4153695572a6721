"""Files that people have: the fruit dictionary, a checkpoint and its hidden states."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.layers import LAYERS, checkpoint

FRUIT = {
    "query": [[1, 0]],
    "key": [[np.log(6), 0], [np.log(4), 0], [-30, 0]],
    "value": [[10], [5], [2]],
    "scale": 1,
    "query_tokens": ["fruit"],
    "key_tokens": ["apple", "banana", "chair"],
}


@pytest.fixture
def fruit(tmp_path: Path) -> Path:
    path = tmp_path / "fruit.json"
    path.write_text(json.dumps(FRUIT))
    return path


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    np.save(tmp_path / "x.npy", LAYERS["tiny_llama_gqa/0/hidden_in"])
    np.save(tmp_path / "padding.npy", LAYERS["tiny_llama_gqa/key_padding"])
    return checkpoint(tmp_path / "llama")
