"""Joins a problem, an engine and the statistics: the Python face of attncli."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import signature
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from attncli import engines
from attncli.attention.arrays import array_of
from attncli.attention.masks import Mask
from attncli.attention.pose import pose
from attncli.attention.problem import STAGES, Masker, Problem, Scale
from attncli.attention.rows import Rows
from attncli.attention.shares import share_of
from attncli.engines import DEFAULT, ENGINES, Attended, How, shared
from attncli.errors import InputError, TooLarge, counted, nearest
from attncli.files.vocabulary import PLAYED
from attncli.measures import rows as measure_rows
from attncli.measures.evidence import Evidence, told
from attncli.measures.statistic import of_heads, summarize
from attncli.resources import Progress, available_memory, readable_bytes, stages
from attncli.studies.warned import warnings

if TYPE_CHECKING:
    from types import ModuleType

    from attncli.attention.gradients import Gradients
    from attncli.attention.rope import Rope


Array = np.ndarray[Any, np.dtype[Any]]

GRADIENTS = ("gradients", "grad_bias", "gradient_norms")  # the last two imply the first
WANTS = ("output", "lse", "row_statistics", *STAGES, *GRADIENTS)
SMALL = 1 << 22  # multiply-adds that any engine is done with in milliseconds


class Ran(NamedTuple):
    """Which engine really ran, and how.

    ``note``: why it is not the first choice of ``auto``, unless the problem is SMALL; and which
    other engine made the gradients.
    """

    backend: str
    device: str
    dtype: str
    threads: int
    kernel: str
    note: str = ""


@dataclass(frozen=True, eq=False)
class Result:
    """The answer to a Problem: canonical inside, in the shape family that came in at its face.

    ``attended`` is what the engine made, ``(B, H, Lq, …)``; ``rows`` are the running sums
    ``(B, H, Lq)``, sink included; ``derived`` the gradients as the engine returned them. The
    properties restore the family: ``output`` in the query's; ``lse`` and the stages keep heads as a
    dimension of their own and leave out dimensions that were not given. What was not wanted is
    None; an ``lse`` that was not wanted may be NaN in rows that see a key.
    """

    problem: Problem
    engine: Ran
    attended: Attended
    rows: Rows | None
    warnings: tuple[str, ...]
    derived: Gradients | None = None
    bias_shape: tuple[int, ...] | None = None  # of the ``attn_mask`` whose gradient is asked for

    @property
    def seconds(self) -> float:
        """The engine's wall time."""
        return self.attended.seconds or 0.0

    @cached_property
    def output(self) -> Array:
        """In the shape family of the query."""
        return self.problem.family.restore(self.attended.output)

    @cached_property
    def lse(self) -> Array:
        """``(…, Lq)``, sink included."""
        return self.problem.family.restore_rows(self.attended.lse)

    @cached_property
    def stages(self) -> Mapping[str, Array]:
        """The stages wanted by name, each ``(…, Lq, Lk)``."""
        family = self.problem.family
        return {name: family.restore_rows(one) for name, one in self.attended.stages.items()}

    @property
    def weights(self) -> Array | None:
        """``(…, Lq, Lk)`` or None."""
        return self.stages.get("weights")

    @property
    def row_statistics(self) -> dict[str, Array] | None:
        """Every row statistic by name, each ``(…, Lq)``, or None."""
        family = self.problem.family
        values = self.row_values
        return values and {name: family.restore_rows(one) for name, one in values.items()}

    @cached_property
    def row_values(self) -> dict[str, Array] | None:
        """Every row statistic by name, each ``(B, H, Lq)``, or None."""
        return None if self.rows is None else self.evidence.row_values(told(measure_rows))

    @cached_property
    def evidence(self) -> Evidence:
        """What statistics are made from; only of a result with row_statistics."""
        assert self.rows is not None
        output = self.attended.output if self.problem.scored else None
        sums = None if self.derived is None else self.derived.sums
        known = self.rows, self.attended.lse, output, self.gradient_norms
        return Evidence(self.problem, *known, weight_sums=sums)

    @cached_property
    def summaries(self) -> dict[str, Any]:
        """The statistics as ``statistics`` gives them, and the norms of gradients of each row."""
        p, norms = self.problem, self.gradient_norms
        shape = (p.batch, p.heads, p.queries)
        of_rows = {name: norm for name, norm in norms.items() if norm.shape == shape}
        real = np.broadcast_to(p.real_rows[:, None], shape)
        return statistics(self) | {name: summarize(norm, real) for name, norm in of_rows.items()}

    @cached_property
    def statistics_by_head(self) -> list[list[dict[str, Any]]]:
        """The statistics of each head, ``[b][h]``; None for a number that does not exist."""
        return self.by_head(self.summaries)

    def by_head(self, found: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
        """Return some statistics of each head likewise."""
        return of_heads(found, np.asarray(np.isnan(self.attended.lse).any(-1)))

    @cached_property
    def gradients(self) -> Gradients | None:
        """In the shapes of the inputs, or None."""
        if self.derived is None:
            return None
        from attncli.attention.gradients import restored

        found = restored(self.derived, self.problem, self.gradient_norms)
        if self.bias_shape is None or not found.biases:
            return found
        *biases, last = found.biases
        if last.size == math.prod(self.bias_shape):  # without the dimensions that were not given
            biases.append(last.reshape(self.bias_shape))
            return replace(found, biases=tuple(biases))
        return found

    @cached_property
    def gradient_norms(self) -> Mapping[str, Array]:
        """The norms of all rows by name, ``(B, H, Lq)`` or ``(B, G, Lk)``; {} if not wanted."""
        if self.derived is None or self.derived.score_norm is None:
            return {}
        from attncli.attention.gradients import row_norms

        return row_norms(self.derived)


def attend(
    query: Any,
    key: Any = None,
    value: Any = None,
    *,
    mask: str | Mask | Masker | Sequence[str | Mask | Masker] | None = None,
    attn_mask: Any = None,
    key_padding_mask: Any = None,
    mask_polarity: str = "keep",
    past_key: Any = None,
    past_value: Any = None,
    kv_lengths: Any = None,
    scale: Scale = "auto",
    softcap: float | None = None,
    sink: Any = None,
    rope: Rope | str | Mapping[str, Any] | None = None,
    dtype: str | None = None,
    softmax_dtype: str | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    layout: str = "bhld",
    key_start: int = 0,
    key_count: int | None = None,
    backend: str = DEFAULT,
    device: str = "auto",
    threads: int | None = None,
    want: Collection[str] = ("output",),
    grad_output: Any = "ones",
    progress: Progress | None = None,
) -> Result:
    """Compute attention of arrays in any shape family.

    query ``(L, D)``, ``(H, L, D)`` or ``(B, H, L, D)`` (see ``problem.pose`` for the others); a
    missing value is the key, a missing key the query. Tensors may be NumPy's, PyTorch's on any
    device, or anything with ``__array__`` or ``__dlpack__``. ``mask`` is a mask expression such as
    ``"causal & window(8)"``, or several: all must allow. ``attn_mask`` is a tensor of rank 1 to 4:
    bool True = keep (``mask_polarity="ignore"``: the opposite), float = added to the scores;
    ``key_padding_mask`` is ``(B, Lk)``: True = a real key, likewise.
    ``rope`` turns query and new keys first: ``"half"``, ``"interleaved"``, a Rope or its fields;
    ``result.problem`` holds them turned. With ``key_count`` keys are some of so many, those from
    ``key_start`` on, as in a step of a ring: masks are of all, output and lse of these.
    ``want``: any of output, lse, weights, scores, softcapped, masked, row_statistics, gradients
    (of Σ output∘``grad_output``: ones, random, random:SEED or an array like the output), grad_bias
    (that of a float ``attn_mask`` too), gradient_norms (of all rows too).
    ``backend``: auto is the compiled engine where it is there and can compute what is wanted, else
    numpy; ``result.engine`` says which ran. ``device``: auto, cpu, cuda or cuda:N; only the backend
    torch knows more than the CPU. Raises AttnError for anything that does not fit.

        >>> attend([[1.0, 0.0], [0.0, 1.0]], mask="causal").output[0]
        array([1., 0.])
    """
    problem = posed(
        query, key, value, mask=mask, attn_mask=attn_mask, key_padding_mask=key_padding_mask,
        mask_polarity=mask_polarity, rope=rope, past_key=past_key, past_value=past_value,
        kv_lengths=kv_lengths, scale=scale, softcap=softcap, sink=sink, dtype=dtype,
        softmax_dtype=softmax_dtype, heads=heads, kv_heads=kv_heads, layout=layout,
        key_start=key_start, key_count=key_count,
    )  # fmt: skip
    result = solve(
        problem, backend=backend, device=device, threads=threads, want=want,
        grad_output=array_of(grad_output), progress=progress,
    )  # fmt: skip
    return result if attn_mask is None else replace(result, bias_shape=np.shape(attn_mask))


def posed(
    query: Any,
    key: Any = None,
    value: Any = None,
    *,
    mask: str | Mask | Masker | Sequence[str | Mask | Masker] | None = None,
    attn_mask: Any = None,
    key_padding_mask: Any = None,
    mask_polarity: str = "keep",
    rope: Rope | str | Mapping[str, Any] | None = None,
    **others: Any,
) -> Problem:
    """Return the problem that the arguments of ``attend`` pose; ``others`` are those of ``pose``.

    Raises AttnError for anything that does not fit.
    """
    from attncli.attention.language import maskers as said
    from attncli.attention.tensors import padding_masker, tensor_masker

    maskers = said(mask)
    if attn_mask is not None:
        maskers.append(tensor_masker(array_of(attn_mask), mask_polarity))
    if key_padding_mask is not None:
        maskers.append(padding_masker(array_of(key_padding_mask), mask_polarity))
    start, count = others.pop("key_start", 0), others.pop("key_count", None)
    unknown = sorted(others.keys() - POSED)
    if unknown:
        raise InputError(f"no argument '{unknown[0]}'", _in_place_of(unknown[0]))
    others = {name: array_of(one) for name, one in others.items()}
    tensors = map(array_of, (query, key, value))
    others |= {"mask": maskers, "rope": None if rope is None else _rope(rope)}
    if start or count is not None:
        from attncli.attention.shares import pose_some

        return pose_some(start, count, *tensors, **others)
    return pose(*tensors, **others)


#: What ``attend`` hands on to ``pose`` as it is.
POSED = frozenset({
    "past_key", "past_value", "kv_lengths", "scale", "softcap", "sink", "dtype", "softmax_dtype",
    "heads", "kv_heads", "layout",
})  # fmt: skip


#: Arguments of other libraries, and what stands here in their place.
FOREIGN = {
    "is_causal": 'say mask="causal", or leave it out',
    "causal": 'say mask="causal", or leave it out',
    "window_size": 'say mask="window(left, right)"',
    "alibi_slopes": 'say mask="alibi(…)"',
    "enable_gqa": "leave it out: query heads share key/value heads wherever these are fewer",
    "dropout_p": "leave it out: nothing is dropped here",
}


def _in_place_of(unknown: str) -> str:
    """Return the hint for an argument that ``attend`` does not have."""
    if unknown in FOREIGN:
        return FOREIGN[unknown]
    known = [name for name in signature(posed).parameters if name != "others"]
    known = [*known, *sorted(POSED)]
    same = next((role for role in PLAYED.get(unknown.lower(), ()) if role in known), None)
    return f"it is called '{same}' here" if same else nearest(unknown, known)


def _rope(rope: Rope | str | Mapping[str, Any]) -> Rope:
    from attncli.attention.rope import Rope

    return Rope.of(rope)


def solve(
    problem: Problem,
    *,
    backend: str = DEFAULT,
    device: str = "auto",
    threads: int | None = None,
    want: Collection[str] = ("output",),
    grad_output: Any = "ones",
    progress: Progress | None = None,
) -> Result:
    """Run a posed problem through an engine. See ``attend`` for ``want`` and what is raised."""
    downward = None
    if any(name in want for name in GRADIENTS):
        from attncli.attention.gradients import upstream

        downward = upstream(grad_output, problem)
    return run(
        problem, downward, backend=backend, device=device, threads=threads, want=want,
        progress=progress,
    )  # fmt: skip


def run(
    problem: Problem,
    grad_output: Array | None = None,
    *,
    backend: str = DEFAULT,
    device: str = "auto",
    threads: int | None = None,
    want: Collection[str] = ("output",),
    beside: Collection[str] = (),
    progress: Progress | None = None,
) -> Result:
    """Like ``solve``, with a canonical gradient of the output ``(B, H, Lq, Dv)``, or None.

    ``beside`` is asked of ``backward``, too.
    """
    unknown = [name for name in want if name not in WANTS]
    if unknown:
        raise InputError(f"cannot compute '{unknown[0]}'", f"it must be one of {', '.join(WANTS)}")
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}", "it must be at least 1")
    there = engines.there(backend, device)
    share = share_of(problem)
    own = problem if share is None else share.part(problem)
    name, note = shared.for_all(share, *engines.choose(there, own, want))
    engine, back = engines.load(name), None
    work = problem.batch * problem.heads * problem.queries * problem.keys * problem.width
    notes = [note] if note and work > SMALL else []
    if grad_output is not None:
        names = {"grad_bias": "biases", "gradient_norms": "score_norm"}
        asked = frozenset(names[name] for name in want if name in names).union(beside)
        other = engines.choose_backward(there, own, grad_output, asked)
        other, _ = shared.for_all(share, other)
        back = engines.load_backward(other)
        notes += [f"gradients by {other}"] * (other != name)
    check_memory(own, want, dense=ENGINES[name].dense)
    stage = stages(progress, (3, 7) if back else (1,))  # gradients are the longer part
    start = time.perf_counter()
    done = _attend(engine, problem, frozenset(want), How(threads, device, next(stage)))
    if done.seconds is None:
        done = done._replace(seconds=time.perf_counter() - start)
    derived = None
    if back is not None:
        how = How(threads, device, next(stage))
        derived = _backward(back, problem, grad_output, done, asked, how, there)
    if share:
        notes.append(f"{share.axis} divided among {counted(share.ranks, 'process', 'processes')}")
    asked_rows, known_lse = "row_statistics" in want, bool({"lse", "row_statistics"} & set(want))
    return Result(
        problem=problem,
        engine=Ran(
            name, done.device, problem.dtype.name, done.threads, done.kernel, "; ".join(notes)
        ),
        attended=done,
        rows=done.rows.with_sink(problem.sink) if asked_rows and done.rows else None,
        warnings=(*problem.warnings, *warnings(problem, done.lse, known_lse, back)),
        derived=derived,
    )


