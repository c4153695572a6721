"""The engines. Each is a module with the same two functions, named in one table by import string.

    missing() -> str | None                       why it cannot run here, or None
    attend(problem, want, *, threads, progress)   -> Attended

An engine knows problems, masks and rows; not files, statistics or other engines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from attncli.errors import InputError, Unavailable
from attncli.rows import Rows

Array = np.ndarray[Any, np.dtype[Any]]
Progress = Callable[[float], None]

BACKENDS = {
    "reference": "attncli.backends.reference",
    "numpy": "attncli.backends.numpy_tiles",
}
STAGES = ("scores", "softcapped", "masked", "weights")
WANTS = ("output", "lse", "row_statistics", *STAGES)


@dataclass(frozen=True)
class Attended:
    """What an engine computed, canonical and in the problem's result dtype unless said otherwise.

    output ``(B, H, Lq, Dv)``; lse ``(B, H, Lq)`` in the arithmetic's dtype, sink included; rows in
    float64, sink not included; stages ``(B, H, Lq, Lk)`` by name, those wanted.
    """

    output: Array
    lse: Array
    rows: Rows | None = None
    stages: Mapping[str, Array] = field(default_factory=dict)
    kernel: str = ""
    threads: int = 1
    device: str = "cpu"


def load(name: str) -> ModuleType:
    """Return the engine of that name; InputError when unknown, Unavailable when it cannot run."""
    if name not in BACKENDS:
        raise InputError(f"unknown backend '{name}'", f"it must be one of {', '.join(BACKENDS)}")
    engine = import_module(BACKENDS[name])
    reason = engine.missing()
    if reason:
        raise Unavailable(f"the backend '{name}' cannot run here: {reason}")
    return engine
