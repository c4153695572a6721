"""What commands have to draw: everything selected, as plain data that says what it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.attention.view import Labels, View
from attncli.reports.blocks import Figure, Heatmap, Picture, Report, Shaded
from attncli.reports.compute import compute_report
from attncli.reports.health import inspect_report
from attncli.reports.many import asked_of_heads, many_report
from attncli.reports.pictures import MOST_HEADS, SWEPT
from attncli.reports.sweep import sweep_report
from attncli.studies.compare import compare
from attncli.studies.health import examine
from attncli.studies.many import Many
from attncli.studies.what_if import parse
from attncli.studies.widths import sweep_dim
from tests.support.reports import answered, problem, reported


def drawn(report: Report) -> list[Picture]:
    assert report.pictures is not None
    return list(report.pictures())


def test_every_head_selected_is_a_map() -> None:
    asked = problem(batch=2, heads=3, mask="causal")
    maps = [one for one in drawn(reported(asked, View(head=(0, 2)))) if isinstance(one, Heatmap)]
    assert [one.title for one in maps] == [
        f"Weights · batch {b} · head {h}" for b in range(2) for h in (0, 2)
    ]
    weights = answered(asked, View(), ("weights",), True).weights
    assert weights is not None
    assert np.allclose([one.values for one in maps], weights[:, [0, 2]].reshape(-1, 4, 4))
    for one in maps:
        assert one.hidden is not None and np.array_equal(~one.hidden, np.tri(4, dtype=bool))


def test_rows_and_keys_select_a_part() -> None:
    asked = problem(queries=6)
    one, *rest = drawn(reported(asked, View(rows=(4, 5), keys=(0, 3))))
    assert isinstance(one, Heatmap) and one.values.shape == (2, 2)
    assert list(one.row_labels) == ["4", "5"]
    assert [list(c.x) for figure in rest if isinstance(figure, Figure) for c in figure.curves] == [
        [4, 5], [4, 5],
    ]  # fmt: skip


def test_rows_are_curves_of_few_heads_and_shades_of_many() -> None:
    for heads, kind in ((2, Figure), (7, Shaded)):
        asked = problem(heads=heads)
        found = [one for one in drawn(reported(asked)) if not isinstance(one, Heatmap)]
        assert [type(one) for one in found] == [kind, kind]
        assert [one.title for one in found] == ["entropy (nats)", "max weight"]
        values = answered(asked, View(), None, True).row_values
        assert values is not None
        for one, name in zip(found, ("entropy", "max_weight"), strict=True):
            own: Any = [c.y for c in one.curves] if isinstance(one, Figure) else one.values
            assert np.allclose(own, values[name][0])


def test_long_rows_are_means_that_say_so() -> None:
    asked = problem(queries=1100)
    figure = drawn(reported(asked))[1]
    assert isinstance(figure, Figure) and figure.notes == ["means of 3 rows each"]
    values = answered(asked, View(), None, True).row_values
    assert values is not None
    (curve,) = figure.curves
    assert len(curve.x) == 512 and curve.y[0] == pytest.approx(values["entropy"][0, 0, :2].mean())


def test_more_heads_than_fit_are_named() -> None:
    asked = problem(heads=MOST_HEADS + 3, queries=2)
    maps = [one for one in drawn(reported(asked)) if isinstance(one, Heatmap)]
    assert len(maps) == MOST_HEADS
    assert maps[-1].notes == ["144 of 147 heads are drawn (--batch, --head)"]


def test_one_query_has_no_profile_and_no_heads_no_picture() -> None:
    assert len(drawn(reported(problem(queries=1, keys=3)))) == 1
    assert drawn(reported(problem(heads=0))) == []


def test_a_candidate_is_off_by_head_and_row() -> None:
    asked = problem(heads=2, queries=5)
    result = answered(asked, View(), None, False)
    mine = result.output.copy()
    mine[0, 1, 3] += 0.5
    judged = compare(asked, {"output": mine}, explain=False)
    report = compute_report(result, Labels(), View(), None, judged=judged, name="a/mine.npy")
    errors, cells, curve, *rest = drawn(report)
    assert (
        isinstance(errors, Shaded) and errors.log and errors.title == "output: |mine.npy − right|"
    )
    assert errors.values.shape == (2, 5) and errors.values[1, 3] == pytest.approx(0.5)
    assert errors.values[0].max() < 1e-6
    assert isinstance(cells, Shaded) and cells.values[:, 3] == pytest.approx(0.5)
    assert isinstance(curve, Figure) and [c.name for c in curve.curves] == ["mine.npy", "budget"]
    assert curve.curves[0].y[3] > curve.curves[1].y[3] > 0
    assert any(isinstance(one, Heatmap) for one in rest)


def test_health_draws_the_scale_and_what_ifs() -> None:
    asked = problem(heads=3, queries=6, width=8)
    examined = examine(asked, what_ifs=[parse("softcap=1")])
    found = drawn(inspect_report(examined, Labels(), View()))
    figures = [one for one in found if isinstance(one, Figure) and one.ticks is not None]
    assert [one.title for one in figures] == [
        "logit std", "saturated (share of rows)", "entropy, median (nats)", "gradient ‖dS‖, p05",
    ]  # fmt: skip
    for one in figures:
        assert list(one.ticks or ()) == ["1/√8", "none", "softcap=1"]
        assert [c.name for c in one.curves] == ["all heads", "", "", ""]
    scale = examined.scale
    std = [float(one.over().statistics["logit_std"]) for one in scale]
    assert list(figures[0].curves[0].y[:2]) == pytest.approx(std)
    assert figures[0].curves[1].y[1] == scale[1].statistics[0][0]["logit_std"]


def test_health_draws_the_heads_that_pass() -> None:
    asked = problem(batch=2, heads=2)
    found = drawn(
        inspect_report(examine(asked), Labels(), View(), asked=asked_of_heads(filters=["head==1"]))
    )
    maps = [one.title for one in found if isinstance(one, Heatmap)]
    assert maps == ["Weights · batch 0 · head 1", "Weights · batch 1 · head 1"]


def test_layers_are_maps_of_statistics() -> None:
    many = Many()
    for n in range(3):
        many.add(f"layers.{n}", problem(heads=4, queries=5 + n))
    found = drawn(many_report(many, asked=asked_of_heads(map="sink_mass")))
    assert all(isinstance(one, Shaded) for one in found)
    titles = [one.title for one in found]
    assert titles[0] == "sink mass" and "entropy, median (nats)" in titles
    assert len(set(titles)) == len(titles)
    entropy = found[titles.index("entropy, median (nats)")]
    assert isinstance(entropy, Shaded) and entropy.values.shape == (3, 4)
    own = many.heads[5]
    assert entropy.values[1, 1] == own.statistics["entropy"]["median"]
    assert (entropy.rows, entropy.columns) == ("layer", "head")


def test_the_sweep_is_curves_with_and_without_the_scale() -> None:
    swept = list(sweep_dim([16, 4]))
    found = drawn(sweep_report(swept, 0))
    assert len(found) == len(SWEPT)
    for one, name in zip(found, SWEPT, strict=True):
        assert isinstance(one, Figure) and one.log_x
        scaled, plain = one.curves
        assert list(scaled.x) == [4, 16] and plain.dashed
        assert plain.y[1] == swept[0][2][name] and scaled.y[0] == swept[1][1][name]
    assert drawn(sweep_report([], 0)) == []
