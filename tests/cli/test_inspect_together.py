"""Lines that are examined together: each answer is what it is alone."""

from __future__ import annotations

from typing import Any

import pytest

from attncli.studies import alike, together
from tests.support.alike import KINDS, answers, tensors
from tests.support.program import Door


@pytest.mark.parametrize(
    "options",
    [
        ("--include", "row_statistics"),
        ("--what-if", "softcap=5"),
        ("--causal", "--scale", "none"),
        ("--backend", "reference", "--seed", "3"),
        ("--sink", "1", "--kv-lengths", "3"),
        ("--filter", "entropy>0.5", "--sort", "entropy"),
        ("--fail-on", "watch"),
        ("--tokens", "a b a d"),
        ("--query-start", "1"),
        ("--head", "1"),
        ("--head", "7"),
    ],
)
def test_options_of_all_lines(
    door: Door, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    lines = [tensors((2, 4, 3), (2, 4, 3), (2, 4, 3)) for _ in range(3)]
    found = answers(door, "inspect", lines, *options)
    assert [one["line"] for one in found[1]] == [1, 2, 3]
    monkeypatch.setattr(together, "CELLS", 0)
    assert found == answers(door, "inspect", lines, *options)


@pytest.mark.parametrize(("queries", "keys"), [(100, 128), (128, 40), (140, 30), (20, 300)])
def test_longer_lines(door: Door, monkeypatch: pytest.MonkeyPatch, queries: int, keys: int) -> None:
    lines = [tensors((queries, 8), (keys, 8), (keys, 8)) for _ in range(3)]
    found = answers(door, "inspect", lines, "--threads", "2")
    monkeypatch.setattr(together, "CELLS", 0)
    assert found == answers(door, "inspect", lines, "--threads", "2")


def test_what_is_alike_is_examined_at_once(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    examine = alike.examine

    def counted(whole: Any, **how: Any) -> Any:
        sizes.append(whole.batch)
        return examine(whole, **how)

    monkeypatch.setattr(alike, "examine", counted)
    code, *_ = answers(door, "inspect", [*KINDS["plain"], *KINDS["causal"], *KINDS["plain"]])
    assert (code, sizes) == (0, [10, 3])
