"""What is said to a text that is nearly JSON: the line, the place, the likely mistake."""

from __future__ import annotations

import pytest

from attncli.errors import FileError
from attncli.files.formats import json

MISTAKES = {
    "a row that is not closed": (
        '{\n "query": [\n  [1, 0],\n  [0, 1,\n  [1, 1]\n ]\n}',
        "}\n^ the [ in line 2, column 11, is not closed",
    ),
    "the end is missing": (
        '{"query": [[1, 0], [0, 1]',
        '{"query": [[1, 0], [0, 1]\n                         ^ the [ in column 11 is not closed',
    ),
    "a name within a list": ('{"q": [[1], "k": [[2]]}', "^ the [ in column 7 is not closed"),
    "one bracket too many": ('{"q": [[1, 0]]]}', "^ there is one ] too many"),
    "one brace too many": ('{"q": [[1, 0]]}}', "^ there is one } too many"),
    "a brace for a bracket": ('{"q": [[1, 0]}', "^ the [ in column 7 is not closed"),
    "an open text": ('{"q": [[1]],\n "tokens": ["a', "line 2, column 13, has no closing quote"),
    "no comma": ('{"q": [[1]] "k": [[1]]}', "^ a comma is missing before it"),
    "no comma between numbers": ('{"q": [[1 2]]}', "^ a comma is missing before it"),
    "single quotes": ("{'q': [[1]]}", '^ text and names stand in plain double quotes: "query"'),
    "a bare name": ("{query: [[1]]}", '^ names stand in double quotes: "query"'),
    "a comment": ('{"q": [[1]]} // mine', "^ JSON has no comments"),
    "a fraction": ('{"q": [[1/2]]}', "^ numbers are written out: 0.5, not 1/2"),
    "no digit before the point": ('{"q": [[.5]]}', "^ write 0.5, not .5"),
    "Python's truth": ('{"q": [[1]], "causal": True}', "^ write true, false, null"),
    "two values": ('{\n"q": [[1]]}\n{"q": [[2]]}', "one a line"),
    "a bracket within a text": ('{"tokens": ["[", "{"], "q": [[1]', "[ in column 29 is not"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_the_hint_shows_the_place_and_the_mistake(name: str) -> None:
    text, hint = MISTAKES[name]
    with pytest.raises(FileError, match="no valid JSON") as caught:
        json.parse(text.encode(), "x.json")
    assert hint in (caught.value.hint or "")


def test_a_long_line_is_cut_around_the_place_and_shows_no_control_character() -> None:
    text = '{"q": [[' + "1, " * 500 + "\x1b[31m, " + "1, " * 500 + "]]}"
    with pytest.raises(FileError) as caught:
        json.parse(text.encode(), "x.json")
    line, mark = (caught.value.hint or "").splitlines()
    assert len(line) <= 60 and "\x1b" not in line
    assert line[mark.index("^") :].startswith(" [31m")


def test_a_mark_stands_below_the_character_that_was_refused() -> None:
    with pytest.raises(FileError, match="line 2 column 9") as caught:
        json.parse(b'{"q": [1],\n "k": [1;2]}', "x.json")
    line, mark = (caught.value.hint or "").splitlines()
    assert line[mark.index("^")] == ";"
