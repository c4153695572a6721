"""Is my layer right? Its output, and the weights, lse and scores of its attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from attncli.errors import InputError, Misfit, counted, listed
from attncli.resources import Progress, one_blas_thread
from attncli.studies.compare import Comparison
from attncli.studies.compare.answers import LOCATED, PASSED, UNEXPLAINED, Answer
from attncli.studies.compare.decimals import decimals
from attncli.studies.compare.diagnosis import explained, left_over
from attncli.studies.compare.faults import fault_suspects
from attncli.studies.compare.judged import Judged, Tolerance, first_bad, ordered
from attncli.studies.compare.layer_suspects import layer_suspects
from attncli.studies.compare.layer_theory import LayerTheory
from attncli.studies.compare.mask_suspects import mask_suspects
from attncli.studies.compare.patterns import appearance, place
from attncli.studies.compare.reading import be, canonical, judged_at, numbers
from attncli.studies.compare.recipe import STATES, Recipe
from attncli.studies.compare.search import Search
from attncli.studies.compare.suspects import Question, suspects
from attncli.studies.compare.theory import Candidate, Unit, held
from attncli.studies.layer import MultiheadResult

Array = np.ndarray[Any, np.dtype[Any]]

STAGES = ("output", "weights", "lse", "scores")
ELSEWHERE = 1e-3  # the part of an error that may lie outside of the heads that are wrong


def compare_layer(
    made: MultiheadResult,
    candidates: Mapping[str, Any],
    *,
    tolerance: Tolerance | None = None,
    explain: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Judge a layer computed elsewhere from the same hidden states and weights, by stage.

    ``candidates``: output, in the shape of ours; weights, lse, scores of the attention. The truth
    is the layer in float64; the budget as in ``compare``, by plain implementations of the whole
    layer. Raises InputError for what does not fit.
    """
    notes: list[str] = []
    recipe = Recipe.of(made)
    candidate = _read(made, recipe, candidates, notes, tolerance)
    theory = LayerTheory.of(recipe)
    found = ordered(held(theory, candidate, threads=threads, progress=progress))
    problem = made.attention.problem
    if first_bad(found) is None or not explain:
        verdict = PASSED if first_bad(found) is None else UNEXPLAINED
        return Comparison(
            problem, candidate, found, notes=notes, verdict=verdict, explained=explain
        )
    with one_blas_thread():
        answer = _diagnosed(theory, candidate, found, threads)
    return Comparison(
        problem, candidate, found, answer.explanations, answer.located, notes, answer.verdict
    )


# -- what came in -----------------------------------------------------------------------------


def _read(
    made: MultiheadResult,
    recipe: Recipe,
    given: Mapping[str, Any],
    notes: list[str],
    tolerance: Tolerance | None,
) -> Candidate:
    """Return the candidate canonical: the output as ``(B, 1, L, Eo)``."""
    unknown = [name for name in given if name not in STAGES]
    if unknown or not given:
        raise InputError(
            f"of a layer, '{unknown[0]}' is not judged" if unknown else "no candidate",
            f"expected {listed(STAGES)}",
        )
    problem = recipe.exact.problem
    arrays = {name: numbers(name, array) for name, array in given.items()}
    stages = {
        name: _output(made, array, notes)
        if name == "output"
        else canonical(problem, name, array, notes)
        for name, array in arrays.items()
    }
    inputs = [recipe.asked[name] for name in STATES if recipe.asked[name] is not None]
    ours = made.attention.problem
    return judged_at(stages, ours.dtype, ours.result_dtype, inputs, notes, tolerance)


