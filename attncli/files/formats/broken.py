"""What to say to a text that is nearly JSON: the line where reading stopped, and what is wrong."""

from __future__ import annotations

import re

#: A whole string, an unfinished one, or a bracket.
PIECES = re.compile(r'"(?:[^"\\]|\\.)*+"|"|[\[\]{}]')
SEARCHED = 1 << 20  # characters before the place: enough for what is typed by hand
SHOWN = 60  # characters of its line
CLOSING = {"]": "[", "}": "{"}
#: What people write there: a pattern at the place, what holds it to be a mistake of this kind.
HABITS = (
    (r"['‘’“”]", 'text and names stand in plain double quotes: "query"'),
    (r"//|/\*|#", "JSON has no comments"),
    (r"/", "numbers are written out: 0.5, not 1/2"),
    (r"[+-]?\.\d", "write 0.5, not .5"),
    (r"\+", "write 1, not +1"),
    (r"[−–]", "the minus of JSON is -"),
    (r"True|False|None", "write true, false, null"),
    (r"np\.|array|\(", "write plain lists: [[1, 0], [0, 1]]"),
    (r";", "numbers are separated by commas"),
)


def advice(text: str, place: int, found: str) -> str:
    """Return a hint of two lines or three: the line, a mark below it, what is wrong if known.

    ``place`` is the character at which a parser stopped and ``found`` what it said.
    """
    start = text.rfind("\n", 0, place) + 1
    stop = text.find("\n", place)
    line = text[start : stop if stop >= 0 else len(text)].rstrip()
    column = place - start
    cut = max(0, min(column - SHOWN // 2, len(line) - SHOWN))
    shown = "".join(c if c.isprintable() else " " for c in line[cut : cut + SHOWN])
    mark = " " * (column - cut) + "^"
    said = _said(text, place, found)
    return f"{shown}\n{mark}{f' {said}' if said else ''}"


def _said(text: str, place: int, found: str) -> str:
    rest = text[place : place + 8]
    for pattern, meaning in HABITS:
        if re.match(pattern, rest):
            return meaning
    if "string key" in found and re.match(r"\w", rest):
        return 'names stand in double quotes: "query"'
    if not rest or rest[0] in ":}]":
        return _unclosed(text, place, rest[:1])
    if "after document" in found and rest[0] in "[{":
        return "a file holds one value; several stand one a line, each whole (NDJSON)"
    if "expected ','" in found and re.match(r'["\[{\d-]', rest):
        return "a comma is missing before it"
    return ""


def _unclosed(text: str, place: int, closing: str) -> str:
    """Return which bracket or string is still open at a place, if it is why reading stopped."""
    if place > SEARCHED:
        return ""
    opened: list[int] = []
    for piece in PIECES.finditer(text, 0, place):
        mark = piece[0]
        if mark in "[{":
            opened.append(piece.start())
        elif mark in CLOSING and opened:
            opened.pop()
        elif mark == '"':
            return f"the text that begins {_where(text, piece.start())} has no closing quote"
    open_now = [text[start] for start in opened]
    if closing in CLOSING and CLOSING[closing] not in open_now:
        return f"there is one {closing} too many"
    if not opened or open_now[-1] == CLOSING.get(closing, "{" if closing == ":" else ""):
        return ""
    return f"the {text[opened[-1]]} {_where(text, opened[-1])} is not closed"


def _where(text: str, place: int) -> str:
    line = text.count("\n", 0, place) + 1
    column = place - text.rfind("\n", 0, place)
    return f"in line {line}, column {column}," if "\n" in text.strip() else f"in column {column}"
