"""The page of --report by its structure: what it lets in, what it holds, what is inert."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from attncli.attention.view import Labels
from attncli.render import report as page
from attncli.render.packed import BUDGET, EXACT, OFF, pack, pooled
from attncli.reports.blocks import (
    Column,
    Curve,
    Figure,
    Grid,
    Heatmap,
    Report,
    Shaded,
    Table,
    Text,
    head_key,
)
from tests.support.pages import EVIL, evil_report
from tests.support.reports import problem, reported


class Parsed(HTMLParser):
    """The elements of a page, with their attributes and the text right inside them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        self.elements.append(("", {}, []))  # what follows is not inside

    def handle_data(self, data: str) -> None:
        if self.elements:
            self.elements[-1][2].append(data)

    def of(self, tag: str) -> list[tuple[dict[str, str | None], str]]:
        return [(attrs, "".join(text)) for name, attrs, text in self.elements if name == tag]


def parsed(report: Report) -> Parsed:
    return Parsed(page.made(report).decode())


def held(report: Report) -> Any:
    """The data that a page holds."""
    scripts = {attrs.get("id"): text for attrs, text in parsed(report).of("script")}
    return json.loads(scripts["data"])


def weights(made: dict[str, Any], shape: tuple[int, ...]) -> np.ndarray:
    """The cells of a map as the page reads them."""
    raw = zlib.decompress(base64.b64decode(made["data"]))
    if made["code"] == "f32":
        return np.frombuffer(raw, "<f4").reshape(shape)
    codes = np.frombuffer(raw, np.uint8).astype(float)
    known = made["top"] * ((codes - 1) / 253) ** 2
    return np.where(codes == 0, -np.inf, np.where(codes == 255, np.nan, known)).reshape(shape)


def heat(values: np.ndarray, **more: Any) -> Heatmap:
    rows, columns = values.shape
    names = [[str(n) for n in range(size)] for size in (rows, columns)]
    return Heatmap("Weights", values, range(rows + 1), range(columns + 1), *names, **more)


def test_the_policy_lets_in_what_the_page_carries_and_nothing_else() -> None:
    made = parsed(reported(problem(heads=2)))
    policy = next(
        attrs["content"] for attrs, _ in made.of("meta")
        if attrs.get("http-equiv") == "Content-Security-Policy"
    )  # fmt: skip
    rules = dict(rule.split(" ", 1) for rule in str(policy).split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    scripts = [text for attrs, text in made.of("script") if "type" not in attrs]
    for name, texts in {
        "script-src": scripts, "style-src": [text for _, text in made.of("style")],
    }.items():  # fmt: skip
        (text,) = texts
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert set(rules) == {"default-src", "base-uri", "form-action", "script-src", "style-src"}


def test_nothing_on_the_page_is_somewhere_else() -> None:
    text = page.made(reported(problem(heads=2))).decode()
    for attrs in (attrs for _, attrs, _ in Parsed(text).elements):
        assert not {"src", "srcset", "data", "action", "style"} & set(attrs)
        assert not [name for name in attrs if name.startswith("on")]
        assert (attrs.get("href") or "#").startswith("#")
    assert re.findall(r"\w+://[^\s\"']*", text) == ["http://www.w3.org/2000/svg"]  # a name
    for sink in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                 "fetch(", "XMLHttpRequest", "import("):  # fmt: skip
        assert sink not in text


def test_hostile_text_is_data() -> None:
    text = page.made(evil_report()).decode()
    made = Parsed(text)
    assert len(made.of("script")) == 2 and len(made.of("style")) == 1
    assert not made.of("img") and not made.of("b") and len(made.of("title")) == 1
    data = next(text for attrs, text in made.of("script") if attrs.get("id") == "data")
    assert not re.search("[<>&\u2028\u2029\x1b\u202e]", data)
    names = json.loads(data)["names"][0]
    assert len(names) == len(EVIL) and names[0] == EVIL[0] == "<script>alert(1)</script>"
    assert names[EVIL.index("\x1b[31mred\x1b[0m")] == r"\x1b[31mred\x1b[0m"
    assert names[EVIL.index("עברית שלום")] == "עברית שלום"
    assert max(map(len, names)) <= 80
    assert "Long tokens are cut in the middle." in json.loads(data)["kept"]


