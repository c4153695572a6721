"""The legend of a map: its shades with ticks, the name of the scale, what other marks mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attncli.render.cells import numbers, wide, wrap
from attncli.render.paint import PLAIN, Paint
from attncli.render.shades import Scale

HIDDEN, LOST = "·", "?"
BAR = 40  # cells


def legend_lines(
    scale: Scale, paint: Paint, width: int, *, hidden: bool = False, lost: bool = False
) -> Iterator[str]:
    """Return what shades mean; ``hidden``, ``lost``: there are masked cells, NaN among them."""
    said = [scale.name] + ["100 %: a row's largest"] * (scale.kind == "row")
    marks = [f"{HIDDEN} hidden by the mask"] * hidden + [f"{LOST} not a number"] * lost
    if not paint.colors:
        steps = len(PLAIN)
        starts = _written(scale, [scale.at(k / steps) for k in range(1, steps)])
        pieces = [f"{PLAIN[k + 1]} from {start}" for k, start in enumerate(starts)]
        if scale.kind == "linear" and scale.low:
            pieces.insert(0, f"blank from {numbers([scale.low])[0]}")
        pieces.append(f"largest {_largest(scale)}")
        yield from wrap([*pieces, *marks, *said], "   ", width)
        return
    ticks = scale.ticks
    texts = _written(scale, [number for _, number in ticks])
    room = min(BAR, width - wide(texts[-1]))
    line = ""
    for (place, _), text in zip(ticks, texts, strict=True):
        at = round(place * room)
        last = place == 1
        if last:  # this one is never left out
            line = line if wide(line) < at else line[: max(at - 1, 0)].rpartition("  ")[0]
        if not line or wide(line) < at:
            line += " " * (at - wide(line)) + text
    bar = "".join(paint.cell(" ", (k + 0.5) / room) for k in range(room))
    beside, pieces = "", [*said, *marks]
    while pieces and room + wide(beside + pieces[0]) + 3 <= width:
        beside += f"   {pieces.pop(0)}"
    yield bar + beside
    yield line
    yield from wrap(pieces, "   ", width)


def _largest(scale: Scale) -> str:
    return f"{scale.high:.3g}" if scale.kind == "log" else numbers([scale.high])[0]


def _written(scale: Scale, values: Sequence[float]) -> list[str]:
    if scale.kind == "row":
        return [f"{100 * value:.0f} %" for value in values]
    if scale.kind == "log":
        return [f"{value:.2g}".replace("e-0", "e-") for value in values]
    texts = numbers(values, spare=True)
    return ["0" if value == 0 else text for value, text in zip(values, texts, strict=True)]
