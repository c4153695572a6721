"""A map of layers and heads stands on a page once: as its grid, which begins with it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.program import Door


def page(path: Path) -> Any:
    found = re.search(r'id="data">(.*?)</script>', path.read_text(), re.S)
    assert found
    return json.loads(found[1])


@pytest.mark.parametrize("statistic", ["entropy", "sink_mass"])
def test_the_map_is_the_grid(door: Door, tmp_path: Path, statistic: str) -> None:
    rng = np.random.default_rng(0)
    names = [f"layers.{n}.{k}" for n in range(2) for k in ("query", "key", "value")]
    arrays: dict[str, Any] = {name: rng.normal(size=(1, 2, 5, 4)) for name in names}
    np.savez(tmp_path / "l.npz", **arrays)
    assert door("inspect", "l.npz", "--map", statistic, "--report", "x.html").code == 0
    data = page(tmp_path / "x.html")
    shown = data["heads"]["statistics"][data["heads"]["shown"]]
    assert shown["name"].startswith(statistic)
    about = [one["about"] for one in data["heads"]["statistics"]]
    assert any(about) and not [text for text in about if "`" in text]
    titles = [one["title"] for one in data["blocks"]]
    assert titles and not [one for one in titles if one.startswith(shown["heading"])]
