"""The engines and devices that conformance is shown on, and why one of them cannot run here."""

from __future__ import annotations

import functools

import pytest

import attncli
from attncli.errors import Unavailable

ENGINES = {
    "reference": {"backend": "reference"},
    "numpy": {"backend": "numpy"},
    "auto": {"backend": "auto"},  # fused, where it is there, for all that it can compute
    "torch": {"backend": "torch", "device": "cpu"},
    "torch on CUDA": {"backend": "torch", "device": "cuda"},
}


@functools.cache
def missing(engine: str) -> str | None:
    """Why it cannot run here, or None."""
    try:
        attncli.attend([[1.0]], **ENGINES[engine])
    except Unavailable as why:
        return str(why)
    return None


def options_of(engine: str) -> dict[str, str]:
    """The arguments of ``attncli.attend``; skips the test, with the reason, where it cannot run."""
    reason = missing(engine)
    if reason:
        pytest.skip(f"{engine}: {reason}")
    return ENGINES[engine]
