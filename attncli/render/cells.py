"""Text for the cells of a table: numbers in one format a column, labels that are safe to print."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from attncli.reports.blocks import Column, Table

ELLIPSIS = "…"
DECADES = 6  # a column that spans more is written with exponents
_NARROW = frozenset("…–—−·×√∞≥≤‖∅␣▀▄█▓▒░■ᵀ₀₁₂₃")
LRM = "\u200e"  # left to right, of no width
RIGHT_TO_LEFT = "\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\U00010800-\U00010fff\U0001e800-\U0001efff"


def visible(text: str) -> str:
    """Return text as ``legible``, for a terminal.

    What is read from right to left stands between marks, so that a terminal which turns it leaves
    what follows in its place.
    """
    shown = legible(text)
    if not shown.isascii():
        import re

        if re.search(f"[{RIGHT_TO_LEFT}]", shown):
            return LRM + shown + LRM
    return shown


def legible(text: str) -> str:
    r"""Return text in one line with nothing that is acted on: '\n', '\x1b', '␣word'.

    Blanks at the ends, which nobody would see, become '␣'.
    """
    if text.isascii() and text.isprintable() and text == text.strip():
        return text
    shown = escaped(text)
    bare = shown.strip(" ")
    if not bare:
        return "␣" * len(shown)
    before = len(shown) - len(shown.lstrip(" "))
    return "␣" * before + bare + "␣" * (len(shown) - before - len(bare))


def escaped(text: str, but: str = "") -> str:
    r"""Return text whose control characters, ``but`` those, are spelled out: '\x1b'."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in but else c.encode("unicode_escape").decode() for c in text
    )


PLAINER = {
    "…": "~", "–": "-", "—": "-", "−": "-", "·": ".", "×": "x", "√": "sqrt", "∞": "inf",
    "θ": "theta", "σ": "s", "Σ": "sum", "≥": ">=", "≤": "<=", "≠": "!=", "±": "+-", "→": "->",
    "‖": "||", "∅": "''", "␣": "_", "°": " deg", "ᵀ": "T", "₀": "0", "₁": "1", "₂": "2", "₃": "3",
    "■": "#", "█": "#", "▓": "*", "▒": "+", "░": ":", "▀": "^", "▄": "_", LRM: "",
}  # fmt: skip


def in_encoding(line: str, encoding: str) -> str:
    """Return the line in signs that an encoding has; blanks give way to signs that grow."""
    import re

    def plain(found: re.Match[str]) -> str:
        blanks, word = found.groups()
        known = "".join(c if _has(encoding, c) else PLAINER.get(c, "?") for c in word)
        room = max(len(blanks) - max(len(known) - len(word), 0), min(len(blanks), 1))
        return blanks[:room] + known

    if _has(encoding, line):
        return line
    return re.sub(r"( *)([^ ]*[^\x00-\x7f][^ ]*)", plain, line)


def _has(encoding: str, text: str) -> bool:
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def wide(text: str) -> int:
    """Return how many cells of the terminal the text takes."""
    if text.isascii() or all(c < "\u0300" or c in _NARROW for c in text):
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def pad(text: str, width: int, left: bool = False) -> str:
    """Return text filled to ``width`` cells: blanks before it, or after it with ``left``."""
    blanks = " " * (width - wide(text))
    return text + blanks if left else blanks + text