def test_a_small_map_is_exact() -> None:
    values = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    values[3, 4] = np.nan
    hidden = np.triu(np.ones((64, 64), bool), 1)
    packed = pack([heat(values, hidden=hidden)])
    assert packed.maps[0]["code"] == "f32" and not packed.notes
    np.testing.assert_array_equal(
        weights(packed.maps[0], (64, 64)), np.where(hidden, -np.float32(np.inf), values)
    )


@pytest.mark.parametrize("largest", [1.0, 0.003])
def test_a_large_map_is_off_by_no_more_than_it_says(largest: float) -> None:
    rng = np.random.default_rng(1)
    values = (largest * rng.random((100, 90)) ** 4).astype(np.float32)
    values[5, 6], values[7, 8] = np.nan, largest
    hidden = rng.random(values.shape) < 0.3
    hidden[5, 6] = hidden[7, 8] = False
    packed = pack([heat(values, hidden=hidden)])
    found = weights(packed.maps[0], values.shape)
    assert packed.maps[0]["code"] == "u8" and values.size > EXACT
    assert np.array_equal(np.isneginf(found), hidden) and np.isnan(found[5, 6])
    error = np.abs(found - values)[~hidden & np.isfinite(values)]
    assert 0.2 * OFF * largest < error.max() <= OFF * largest
    assert f"at most {100 * OFF:.1f} % of the largest" in packed.notes[0]


def test_pooling_keeps_peaks_and_says_so() -> None:
    rng = np.random.default_rng(2)
    maps = [heat(rng.random((512, 512)).astype(np.float32)) for _ in range(40)]
    packed = pack(maps)
    axis = packed.axes[packed.maps[0]["rows"]]
    side, size = axis["count"], axis["size"]
    assert sum(len(one["data"]) for one in packed.maps) * 3 / 4 <= BUDGET
    assert (
        side < 512 and f"maps of 512 × 512 cells are pooled to {side} × {side}" in packed.notes[1]
    )
    starts = np.arange(0, 512, size)
    expected = np.maximum.reduceat(np.maximum.reduceat(maps[3].values, starts, 0), starts, 1)
    np.testing.assert_allclose(
        weights(packed.maps[3], (side, side)), expected, atol=OFF * packed.maps[3]["top"]
    )


def test_a_block_of_a_mask_is_the_share_of_its_cells() -> None:
    kept = np.tril(np.ones((10, 10)))
    grid = Grid("", kept, range(11), range(11), [""] * 10, [""] * 10)
    small = pooled(grid, 4)  # blocks of 3, the last of 1
    assert list(small.row_edges) == [0, 3, 6, 9, 10]
    np.testing.assert_allclose(np.diag(small.values), [6 / 9, 6 / 9, 6 / 9, 1])
    assert small.values[0, 1] == 0 and small.values[3, 0] == 1


def test_a_block_that_is_nearly_all_kept_is_not_all_kept() -> None:
    kept = np.ones((100, 100))
    kept[0] = 1e-6, *[1 - 1e-6] * 99
    kept[1] = 0
    found = weights(pack([Grid("", kept, range(101), range(101), [""] * 100, [""] * 100)]).maps[0],
                    (100, 100))  # fmt: skip
    assert 0 < found[0, 0] < 0.01 and (found[0, 1:] < 1).all()
    assert (found[1] == 0).all() and (found[2:] == 1).all()


def test_very_many_small_maps_share_the_budget() -> None:
    rng = np.random.default_rng(3)
    packed = pack([heat(rng.random((40, 40)).astype(np.float32)) for _ in range(2500)])
    assert sum(len(one["data"]) for one in packed.maps) * 3 / 4 <= BUDGET
    assert {one["code"] for one in packed.maps} == {"u8"}
    assert packed.notes[0].startswith("Maps are kept in 8 bits")


def test_axes_and_names_are_kept_once() -> None:
    names = [f"token {n}" for n in range(5)]
    one = Heatmap("", np.ones((5, 5)), range(6), range(6), names, names)
    moved = one._replace(row_positions=range(7, 12), column_positions=[0, 2, 4, 6, 8])
    packed = pack([one, one, moved])
    assert packed.names == [names]
    assert packed.axes == [
        {"count": 5, "stop": 5, "size": 1, "names": 0},
        {"count": 5, "stop": 5, "size": 1, "at": 7, "names": 0},
        {"count": 5, "stop": 5, "size": 1, "places": [0, 2, 4, 6, 8], "names": 0},
    ]


