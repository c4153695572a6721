"""Maps that one can go into, and maps of many layers."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.attention.definition import stages
from attncli.attention.problem import Problem
from attncli.attention.view import Labels, View
from attncli.attention.weights import of_weights
from attncli.reports import closer, kept
from attncli.reports.blocks import Heatmap, head_key
from attncli.reports.many import many_report
from attncli.reports.selection import select
from attncli.studies.attend import solve
from attncli.studies.many import Many
from tests.support.reports import problem


def maps_of(asked: Problem, view: View | None = None) -> list[Heatmap]:
    view, lse = view or View(), solve(asked, backend="numpy", want=set()).attended.lse
    chosen = select(asked, view)
    every = chosen._replace(shown=tuple(chosen.pairs))
    return closer.closer_maps(asked, lse, Labels(), view, every)


def assert_largest(asked: Problem, heat: Heatmap, b: int, h: int) -> None:
    """Each cell is the largest weight of its block, and says whether anything is visible."""
    rows = heat.row_positions or range(heat.row_edges[-1])
    keys = list(heat.column_positions or range(heat.column_edges[-1]))
    found = stages(asked, b, h, np.asarray(rows))
    whole, seen = (found[name][:, keys] for name in ("weights", "keep"))
    for of, values, cells in (
        (np.maximum, whole, heat.values), (np.logical_or, seen, ~np.asarray(heat.hidden))
    ):  # fmt: skip
        pooled = of.reduceat(of.reduceat(values, heat.row_edges[:-1], 0), heat.column_edges[:-1], 1)
        np.testing.assert_allclose(cells, pooled, rtol=1e-5, atol=1e-30)


def test_parts_are_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attncli.reports.maps.MAP_BLOCKS", 10)
    monkeypatch.setattr(closer, "SIDE", 4)
    asked = problem(heads=2, queries=643, keys=650, mask="causal(bottom_right)")  # blocks of 65
    for h, heat in enumerate(maps_of(asked)):
        assert heat.row_edges[1] == heat.column_edges[1] == 65
        sizes = [part.row_edges[1] for part in heat.closer()]
        assert sizes == [8, 1] * closer.PARTS
        for one in (heat, *heat.closer()):
            assert_largest(asked, one, 0, h)
            assert one.head == head_key(0, h)
        for outer, inner in zip(heat.closer()[::2], heat.closer()[1::2], strict=True):
            assert set(inner.row_positions or ()) <= set(outer.row_positions or ())
            assert set(inner.column_positions or ()) <= set(outer.column_positions or ())


def test_a_part_is_where_most_is_to_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attncli.reports.maps.MAP_BLOCKS", 16)
    monkeypatch.setattr(closer, "SIDE", 8)
    asked = problem(queries=128, keys=128, mask="window(0, 0)")
    (heat,) = maps_of(asked)
    for part in heat.closer():
        assert part.row_positions == part.column_positions  # on the diagonal


def test_rows_and_keys_that_are_selected_have_parts_of_their_own() -> None:
    asked = problem(queries=1200)
    view = View(rows=tuple(range(100, 1200)), keys=tuple(range(50, 1100)))
    (heat,) = maps_of(asked, view)
    assert not heat.closer()  # picked one by one: nothing says that they lie side by side
    (whole,) = maps_of(asked)
    assert len(whole.closer()) == closer.PARTS


def test_a_map_of_single_weights_has_no_parts() -> None:
    assert all(not one.closer() for one in maps_of(problem(heads=2, queries=5)))
    assert maps_of(problem(heads=2, queries=0, keys=3))[0].values.shape == (0, 3)


def test_all_selected_heads_have_maps() -> None:
    keys = [one.head for one in maps_of(problem(batch=2, heads=3), View(head=(0, 2)))]
    assert keys == [head_key(b, h) for b in range(2) for h in (0, 2)]


def test_maps_of_many_layers_are_tied_to_their_heads() -> None:
    maps = kept.KeptMaps(2)
    many = Many(seen=maps.add)
    asked = [problem(1, 3, 6 + n, mask="causal") for n in range(2)]
    for n, one in enumerate(asked):
        many.add(f"layers.{n}", one, Labels((tuple("abcdefg")[: 6 + n],)))
    report = many_report(many, head="1", maps=maps.maps)
    assert report.pictures is not None
    drawn = [one for one in report.pictures() if isinstance(one, Heatmap)]
    assert [one.head for one in drawn] == [head_key(0, 1, f"layers.{n}") for n in range(2)]
    weights = stages(asked[1], 0, 1, np.arange(7))["weights"]
    np.testing.assert_allclose(drawn[1].values, weights, atol=1e-3)
    assert drawn[1].title == "Weights · layers.1 · head 1" and drawn[1].row_labels[6] == "g"


def test_batch_elements_that_are_judged_together_say_which_is_drawn() -> None:
    maps = kept.KeptMaps()
    many = Many(seen=maps.add)
    many.add("a", problem(2, 2, 5))
    many.add("b", problem(2, 2, 5), batches=[1])
    assert [one.head for one in maps.maps] == [
        head_key(b, h, name) for b, name in ((0, "a"), (1, "b")) for h in range(2)
    ]
    assert maps.maps[0].notes == [kept.TOGETHER] and maps.maps[2].notes == []


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "CELLS", 40 * 40 * 6)
    maps = kept.KeptMaps(2)
    many = Many(seen=maps.add)
    for n in range(2):
        many.add(f"layers.{n}", problem(1, 3, 100))
    assert sum(one.values.size for one in maps.maps) <= kept.CELLS
    assert {one.values.shape for one in maps.maps} == {(34, 34)}


def test_attention_weights_alone_have_maps() -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(4), (1, 2, 4))
    maps = kept.KeptMaps(1)
    Many(seen=maps.add).add("a", of_weights(weights)[0])
    np.testing.assert_allclose(maps.maps[1].values, weights[0, 1], atol=1e-3)
