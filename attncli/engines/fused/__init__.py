"""The compiled engine: output and all running sums in one pass, in float32, on the CPU.

``kernel.c`` holds builds for AVX-512, AVX2 and any processor; the fastest that runs here is taken.
The environment variable ``ATTNCLI_FUSED`` names another: ``avx512``, ``avx2`` or ``portable``.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from attncli.attention.words import STAGES

if TYPE_CHECKING:
    import numpy as np

    from attncli.attention.problem import Problem

    Array = np.ndarray[Any, np.dtype[Any]]

VARIABLE = "ATTNCLI_FUSED"


def missing() -> str | None:
    """Return why this engine cannot run here, or None."""
    try:
        from attncli.engines.fused import _kernel
    except ImportError:
        return "it was not compiled when attncli was installed, which takes a C compiler"
    builds = _kernel.builds()
    asked = os.environ.get(VARIABLE)
    if asked and asked not in builds:
        return f"{VARIABLE} is '{asked}', and what runs here is {', '.join(builds)}"
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
        return f"it computes in float32, not in {problem.dtype}"
    if stages:
        return f"it makes no matrices, such as {stages[0]}"
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
