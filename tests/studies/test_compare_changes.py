"""A random problem, a change that options can say, and what is said of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import attncli
from tests.support.changes import Changed, changes, differs, outcome, pasted, problem_of, solved


def the_law(changed: Changed) -> None:
    """What differs does not pass; options that are said to make the candidate make it."""
    assume(changed.kinds and differs(changed, 50))
    candidate = solved(changed.tensors, changed.made)
    found = attncli.compare(candidate, problem_of(changed.tensors, changed.asked))
    assert found.verdict != "passed"
    said = [e for e in found.explanations if e.passed and not e.words]
    assert said or found.verdict != "ambiguous"
    for one in said:
        again = problem_of(changed.tensors, pasted(changed.asked, one))
        attncli.assert_close(candidate, again, explain=False)


@pytest.mark.parametrize("examples", [40, pytest.param(400, marks=pytest.mark.slow)])
def test_what_is_said_to_make_the_candidate_makes_it(examples: int) -> None:
    settings(max_examples=examples, deadline=None)(given(changed=changes())(the_law))()


@settings(max_examples=30, deadline=None)
@given(changed=changes(("float32", "float64"), kinds=("scale", "softcap", "sink")))
def test_a_number_is_always_named(changed: Changed) -> None:
    assume(changed.kinds and differs(changed, 1000))
    candidate = solved(changed.tensors, changed.made)
    found = attncli.compare(candidate, problem_of(changed.tensors, changed.asked))
    assert outcome(changed, found).endswith(", named"), str(found)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=3, max_size=3),
    before=st.sampled_from(["none", "causal", "padding(20, 20, 20)"]),
    side=st.sampled_from(["", ", left"]),
    seed=st.integers(0, 99),
)
def test_lengths_of_batch_elements_are_found(
    lengths: list[int], before: str, side: str, seed: int
) -> None:
    assume(len(set(lengths)) > 1)
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(3, 3, 2, 20, 8)).astype(np.float32)
    tensors = dict(zip(("query", "key", "value"), drawn, strict=True))
    kept = f"padding({', '.join(map(str, lengths))}{side})"
    mask = f"causal & {kept}" if before == "causal" else kept
    changed = Changed(tensors, {"--mask": before}, {"--mask": mask})
    candidate = solved(tensors, changed.made)
    found = attncli.compare(candidate, problem_of(tensors, changed.asked))
    assert outcome(changed, found) == "explained, named", str(found)


@pytest.mark.parametrize("style", ["half", "interleaved"])
@pytest.mark.parametrize("theta", ["10000", "100000", "500000", "1000000"])
@pytest.mark.parametrize("asked", [{}, {"--rope": "half"}, {"--rope": "interleaved"}])
def test_a_usual_theta_is_found_with_its_style(
    asked: dict[str, str], style: str, theta: str
) -> None:
    drawn = np.random.default_rng(1).normal(size=(3, 1, 2, 40, 16)).astype(np.float32)
    tensors = dict(zip(("query", "key", "value"), drawn, strict=True))
    changed = Changed(tensors, asked, {"--rope": style, "--rope-theta": theta})
    if not differs(changed, 50):
        pytest.skip("it is what is asked")
    candidate = solved(tensors, changed.made)
    found = attncli.compare(candidate, problem_of(tensors, asked))
    assert outcome(changed, found) == "explained, named", str(found)
