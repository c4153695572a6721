"""Which heads are shown: expressions, columns to sort by, and the map of all."""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attncli.errors import InputError
from attncli.measures.statistic import STATISTICS
from attncli.reports.heads import Shown
from attncli.reports.picking import Name, mapped, picking

REGISTRY = {name: STATISTICS[name] for name in ("entropy", "max_weight", "logit_max")}


def head(layer: int, at: int, entropy: float, logit: float, verdict: str = "ok") -> dict[str, Any]:
    quantiles = {"p05": entropy / 2, "median": entropy, "p95": 2 * entropy}
    return {
        "layer": layer, "head": at, "verdict": verdict, "logit_max": logit, "entropy": quantiles,
        "max_weight": {"median": math.nan},
    }  # fmt: skip


HEADS = [
    head(0, 0, 1.0, 5.0), head(0, 1, 0.2, 50.0, "watch"), head(3, 0, 0.4, math.nan),
    head(4, 1, 2.0, 7.0, "critical"),
]  # fmt: skip


def picked(filters: list[str], sort: str | None = None) -> list[int]:
    asked = picking(REGISTRY, ("layer", "head"), filters=filters, sort=sort)
    return [HEADS.index(one) for one in asked.pick(HEADS, lambda one: one)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("entropy<0.5", [1, 2]),
        ("entropy<0.5 & layer>2", [2]),
        ("entropy<0.5&layer>2|logit_max==5", [0, 2]),
        ("~(entropy<0.5) && head!=0", [3]),
        ("not entropy < 0.5 and head == 1", [3]),
        ("entropy_p05 > 0.4", [0, 3]),
        ("entropy.p95>=2 || layer==3", [0, 2, 3]),
        ("0.3<entropy<=1", [0, 2]),
        ("verdict!='ok'", [1, 3]),
        ('verdict=="ok" & logit_max>-1', [0]),
        ("max_weight<1", []),  # not known
        ("logit_max>-1e3 | 1<0", [0, 1, 3]),
    ],
)
def test_expressions(text: str, found: list[int]) -> None:
    assert picked([text]) == found
    assert picked([text, "layer==0"]) == [n for n in found if n < 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("entropi<1", "did you mean 'entropy'"),
        ("entropy_p50<1", "unknown name 'entropy_p50'"),
        ("entropy.real<1", "unknown name 'entropy.real'"),
        ("entropy", "compares nothing"),
        ("entropy & layer>1", "'entropy' compares nothing"),
        ("entropy<", "cannot be read"),
        ("layer=1", "equal is =="),
        ("(" * 500 + "entropy<1", "cannot be read"),
        ("__import__('os').system('x')>1", "is no number and no name"),
        ("(lambda: 1)()>0", "is no number and no name"),
        ("entropy+1>2", "is no number and no name"),
        ("entropy in [1]=='ok'", "no number and no name"),
        ("verdict>'ok'", "a verdict is =="),
        ("verdict==1", "a verdict is =="),
        ("verdict=='wach'", "no verdict is 'wach'"),
        ("entropy=='ok'", "a verdict is =="),
        ("True==1", "is no number and no name"),
    ],
)
def test_expressions_that_are_none(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        picked([text])
    assert message in f"{error.value}"


@given(st.text(alphabet="entropylayhd_.<>=&|~()'0123456789 ", max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(InputError):
        assert set(picked([text])) <= set(range(4))


@pytest.mark.parametrize(
    ("column", "order"),
    [
        ("entropy", [3, 0, 2, 1]),
        ("-entropy", [1, 2, 0, 3]),
        ("entropy_p95", [3, 0, 2, 1]),
        ("logit_max", [1, 3, 0, 2]),  # what is not known comes last, either way
        ("-logit_max", [0, 3, 1, 2]),
        ("layer", [3, 2, 0, 1]),
        ("verdict", [3, 1, 0, 2]),
        ("-verdict", [0, 2, 1, 3]),
    ],
)
def test_sorting(column: str, order: list[int]) -> None:
    assert picked([], column) == order


def test_what_is_asked_about_has_a_column() -> None:
    asked = picking(REGISTRY, ("layer",), filters=["logit_max>1 & layer>0"], sort="entropy_p95")
    names = [(one.name, one.quantile) for one in asked.shown((Shown("entropy"),))]
    assert names == [("entropy", "median"), ("logit_max", "median"), ("entropy", "p95")]
    assert asked.words == "largest entropy p95 first"


def test_a_map_has_a_row_a_layer() -> None:
    asked = picking(REGISTRY, ("layer", "head"), map="entropy")
    assert asked.map == Name("entropy", "median")
    there = {(one["layer"], one["head"]): one for one in HEADS}
    found = mapped(asked, "layer", ["0", "1", "2", "3", "4"], there)
    assert found is not None
    assert found.labels == ["0", "3", "4"]
    assert found.values == [[1.0, 0.2], [0.4, None], [None, 2.0]]
    table = found.table
    assert table.title == "entropy median (nats)" and table.labels[1] == "layer 3"
    assert table.shades is not None
    assert table.shades[0][1] == 0 and table.shades[2][1] == 1
    assert table.shades[0][0] == pytest.approx(((1 - 0.2) / (2 - 0.2)) ** 2)
    assert list(found.records.rows)[1] == ["3", 0.4, None]
    with pytest.raises(InputError, match="unknown name 'layer' in --map"):
        picking(REGISTRY, ("layer",), map="layer")