def _attend(engine: ModuleType, problem: Problem, want: Collection[str], how: How) -> Attended:
    """Have an engine attend, together with others where the problem is divided."""
    if share := share_of(problem):
        return shared.attend(engine, problem, share, want, how)
    done: Attended = engine.attend(problem, want, how)
    return done


def _backward(
    engine: ModuleType, problem: Problem, grad_output: Array | None, attended: Attended,
    want: Collection[str], how: How, names: Sequence[str],
) -> Gradients:  # fmt: skip
    """Likewise for the way back."""
    assert grad_output is not None
    if share := share_of(problem):
        return shared.backward(engine, problem, share, grad_output, attended, want, how, names)
    found: Gradients = engine.backward(problem, grad_output, attended, want, how)
    return found


def statistics(result: Result) -> dict[str, Any]:
    """Return the statistics of every head.

    Row statistics are mappings of mean, p05, median, p95, min, max to ``(B, H)`` arrays, the
    others ``(B, H)`` arrays. Raises InputError when the result was made without row_statistics.
    """
    if result.rows is None:
        raise InputError(
            "this result has no row statistics", 'ask for them: want=("output", "row_statistics")'
        )
    return result.evidence.summaries(told(measure_rows))


def check_memory(problem: Problem, want: Collection[str], *, dense: bool = False) -> None:
    """Raise TooLarge when the results cannot fit into the memory that is left."""
    rows = problem.batch * problem.heads * problem.queries
    stages = [name for name in STAGES if name in want]
    matrix = rows * problem.keys * problem.dtype.itemsize
    need = rows * problem.value_width * problem.dtype.itemsize + matrix * len(stages)
    wants_gradients = any(name in want for name in GRADIENTS)
    if wants_gradients:  # two of each: scaled or transposed, and the result
        tensors = (problem.query, problem.key, problem.value)
        need += 2 * sum(t.size for t in tensors) * problem.dtype.itemsize
    if dense:
        need += (12 if wants_gradients else 6) * problem.queries * problem.keys * 8
    room = available_memory()
    if room is None or need <= room:
        return
    size = f"{problem.batch} × {problem.heads} heads, {problem.queries} × {problem.keys}"
    if stages:
        raise TooLarge(
            f"{', '.join(stages)} of {size} need {readable_bytes(need)}; "
            f"{readable_bytes(room)} are free",
            "look at a part with --batch, --head, --rows and --keys, or leave "
            f"{', '.join(stages)} out of --include: output and statistics never need the matrix",
        )
    raise TooLarge(
        f"{size} needs {readable_bytes(need)}; {readable_bytes(room)} are free",
        "use --backend numpy, which never makes the matrix"
        if dense
        else "compute fewer heads or queries at a time",
    )
