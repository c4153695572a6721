"""What somebody else computed, to be held against ours: from options and from the bundle."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from attncli import files
from attncli.cli.given.reader import Array, Reader
from attncli.cli.options import Group
from attncli.errors import InputError, Misfit, listed
from attncli.files.bundle import STDIN, Bundle
from attncli.files.vocabulary import PLAYED, strangers

if TYPE_CHECKING:
    from attncli.attention.problem import Problem
    from attncli.studies.compare import Comparison, Tolerance
    from attncli.studies.layer import MultiheadResult

#: The stages that are judged, by the roles that a file gives them.
STAGES: Mapping[str, tuple[str, ...]] = {
    "output": ("expected", "output"),
    "weights": ("expected_weights", "weights"),
    "lse": ("expected_lse", "lse"),
    "scores": ("expected_scores", "scores"),
    "grad_query": ("expected_grad_query", "grad_query"),
    "grad_key": ("expected_grad_key", "grad_key"),
    "grad_value": ("expected_grad_value", "grad_value"),
}


class Theirs(NamedTuple):
    """A stage that somebody else computed, and what it is called: a file, or a member of one."""

    array: Array
    name: str
    member: str = ""

    @property
    def ref(self) -> str:
        """What messages call it."""
        return f"{self.name}::{self.member}" if self.member else self.name


def flag_of(stage: str) -> str:
    """Return the name of the option that names a stage."""
    return "expect" if stage == "output" else f"expect_{stage}"


def expected_of(reader: Reader) -> dict[str, Theirs]:
    """Return what is to be judged, by stage; {} where nothing is.

    A bundle's own ``expected``, ``expected_lse`` … are judged unless an option gives the stage.
    """
    found: dict[str, Theirs] = {}
    for stage, (role, _) in STAGES.items():
        own = reader.tensor(role)
        if own is not None and reader.bundle is not None:
            found[stage] = Theirs(own[0], f"{reader.spelt[role]} of {reader.bundle.source}")
    for name in reader.bundle.tensors if reader.bundle else ():  # "expected": {"output": …}
        head, _, last = name.partition(".")
        for stage, roles in STAGES.items() if head.lower() == "expected" and last else ():
            if _plays(last, roles) and reader.bundle is not None:
                found[stage] = Theirs(
                    reader.bundle.tensors[name], f"{name} of {reader.bundle.source}"
                )
                reader.taken.add(name)
    ref = reader.flag("expect")
    if ref is not None:
        found |= _whole(reader, ref)
    for stage in STAGES:
        ref = reader.flag(flag_of(stage)) if stage != "output" else None
        if ref is not None:
            found[stage] = _named(reader, stage, ref)
    base: Any = reader.bundle.options.get("lse_base") if reader.bundle else None
    if "lse" in found and isinstance(base, int | float) and base > 1 and base != math.e:
        theirs = found["lse"]
        found["lse"] = theirs._replace(array=np.asarray(theirs.array) * math.log(base))
        reader.notes.append(f"the expected lse is in base {base:g}, and judged as such")
    return found


def _whole(reader: Reader, ref: str) -> dict[str, Theirs]:
    """Return all stages that a file holds; one tensor, or PATH::NAME, is the output."""
    bundle = _bundle(reader, ref)
    if len(bundle.tensors) == 1:
        ((name, array),) = bundle.tensors.items()
        own = [s for s, roles in STAGES.items() if _plays(name, roles)]
        return {own[0] if own else "output": Theirs(array, _called(ref))}
    found: dict[str, Theirs] = {}
    taken: set[str] = set()
    for stage, roles in STAGES.items():
        names = [name for name in bundle.tensors if _plays(name, roles)]
        if len(names) > 1:
            raise InputError(
                f"{bundle.source} holds {listed(map(repr, names))}: which is the {stage}?",
                f"name it: --{flag_of(stage).replace('_', '-')} {bundle.ref(names[0])}",
            )
        if names:
            found[stage] = Theirs(bundle.tensors[names[0]], _called(ref), names[0])
            taken.add(names[0])
    if not bundle.tensors:
        raise InputError(
            f"{bundle.source} holds no numbers", "expected an output, or several by name"
        )
    shapes = {n: np.shape(array) for n, array in bundle.tensors.items()}
    others = strangers(shapes, taken) if "output" not in found else []
    if not found or len(others) > 1:
        asked = others or list(bundle.tensors)
        raise InputError(
            f"{bundle.source} holds {listed(asked)}: which of them is the output?",
            f"name it: --expect {bundle.ref(asked[0])}",
        )
    if others:
        (other,) = others
        found["output"] = Theirs(bundle.tensors[other], _called(ref), other)
        reader.notes.append(f"{bundle.source}: '{other}' is judged as the output")
        taken.add(other)
    left = [repr(n) for n in bundle.tensors if n not in taken and not _is_input(n)]
    if left and not files.is_result(bundle):  # our own holds more than results
        reader.warnings.append(
            f"{bundle.source}: {listed(left)} {'are' if len(left) > 1 else 'is'} not judged"
        )
    return found


def _named(reader: Reader, stage: str, ref: str) -> Theirs:
    """Return the tensor of one stage: the one that a file holds, or that of its name."""
    bundle = _bundle(reader, ref)
    if len(bundle.tensors) > 1:
        names = [name for name in bundle.tensors if _plays(name, STAGES[stage])]
        if len(names) == 1:
            return Theirs(bundle.tensors[names[0]], _called(ref), names[0])
    return Theirs(files.read_tensor(ref), _called(ref))


def _called(ref: str) -> str:
    """Return what a reference is called in a sentence."""
    path, mark, name = ref.partition("::")
    return f"{STDIN if path == '-' else path}{mark}{name}"


def _bundle(reader: Reader, ref: str) -> Bundle:
    bundle = files.unwrapped(files.read(ref))
    reader.sources.append(bundle.source)
    return bundle


def _plays(name: str, roles: tuple[str, ...]) -> bool:
    played = PLAYED.get(name.lower(), ())
    return name.lower() in roles or any(role in roles for role in played)


def _is_input(name: str) -> bool:
    """Whether a tensor is one of a problem's own, which stands beside its results."""
    return bool(PLAYED.get(name.lower()))


