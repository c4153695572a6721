"""Text in pictures: what is drawn of a label, and how much room it takes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

from attncli.render.cells import cut, cut_apart, legible

FAMILY = "DejaVu Sans"  # comes with matplotlib
#: Families for the signs that it lacks, where they are installed.
OTHERS = (
    "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans Devanagari", "Noto Sans Thai",
    "WenQuanYi Zen Hei", "Noto Emoji", "Symbola", "Unifont", "Arial Unicode MS", "Hiragino Sans",
    "Microsoft YaHei", "Malgun Gothic",
)  # fmt: skip
LONGEST = 16  # signs of a label
MOST = 10  # digits of a number
POINTS = 72  # an inch
SMALL, NORMAL, TITLE = 6.0, 6.5, 7.5  # points


def families() -> list[str]:
    """Return the families to draw with, in the order in which signs are looked for."""
    from matplotlib.font_manager import fontManager

    there = {font.name for font in fontManager.ttflist}
    return [FAMILY, *(name for name in OTHERS if name in there)]


class Letters:
    """What is drawn of a label. ``written``: the reader of the file has fonts of its own."""

    def __init__(self, *, written: bool = False) -> None:
        self.written = written

    def shown(self, text: str, most: int = LONGEST) -> str:
        """Return text in one line, cut in its middle, without signs that cannot be drawn."""
        return cut(self._whole(text), most)

    def labels(self, texts: Sequence[str]) -> list[str]:
        """Return what is shown of some labels: longer where two of them would be one."""
        return cut_apart([self._whole(text) for text in texts], LONGEST, 2 * LONGEST)

    def _whole(self, text: str) -> str:
        text = legible(text)
        if not self.written and not text.isascii():
            text = "".join(map(self._drawn, text))
        return text

    def _drawn(self, sign: str) -> str:
        if any(ord(sign) in known for known in self._known):
            return sign
        return sign.encode("unicode_escape").decode()

    @cached_property
    def _known(self) -> list[Any]:
        from matplotlib.font_manager import FontProperties, findfont, get_font

        return [get_font(findfont(FontProperties(family=[one]))).get_charmap()
                for one in families()]  # fmt: skip

    def width(self, text: str, points: float = SMALL) -> float:
        """Return how wide text is drawn, in inches."""
        return _measured(text) * points / 100 / POINTS


@lru_cache(4096)
def _measured(text: str) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    found = TextToPath().get_text_width_height_descent(text, FontProperties(size=100), ismath=False)
    return float(found[0])


def plain(value: float, digits: int = 3) -> str:
    """Return a number as it stands at a tick: short, with a true minus."""
    text = f"{value:.{digits}g}"
    for before, after in (("e-0", "e-"), ("e+0", "e"), ("e+", "e"), ("-", "−")):
        text = text.replace(before, after)
    return text


def plains(values: Sequence[float]) -> list[str]:
    """Return the numbers at the ticks of one scale, with digits enough for the steps of it."""
    step = min((b - a for a, b in pairwise(sorted(values))), default=0.0)
    digits = next(
        (
            n
            for n in range(3, MOST)
            if all(abs(float(f"{x:.{n}g}") - x) <= step / 20 for x in values)
        ),
        MOST,
    )
    return [plain(value, digits) for value in values]


def power(exponent: int) -> str:
    """Return 10⁻³."""
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