def test_uneven_blocks_have_edges() -> None:
    grid = Grid("", np.ones((2, 3)), [0, 1, 3], [0, 2, 4, 5], ["0", "1", "2"], list("abcde"))
    packed = pack([grid])
    rows, columns = packed.axes
    assert rows == {"count": 2, "stop": 3, "edges": [0, 1, 3]}
    assert columns == {"count": 3, "stop": 5, "size": 2, "names": 0}


def test_heads_find_their_maps() -> None:
    data = held(reported(problem(batch=2, heads=3)))
    heads = data["heads"]
    assert heads["names"][4] == "batch 1, head 1" and heads["at"][4] == [1, 1]
    assert [one["head"] for one in data["maps"]] == list(range(6))
    column = [one["name"] for one in heads["statistics"]].index("entropy_median")
    told = reported(problem(batch=2, heads=3)).data()["heads"]
    assert heads["values"][column] == pytest.approx(
        [one["statistics"]["entropy"]["median"] for one in told], rel=1e-5
    )


def test_maps_hold_the_weights_and_the_tokens() -> None:
    asked = problem(queries=5, mask="causal")
    labels = Labels((tuple("abcde"),), (tuple("abcde"),))
    report = reported(asked, labels=labels, include=["weights"])
    data = held(report)
    (made,) = data["maps"]
    found = weights(made, (5, 5))
    np.testing.assert_allclose(
        np.where(np.isneginf(found), 0, found), np.asarray(report.data()["weights"])[0, 0],
        rtol=1e-6,
    )  # fmt: skip
    assert np.array_equal(np.isneginf(found), np.triu(np.ones((5, 5), bool), 1))
    assert data["names"][data["axes"][made["rows"]]["names"]] == list("abcde")


def test_numbers_keep_what_is_furthest_from_0() -> None:
    values = np.zeros((4, 600))
    values[1, 299], values[2, 599] = -3, 2
    shaded = Shaded(
        "Errors", values, range(5), range(601), list("abcd"), [""] * 600, "error", "head", "query",
        diverging=True,
    )  # fmt: skip
    (made,) = pack([], [shaded]).maps
    found = weights(made, (4, 200))
    assert found.min() == found[1, 99] == -3 and found.max() == found[2, 199] == 2
    assert made["words"] == ["head", "query"] and made["diverging"]


def test_figures_and_tables() -> None:
    curve = Curve("none", [8, 64], [float("nan"), 0.5], dashed=True)
    table = Table("head", [Column("x", sub="median")], [[1.0], [None]], ["0", "1"], part="2 of 9")
    report = Report(
        "inspect", ["a sweep"], [Text("", ["said"]), table], dict,
        pictures=lambda: [Figure("Entropy", "d", "nats", [curve], log_x=True)],
    )  # fmt: skip
    data = held(report)
    assert data["figures"][0]["curves"][0]["points"] == [[8, None], [64, 0.5]]
    assert data["blocks"][0]["lines"] == ["said"]
    assert data["blocks"][1]["rows"] == [["1.000"], ["–"]] and data["blocks"][1]["notes"]


def test_a_report_of_nothing() -> None:
    data = held(Report("compute", [], [], dict))
    assert data["maps"] == data["blocks"] == data["heads"]["names"] == []


def test_no_heads_and_empty_maps() -> None:
    empty = heat(np.zeros((0, 3)), head=head_key(0, 0))
    data = held(Report("compute", ["0 heads"], [], lambda: {"heads": []}, pictures=lambda: [empty]))
    assert data["maps"][0]["head"] is None and data["axes"][0]["count"] == 0


def test_infinite_and_unknown_statistics() -> None:
    one = {"batch": 0, "head": 0, "statistics": {"x": "NaN", "y": float("inf"), "z": {"p05": 1.0}}}
    data = held(Report("compute", [], [], lambda: {"heads": [one]}))
    told = {one["name"]: value for one, value in
            zip(data["heads"]["statistics"], data["heads"]["values"], strict=True)}  # fmt: skip
    assert told == {"y": ["∞"], "z_p05": [1.0]}


def test_very_many_tokens_are_cut_short() -> None:
    names = [f"{n} {'x' * 50}" for n in range(100_000)]
    edges = [*range(0, 100_000, 1000), 100_000]
    packed = pack([Heatmap("", np.ones((1, 100)), [0, 1], edges, ["q"], names)])
    kept = packed.names[packed.axes[packed.maps[0]["columns"]]["names"]]
    assert len(kept) == 100_000 and sum(map(len, kept)) < 1_300_000
