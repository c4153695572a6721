"""A predicate or bias that says nothing of itself is computed right everywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import attncli
from attncli.attention.dialects import speak
from attncli.attention.language import masker, tensor_masker
from attncli.attention.masks import Extent, Mask
from attncli.attention.predicates import And, Bias, Not, Or, Predicate
from attncli.attention.problem import Masker
from attncli.errors import MaskError
from attncli.measures.masks import difference, mask_facts
from attncli.measures.sweep import sweep
from attncli.studies.bundle import carried
from tests.support import engines
from tests.support.problems import mask_expressions

Array = np.ndarray[Any, np.dtype[Any]]
BATCH, HEADS = 2, 2


@dataclass(frozen=True, eq=False)
class Odd(Predicate):
    """Cells ``(B, H, Lq, Lk)``, of which nothing is told but what is asked."""

    cells: Array

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return np.asarray(self.cells[b, h][i, j])


@dataclass(frozen=True, eq=False)
class OddBias(Bias):
    """Numbers ``(B, H, Lq, Lk)``, likewise."""

    numbers: Array

    def at(self, b: int, h: int, i: Array, j: Array) -> Array:
        return np.asarray(self.numbers[b, h][i, j])


@dataclass(frozen=True)
class Case:
    """A mask with unknown parts, what it keeps ``(B, H, Lq, Lk)``, and what it adds, if it does."""

    mask: Mask
    keep: Array
    bias: Array | None

    @property
    def tensor(self) -> Array:
        """The truth as a mask tensor."""
        return self.keep if self.bias is None else np.where(self.keep, self.bias, -np.inf)

    def as_masker(self) -> Masker:
        return lambda extent: Mask(extent, self.mask.predicate, self.mask.biases)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw unknown cells, alone or under & | ~ with a known mask, an unknown bias, or both."""
    queries, keys = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    extent = Extent(BATCH, HEADS, queries, keys)
    shape = (BATCH, HEADS, queries, keys)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    keep = rng.random(shape) < draw(st.sampled_from([0.3, 0.8, 1.0]))
    predicate: Predicate = Odd(keep)
    known = masker(draw(mask_expressions(BATCH, queries, keys)))(extent)
    how = draw(st.sampled_from(["alone", "&", "|", "~", "known"]))
    if how == "&":
        predicate, keep = And(known.predicate, predicate), known.dense() & keep
    elif how == "|":
        predicate, keep = Or(predicate, known.predicate), known.dense() | keep
    elif how == "~":
        predicate, keep = Not(And(predicate, known.predicate)), ~(keep & known.dense())
    elif how == "known":
        predicate, keep = known.predicate, known.dense()
    if how != "known" and draw(st.booleans()):
        return Case(Mask(extent, predicate), keep, None)
    bias = rng.normal(size=shape)
    return Case(Mask(extent, predicate, (OddBias(bias),)), keep, bias)


def problem(case: Case, **more: Any) -> dict[str, Any]:
    """The arguments of ``attend`` beside the mask."""
    e, rng = case.mask.extent, np.random.default_rng(0)
    sizes = {"query": e.queries, "key": e.keys, "value": e.keys}
    return {n: rng.normal(size=(BATCH, HEADS, size, 3)) for n, size in sizes.items()} | more


@given(cases())
@settings(max_examples=100, deadline=None)
def test_what_is_said_of_unknown_masks_is_true(case: Case) -> None:
    mask, keep = case.mask, case.keep
    batches, heads = mask.distinct()
    stand = keep[np.ix_(batches, heads)]
    assert (np.broadcast_to(stand, keep.shape) == keep).all()
    assert (mask.dense() == keep).all()
    small = mask.compact(rows=True)
    assert (np.broadcast_to(small.dense(), keep.shape) == keep).all()
    if case.bias is not None:
        assert (mask.tensor() == case.tensor).all()
        assert (np.broadcast_to(small.tensor(), keep.shape) == case.tensor).all()
    facts = mask_facts(mask)
    assert facts.kept == keep.sum()
    assert facts.empty_rows + facts.padding_rows == (~keep.any(-1)).sum()
    assert facts.tiles_empty == (~keep.any((-1, -2))).sum()
    assert facts.tiles_full == keep.all((-1, -2)).sum()
    found = difference(mask, Mask(mask.extent))
    assert found.only_other == (~keep).sum()


