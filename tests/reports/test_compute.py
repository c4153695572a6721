"""What `attncli compute` says to programs, and of nothing and of very much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.attention import language
from attncli.attention.definition import stages
from attncli.attention.pose import pose
from attncli.attention.view import Labels, View
from attncli.measures import rows as measure_rows
from attncli.measures.evidence import told
from attncli.reports.arrays import wanted
from attncli.reports.compute import compute_report
from attncli.studies.attend import solve
from tests.support.reports import as_json, printed, problem, reported

RNG = np.random.default_rng(7)


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
