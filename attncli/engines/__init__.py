"""The engines: one row of ``ENGINES`` each, which is all that the rest of the program knows.

    missing() -> str | None                                  why it cannot run here, or None
    attend(problem, want, how)                               -> Attended
    backward(problem, grad_output, attended, want, how)      -> Gradients

A new engine is a module with these functions and a row. It knows problems, masks and rows; not
files, statistics or other engines. Nothing here loads NumPy: the command line reads the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from attncli.errors import InputError, Unavailable

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np

    from attncli.attention.rows import Rows
    from attncli.resources import Progress

    Array = np.ndarray[Any, np.dtype[Any]]


class EngineRow(NamedTuple):
    """What there is to know of an engine before it runs.

    ``home``, ``forward`` and ``backward`` are the modules, below this one, of ``missing``,
    ``attend`` and ``backward``: one or several. Only ``home`` must import without what the engine
    needs. ``backward`` None: it has no gradients. ``gpu``: it knows other devices than the CPU.
    ``dense``: it makes whole matrices. ``partial``: there are problems that it refuses, and
    ``home`` has ``unfit`` and ``unfit_backward``, which say why. ``about`` follows its name in
    ``--help``.
    """

    home: str
    forward: str
    backward: str | None
    gpu: bool = False
    dense: bool = False
    partial: bool = False
    about: str = ""


ENGINES = {
    "reference": EngineRow(
        "reference", "reference", "reference", dense=True, about="is plain float64"
    ),
    "numpy": EngineRow("numpy", "numpy.forward", "numpy.backward"),
    "fused": EngineRow(
        "fused", "fused.forward", "fused.backward", partial=True, about="is compiled, float32"
    ),
    "torch": EngineRow("torch", "torch.forward", "torch.backward", gpu=True, about="needs PyTorch"),
}
DEFAULT = "numpy"
DEVICE = r"auto|cpu|cuda(?::(\d{1,4}))?"


@dataclass(frozen=True)
class How:
    """How to run: threads at most (None: as many as there are), where, and whom to tell.

    ``device`` is auto, cpu, cuda or cuda:N; an engine without ``gpu`` is asked for the first two.
    """

    threads: int | None = None
    device: str = "auto"
    progress: Progress | None = None


ANYHOW = How()


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


def missing(name: str) -> str | None:
    """Return why the engine of that name cannot run here, or None."""
    reason: str | None = _module(ENGINES[name].home).missing()
    return reason


def load(name: str, device: str = "auto") -> ModuleType:
    """Return the module with the ``attend`` of an engine.

    Raises InputError for an unknown name or device and Unavailable when the engine cannot run.
    Whether a device is there is left to the engines that know devices.
    """
    if name not in ENGINES:
        raise InputError(f"unknown backend '{name}'", f"it must be one of {', '.join(ENGINES)}")
    if not re.fullmatch(DEVICE, device):
        raise InputError(f"unknown device '{device}'", "it must be auto, cpu, cuda or cuda:N")
    if not ENGINES[name].gpu and device not in ("auto", "cpu"):
        other = next(other for other, row in ENGINES.items() if row.gpu)
        raise Unavailable(
            f"the backend '{name}' runs on the CPU, not on '{device}'",
            f"add --backend {other}, or use --device cpu",
        )
    reason = missing(name)
    if reason:
        raise Unavailable(f"the backend '{name}' cannot run here: {reason}")
    return _module(ENGINES[name].forward)


def load_backward(name: str) -> ModuleType:
    """Return the module with the ``backward`` of an engine that ``load`` has found able to run.

    Raises Unavailable when it has none.
    """
    module = ENGINES[name].backward
    if module is None:
        others = ", ".join(other for other, row in ENGINES.items() if row.backward)
        raise Unavailable(f"the backend '{name}' has no gradients", f"these have: {others}")
    return _module(module)


def _module(name: str) -> ModuleType:
    return import_module(f"{__name__}.{name}")