@given(cases())
@settings(max_examples=40, deadline=None)
@pytest.mark.parametrize("engine", engines.WHOLE)
def test_engines_compute_unknown_masks(engine: str, case: Case) -> None:
    asked = problem(case, want=("output", "lse", "gradients"))
    truth = attncli.attend(**asked, attn_mask=case.tensor, backend="reference")
    ours = attncli.attend(**asked, mask=case.as_masker(), **engines.options_of(engine))
    also = attncli.attend(
        **problem(case, want=("row_statistics", "weights")), mask=case.as_masker(),
        **engines.options_of(engine),
    )  # fmt: skip
    assert truth.gradients is not None and ours.gradients is not None
    for one, other in (
        (truth.output, ours.output),
        (truth.output, also.output),
        (truth.lse, ours.lse),
        (truth.gradients.query, ours.gradients.query),
        (truth.gradients.key, ours.gradients.key),
    ):
        np.testing.assert_allclose(other, one, rtol=1e-9, atol=1e-9)
    swept, dense = (sweep(r.problem, r.lse, np.isfinite(r.lse)) for r in (ours, truth))
    np.testing.assert_allclose(swept.received, dense.received, rtol=1e-9, atol=1e-9)


@given(cases())
@settings(max_examples=100, deadline=None)
def test_unknown_masks_go_along_as_they_are(case: Case) -> None:
    posed = attncli.attend(**problem(case), mask=case.as_masker()).problem
    along = carried(posed, ("query", "key"), past_apart=False)
    options, arrays = along.options, along.arrays
    extent = case.mask.extent
    again = Mask(extent)
    if "mask" in options:
        again = again & masker(options["mask"])(extent)
    if "attn_mask" in arrays:
        again = again & tensor_masker(arrays["attn_mask"])(extent)
    assert (again.dense() == case.keep).all()
    if case.bias is not None:
        assert (again.tensor() == case.tensor).all()


def said_by(case: Case, dialect: str) -> tuple[Array, Array | None]:
    """What the words of a library keep and add, ``(B, H, Lq, Lk)``: tensors, never arguments."""
    said, shape = speak(case.mask, dialect), case.keep.shape
    keep, bias = np.ones(shape, bool), None
    assert not said.arguments
    for name, tensor in said.tensors.items():
        if name == "key_padding_mask":
            keep &= ~tensor[:, None, None]
            continue
        assert name == ("attention_mask" if dialect == "hf" else "attn_mask")
        by_head = dialect == "mha" and tensor.ndim == 3  # (B·H, Lq, Lk)
        full = np.broadcast_to(tensor.reshape(shape) if by_head else tensor, shape)
        if full.dtype == bool:
            keep &= ~full if dialect == "mha" else full
        else:
            here = full > np.finfo(np.float32).min
            keep &= here
            bias = np.where(here, full, -np.inf)
    return keep, bias


@given(cases(), st.sampled_from(["sdpa", "mha", "onnx", "hf"]))
@settings(max_examples=100, deadline=None)
def test_dialects_say_unknown_masks_as_tensors(case: Case, dialect: str) -> None:
    keep, bias = said_by(case, dialect)
    assert (keep == case.keep).all()
    if case.bias is not None:
        assert bias is not None
        np.testing.assert_allclose(bias, case.tensor, rtol=1e-6)


@given(cases())
@settings(max_examples=50, deadline=None)
def test_flash_refuses_unknown_masks(case: Case) -> None:
    with pytest.raises(MaskError, match="flash-attention"):
        speak(case.mask, "flash")


def test_what_a_bias_shares_with_a_mask_that_varies_by_batch_is_not_shared() -> None:
    mask = masker("padding(3, 2) + alibi")(Extent(2, 2, 4, 4))
    said = speak(mask, "sdpa").tensors["attn_mask"]
    assert (np.isfinite(said) == mask.dense()).all()
    alike = masker("prefix(2) + alibi")(mask.extent)
    assert speak(alike, "sdpa").tensors["attn_mask"].shape == (1, 2, 4, 4)


@dataclass(frozen=True, eq=False)
class Above(Predicate):
    """``j >= start``, of the batch element or of the head."""

    start: Callable[[int, int], int]

    def allows(self, b: int, h: int, i: Array, j: Array) -> Array:
        return j >= self.start(b, h)


@pytest.mark.parametrize("by", ["batch", "head"])
@pytest.mark.parametrize("engine", engines.WHOLE)
def test_a_predicate_that_varies(engine: str, by: str) -> None:
    def start(b: int, h: int) -> int:
        return 200 * (b if by == "batch" else h)

    query = np.random.default_rng(0).normal(size=(2, 2, 300, 8))
    want = ("output", "gradients", "row_statistics")
    starts = np.array([[start(b, h) for h in range(2)] for b in range(2)])  # (B, H)
    keep = np.arange(300) >= starts[..., None, None]  # (B, H, 1, Lk)
    truth = attncli.attend(query, attn_mask=keep, backend="reference", want=want)
    ours = attncli.attend(
        query, mask=lambda e: Mask(e, Above(start)), want=want, **engines.options_of(engine)
    )
    assert truth.gradients is not None and ours.gradients is not None
    np.testing.assert_allclose(ours.output, truth.output, atol=1e-12)
    np.testing.assert_allclose(ours.gradients.query, truth.gradients.query, atol=1e-10)
    assert mask_facts(ours.problem.mask).kept == 2 * 300 * (300 + 100)