def _output(made: MultiheadResult, array: Array, notes: list[str]) -> Array:
    """Return an output in our shape, or in another that fits, as ``(B, 1, L, Eo)``."""
    b, length, width = made.projected.shape
    own = made.output.shape
    if array.shape == own:
        return (array.swapaxes(0, 1) if made.seq_first else array).reshape(b, 1, length, width)
    for words, shape, turned in (
        ("(B, L, E)", (b, length, width), False), ("(L, B, E)", (length, b, width), True),
        ("(L, E)", (length, width), False), ("(B·L, E)", (b * length, width), False),
    ):  # fmt: skip
        if array.shape == shape and (b == 1 or len(shape) == 3 or words == "(B·L, E)"):
            notes.append(f"the output {array.shape} is read as {words}")
            moved = array.swapaxes(0, 1) if turned else array
            return moved.reshape(b, 1, length, width)
    hint = f"give what the layer's output projection gives, {width} wide"
    heads, value = made.layer.heads, made.layer.value_dim
    if array.shape[-1] == heads * value != width:
        hint = "it is as wide as the heads side by side: give it after the output projection"
    elif array.ndim == 4 and array.shape[1] == heads:
        hint = "it has a dimension for heads: give it after the output projection"
    raise Misfit("output", f"the output to be judged is {array.shape}, but {own} is needed", hint)


# -- why not ----------------------------------------------------------------------------------


class LayerSearch(Search):
    """The search for one candidate of a layer: its own suspects and those of its attention."""

    base: LayerTheory
    small = (1, 6)  # all heads are computed for each

    def asked(self, stages: frozenset[str]) -> Iterator[Question]:
        """Yield the layer's own first: pairs project once for each of them."""
        p, layer = self.base.problem, self.base.recipe.layer
        yield from layer_suspects(self.base.recipe, stages)
        yield from suspects(p)
        for one in mask_suspects(p):  # a layer's ALiBi is no part of what --mask replaces
            yield one._replace(said={}) if layer.alibi is not None else one
        yield from fault_suspects(p, stages)


def _diagnosed(
    theory: LayerTheory, candidate: Candidate, found: dict[str, Judged], threads: int | None
) -> Answer:
    written = decimals(candidate.stages, found)
    if written:
        return Answer(LOCATED, (), written)
    search = LayerSearch(theory.problem, candidate, found, threads, base=theory)
    tried = search.run()
    answer = explained(tried)
    if answer is not None:
        return answer
    first = found[first_bad(found) or ""]
    return left_over(search, tried, list(_located(theory, candidate, found, first, search)))


def _located(
    theory: LayerTheory,
    candidate: Candidate,
    found: Mapping[str, Judged],
    first: Judged,
    search: Search,
) -> Iterator[str]:
    """Say where the errors are, and what they look like."""
    where, seen = place(first), appearance(theory.problem, candidate, first)
    if where:
        wrong = f"{first.name} {be(first.name)} wrong in {where.words} alone"
        yield wrong + (f": {seen}" if seen else "")
    elif seen:
        yield seen
    right = [name for name, one in found.items() if one.passed]
    if first.name == "output" and right:
        are = "are" if len(right) > 1 else be(right[0])
        yield f"{listed(right)} {are} right: look at the values and what follows them"
    if first.name == "output" and not seen:
        heads = _heads(theory, candidate, search.units)
        if heads:
            yield (
                f"the error lies within what {counted(len(heads), 'head')} can give, "
                f"{listed(map(str, heads))}: look there"
            )


def _heads(theory: LayerTheory, candidate: Candidate, units: list[Unit]) -> list[int]:
    """Return the heads into whose columns of the output projection all errors fall, the fewest.

    One head, or those that share keys and values; [] where that says nothing.
    """
    out = theory.out
    p, width = theory.problem, theory.problem.value_width
    if out is None or out.weight is None or p.heads < 2:
        return []
    errors = []
    for b, h, rows in theory.projected.units(units):
        right = theory.projected.block(b, h, rows, None, slice(0, p.keys)).arrays["output"]
        errors.append(candidate.stages["output"][b, 0][rows].astype(np.float64) - right)
    error = np.concatenate(errors)
    if not np.isfinite(error).all():
        return []
    size = float(np.sum(error**2))
    share = p.heads // p.kv_heads
    sets = [[h] for h in range(p.heads)]
    if share > 1:
        sets += [list(range(g * share, (g + 1) * share)) for g in range(p.kv_heads)]
    for heads in sets:
        columns = np.concatenate([out.weight[:, h * width : (h + 1) * width] for h in heads], 1)
        if columns.shape[1] > columns.shape[0] // 2:
            continue
        basis = np.linalg.qr(columns)[0]
        if float(np.sum((error - error @ basis @ basis.T) ** 2)) < ELSEWHERE**2 * size:
            return heads
    return []
