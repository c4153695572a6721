"""The scale of maps: colours in an order that every eye sees, numbers at their places."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.render.paint import FEW_RAMP, Paint
from attncli.render.shades import ANCHORS, DECADES, Scale, rgb, text_on

CONES = np.array(  # linear RGB to what long, middle and short cones see (Smith and Pokorny)
    [[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]]
)
#: What is left of these to somebody without long or without middle cones (Viénot et al. 1999).
BLIND = {
    "protanopia": [[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]],
    "deuteranopia": [[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]],
}


def linear(colors: object) -> np.ndarray:
    c = np.asarray(colors, float) / 255
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def luminance(light: np.ndarray) -> np.ndarray:
    return np.asarray(light @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("who", [None, *BLIND])
def test_lighter_is_more_for_every_eye(who: str | None) -> None:
    light = linear([rgb(k / 50) for k in range(51)])
    if who:
        light = light @ CONES.T @ np.array(BLIND[who]).T @ np.linalg.inv(CONES).T
    assert (np.diff(luminance(np.clip(light, 0, 1))) > 0).all()


def test_anchors_are_viridis() -> None:
    matplotlib = pytest.importorskip("matplotlib")
    theirs = matplotlib.colormaps["viridis"]
    for k in range(101):
        assert np.abs(np.array(rgb(k / 100)) - 255 * np.array(theirs(k / 100)[:3])).max() < 6
    assert [rgb(k / 16) for k in range(17)] == list(ANCHORS)


def test_numbers_on_shades_can_be_read() -> None:
    for k in range(51):
        one, other = (float(luminance(linear(c))) for c in (rgb(k / 50), text_on(rgb(k / 50))))
        assert (max(one, other) + 0.05) / (min(one, other) + 0.05) >= 4.5  # WCAG AA


def test_sixteen_colours_grow_lighter() -> None:
    vga = {0: (0, 0, 0), 4: (0, 0, 170), 6: (0, 170, 170), 10: (85, 255, 85), 11: (255, 255, 85)}
    shades = [float(luminance(linear(vga[back]))) for back, _ in FEW_RAMP]
    assert shades == sorted(set(shades))
    codes = [Paint(16).cell("x", (k + 0.5) / 5) for k in range(5)]
    assert [code.split("m")[0] for code in codes] == [
        "\x1b[37;40", "\x1b[97;44", "\x1b[30;46", "\x1b[30;102", "\x1b[30;103",
    ]  # fmt: skip


def test_true_colour() -> None:
    true = Paint(1 << 24)
    assert true.cell("  ", 1) == "\x1b[48;2;253;231;37m  \x1b[0m"
    assert true.cell("x", 0) == "\x1b[38;2;255;255;255;48;2;68;1;84mx\x1b[0m"
    assert true.halves(0, None) == "\x1b[38;2;68;1;84m▀\x1b[0m"
    assert true.halves(None, 0) == "\x1b[38;2;68;1;84m▄\x1b[0m"


def test_places_of_each_scale() -> None:
    values = np.array([[1.0, 0.25, 0.0], [0.04, 0.01, np.nan]])
    root = Scale.of("matrix", [values])
    assert root.places(values)[0].tolist() == [1, 0.5, 0]
    assert root.places(values)[1, :2].tolist() == pytest.approx([0.2, 0.1])
    assert np.isnan(root.places(values)[1, 2])
    by_row = Scale.of("row", [values]).places(values)
    assert by_row[1, :2].tolist() == pytest.approx([1, 0.5])
    log = Scale.of("log", [values])
    assert (log.low, log.high) == (0.001, 1)
    assert log.places(np.array([[1, 0.1, 0.01, 0.001, 0.0]]))[0].tolist() == pytest.approx(
        [1, 2 / 3, 1 / 3, 0, 0]
    )
    line = Scale.of("linear", [np.array([[-4.0, 0.0, -1.0]])])
    assert line.places(np.array([[-4.0, -1.0, 0.0]]))[0].tolist() == [0, 0.75, 1]


@pytest.mark.parametrize("kind", ["matrix", "row", "log", "linear"])
def test_ticks_stand_where_their_numbers_are(kind: str) -> None:
    values = np.array([[0.7, 0.03, 2e-9], [0.2, 0.1, 0.1]])
    scale = Scale.of(kind, [values])
    assert scale.ticks[-1][0] == 1
    for place, number in scale.ticks:
        assert scale.at(place) == pytest.approx(number)
    if kind != "row":
        found = scale.places(np.array([[number for _, number in scale.ticks]]))[0]
        assert found.tolist() == pytest.approx([place for place, _ in scale.ticks], abs=1e-9)
        assert scale.ticks[-1][1] == pytest.approx(0.7)
    assert kind != "log" or scale.low >= 0.7 / 10**DECADES


@pytest.mark.parametrize("kind", ["matrix", "row", "log", "linear"])
@pytest.mark.parametrize("value", [0.0, np.nan, 1.0, 5e-324])
def test_a_matrix_of_one_number_has_a_scale(kind: str, value: float) -> None:
    values = np.full((2, 2), value)
    scale = Scale.of(kind, [values])
    assert scale.low < scale.high and len(scale.ticks) >= 2
    places = scale.places(values)
    assert np.isnan(places).all() if np.isnan(value) else ((places >= 0) & (places <= 1)).all()
