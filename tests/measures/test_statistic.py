"""A statistic is one place: what is told, judged and documented is in the registry, made once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import attncli
from attncli.attention.pose import pose
from attncli.measures import rows, sweep
from attncli.measures.evidence import Evidence, files, told
from attncli.measures.statistic import QUANTILES, STATISTICS, quantile, statistic
from attncli.studies import attend, health


def test_inspect_tells_every_statistic_of_attention_in_order() -> None:
    done = health.examine(pose(np.eye(6)), tokens=["abcabc"])
    assert list(done.found) == list(told(*files()[:-1]))
    for name, values in done.found.items():
        one = STATISTICS[name]
        if one.of == "head":
            assert np.shape(values) == (1, 1), name
        else:
            assert isinstance(values, dict) and tuple(values) == one.quantiles, name
    told_of_layers = {name for name in told(*files()) if "added" in STATISTICS[name].needs}
    inner = {one.name for one in STATISTICS.values() if one.inner}
    assert STATISTICS.keys() == done.found.keys() | told_of_layers | inner


def test_what_a_formula_needs_is_there() -> None:
    known = {name for name in dir(Evidence) if name[0] != "_"} | set(Evidence.__annotations__)
    for one in STATISTICS.values():
        assert one.source or one.text, one.name
        assert set(one.needs) <= known | STATISTICS.keys(), one.name
        assert one.formula.__module__ in {file.__name__ for file in files()}


def test_two_statistics_of_one_name_are_a_bug() -> None:
    with pytest.raises(AssertionError, match="entropy"):

        @statistic("head", name="entropy")
        def other() -> None: ...


def test_evidence_is_made_once_and_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    count, walk = [], sweep.sweep

    def counted(*given: Any, **how: Any) -> Any:
        count.append(given)
        return walk(*given, **how)

    monkeypatch.setattr(sweep, "sweep", counted)
    result = attend.attend(np.eye(5), want=("output", "row_statistics", "lse"))
    assert list(attncli.statistics(result)) == list(told(rows))
    assert not count
    known = result.evidence
    assert known.values("max_weight") is known.values("max_weight")
    assert known.summary("max_weight") is known.summary("max_weight")
    known.summaries(("mean_distance", "sink_key", "sink_mass"))
    assert len(count) == 1
    with pytest.raises(KeyError):
        known.values("entropi")
    with pytest.raises(AssertionError, match="added"):
        known.values("output_share")


@given(
    hnp.arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6)),
    st.floats(0, 1),
)
def test_quantiles_are_numpys(values: Any, share: float) -> None:
    values.sort()
    assert quantile(values, share) == pytest.approx(
        np.quantile(values, share), rel=1e-14, abs=1e-14
    )
    for known in QUANTILES.values():
        assert quantile(values, known) == np.quantile(values, known)