def cut(text: str, width: int) -> str:
    """Return text of at most ``width`` cells, with an ellipsis in its middle where it is longer."""
    if wide(text) <= width:
        return text
    if width <= 1:
        return ELLIPSIS[:width]
    head = _prefix(text, width // 2)
    tail = _prefix(text[::-1], width - 1 - wide(head))[::-1]
    return head + ELLIPSIS + tail


def cut_apart(texts: Sequence[str], width: int, most: int) -> list[str]:
    """Return texts of at most ``width`` cells, or up to ``most`` where two would become one."""
    for room in range(width, max(width, most) + 1, 4):
        found = [cut(text, room) for text in texts]
        if len({*found}) == len({*texts}):
            break
    return found


def _prefix(text: str, width: int) -> str:
    end = 0
    while end < len(text) and wide(text[: end + 1]) <= width:
        end += 1
    return text[:end]


def wrap(pieces: Sequence[str], separator: str, width: int) -> list[str]:
    """Return the pieces joined into lines, broken between pieces only."""
    lines: list[str] = []
    for piece in pieces:
        if lines and wide(lines[-1] + separator + piece) <= width:
            lines[-1] += separator + piece
        else:
            lines.append(piece)
    return lines


def flow(text: str, width: int) -> list[str]:
    """Return text as lines broken at blanks."""
    return wrap(text.split(" "), " ", width)


def numbers(values: Sequence[float], *, spare: bool = False, digits: int = 4) -> list[str]:
    """Return numbers in one format: fixed point with 3 to 4 significant digits for the largest.

    The smallest shows a digit too, up to six decades below; further apart, all have exponents.
    ``spare`` lets small numbers become 0.000, as in a matrix where only the large ones tell.
    """
    sizes = [abs(v) for v in values if v and math.isfinite(v)]
    decimals = digits - 1
    if sizes:
        top = math.floor(math.log10(max(sizes)))
        low = math.floor(math.log10(min(sizes)))
        decimals = max(digits - 1 - top, 0) if top >= 0 else digits - 2 - top
        if not spare:
            decimals = max(decimals, -low)
        apart = max(sizes) / min(sizes) > 10**DECADES and not spare
        if apart or top > DECADES or decimals > DECADES + digits:
            return [_exponent(v) for v in values]
    return [_fixed(v, decimals) for v in values]


def _fixed(value: float, decimals: int) -> str:
    if not math.isfinite(value):
        return _odd(value)
    text = f"{value:.{decimals}f}"
    return text.lstrip("-") if float(text) == 0 else text


def _exponent(value: float) -> str:
    if not math.isfinite(value):
        return _odd(value)
    return f"{value:.2e}" if value else "0"


def _odd(value: float) -> str:
    return "NaN" if math.isnan(value) else "∞" if value > 0 else "−∞"


def _percent(share: float) -> str:
    if 0 < share < 0.005:
        return "<1 %"
    if 0.995 < share < 1:
        return ">99 %"
    return f"{100 * share:.0f} %" if math.isfinite(share) else _odd(share)


def texts(column: Column, values: Sequence[Any]) -> list[str]:
    """Return the cells of one column; None is an empty cell, '–' in a column of numbers."""
    present = [v for v in values if v is not None]
    if column.kind in ("text", "verdict"):
        made = [visible(str(v)) for v in present]
    elif column.kind == "percent":
        made = [_percent(v) for v in present]
    elif column.kind == "count":
        made = [f"{v:,}" for v in present]
    elif column.kind == "error":
        made = [f"{v:.1e}" if math.isfinite(v) else _odd(v) for v in present]
    elif column.kind == "range":
        ends = numbers([end for pair in present for end in pair], digits=3)
        made = [f"{low}–{high}" for low, high in zip(ends[::2], ends[1::2], strict=True)]
    else:
        made = numbers(present, spare=column.kind == "weight")
    cells = iter(made)
    empty = "" if column.kind in ("text", "verdict", "weight") else "–"
    return [empty if v is None else next(cells) for v in values]


def columns_of(table: Table) -> list[list[str]]:
    """Return the cells of a table, column by column.

    The numbers of a matrix share one format, unless its columns are of very different size. Cells
    of weights may be empty.
    """
    columns = [[row[c] for row in table.rows] for c in range(len(table.columns))]
    if not table.matrix:
        return [texts(c, values) for c, values in zip(table.columns, columns, strict=True)]
    if not all(c.kind == "weight" for c in table.columns):
        tops = [max((abs(v) for v in some if math.isfinite(v)), default=0) for some in columns]
        tops = [top for top in tops if top]
        if tops and max(tops) / min(tops) >= 1000:
            return [numbers(values, spare=True) for values in columns]
    height = len(table.rows)
    made = iter(numbers([v for some in columns for v in some if v is not None], spare=True))
    cells = ["" if v is None else next(made) for some in columns for v in some]
    return [cells[c * height : (c + 1) * height] for c in range(len(columns))]
