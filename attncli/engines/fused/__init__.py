"""The compiled engine: output and all running sums in one pass, in float32, on the CPU.

``kernel.c`` holds builds for AVX-512, AVX2 and any processor; the fastest that runs here is taken.
The environment variable ``ATTNCLI_FUSED`` names another: ``avx512``, ``avx2`` or ``portable``; or
``off``, as if this engine were not there.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from attncli.attention.words import STAGES
from attncli.errors import Unavailable

if TYPE_CHECKING:
    import numpy as np

    from attncli.attention.problem import Problem

    Array = np.ndarray[Any, np.dtype[Any]]

VARIABLE = "ATTNCLI_FUSED"
OFF = "off"
INTERFACE = 2  # of kernel.c: an editable install may hold an older build


def missing() -> str | None:
    """Return why this engine cannot run here, or None.

    Raises Unavailable for a build that was named and does not run here.
    """
    asked = os.environ.get(VARIABLE)
    if asked == OFF:
        return f"{VARIABLE} is '{OFF}'"
    try:
        _kernel: Any = import_module("attncli.engines.fused._kernel")
    except ModuleNotFoundError:
        return "it was not compiled: install attncli again where gcc or clang is"
    except ImportError as error:
        return f"its compiled part does not load ({error}): install attncli again"
    if getattr(_kernel, "interface", 0) != INTERFACE:  # older ones had none
        return "it was compiled for another attncli: install attncli again"
    if asked and asked not in (builds := _kernel.builds()):
        raise Unavailable(
            f"{VARIABLE} is '{asked}', which does not run here",
            f"it must be one of {', '.join(builds)}, {OFF}",
        )
    return None


def build() -> tuple[str, int]:
    """Return the build to run, and how many query rows it takes at once; see ``missing``."""
    from attncli.engines.fused import _kernel

    builds = _kernel.builds()
    name = os.environ.get(VARIABLE) or next(iter(builds))
    return name, builds[name]


def unfit(problem: Problem, want: Collection[str]) -> str | None:
    """Return why this engine cannot compute what is wanted of a problem, or None."""
    stages = [name for name in STAGES if name in want]
    if problem.dtype.itemsize != 4:
        return "it computes in float32 only"
    if stages:
        return f"it makes no matrix of {stages[0]}"
    if problem.softmax_dtype is not None:
        return f"it knows no softmax in {problem.softmax_dtype}"
    return None


def unfit_backward(problem: Problem, grad_output: Array, want: Collection[str]) -> str | None:
    """Return why this engine cannot compute the gradients that are wanted, or None."""
    import numpy

    if "biases" in want and problem.mask.tensors():
        return "it has no gradient of a mask"
    tensors = (problem.query, problem.key, problem.value, grad_output)
    if not all(numpy.isfinite(array).all() for array in tensors):
        return "its gradients take finite numbers"
    return unfit(replace(problem, softmax_dtype=None), ())
