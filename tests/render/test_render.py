"""The one place that prints: widths, encodings, errors, warnings."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

from attncli.errors import FileError, InputError
from attncli.render import show, show_error, show_warnings
from tests.support.reports import printed
from tests.support.screen import matrix, report_of


def test_width_is_100_without_a_terminal_and_follows_columns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    report = report_of(matrix(np.full((1, 90), 1 / 3)))

    def longest() -> int:
        return max(map(len, printed(report, width=None).splitlines()))

    assert 90 < longest() <= 100
    monkeypatch.setenv("COLUMNS", "60")
    assert 50 < longest() <= 60
    monkeypatch.setenv("COLUMNS", "nonsense")
    assert 90 < longest() <= 100


def test_an_encoding_that_has_no_such_character() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    show(report_of(headline=["width 2 × 3"]), stream=stream)
    assert raw.getvalue() == b"width 2 x 3\n"


def test_standard_output_may_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(FileError, match="standard output is closed"):
        show(report_of())


def test_an_error_and_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(InputError("bad\x1b thing", "do this\n  or that"))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: bad\\x1b thing\n       do this\n         or that\n"
    show_error(InputError("no hint"))
    assert capsys.readouterr().err == "error: no hint\n"


def test_warnings_are_one_line_each_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    show_warnings(["one", "two\nlines"])
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "warning: one\nwarning: two\\nlines\n")
