"""The engines and devices that conformance is shown on, and why one of them cannot run here."""

from __future__ import annotations

import functools

import numpy as np
import pytest

import attncli
from attncli import engines
from attncli.errors import Unavailable

ENGINES = {
    "reference": {"backend": "reference"},
    "numpy": {"backend": "numpy"},
    "fused": {"backend": "fused"},
    "auto": {"backend": "auto"},  # fused, where it is there, for all that it can compute
    "torch": {"backend": "torch", "device": "cpu"},
    "torch on CUDA": {"backend": "torch", "device": "cuda"},
}
PARTIAL = tuple(name for name, row in engines.ENGINES.items() if row.partial)
#: Those that take every problem; the others compute in float32 and make no matrices.
WHOLE = tuple(name for name in ENGINES if name not in PARTIAL)


def takes(engine: str, dtype: str) -> bool:
    """Whether it computes inputs of that dtype."""
    return engine in WHOLE or dtype != "float64"


@functools.cache
def missing(engine: str) -> str | None:
    """Why it cannot run here, or None."""
    try:
        attncli.attend(np.ones((1, 1), np.float32), **ENGINES[engine])
    except Unavailable as why:
        return str(why)
    return None


def options_of(engine: str) -> dict[str, str]:
    """The arguments of ``attncli.attend``; skips the test, with the reason, where it cannot run."""
    reason = missing(engine)
    if reason:
        pytest.skip(f"{engine}: {reason}")
    return ENGINES[engine]
