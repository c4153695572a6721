"""A fault of each family in plain NumPy, and what is said of it: in a second, before the matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import attncli
from attncli.studies.compare import told

Array = np.ndarray[Any, np.dtype[Any]]
LENGTHS = (9, 4, 7)
Q, K, V = (np.random.default_rng(31).normal(size=(3, 2, 9, 4)) for _ in range(3))
ROW, KEY = np.ogrid[:9, :9]


def attended(keep: Any, score: Callable[[Array], Array] = lambda s: s) -> dict[str, Array]:
    """Output and lse of scores at which a function has looked, where ``keep`` is True."""
    s = np.where(keep, score(np.einsum("bhid,bhjd->bhij", Q, K) / 2), -np.inf)
    top = s.max(-1, keepdims=True)
    e = np.exp(s - top)
    total = e.sum(-1, keepdims=True)
    return {"output": e / total @ V, "lse": (top + np.log(total))[..., 0]}


def kept(*lengths: int) -> Array:
    return np.asarray(np.reshape(lengths, (3, 1, 1, 1)) > KEY)


def capped(s: Array) -> Array:
    return np.asarray(2 * np.tanh(s / 2))


CAUSAL = ROW >= KEY
ANSWERS: dict[str, tuple[dict[str, Any], dict[str, Array], str]] = {
    "lse of the other sign": (
        {}, {**attended(CAUSAL | True), "lse": -attended(CAUSAL | True)["lse"]}, "the other sign",
    ),
    "twice the window": (
        {"mask": "causal & window(2)"}, attended(CAUSAL & (ROW - KEY <= 4)), "window(4",
    ),
    "padding, one key less": (
        {"mask": "padding(9, 4, 7)"}, attended(kept(8, 3, 6)), "padding(8, 3, 6)",
    ),
    "padding of one length": (
        {"mask": "padding(9, 4, 7)"}, attended(kept(9, 9, 9)), "--mask none",
    ),
    "softcap behind the mask": (
        {"mask": "causal", "softcap": 2.0},
        attended(True, lambda s: capped(np.where(CAUSAL, s, -1e9))), "softcap after the mask",
    ),
    "softcap left out": ({"softcap": 2.0}, attended(True), "--softcap 0"),
    "scale twice": ({}, attended(True, lambda s: s / 2), "--scale 0.25"),
    "causal left out": ({"mask": "causal"}, attended(True), "--mask none"),
    "a window of one key less": (
        {"mask": "causal & window(3)"}, attended(CAUSAL & (ROW - KEY <= 2)), "window(2",
    ),
}  # fmt: skip


def without_a_row() -> dict[str, Array]:
    answer = attended(CAUSAL)
    answer["output"][1, :, 3] = 0
    return answer


ANSWERS["a row never written"] = (
    {"mask": "causal"},
    without_a_row(),
    "batch element 1, row 3: 2 rows all zero",
)


@pytest.mark.parametrize("name", ANSWERS)
def test_it_is_named(name: str) -> None:
    said, answer, words = ANSWERS[name]
    problem = {"query": Q, "key": K, "value": V, **said}
    found = attncli.compare(answer, problem)
    assert not found.passed and words in " ".join(found.sentence.split())
    data = told.data(found)
    assert data["located"] == list(found.located)
    assert bool(data["located"]) is (name == "a row never written")
    assert [one["passed"] for one in data["explanations"]].count(True) == len(
        [one for one in found.explanations if one.passed]
    )
    assert all(one["share_left"] is None or one["share_left"] >= 0 for one in data["explanations"])
    assert not any(one.fault for one in found.explanations if one.options)


def test_the_formulas_themselves_pass() -> None:
    for mask, keep in ((None, CAUSAL | True), ("causal", CAUSAL), ("padding(9, 4, 7)", None)):
        answer = attended(kept(*LENGTHS) if keep is None else keep)
        problem = {"query": Q, "key": K, "value": V, "mask": mask}
        assert attncli.compare(answer, problem).passed
