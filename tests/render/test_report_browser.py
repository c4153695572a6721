"""The page of --report in headless Chromium: what click, hover, keys, sort and filter do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli.attention.view import Labels, View
from attncli.render import draw
from attncli.reports.blocks import Curve, Figure, Grid, Report, Shaded
from tests.support import browser as chromium
from tests.support.browser import Browser
from tests.support.pages import evil_report
from tests.support.reports import problem, reported

pytestmark = pytest.mark.skipif(
    chromium.found() is None, reason=f"no browser: none of {', '.join(chromium.NAMES)}"
)
TOKENS = ("the", "cat", "sat", "on", "mats")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as one:
        yield one


@pytest.fixture(scope="module")
def causal() -> Report:
    """Two batch elements of three heads, five tokens that see what came before."""
    asked = problem(batch=2, heads=3, queries=5, mask="causal")
    return reported(asked, labels=Labels((TOKENS,), (TOKENS,)), include=["weights"])


def opened(browser: Browser, report: Report, path: Path, **how: Any) -> float:
    """Open the page; whatever is done with it, it asks for nothing and complains of nothing."""
    draw(report, "report", str(path / "page.html"))
    return browser.open(path / "page.html", **how)


def calm(browser: Browser) -> bool:
    assert not browser.problems
    assert [url.partition(":")[0] for url in browser.requests] == ["file"]
    return True


def weights(report: Report) -> np.ndarray:
    return np.asarray(report.data()["weights"])


def middle(browser: Browser, row: int, column: int) -> tuple[float, float]:
    """Where a cell of the map is on the screen."""
    x, y = browser.run(
        "(() => { canvas.scrollIntoView(); const box = canvas.getBoundingClientRect(); return "
        f"[box.left + geometry.left + {column + 0.5} * geometry.wide, "
        f"box.top + geometry.top + {row + 0.5} * geometry.high]; }})()"
    )
    return x, y


def read(browser: Browser) -> str:
    return browser.text("#readout")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 900, 1600])
def test_it_opens_without_a_complaint_and_fits(
    browser: Browser, causal: Report, tmp_path: Path, width: int, dark: bool
) -> None:
    opened(browser, causal, tmp_path, width=width, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert browser.text("#theme") == ("Light" if dark else "Dark")
    back = browser.run("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(20, 22, 26)" if dark else "rgb(251, 251, 249)")
    assert calm(browser)


def test_hover_reads_query_key_and_weight(browser: Browser, causal: Report, tmp_path: Path) -> None:
    opened(browser, causal, tmp_path)
    browser.mouse("mouseMoved", *middle(browser, 3, 1))
    value = weights(causal)[0, 0, 3, 1]
    assert read(browser) == f"query 3 ‘on’ → key 1 ‘cat’: {value:.4f}"
    browser.mouse("mouseMoved", *middle(browser, 1, 4))
    assert read(browser) == "query 1 ‘cat’ → key 4 ‘mats’: hidden by the mask"
    assert calm(browser)


def test_arrow_keys_read_cells_and_stop_at_the_edge(
    browser: Browser, causal: Report, tmp_path: Path
) -> None:
    opened(browser, causal, tmp_path)
    browser.run("canvas.focus()")
    browser.press("ArrowUp", "ArrowLeft")
    assert read(browser).startswith("query 0 ‘the’ → key 0 ‘the’: 1")
    browser.press("ArrowDown", "ArrowDown", "ArrowRight")
    assert read(browser) == f"query 2 ‘sat’ → key 1 ‘cat’: {weights(causal)[0, 0, 2, 1]:.4f}"
    browser.press("End")
    assert "key 4 ‘mats’: hidden" in read(browser)
    browser.press("PageDown", "Home")
    assert read(browser).startswith("query 4 ‘mats’ → key 0")
    assert calm(browser)


def test_a_click_in_the_grid_opens_a_head_and_so_does_enter(
    browser: Browser, causal: Report, tmp_path: Path
) -> None:
    opened(browser, causal, tmp_path)
    browser.run("document.querySelector('#grid [data-head=\"4\"]').click()")
    browser.until("document.getElementById('map-title').textContent.includes('head 1')")
    assert browser.text("#map-title") == "Weights · batch 1 · head 1"
    browser.run("document.querySelector('#grid [data-head=\"4\"]').focus()")
    browser.press("ArrowRight", "ArrowUp", "Enter")
    browser.until(
        "document.getElementById('map-title').textContent === 'Weights · batch 0 · head 2'"
    )
    assert browser.run("document.activeElement.dataset.head") == "2"
    assert browser.run("document.querySelectorAll('#grid [aria-pressed=true]').length") == 1
    browser.mouse("mouseMoved", *middle(browser, 4, 2))
    assert read(browser).endswith(f": {weights(causal)[0, 2, 4, 2]:.4f}")
    assert calm(browser)


def test_the_chosen_row_shows_its_strongest_keys_and_lines(
    browser: Browser, causal: Report, tmp_path: Path
) -> None:
    opened(browser, causal, tmp_path)
    browser.mouse("click", *middle(browser, 3, 0))
    row = weights(causal)[0, 0, 3]
    order = np.argsort(-row)[:4]
    shown = browser.run("[...document.querySelectorAll('#strongest li')].map(x => x.innerText)")
    assert [line.split("\n")[0] for line in shown] == [f"{n} ‘{TOKENS[n]}’" for n in order]
    assert browser.run("document.querySelectorAll('#lines path').length") == 4
    assert browser.run("document.querySelector('#lines .chosen').textContent") == "on"
    browser.run("document.querySelectorAll('#lines .token')[1].dispatchEvent(new Event('click'))")
    assert browser.run("document.querySelectorAll('#lines path').length") == 2
    assert browser.text("#row-title") == "1 ‘cat’ looks at"
    assert calm(browser)


def names_in_list(browser: Browser) -> list[str]:
    found: list[str] = browser.run(
        "[...document.querySelectorAll('#list tbody th')].map(x => x.textContent)"
    )
    return found


def test_headings_sort_and_text_filters(browser: Browser, causal: Report, tmp_path: Path) -> None:
    opened(browser, causal, tmp_path)
    heads = causal.data()["heads"]
    entropy = {
        f"batch {one['batch']}, head {one['head']}": one["statistics"]["entropy"]["median"]
        for one in heads
    }
    click = (
        "[...document.querySelectorAll('#list thead button')]"
        ".find(x => x.textContent === 'entropy').click()"
    )
    browser.run(click)
    assert names_in_list(browser) == sorted(entropy, key=lambda name: -entropy[name])
    assert browser.run("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == (
        "descending"
    )
    browser.run(click)
    assert names_in_list(browser) == sorted(entropy, key=lambda name: entropy[name])
    limit = sorted(entropy.values())[2] + 1e-4
    type_into = "at('filter').value = '{}'; at('filter').dispatchEvent(new Event('input'))"
    browser.run(type_into.format(f"entropy<{limit}"))
    assert names_in_list(browser) == sorted(entropy, key=lambda name: entropy[name])[:3]
    assert browser.text("#count") == "3 of 6 heads"
    browser.run(type_into.format("Batch 1 & head"))
    assert {name[:7] for name in names_in_list(browser)} == {"batch 1"}
    browser.run(type_into.format("nothing like it"))
    assert names_in_list(browser) == [] and browser.text("#count") == "0 of 6 heads"
    assert calm(browser)


def test_the_grid_is_shaded_by_what_is_chosen(
    browser: Browser, causal: Report, tmp_path: Path
) -> None:
    opened(browser, causal, tmp_path)
    cells = "[...document.querySelectorAll('#grid button')].map(x => x.getAttribute('aria-label'))"
    assert browser.run(cells)[0].startswith("batch 0, head 0, entropy, median")
    browser.run(
        "at('statistic').value = heads.statistics.findIndex(x => x.name === 'max_weight_median');"
        "at('statistic').dispatchEvent(new Event('change'))"
    )
    values = [one["statistics"]["max_weight"]["median"] for one in causal.data()["heads"]]
    assert browser.run(cells)[0] == f"batch 0, head 0, max weight, median {values[0]:.4f}"
    light = browser.run(
        "[...document.querySelectorAll('#grid button')].map(x => "
        "x.style.backgroundColor.match(/\\d+/g).reduce((a, b) => a + Number(b), 0))"
    )
    assert np.argmax(light) == np.argmax(values)
    assert calm(browser)


def test_the_page_turns_dark_and_light(browser: Browser, causal: Report, tmp_path: Path) -> None:
    opened(browser, causal, tmp_path)
    pixel = (
        "(() => { const pen = new OffscreenCanvas(1, 1).getContext('2d'); pen.drawImage(canvas, "
        "-geometry.left - 5, -geometry.top - 5); return pen.getImageData(0, 0, 1, 1).data[0]; })()"
    )
    behind = "getComputedStyle(document.body).backgroundColor"
    browser.run("canvas.focus()")
    browser.press("ArrowDown")  # off the first cell, which is 1
    shade, light = browser.run(pixel), browser.run(behind)
    browser.run("at('theme').click()")
    assert browser.text("#theme") == "Light" and browser.run(behind) != light
    assert browser.run(pixel) == shade  # a shade means the same number
    browser.run("at('theme').click()")
    assert browser.run(behind) == light and calm(browser)


def test_large_maps_are_gone_into_and_out_of(browser: Browser, tmp_path: Path) -> None:
    asked = problem(queries=2100, keys=2100, mask="causal")
    report = reported(asked, View(rows=None))
    opened(browser, report, tmp_path)
    assert "each cell is the largest of up to 5 × 5" in browser.text("#legend")
    assert read(browser).startswith("queries 0–4 → keys 0–4: ")
    parts = browser.run("[...document.querySelectorAll('#parts button')].map(x => x.textContent)")
    assert len(parts) == 2 and parts[0] == "Closer: queries 0–255 × keys 0–255, every weight"
    browser.run("canvas.focus()")
    browser.press("ArrowDown", "Enter")
    browser.until("inside.length === 1")
    assert read(browser).startswith("query 0 → key 0: 1")
    browser.press("ArrowDown", "ArrowRight", "ArrowRight")
    assert read(browser) == "query 1 → key 2: hidden by the mask"
    browser.press("Escape")
    browser.until("inside.length === 0")
    assert read(browser).startswith("queries 0–4")
    assert browser.run("at('shade').value") == "row"
    assert calm(browser)


def test_hostile_text_does_nothing(browser: Browser, tmp_path: Path) -> None:
    opened(browser, evil_report(), tmp_path, width=900)
    assert browser.run("document.querySelectorAll('script, style, img, b b').length") == 3
    assert browser.run("document.documentElement.scrollWidth") <= 900
    assert browser.run("document.querySelector('#lines .token').textContent").startswith("<scr")
    browser.mouse("mouseMoved", *middle(browser, 3, 2))
    assert read(browser).endswith(": NaN")
    assert "NaN" in browser.text("#legend")
    assert calm(browser)


def test_a_script_that_slipped_in_would_not_run(
    browser: Browser, causal: Report, tmp_path: Path
) -> None:
    draw(causal, "report", str(tmp_path / "page.html"))
    text = (tmp_path / "page.html").read_text()
    bad = "<script>window.ran = 1</script><img src='http://127.0.0.1:9/x' onerror='window.ran = 2'>"
    (tmp_path / "bad.html").write_text(text.replace("<main", f"{bad}<main"))
    browser.open(tmp_path / "bad.html")
    assert browser.run("window.ran === undefined")
    assert len(browser.problems) == 3  # the script, the picture and the handler were refused
    assert browser.refused == ["csp"]  # the picture: asked for, and not let out


def test_masks_numbers_and_figures(browser: Browser, tmp_path: Path) -> None:
    kept = np.tril(np.ones((4, 4)))
    edges, names = range(5), list("abcd")
    errors = np.array([[1e-6, 1e-3], [0.0, np.nan]])
    drawn = [
        Grid("", kept, edges, edges, names, names),
        Shaded("Errors", errors, range(3), range(3), ["0", "1"], ["0", "1"], "error", "head",
               "query", log=True),
        Figure("Entropy", "width d", "nats", [Curve("none", [8, 64, 512], [3, 2, 1])], log_x=True),
    ]  # fmt: skip
    opened(browser, Report("mask", ["4 × 4"], [], dict, pictures=lambda: drawn), tmp_path)
    browser.mouse("mouseMoved", *middle(browser, 0, 0))
    assert read(browser) == "query 0 ‘a’ → key 0 ‘a’: kept"
    browser.mouse("mouseMoved", *middle(browser, 0, 3))
    assert read(browser).endswith(": hidden by the mask")
    browser.run("at('which').value = 1; at('which').dispatchEvent(new Event('change'))")
    browser.until("document.getElementById('map-title').textContent === 'Errors'")
    browser.mouse("mouseMoved", *middle(browser, 0, 1))
    assert read(browser) == "head 0 → query 1: 0.001000"
    browser.mouse("mouseMoved", *middle(browser, 1, 1))
    assert read(browser).endswith(": none")
    assert browser.run("document.querySelectorAll('#figures circle').length") == 3
    assert "512" in browser.text("#figures") or browser.run(
        "[...document.querySelectorAll('#figures text')].some(x => x.textContent === '100')"
    )
    assert calm(browser)


def test_a_report_of_nothing(browser: Browser, tmp_path: Path) -> None:
    opened(browser, Report("compute", [], [], dict), tmp_path)
    assert browser.text("h1") == "Nothing was computed"
    assert browser.run("at('heads').hidden && at('map').hidden") and calm(browser)


def test_everything_can_be_reached_and_is_named(
    browser: Browser, causal: Report, tmp_path: Path
) -> None:
    opened(browser, causal, tmp_path)
    tree = browser.ask("Accessibility.getFullAXTree")["nodes"]
    roles = {node["role"]["value"] for node in tree}
    assert {"main", "heading", "table", "button", "combobox", "searchbox", "status"} <= roles
    for node in tree:
        if node["role"]["value"] in ("button", "combobox", "searchbox", "application"):
            assert node.get("name", {}).get("value"), node
    seen = []
    for _ in range(40):
        browser.press("Tab")
        seen.append(browser.run("document.activeElement.id || document.activeElement.tagName"))
    assert {"theme", "statistic", "filter", "which", "shade", "canvas"} <= set(seen)
    assert calm(browser)


def test_paper_is_light(browser: Browser, causal: Report, tmp_path: Path) -> None:
    opened(browser, causal, tmp_path, dark=True)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    assert browser.run("dark()") is False
    browser.run("dispatchEvent(new Event('afterprint'))")
    assert browser.run("dark()") is True
    browser.ask("Emulation.setEmulatedMedia", media="print")
    assert browser.run("getComputedStyle(at('theme')).display") == "none"
    browser.ask("Emulation.setEmulatedMedia", media="")
    assert calm(browser)
