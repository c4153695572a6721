"""What `attncli compute` says: which part, which numbers, in which shape, for whom."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.attention import language
from attncli.attention.definition import stages
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.attention.rope import Rope
from attncli.attention.view import Labels, View
from attncli.errors import InputError, TooLarge
from attncli.measures import rows as measure_rows
from attncli.measures.evidence import told
from attncli.render import show
from attncli.reports.arrays import INCLUDABLE, wanted
from attncli.reports.blocks import Gap, Heatmap, Report, Step, Table
from attncli.reports.compute import compute_report
from attncli.reports.labels import ranges
from attncli.reports.matrices import stage_of
from attncli.reports.selection import excerpt, select
from attncli.studies.attend import Result, solve

RNG = np.random.default_rng(7)


def problem(
    batch: int = 1, heads: int = 1, queries: int = 4, keys: int | None = None, **options: Any
) -> Problem:
    keys = queries if keys is None else keys
    groups = options.pop("groups", heads)
    width, value_width = options.pop("width", 3), options.pop("value_width", 2)
    mask = options.pop("mask", None)
    return pose(
        RNG.standard_normal((batch, heads, queries, width)),
        RNG.standard_normal((batch, groups, keys, width)),
        RNG.standard_normal((batch, groups, keys, value_width)),
        mask=[language.masker(mask)] if mask else (),
        **options,
    )


def answered(asked: Problem, view: View, include: Collection[str] | None, machine: bool) -> Result:
    return solve(asked, backend="reference", want=wanted(asked, view, include, machine))


def reported(
    asked: Problem,
    view: View | None = None,
    include: Collection[str] | None = None,
    labels: Labels | None = None,
    machine: bool = True,
) -> Report:
    view = view or View()
    result = answered(asked, view, include, machine)
    return compute_report(result, labels or Labels(), view, include)


def printed(report: Report, format: str = "table", width: int = 80, **more: Any) -> str:
    stream = io.StringIO()
    show(report, format, stream=stream, width=width, **more)
    return stream.getvalue()


def as_json(report: Report) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(printed(report, "json"), parse_constant=pytest.fail)
    return found


def rows_of(report: Report) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(printed(report, "csv"))))


def tables(report: Report) -> dict[str, Table]:
    return {block.title: block for block in report.blocks if isinstance(block, Table)}


# -- what the engine must make ----------------------------------------------------------------


def test_weights_are_made_only_when_something_needs_them_whole() -> None:
    small, large = problem(queries=8), problem(heads=2, queries=64)
    base = {"output", "lse", "row_statistics"}
    assert wanted(small, View(), None, False) == base
    assert wanted(small, View(), None, True) == base | {"weights"}
    assert wanted(small, View(), {"output"}, True) == base
    assert wanted(large, View(), None, True) == base  # 8192 cells
    assert wanted(large, View(), {"weights", "masked"}, False) == base | {"weights", "masked"}
    assert wanted(small, View(top=2, heatmap=True), (), False) == base


def test_unknown_names_and_indices_are_refused() -> None:
    with pytest.raises(InputError, match=r"'wieghts'(?s:.)*did you mean 'weights'"):
        wanted(problem(), View(), {"wieghts"}, False)
    with pytest.raises(InputError, match=r"--head 3 does not exist: there are 2 heads"):
        wanted(problem(heads=2), View(head=(3,)), None, False)
    with pytest.raises(InputError, match=r"--rows -1 does not exist"):
        select(problem(), View(rows=(-1,)))
    with pytest.raises(InputError, match=r"--top is 0"):
        select(problem(), View(top=0))


# -- excerpts ---------------------------------------------------------------------------------


def test_ranges_and_excerpts() -> None:
    assert ranges([0, 1, 2, 7, 9, 10]) == "0–2, 7, 9–10"
    assert ranges([]) == ""
    shown, gap = excerpt(range(100), False, 12, 5)
    assert shown.tolist() == [0, 1, 2, 3, 4, 95, 96, 97, 98, 99]
    assert gap == Gap(5, 90)
    assert excerpt(range(100), True, 12, 5)[1] is None
    assert excerpt(range(12), False, 12, 5)[1] is None


def test_weights_shown_are_those_of_the_engine() -> None:
    asked = problem(batch=2, heads=4, groups=2, queries=20, mask="causal")
    whole = answered(asked, View(), {"weights"}, False).stages["weights"]
    report = reported(asked, View(batch=(1,), head=(3,)))
    table = tables(report)["Weights · batch 1 · head 3"]
    assert table.row_gap == Gap(5, 10)
    edges = [*range(5), *range(15, 20)]
    np.testing.assert_allclose(np.array(table.rows), whole[1, 3][edges], atol=1e-12)
    assert table.part == "rows 0–4, 15–19 of 20"
    assert table.notes == ("3 of 4 heads not shown",)
    assert table.hint == "--head, --rows, --top, --heatmap, -o"


def test_full_and_chosen_rows_are_not_shortened() -> None:
    asked = problem(queries=30)
    assert len(tables(reported(asked, View(full=True)))["Weights"].rows) == 30
    table = tables(reported(asked, View(rows=tuple(range(20)), keys=(0, 5))))["Weights"]
    assert (len(table.rows), len(table.columns)) == (20, 2)
    assert table.part == "rows 0–19 of 30"
    assert len(tables(reported(asked))["Output"].rows) == 10


def test_the_first_head_is_shown_unless_more_are_asked_for() -> None:
    asked = problem(batch=2, heads=3)
    assert [t for t in tables(reported(asked)) if "Weights" in t] == ["Weights · batch 0 · head 0"]
    chosen = reported(asked, View(head=(0, 2)))
    assert [t for t in tables(chosen) if "Weights" in t] == [
        "Weights · batch 0 · head 0",
        "Weights · batch 0 · head 2",
    ]
    assert [*tables(chosen)["Stability"].labels] == [
        "batch 0 head 0", "batch 0 head 2", "batch 1 head 0", "batch 1 head 2",
    ]  # fmt: skip
    assert [*tables(reported(problem(heads=2)))["Stability"].labels] == ["head 0", "head 1"]


def test_too_many_cells_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attncli.reports.matrices.PRINTABLE", 50)
    with pytest.raises(TooLarge, match=r"8 × 8 weights are too many to print(?s:.)*--heatmap"):
        reported(problem(queries=8), View(full=True), machine=False)


def test_excerpts_in_chunks_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problem(queries=9, mask="causal")
    once = stage_of(asked, 0, 0, range(9), range(9))
    monkeypatch.setattr("attncli.reports.matrices.CHUNK", 20)  # two rows at a time
    np.testing.assert_allclose(stage_of(asked, 0, 0, range(9), range(9)), once, rtol=1e-13)


# -- strongest keys and maps ------------------------------------------------------------------


def test_top_lists_the_strongest_visible_keys() -> None:
    asked = problem(queries=5, mask="causal")
    names = tuple("abcde")
    table = tables(reported(asked, View(top=3), labels=Labels((names,), (names,))))["Top 3 keys"]
    weights = stages(asked, 0, 0, np.arange(5))["weights"]
    assert table.rows[0] == ["a", 1.0, None, None, None, None]  # row 0 sees one key
    for row, best in zip(weights, table.rows, strict=True):
        order = np.argsort(-row)[: min(3, int((row > 0).sum()))]
        assert [x for x in best[::2] if x] == [names[j] for j in order]
        assert [x for x in best[1::2] if x is not None] == pytest.approx(row[order].tolist())


def test_heatmap_is_pooled_by_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problem(queries=10, keys=11)
    weights = stages(asked, 0, 0, np.arange(10))["weights"]
    seen: list[float] = []
    monkeypatch.setattr("attncli.reports.maps.MAP_BLOCKS", 4)
    monkeypatch.setattr("attncli.reports.matrices.CHUNK", 33)  # three rows at a time
    view = View(heatmap=True)
    result = answered(asked, view, None, False)
    report = compute_report(result, Labels(), view, None, progress=seen.append)
    (heat,) = (b for b in report.blocks if isinstance(b, Heatmap))
    assert (list(heat.row_edges), list(heat.column_edges)) == ([0, 2, 5, 7, 10], [0, 2, 5, 8, 11])
    for r, c in np.ndindex(4, 4):
        block = weights[
            heat.row_edges[r] : heat.row_edges[r + 1],
            heat.column_edges[c] : heat.column_edges[c + 1],
        ]
        assert heat.values[r, c] == pytest.approx(block.max())
    assert seen == pytest.approx([0.3, 0.6, 0.9, 1.0])


def test_heatmap_of_a_selection() -> None:
    asked = problem(queries=6)
    view = View(heatmap=True, rows=(1, 4), keys=(0, 2, 5))
    (heat,) = (b for b in reported(asked, view).blocks if isinstance(b, Heatmap))
    weights = stages(asked, 0, 0, np.array([1, 4]))["weights"]
    np.testing.assert_allclose(heat.values, weights[:, [0, 2, 5]])
    assert ([*heat.row_labels], [*heat.column_labels]) == (["1", "4"], ["0", "2", "5"])


# -- the first line ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "facts"),
    [
        (problem(queries=1, keys=3, value_width=1), "1 query × 3 keys, width 3, values of width 1"),
        (problem(2, 12, 18, value_width=3), "2 × 12 heads, 18 queries × 18 keys, width 3"),
        (
            problem(1, 8, 4, groups=2, value_width=3),
            "8 heads (2 for keys and values), 4 queries × 4 keys, width 3",
        ),
        (problem(3, 1, 4, value_width=3), "3 × 1 head, 4 queries × 4 keys, width 3"),
        (problem(scale=0.25), "scale 0.25"),
        (problem(scale="none"), "scale 1 (no scale)"),
        (problem(scale=2.0, scale_source="from file"), "scale 2 (from file)"),
        (problem(width=32), "scale 0.1768 = 1/√32"),
        (problem(softcap=50.0), "softcap 50"),
        (problem(sink=0.0), "sink 0"),
        (problem(heads=2, sink=[1.0, 2.0]), "a sink per head"),
        (problem(mask="causal"), "mask causal"),
        (problem(dtype="bfloat16"), "reference float32 for bfloat16"),
        (problem(), "reference float64"),
    ],
)
def test_headline(asked: Problem, facts: str) -> None:
    assert facts in reported(asked).headline


def test_headline_counts_what_was_cached() -> None:
    past = RNG.standard_normal((2, 4))
    new = RNG.standard_normal((3, 4))
    asked = pose(new, past_key=past, past_value=past)
    assert reported(asked).headline[0] == "3 queries × 5 keys (2 of them past), width 4"


# -- JSON -------------------------------------------------------------------------------------


def test_json_skeleton() -> None:
    asked = problem(2, 2, 3, mask="causal")
    data = as_json(reported(asked))
    assert list(data) == [
        "schema", "command", "engine", "shapes", "scale", "scale_source", "softcap", "mask",
        "warnings", "heads", "output", "weights",
    ]  # fmt: skip
    assert (data["schema"], data["command"]) == ("attncli.compute/1", "compute")
    assert data["engine"].keys() == {"backend", "device", "dtype", "threads", "kernel"}
    assert data["shapes"]["query"] == [2, 2, 3, 3]
    assert data["shapes"]["output"] == [2, 2, 3, 2]
    assert (data["mask"], data["softcap"]) == ("causal", None)
    assert [(h["batch"], h["head"]) for h in data["heads"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    found = data["heads"][0]["statistics"]
    assert list(found) == list(told(measure_rows))
    assert found["entropy"].keys() == {"mean", "p05", "median", "p95", "min", "max"}
    assert isinstance(found["saturated_share"], float)
    assert found["dead_rows"] == 0
    np.testing.assert_allclose(np.sum(data["weights"], -1), 1)


def test_json_leaves_out_what_is_large_unless_asked() -> None:
    asked = problem(1, 2, 64)
    data = as_json(reported(asked))
    assert "weights" not in data
    assert "output" in data
    data = as_json(reported(asked, include=("weights",)))
    assert np.shape(data["weights"]) == (1, 2, 64, 64)
    assert "output" not in data
    # a part of it is small again, and nothing had to make the whole
    data = as_json(reported(asked, View(head=(1,), rows=(3, 4), keys=(0, 1, 2))))
    assert data["selection"] == {"head": [1], "rows": [3, 4], "keys": [0, 1, 2]}
    weights = stages(asked, 0, 1, np.array([3, 4]))["weights"][:, :3]
    np.testing.assert_allclose(np.squeeze(data["weights"], (0, 1)), weights)
    assert [h["head"] for h in data["heads"]] == [1]


def test_json_says_nan_and_infinity_as_strings() -> None:
    asked = pose([[1.0]], [[1.0]], [[np.inf]])
    data = as_json(reported(asked))
    assert data["output"] == [["Infinity"]]
    assert data["heads"][0]["statistics"]["entropy"]["mean"] is None  # one key is no choice
    assert len(data["warnings"]) == 1


@pytest.mark.parametrize("options", [{}, {"heads": 2}, {"layout": "blhd"}])
def test_json_with_include_is_a_bundle_again(tmp_path: Path, options: dict[str, Any]) -> None:
    shape = (2, 5, 6) if "heads" in options else (2, 5, 3, 4)
    query, key, value = RNG.standard_normal((3, *shape))
    asked = pose(query, key, value, **options)
    names = tuple("abcde")
    include = ("query", "key", "value", "output", "lse", "weights")
    report = reported(asked, include=include, labels=Labels((names,), (names,)))
    path = tmp_path / "again.json"
    path.write_text(printed(report, "json"))
    bundle = files.read(str(path))
    for name, array in (("query", query), ("key", key), ("value", value)):
        found = files.find(bundle, name)
        assert found is not None
        np.testing.assert_array_equal(found[1], array)
    assert bundle.options["tokens"] == list(names)
    again = solve(pose(*(bundle.tensors[n] for n in include[:3]), **options), backend="reference")
    np.testing.assert_allclose(bundle.tensors["output"], again.output)
    np.testing.assert_allclose(bundle.tensors["lse"], again.lse)


def test_included_arrays_are_the_results_in_the_family_that_came_in() -> None:
    past = RNG.standard_normal((2, 2, 4))
    new = RNG.standard_normal((2, 3, 4))
    asked = pose(new, past_key=past, past_value=past, mask=[language.masker("causal")])
    report = reported(asked, include=[n for n in INCLUDABLE if not n.startswith("grad_")])
    shapes = {name: array.shape for name, array in report.arrays.items()}
    assert shapes["query"] == shapes["key"] == shapes["value"] == shapes["output"] == (2, 3, 4)
    assert shapes["present_key"] == shapes["present_value"] == (2, 5, 4)
    assert shapes["weights"] == shapes["scores"] == (2, 3, 5)
    assert shapes["lse"] == shapes["row_statistics.entropy"] == (2, 3)
    np.testing.assert_array_equal(report.arrays["key"], new)
    np.testing.assert_array_equal(report.arrays["present_key"], np.concatenate([past, new], 1))
    data = as_json(report)
    np.testing.assert_allclose(
        data["row_statistics"]["max_weight"], np.max(data["weights"], axis=-1)
    )
    assert data["masked"][0][0][4] == "-Infinity"
    assert list(reported(asked).arrays) == ["output"]


def test_labels_in_json() -> None:
    query, key = (("a", "b"),), (("x", "y"),)
    asked = problem(queries=2)
    data = as_json(reported(asked, labels=Labels(query, key)))
    assert (data["query_tokens"], data["key_tokens"]) == (["a", "b"], ["x", "y"])
    two = (("a", "b"), ("c", "d"))
    data = as_json(reported(problem(batch=2, queries=2), labels=Labels(two, two)))
    assert data["tokens"] == [["a", "b"], ["c", "d"]]


def test_top_in_json_speaks_of_every_head() -> None:
    data = as_json(reported(problem(heads=2, queries=3, mask="causal"), View(top=2)))
    assert [(t["head"], t["query"], len(t["keys"])) for t in data["top"]] == [
        (0, 0, 1), (0, 1, 2), (0, 2, 2), (1, 0, 1), (1, 1, 2), (1, 2, 2),
    ]  # fmt: skip


def test_time_counts_visible_cells() -> None:
    asked = problem(queries=4, width=3, value_width=2, mask="causal")
    time = as_json(reported(asked, View(time=True)))["time"]
    assert time["gflops"] * 1e9 * time["seconds"] == pytest.approx(2 * 10 * (3 + 2))
    assert time["peak_memory_bytes"] is None or time["peak_memory_bytes"] > 1e6
    assert "GFLOP/s" in printed(reported(asked, View(time=True)))


# -- CSV --------------------------------------------------------------------------------------


def test_csv_has_a_row_a_head_with_every_quantile_in_full() -> None:
    asked = problem(2, 2, 5)
    rows = rows_of(reported(asked))
    data = as_json(reported(asked))
    assert [(r["batch"], r["head"]) for r in rows] == [
        ("0", "0"), ("0", "1"), ("1", "0"), ("1", "1"),
    ]  # fmt: skip
    for row, head in zip(rows, data["heads"], strict=True):
        for name, found in head["statistics"].items():
            if isinstance(found, dict):
                assert {q: float(row[f"{name}_{q}"]) for q in found} == found
            else:
                assert float(row[name]) == found


def test_csv_of_weights_is_long_and_tidy() -> None:
    names = ("a,b", 'say "hi"', "line\nbreak")
    asked = problem(1, 2, 3, mask="causal")
    report = reported(asked, View(head=(1,)), ("scores", "weights"), Labels((names,), (names,)))
    rows = rows_of(report)
    assert list(rows[0]) == [
        "batch", "head", "query", "key", "query_token", "key_token", "score", "weight",
    ]  # fmt: skip
    assert len(rows) == 9
    assert {r["head"] for r in rows} == {"1"}
    assert [r["key_token"] for r in rows[:3]] == ["a,b", 'say "hi"', "line\nbreak"]
    weights = stages(asked, 0, 1, np.arange(3))["weights"]
    np.testing.assert_allclose([float(r["weight"]) for r in rows], weights.reshape(-1))


def test_csv_of_other_results() -> None:
    asked = problem(queries=3, value_width=2)
    assert len(rows_of(reported(asked, include=("output",)))) == 6
    rows = rows_of(reported(asked, include=("lse", "row_statistics")))
    assert list(rows[0])[:6] == [
        "batch", "head", "query", "query_token", "lse", "entropy",
    ]  # fmt: skip
    top = rows_of(reported(asked, View(top=2)))
    assert len(top) == 6
    assert [r["query"] for r in top] == ["0", "0", "1", "1", "2", "2"]


@pytest.mark.parametrize(
    ("view", "include"),
    [
        (View(), ("weights", "output")),
        (View(), ("lse", "weights")),
        (View(), ("query",)),
        (View(top=2), ("weights",)),
    ],
)
def test_csv_holds_one_table(view: View, include: tuple[str, ...]) -> None:
    report = reported(problem(), view, include)  # everything else still works
    assert printed(report)
    with pytest.raises(InputError, match=rf"cannot hold .*{include[0]}"):
        printed(report, "csv")


# -- steps ------------------------------------------------------------------------------------


def test_steps_are_the_stages_with_their_arithmetic() -> None:
    asked = pose(
        [[2.0, 0.0]], [[1.0, 3.0], [0.0, -1.0]], [[10.0], [-4.0]],
        scale=0.5, softcap=4.0, sink=0.0, mask=[language.masker("prefix(2)")],
    )  # fmt: skip
    steps = [b for b in reported(asked, View(steps=True)).blocks if isinstance(b, Step)]
    assert [(s.number, s.name) for s in steps] == [
        (1, "scores"), (2, "scaled"), (3, "softcapped"), (4, "masked"), (5, "weights"),
        (6, "output"),
    ]  # fmt: skip
    assert steps[0].lines == ["q0·k0 = 2×1 + 0×3 = 2.000", "q0·k1 = 2×0 + 0×(-1) = 0.000"]
    assert steps[1].lines == ["q0·k0: 2.000 × 0.5 = 1.000, and 1 more key alike"]
    assert steps[2].lines == ["q0·k0: 4×tanh(1.000 / 4) = 0.980, and 1 more key alike"]
    assert steps[3].formula == "prefix(2)"
    assert steps[4].meaning == "each row and its sink sum to 1"
    assert steps[4].lines == [
        "k0: exp(0.980 − 0.980) = 1.000",
        "k1: exp(0.000 − 0.980) = 0.375",
        "sum for q0: 1.000 + 0.375 + 0.375 of the sink = 1.751",
        "q0 → k0: 1.000 / 1.751 = 0.571",
        "q0 → k1: 0.375 / 1.751 = 0.214",
    ]
    assert steps[5].meaning == "0.571×10 + 0.214×(-4) = 4.854"


def test_steps_of_some_rows_and_keys_count_the_others() -> None:
    asked = problem(1, 2, 30, mask="causal")
    view = View(steps=True, head=(1,), rows=(5,), keys=(0, 1, 29))
    steps = [b for b in reported(asked, view).blocks if isinstance(b, Step)]
    text = "\n".join(line for step in steps for line in step.lines)
    assert "of 27 other keys" in text
    assert "29: hidden, 0" in text
    assert steps[0].table is not None
    stage = stages(asked, 0, 1, np.array([5]))
    raw = stage["scores"][:, [0, 1, 29]] / asked.scale
    np.testing.assert_allclose(np.array(steps[0].table.rows), raw)
    whole = stage["weights"] @ np.asarray(asked.value[0, 1])
    assert f"= {whole[0, 0]:.3f}" in steps[-1].lines[0]


def test_steps_of_a_row_that_sees_nothing() -> None:
    asked = problem(queries=2, mask="prefix(0)")
    steps = [b for b in reported(asked, View(steps=True)).blocks if isinstance(b, Step)]
    assert steps[3].lines == ["q0 sees no key: its weights are 0"]


@pytest.mark.parametrize(("flag", "shape"), [("--rows", (13, 2)), ("--keys", (2, 13))])
def test_steps_of_too_much_say_what_to_choose(flag: str, shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=rf"13 .* are too many(?s:.)*{flag} 0:4"):
        reported(problem(queries=shape[0], keys=shape[1]), View(steps=True))


# -- nothing, and very much -------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(0, 1, 2, 2), (1, 0, 2, 2), (1, 1, 0, 2), (1, 1, 2, 0), (1, 1, 0, 0)]
)
@pytest.mark.parametrize("view", [View(), View(top=2), View(heatmap=True)])
def test_zero_length_dimensions(shape: tuple[int, int, int, int], view: View) -> None:
    report = reported(problem(*shape), view)
    for format in ("table", "csv", "markdown"):
        assert printed(report, format)
    assert as_json(report)["shapes"]["output"] == [*shape[:3], 2]


def test_long_inputs_are_answered_at_once_and_small() -> None:
    asked = pose(RNG.standard_normal((20_000, 4)), mask=[language.masker("causal")])
    result = solve(asked, backend="numpy", want=wanted(asked, View(), None, True))
    report = compute_report(result, Labels(), View(), None)
    text = printed(report)
    assert len(text.splitlines()) < 40
    assert "rows 0–4, 19995–19999 of 20000" in text
    assert "of 20000 keys" in text
    assert len(printed(report, "json")) < 10_000


def test_steps_show_how_rope_turned() -> None:
    asked = pose([[1.0, 0.0], [0.5, 2.0]], rope=Rope("half"), scale=1)
    steps = [b for b in reported(asked, View(steps=True, rows=(1,))).blocks if isinstance(b, Step)]
    assert [s.name for s in steps[:2]] == ["turned", "scores"]
    assert steps[0].formula == "RoPE half, θ 10000"
    assert steps[0].table
    assert steps[0].table.labels == ["query q1", "key k0", "key k1"]
    c, s = np.cos(1), np.sin(1)
    np.testing.assert_allclose(steps[0].table.rows[0], [0.5 * c - 2 * s, 2 * c + 0.5 * s])
    assert steps[0].lines[0] == "query q1 [0, 1]: (0.500, 2.000) turned by 57.3° = (-1.413, 1.501)"
    assert steps[0].lines[1] == "key k0 [0, 1]: (1.000, 0.000) turned by 0.0° = (1.000, 0.000)"


def test_steps_of_rope_with_cached_keys_and_pairs_side_by_side() -> None:
    new, past = RNG.standard_normal((2, 4)), RNG.standard_normal((3, 4))
    asked = pose(
        new, new, new, past_key=past, past_value=past, rope=Rope("interleaved", dim=2)
    )  # fmt: skip
    steps = [b for b in reported(asked, View(steps=True)).blocks if isinstance(b, Step)]
    assert steps[0].table
    assert steps[0].table.labels == ["query q0", "query q1", "key k3", "key k4"]
    assert "cached keys are turned already" in steps[0].meaning
    first = f"({new[0, 0]:.3f}, {new[0, 1]:.3f}) turned by 171.9°"
    assert steps[0].lines[0].startswith(f"query q0 [0, 1]: {first}")


def test_steps_claim_no_infinity_for_a_finite_bias() -> None:
    for bias, hides in (([[0.5, -1.0]], False), ([[0.5, -np.inf]], True)):
        asked = pose(
            [[1.0]], [[1.0], [2.0]], [[1.0], [2.0]],
            mask=[language.tensor_masker(np.array(bias), "keep")],
        )  # fmt: skip
        steps = [b for b in reported(asked, View(steps=True)).blocks if isinstance(b, Step)]
        masked = next(s for s in steps if s.name == "masked")
        assert "a bias is added" in masked.meaning
        assert ("−∞" in masked.meaning) == hides


def test_steps_name_rows_and_keys_alike_in_tables_and_arithmetic() -> None:
    asked = problem(queries=2)
    for labels, names in ((None, ["q0", "q1"]), (Labels(((" a", "b "),)), ["␣a", "b␣"])):
        steps = list(reported(asked, View(steps=True), labels=labels).blocks)[-4:]
        assert isinstance(steps[0], Step)
        first = next(s for s in steps if isinstance(s, Step) and s.table)
        assert first.table
        assert list(first.table.labels) == names
        worked = [line for s in steps if isinstance(s, Step) for line in s.lines]
        assert any(f"sum for {names[0]}" in line for line in worked)
