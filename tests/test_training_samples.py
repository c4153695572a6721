"""What samples/training says of its runs is so."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from tests.support.program import ROOT

torch = pytest.importorskip("torch")


@pytest.fixture
def too_hot(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "samples/training"))
    import too_hot

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as quick, and it leaves others theirs
    yield too_hot
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_logits_show_a_rate_that_is_too_high_before_the_loss_does(too_hot: ModuleType) -> None:
    good, hot = (too_hot.train(rate, steps=75) for rate in (too_hot.GOOD, too_hot.HOT))
    alarm = hot.alarm()
    assert alarm is not None and alarm < 30
    assert good.alarm() is None
    same = [abs(a - b) < 0.1 * a for a, b in zip(good.losses, hot.losses, strict=True)]
    assert all(same[: alarm + 5])  # nothing can be seen in the loss
    assert hot.losses[-1] > 4 * good.losses[-1]
