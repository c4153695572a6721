"""A kernel's test set: problems of every kind that kernels get wrong, and their right answers.

A case is a bundle of `compute`, so that `compute` and any program can read it. Its answers are the
specification's in float64, rounded once.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from attncli.attention.gradients import restored, upstream
from attncli.attention.problem import float_dtype
from attncli.engines import reference
from attncli.studies.attend import posed
from attncli.studies.cases.kinds import KINDS, Draft, Draw, Kind

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Case:
    """A problem and its answers.

    ``tensors`` and ``options`` are members of a bundle by name, ``expected`` the answers by theirs:
    ``expected`` in the case's dtype, ``expected_lse`` float32 …
    """

    id: str
    kind: Kind
    dtype: str
    tensors: Mapping[str, Array]
    options: Mapping[str, Any]
    expected: Mapping[str, Array]


def cases(seed: int = 0) -> Iterator[Case]:
    """Make every case of every kind, in order; the same ones for the same seed."""
    for kind in KINDS.values():
        rng = np.random.default_rng([seed, zlib.crc32(kind.name.encode())])
        for draft in kind.build(Draw(rng)):
            for dtype in draft.dtypes:
                yield _case(kind, draft, dtype)


def _case(kind: Kind, draft: Draft, dtype: str) -> Case:
    tensors = {name: _rounded(array, dtype) for name, array in draft.tensors.items()}
    options = {**draft.options, "dtype": dtype}
    return Case(
        f"{kind.name}.{draft.name}.{dtype}", kind, dtype, tensors, options,
        answers(tensors, options),
    )  # fmt: skip


def _rounded(array: Array, dtype: str) -> Array:
    """Return an array in the case's dtype; NaN becomes its most negative number."""
    if array.dtype == bool:
        return array
    import ml_dtypes

    own = float_dtype(dtype)
    smallest = float(ml_dtypes.finfo(own).min)  # type: ignore[no-untyped-call]
    return np.where(np.isnan(array), smallest, array).astype(own)


def answers(tensors: Mapping[str, Array], options: Mapping[str, Any]) -> dict[str, Array]:
    """Return the specification's answers to a problem, each rounded once, by their names."""
    arguments: dict[str, Any] = {**tensors, **options}
    up = arguments.pop("grad_output", None)
    problem = posed(**arguments)
    family, done = problem.family, reference.attend(problem, ())
    found = {
        "expected": family.restore(done.output),
        "expected_lse": family.restore_rows(done.lse).astype(np.float32),
    }
    if up is not None:
        back = restored(reference.backward(problem, upstream(up, problem)), problem)
        found |= {f"expected_grad_{n}": getattr(back, n) for n in ("query", "key", "value")}
    return found
