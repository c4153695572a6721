"""The engines. Each is a module with the same two functions, named in one table by import string.

    missing() -> str | None                       why it cannot run here, or None
    attend(problem, want, *, threads, progress)   -> Attended
    backward(problem, grad_output, attended, *, want, threads, progress)   -> Gradients

Those of ``ON_DEVICES`` also take ``device``. An engine knows problems, masks and rows; not files,
statistics or other engines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np

from attncli.attention.problem import STAGES
from attncli.attention.rows import Rows
from attncli.errors import InputError, Unavailable

Array = np.ndarray[Any, np.dtype[Any]]

BACKENDS = {
    "reference": "attncli.engines.reference",
    "numpy": "attncli.engines.numpy.forward",
    "torch": "attncli.engines.torch.forward",
}
#: Where ``backward`` lives: a module of its own for an engine that is large without it.
BACKWARD = {
    "reference": "attncli.engines.reference",
    "numpy": "attncli.engines.numpy.backward",
    "torch": "attncli.engines.torch.backward",
}
ON_DEVICES = ("torch",)  # the others know the CPU alone
DEVICE = r"auto|cpu|cuda(?::(\d{1,4}))?"
GRADIENTS = ("gradients", "grad_bias", "gradient_norms")  # the last two imply the first
WANTS = ("output", "lse", "row_statistics", *STAGES, *GRADIENTS)


@dataclass(frozen=True)
class Attended:
    """What an engine computed, canonical and in the problem's result dtype unless said otherwise.

    output ``(B, H, Lq, Dv)``; lse ``(B, H, Lq)`` in the arithmetic's dtype, sink included; rows in
    float64, sink not included; stages ``(B, H, Lq, Lk)`` by name, those wanted. Where lse was not
    wanted, a kernel that does not give it leaves NaN in rows that see a key. ``seconds``: the
    attention alone, without copies to and from a device; None: all that the engine did.
    """

    output: Array
    lse: Array
    rows: Rows | None = None
    stages: Mapping[str, Array] = field(default_factory=dict)
    kernel: str = ""
    threads: int = 1
    device: str = "cpu"
    seconds: float | None = None


def load(name: str, device: str = "auto") -> ModuleType:
    """Return the engine of that name; InputError when unknown, Unavailable when it cannot run.

    Whether a device is there is left to the engines that know devices.
    """
    if name not in BACKENDS:
        raise InputError(f"unknown backend '{name}'", f"it must be one of {', '.join(BACKENDS)}")
    if not re.fullmatch(DEVICE, device):
        raise InputError(f"unknown device '{device}'", "it must be auto, cpu, cuda or cuda:N")
    if name not in ON_DEVICES and device not in ("auto", "cpu"):
        raise Unavailable(
            f"the backend '{name}' runs on the CPU, not on '{device}'",
            f"add --backend {ON_DEVICES[0]}, or use --device cpu",
        )
    engine = import_module(BACKENDS[name])
    reason = engine.missing()
    if reason:
        raise Unavailable(f"the backend '{name}' cannot run here: {reason}")
    return engine


def load_backward(name: str) -> ModuleType:
    """Return the module with the ``backward`` of an engine that ``load`` has found able to run."""
    return import_module(BACKWARD[name])
