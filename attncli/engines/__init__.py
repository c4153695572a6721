"""The engines: one row of ``ENGINES`` each, which is all that the rest of the program knows.

    missing() -> str | None                                  why it cannot run here, or None
    unfit(problem, want) -> str | None                       why it cannot compute this, or None
    unfit_backward(problem, grad_output, want)               likewise; both are asked before it runs
    attend(problem, want, how)                               -> Attended
    backward(problem, grad_output, attended, want, how)      -> Gradients

``want`` of ``backward`` holds ``biases``, ``score_norm`` and ``sums`` (see ``attention.gradients``)
where these are wanted; an engine may leave the sums out. With ``alone`` nobody reads the gradients
of query, key and value, which it may leave out, too.

A new engine is a module with these functions and a row; one that can compute everything needs
neither ``unfit``. It knows problems, masks and rows; not files, statistics or other engines.
Nothing here loads NumPy: the command line reads the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from attncli.errors import InputError, Unavailable, series

if TYPE_CHECKING:
    from types import ModuleType

    import numpy as np

    from attncli.attention.problem import Problem
    from attncli.attention.rows import Rows
    from attncli.resources import Progress

    Array = np.ndarray[Any, np.dtype[Any]]


class EngineRow(NamedTuple):
    """What there is to know of an engine before it runs.

    ``home``, ``forward`` and ``backward`` are the modules, below this one, of ``missing`` and
    ``unfit``, of ``attend`` and of ``backward``. Only ``home`` must import without what the engine
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
        "fused", "fused.forward", "fused.backward", partial=True, about="is compiled float32"
    ),
    "torch": EngineRow("torch", "torch.forward", "torch.backward", gpu=True, about="needs PyTorch"),
}
DEFAULT = "auto"
AUTO = ("fused", "numpy")  # the default is the first that is there and can compute what is asked
DEVICE = r"auto|cpu|cuda(?::(\d{1,4}))?"


class How(NamedTuple):
    """How to run: threads at most (None: as many as there are), where, and whom to tell.

    ``device`` is auto, cpu, cuda or cuda:N; an engine without ``gpu`` is asked for the first two.
    """

    threads: int | None = None
    device: str = "auto"
    progress: Progress | None = None


ANYHOW = How()


class Attended(NamedTuple):
    """What an engine computed, canonical and in the problem's result dtype unless said otherwise.

    output ``(B, H, Lq, Dv)``; lse ``(B, H, Lq)`` in the arithmetic's dtype, sink included; rows in
    float64, sink not included; stages ``(B, H, Lq, Lk)`` by name, those wanted. Where lse was not
    wanted, a kernel that does not give it leaves NaN in rows that see a key. ``seconds``: the
    attention alone, without copies to and from a device; None: all that the engine did.
    """

    output: Array
    lse: Array
    rows: Rows | None = None
    stages: Mapping[str, Array] = MappingProxyType({})
    kernel: str = ""
    threads: int = 1
    device: str = "cpu"
    seconds: float | None = None


def missing(name: str) -> str | None:
    """Return why the engine of that name cannot run here, or None."""
    reason: str | None = _module(ENGINES[name].home).missing()
    return reason


def there(backend: str, device: str = "auto") -> tuple[str, ...]:
    """Return the names of the engines to choose from: the one named, or those of AUTO that run.

    Raises InputError for an unknown name or device, and Unavailable for an engine that was named
    and cannot run, or runs on no such device. Whether a device is there is left to the engines that
    know devices.
    """
    _demand(backend, device)
    if backend == DEFAULT:
        *others, last = AUTO
        return (*(name for name in others if not missing(name)), last)
    reason = missing(backend)
    if reason:
        hint = f"use --backend {DEFAULT}: it takes what is there" if backend in AUTO else None
        raise Unavailable(f"the backend '{backend}' cannot run here: {reason}", hint)
    return (backend,)


def choose(names: Sequence[str], problem: Problem, want: Collection[str]) -> tuple[str, str]:
    """Return the first of the engines that can compute what is asked, and why none before it can.

    ``names`` are as ``there`` returns them. Raises Unavailable when none can.
    """
    return _choose(names, lambda home: home.unfit(problem, want))


def choose_backward(
    names: Sequence[str], problem: Problem, grad_output: Array, want: Collection[str]
) -> str:
    """Return the name of the engine that computes the gradients, chosen likewise."""
    able = [name for name in names if ENGINES[name].backward] or names
    return _choose(able, lambda home: home.unfit_backward(problem, grad_output, want))[0]


def _choose(names: Sequence[str], unfit: Callable[[Any], str | None]) -> tuple[str, str]:
    passed: list[str] = []
    for name in names:
        row = ENGINES[name]
        reason = unfit(_module(row.home)) if row.partial else None
        if reason is None:
            return name, ", ".join(passed)
        passed.append(f"{name}: {reason}")
    raise Unavailable(f"the backend '{name}' cannot do this: {reason}", f"use --backend {AUTO[-1]}")


def _demand(name: str, device: str) -> None:
    """Raise unless there is such an engine, and it runs on such a device."""
    names = (DEFAULT, *ENGINES)
    if name not in names:
        raise InputError(f"unknown backend '{name}'", f"it must be one of {', '.join(names)}")
    if not re.fullmatch(DEVICE, device):
        raise InputError(f"unknown device '{device}'", "it must be auto, cpu, cuda or cuda:N")
    if (name == DEFAULT or not ENGINES[name].gpu) and device not in ("auto", "cpu"):
        other = next(other for other, row in ENGINES.items() if row.gpu)
        runs = f"{series(AUTO)} run" if name == DEFAULT else f"the backend '{name}' runs"
        raise Unavailable(
            f"{runs} on the CPU, not on '{device}'",
            f"add --backend {other}, or use --device cpu",
        )


def load(name: str) -> ModuleType:
    """Return the module with the ``attend`` of an engine that is there."""
    return _module(ENGINES[name].forward)


def load_backward(name: str) -> ModuleType:
    """Return the module with the ``backward`` of an engine that is there.

    Raises Unavailable when it has none.
    """
    module = ENGINES[name].backward
    if module is None:
        others = ", ".join(other for other, row in ENGINES.items() if row.backward)
        raise Unavailable(f"the backend '{name}' has no gradients", f"these have: {others}")
    return _module(module)


def _module(name: str) -> ModuleType:
    return import_module(f"{__name__}.{name}")
