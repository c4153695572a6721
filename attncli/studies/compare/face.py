"""Comparison for Python: in a kernel's own tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attncli.attention.arrays import array_of
from attncli.attention.gradients import upstream
from attncli.attention.problem import Problem
from attncli.errors import InputError, counted
from attncli.files.vocabulary import PLAYED
from attncli.studies.attend import Result, posed
from attncli.studies.compare import Comparison, Tolerance
from attncli.studies.compare import compare as compare_problem
from attncli.studies.compare.backward import GRADIENTS
from attncli.studies.compare.judged import AXES
from attncli.studies.layer import MultiheadResult


def compare(
    candidate: Any,
    expected: Problem | Result | MultiheadResult | Mapping[str, Any],
    *,
    rtol: float | None = None,
    atol: float | None = None,
    explain: bool = True,
    grad_output: Any = None,
) -> Comparison:
    """Hold what a program computed against the definition, in float64, by the error budget.

    candidate: the output, in the shape of the query (or another that fits, which is said), or a
    mapping of any of output, weights, lse, scores, grad_query, grad_key, grad_value (or out, o,
    softmax_lse, dq … as files call them). ``expected``:
    the arguments of ``attncli.attend`` as a mapping, a Problem or a Result; or what
    ``attncli.multihead`` returned, for the output of a layer. Tensors may be NumPy's,
    PyTorch's on any device, or anything with ``__array__`` or ``__dlpack__``. ``grad_output``: the
    gradient of the output, for expected gradients. With ``rtol`` or ``atol`` (the other is 0) these
    take the place of the error budget. Without ``explain`` no reason is looked for.
    Raises AttnError for anything that does not fit.

        >>> import numpy as np
        >>> q = np.eye(2, dtype=np.float32)
        >>> compare(np.array([[1, 0], [0.33, 0.67]]), {"query": q, "mask": "causal"}).verdict
        'explained'
    """
    stages = _stages(candidate)
    tolerance = None
    if rtol is not None or atol is not None:
        tolerance = Tolerance.of(rtol, atol)
    if isinstance(expected, MultiheadResult):
        from attncli.studies.compare.layers import compare_layer

        if grad_output is not None:
            raise InputError("grad_output is given for a layer", "its gradients are not judged")
        return compare_layer(expected, stages, tolerance=tolerance, explain=explain)
    problem, stated = _problem(expected)
    given = grad_output if grad_output is not None else stated
    backward = [name for name in stages if name in GRADIENTS]
    if backward and given is None:
        raise InputError(
            f"{backward[0]} is given, but no gradient of the output",
            'add it: grad_output="ones", "random:SEED" or an array like the output',
        )
    return compare_problem(
        problem, stages, tolerance=tolerance, explain=explain,
        grad_output=None if given is None else upstream(
            given if isinstance(given, str) else array_of(given), problem
        ),
    )  # fmt: skip


def assert_close(
    candidate: Any,
    expected: Problem | Result | MultiheadResult | Mapping[str, Any],
    *,
    rtol: float | None = None,
    atol: float | None = None,
    explain: bool = True,
    grad_output: Any = None,
) -> None:
    """Raise AssertionError, with the diagnosis in its message, unless ``compare`` passes.

    >>> import numpy as np
    >>> q = np.eye(2, dtype=np.float32)
    >>> assert_close(attend(q).output, {"query": q})
    """
    __tracebackhide__ = True  # pytest shows the line of the test, and the message
    found = compare(
        candidate, expected, rtol=rtol, atol=atol, explain=explain, grad_output=grad_output
    )
    if not found.passed:
        raise AssertionError(str(found))


def _stages(candidate: Any) -> dict[str, Any]:
    """Return a candidate's arrays by stage, whatever name a file could give them."""
    if isinstance(candidate, list | tuple) and any(hasattr(one, "shape") for one in candidate):
        raise InputError(
            f"the candidate is a {type(candidate).__name__} of {counted(len(candidate), 'array')}",
            'name them: {"output": output, "lse": lse}',
        )
    given = candidate if isinstance(candidate, Mapping) else {"output": candidate}
    stages: dict[str, Any] = {}
    spelt: dict[str, str] = {}
    for name, one in given.items():
        if one is None:
            what = (
                f"the candidate's '{name}'" if isinstance(candidate, Mapping) else "the candidate"
            )
            raise InputError(f"{what} is None", "give an array, or leave it out")
        stage = next((role for role in PLAYED.get(str(name).lower(), ()) if role in AXES), name)
        if stage in stages:
            raise InputError(
                f"'{spelt[stage]}' and '{name}' are both the {stage}", "give one of them"
            )
        stages[stage], spelt[stage] = array_of(one), name
    return stages


def _problem(expected: Any) -> tuple[Problem, Any]:
    """Return the problem, and the gradient of the output if it is said beside it."""
    if isinstance(expected, Problem):
        return expected, None
    if isinstance(expected, Result):
        return expected.problem, None
    if not isinstance(expected, Mapping):
        raise InputError(
            f"the expected problem is a {type(expected).__name__}",
            'give the arguments of attncli.attend: {"query": q, "key": k, "value": v}',
        )
    arguments = {name: array_of(one) for name, one in expected.items()}
    given = arguments.pop("grad_output", None)
    if arguments.get("query") is None:
        raise InputError("the expected problem has no query", '{"query": q, …} is what it needs')
    return posed(**arguments), given