def tolerance_of(flags: Group) -> Tolerance | None:
    """Return what ``--rtol`` and ``--atol`` allow, or None where neither is said."""
    from attncli.studies.compare import Tolerance

    rtol, atol = (getattr(flags, name, None) for name in ("rtol", "atol"))
    return None if rtol is None and atol is None else Tolerance(rtol or 0.0, atol or 0.0)


def checked(
    problem: Problem,
    expected: Mapping[str, Theirs],
    flags: Group,
    grad_output: Any = None,
    *,
    explain: bool = True,
) -> Comparison | None:
    """Return how what was expected fares, or None where nothing was.

    ``grad_output`` is what ``--grad-output`` means, if anything. Raises InputError for a stage that
    does not fit, and for options of judging where there is nothing to judge.
    """
    if _nothing(expected, flags):
        return None
    from attncli.attention import gradients
    from attncli.studies.compare import compare

    upstream = None if grad_output is None else gradients.upstream(grad_output, problem)
    with _naming(expected) as stages:
        return compare(
            problem, stages, tolerance=tolerance_of(flags), explain=explain, grad_output=upstream,
            threads=getattr(flags, "threads", None),
        )  # fmt: skip


def checked_layer(
    made: MultiheadResult, expected: Mapping[str, Theirs], flags: Group, *, explain: bool = True
) -> Comparison | None:
    """Return how what was expected of a layer fares, as ``checked``."""
    if _nothing(expected, flags):
        return None
    from attncli.studies.compare.layers import compare_layer

    with _naming(expected) as stages:
        return compare_layer(
            made, stages, tolerance=tolerance_of(flags), explain=explain,
            threads=getattr(flags, "threads", None),
        )  # fmt: skip


@contextmanager
def _naming(expected: Mapping[str, Theirs]) -> Iterator[dict[str, Array]]:
    """Give the arrays by stage; of one that does not fit it is said where it was found."""
    try:
        yield {stage: theirs.array for stage, theirs in expected.items()}
    except Misfit as error:
        where = expected[error.stage].ref
        raise InputError(f"{where}: {error.message}", error.hint) from None


def _nothing(expected: Mapping[str, Theirs], flags: Group) -> bool:
    """Whether nothing is judged. Raises InputError for options that have no use then."""
    for name in () if expected else ("rtol", "atol", "explain"):
        if getattr(flags, name, None) is not None:
            raise InputError(f"--{name} has no use: nothing is judged", "add --expect FILE")
    return not expected


def name_of(judged: Comparison | None, expected: Mapping[str, Theirs]) -> str:
    """Return whose results are judged: those of the stage that diverges, or else of all."""
    stage = judged.stage if judged is not None else None
    names = {theirs.name for theirs in expected.values()}
    if stage is not None:
        return expected[stage].name
    return names.pop() if len(names) == 1 else "what was given"
