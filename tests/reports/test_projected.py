"""``multihead --steps``: every number from the hidden states to the layer's output."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli.attention.view import Labels, View
from attncli.reports.blocks import Step
from attncli.reports.projected import Around
from attncli.reports.selection import select
from attncli.reports.steps import steps
from attncli.studies import layer
from tests.support.program import Door

RNG = np.random.default_rng(29)
E, HEADS, WIDTH = 6, 2, 3
NAMES = ["queries", "keys", "values", "scores", "scaled", "masked", "weights", "output"]


def weights(kv_heads: int = HEADS, **more: Any) -> dict[str, Any]:
    rows = {"wq": HEADS, "wk": kv_heads, "wv": kv_heads}
    made = {name: RNG.normal(size=(n * WIDTH, E)) for name, n in rows.items()}
    return made | {"wo": RNG.normal(size=(E, HEADS * WIDTH))} | more


def told(made: layer.MultiheadResult, **view: Any) -> list[Step]:
    problem = made.attention.problem
    shown = View(**view)
    blocks = steps(problem, Labels(None, None), shown, select(problem, shown), Around(made))
    return [block for block in blocks if isinstance(block, Step)]


def results(step: Step) -> list[float]:
    found = [re.search(r"\[\d+\]: .* = (\S+)$", line) for line in step.lines]
    return [float(one[1]) for one in found if one]


def test_each_product_is_written_out_and_gives_the_next_number() -> None:
    x = RNG.normal(size=(4, E))
    made = layer.multihead(x, weights(), heads=HEADS)
    found = told(made, head=[1], rows=[2])
    assert [step.name for step in found] == [*NAMES, "projected"]
    assert [step.number for step in found] == list(range(1, 10))
    for step, right in zip(found, (made.query[1], made.key[1], made.value[1]), strict=False):
        row = 2 if step.name == "queries" else 0
        assert np.allclose(results(step), right[row], atol=6e-4)
        assert step.table is not None
        assert np.allclose(step.table.rows, right[[2]] if step.name == "queries" else right)
    assert np.allclose(results(found[-1]), made.output[2][:4], atol=6e-4)
    assert found[-1].table is not None and np.allclose(found[-1].table.rows, made.concat[[2]])
    assert found[0].lines[0].count("×") == 4 and "(6 products)" in found[0].lines[0]


@pytest.mark.parametrize(
    "said",
    [
        {"memory": RNG.normal(size=(2, 5, E))},
        {"memory": RNG.normal(size=(2, 5, E)), "memory_value": RNG.normal(size=(2, 5, E))},
        {"mask": "causal"},
        {"rope": "half", "head_dim": None},
    ],
    ids=["memory", "memory and values", "causal", "rope"],
)
def test_whatever_goes_with_it(said: dict[str, Any]) -> None:
    x = RNG.normal(size=(2, 4, E))
    if "rope" in said:
        wide = {n: RNG.normal(size=(8, E)) for n in ("wq", "wk", "wv")}
        made = layer.multihead(x, wide | {"wo": RNG.normal(size=(E, 8))}, heads=2, rope="half")
    else:
        made = layer.multihead(x, weights(1, bq=RNG.normal(size=6)), heads=2, kv_heads=1, **said)
    found = told(made, batch=[1], head=[1], rows=[3])
    names = [step.name for step in found]
    assert names[:3] == NAMES[:3] and names[-1] == "projected"
    assert np.allclose(results(found[-1]), made.output[1, 3][:4], atol=6e-4)


def test_what_is_no_plain_product_is_left_out() -> None:
    x = RNG.normal(size=(4, E))
    made = layer.multihead(x, weights(), heads=HEADS, add_zero_attn=True)
    names = [step.name for step in told(made)]
    assert names[:2] == ["queries", "scores"]  # a key and a value stand there that no X made
    no_output = {name: w for name, w in weights().items() if name != "wo"}
    made = layer.multihead(x, no_output, heads=HEADS)
    assert [step.name for step in told(made)] == NAMES


def test_it_ends_with_what_is_left_out(door: Door, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"x": RNG.normal(size=(3, 4)).tolist()}))
    ran = door("multihead", path, "--random-weights", "0", "--heads", "2", "--steps")
    assert ran.code == 0
    before, _, after = ran.out.partition("9  projected   concat·W_Oᵀ")
    assert before.count("head 0") == 1 and "X·W_Qᵀ" in before
    assert "worked out for q0, 1 of 3 queries; 1 of 2 heads not shown (--rows, --head)" in after
