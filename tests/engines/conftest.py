"""What tests of engines share."""

from __future__ import annotations

import pytest

from attncli.engines import fused
from tests.support.builds import BUILDS


@pytest.fixture(params=BUILDS)
def build(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every build of the compiled engine that runs here, one after the other."""
    monkeypatch.setenv(fused.VARIABLE, request.param)
    name: str = request.param
    return name
