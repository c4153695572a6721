"""The bar of long work comes late, grows, and goes away."""

from __future__ import annotations

import io
import time

import pytest

from attncli.render import progress
from tests.support.screen import Terminal

GONE = "\r\x1b[1A\x1b[2K"  # up to the bar's line, which is erased


def test_progress_is_silent_without_a_terminal() -> None:
    stream = io.StringIO()
    with progress(stream=stream, delay=0) as tell:
        tell(0.5)
    assert stream.getvalue() == ""


def test_progress_is_silent_while_work_is_short() -> None:
    stream = Terminal()
    with progress(stream=stream, delay=60) as tell:
        for n in range(100):
            tell(n / 100)
    assert stream.getvalue() == ""


def test_progress_draws_a_bar_and_takes_it_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress("attention", stream=stream, delay=0) as tell:
        tell(0.25)
        time.sleep(0.15)
        tell(2.0)
    text = stream.getvalue()
    assert "attention" in text
    assert " 25 %" in text
    assert "100 %" in text
    assert text.endswith(GONE)
    tell(0.5)  # a thread that comes late draws nothing
    assert stream.getvalue() == text
    assert "\x1b[?25l" not in text  # the cursor stays, whatever becomes of the process


def test_progress_goes_away_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()

    def work() -> None:
        with progress(stream=stream, delay=0) as tell:
            tell(0.5)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert stream.getvalue().endswith(GONE)


def test_progress_is_silent_on_a_terminal_that_cannot_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with progress(stream=stream, delay=0) as tell:
        tell(0.5)
    assert stream.getvalue() == ""
