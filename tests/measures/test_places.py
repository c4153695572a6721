"""Fixed places and detectors of heads: any offset, a key counted once, labels that flip nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attncli import files
from attncli.attention import definition
from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.cli import groups
from attncli.cli.given import attention
from attncli.measures import roles, sweep
from attncli.measures.evidence import words_of
from attncli.measures.statistic import of_head
from attncli.studies import health
from attncli.studies.attend import solve
from tests.support.problems import problems
from tests.support.program import ROOT

Words = tuple[str, ...]
SAMPLE = ROOT / "samples" / "minilm.safetensors"


def toward(length: int, offset: int, sharp: float = 12.0, seed: int = 0) -> Any:
    """Queries and keys ``(L, D)`` whose rows look at ``offset``, with a little noise."""
    rng = np.random.default_rng(seed)
    key = np.eye(length) + 0.02 * rng.normal(size=(length, length))
    query = sharp * length**0.5 * np.eye(length, k=offset)
    return query, key, rng.normal(size=(length, 8))


@pytest.mark.parametrize("offset", [-40, -7, -3, -2, 2, 3, 11])
def test_any_offset_is_a_fixed_place(offset: int) -> None:
    length = 400
    (head,) = health.examine(pose(*toward(length, offset))).heads
    place = head.roles[0]
    assert place.name == f"offset {offset:+d}" and not place.sink
    assert place.share == pytest.approx(1 - abs(offset) / length, abs=0.02)
    assert head.placed >= place.share - 1e-9 and head.verdict.level == "ok"
    assert any("normal on a fixed place" in reason for reason in head.verdict.reasons)


def test_offsets_count_from_the_place_of_the_queries() -> None:
    query, key, value = toward(60, -2)
    problem = pose(query[20:], key, value, mask=masker("causal(bottom_right)"))
    (head,) = health.examine(problem).heads
    assert head.roles[0].name == "offset -2"
    unplaced = pose(query[20:], key, value)  # nothing says where the queries stand
    (head,) = health.examine(unplaced).heads
    assert all("offset" not in role.name for role in head.roles) and head.placed == 0


def test_a_sharp_head_without_a_place_is_not_excused() -> None:
    rng = np.random.default_rng(3)
    length = 64
    query = 12 * 8 * np.eye(length)[rng.permutation(length)]
    (head,) = health.examine(pose(query, np.eye(length))).heads
    assert head.verdict.level == "critical" and head.placed < 0.5


@given(problems(dtypes=("float64",)))
@settings(max_examples=100, deadline=None)
def test_diagonals_and_offsets_are_their_definitions(problem: Problem) -> None:
    done = health.examine(problem)
    offsets = problem.mask.positions()
    for b, h in np.ndindex(problem.batch, problem.heads):
        found, rows = of_head(done.found, b, h), int(done.evidence.sweep.rows[b, h])
        if offsets is None or not rows:
            assert found["top_offset"] == 0 and math.isnan(found["offset_mass"])
            continue
        p = definition.stages(problem, b, h)["weights"]
        alive = done.evidence.chosen[b, h] & np.isfinite(done.evidence.lse[b, h])  # type: ignore[index]
        away = np.arange(problem.keys) - np.arange(problem.queries)[:, None] - offsets[b]
        if not p[alive].any():  # a sink takes all
            assert math.isnan(found["offset_mass"])
            continue
        mass = {d: p[alive][away[alive] == d].sum() / rows for d in np.unique(away)}
        assert found["offset_mass"] == pytest.approx(max(mass.values()), abs=1e-9)
        assert mass[int(found["top_offset"])] == pytest.approx(max(mass.values()), abs=1e-9)


def test_a_key_that_two_places_hold_counts_once() -> None:
    """Rows of a short head look at key 0 and at the key before, which is key 0 for row 1."""
    length = 6
    weights = np.full((length, length), 1e-4)
    weights[:, 0] = 0.5
    weights[np.arange(1, length), np.arange(length - 1)] += 0.45
    weights /= weights.sum(1, keepdims=True)
    problem = pose(np.log(weights), np.eye(length), np.eye(length), scale=1.0)
    (head,) = health.examine(problem).heads
    assert [role.name for role in head.roles] == ["first token", "previous token"]
    union = weights[:, 0].sum() + weights[np.arange(2, length), np.arange(1, length - 1)].sum()
    assert head.placed == pytest.approx(union / length)


def test_a_separator_that_is_the_first_token_counts_once() -> None:
    """A sink on <|im_start|>, which is a separator too."""
    length = 40
    key = np.zeros((length, 2))
    key[0, 0] = 4.0
    problem = pose(np.tile([3.0, 0.0], (length, 1)), key, mask=masker("causal"))
    tokens = ("<|im_start|>", *map(str, range(1, length)))
    (head,) = health.examine(problem, tokens=[tokens]).heads
    assert [role.words.split(" ")[0] for role in head.roles] == ["<|im_start|>"]
    assert head.roles[0].name == "first token" and head.placed <= 1


def alphabet(length: int) -> st.SearchStrategy[Words]:
    word = st.sampled_from(["<|im_start|>", ".", ",", "[SEP]", "the", "cat", "a"])
    return st.lists(word, min_size=length, max_size=length).map(tuple)


@given(st.data(), st.sampled_from([0.5, 3.0, 30.0]), st.sampled_from(["causal", "window(9, 9)"]))
@settings(max_examples=60, deadline=None)
def test_labels_never_change_a_verdict(data: Any, sharp: float, mask: str) -> None:
    length = data.draw(st.integers(2, 24))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    query, key, value = rng.normal(size=(3, 2, length, 6))
    key[0, rng.integers(length)] *= 4  # a sink somewhere
    problem = pose(query * sharp, key, value, mask=masker(mask))
    plain = health.examine(problem).heads
    labelled = health.examine(problem, tokens=[data.draw(alphabet(length))]).heads
    for one, other in zip(plain, labelled, strict=True):
        assert one.verdict == other.verdict and one.placed == other.placed


# -- repeated tokens --------------------------------------------------------------------------


@given(st.data(), st.sampled_from(["causal", "window(5, 2)", "padding(9)", "prefix(3)"]))
@settings(max_examples=60, deadline=None)
def test_masses_of_repeats_are_their_definitions(data: Any, mask: str) -> None:
    length = data.draw(st.integers(2, 14))
    tokens = data.draw(alphabet(length))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    problem = pose(*rng.normal(size=(3, 1, length, 4)), mask=masker(mask.replace("9", str(length))))
    result = solve(problem, want=("output", "lse", "row_statistics"))
    words = words_of([tokens], [tokens], 1)
    assert words is not None
    done = sweep.sweep(problem, result.attended.lse, np.ones((1, 1, length), bool), words=words)
    stage = definition.stages(problem, 0, 0)
    p, keep = stage["weights"], stage["keep"]
    for i in range(length):
        same = [j for j in range(length) if j != i and tokens[j] == tokens[i] and keep[i, j]]
        after = [j + 1 for j in range(i - 1) if tokens[j] == tokens[i] and keep[i, j + 1]]
        assert done.repeats[0, 0, i] == pytest.approx([p[i, same].sum(), p[i, after].sum()])
        assert done.occurrences[0, 0, i].tolist() == [len(same), len(after)]


@pytest.mark.parametrize(
    ("shift", "name"), [(1, "induction"), (0, "duplicate token"), (None, "previous")]
)
def test_detectors_look_where_a_repeat_exists(shift: int | None, name: str) -> None:
    """40 random tokens, twice and shuffled the second time; the first half looks at itself."""
    half, rng = 40, np.random.default_rng(0)
    order = rng.permutation(half)
    tokens = tuple(f"t{n}" for n in [*range(half), *order])
    length = 2 * half
    to = np.arange(length)
    to[half:] = order + shift if shift is not None else np.arange(half, length) - 1
    query = 15 * length**0.5 * np.eye(length)[np.minimum(to, length - 1)]
    problem = pose(query, np.eye(length), mask=masker("causal"))
    done = health.examine(problem, tokens=[tokens])
    named = {role.name: role for role in done.heads[0].roles}
    if shift is None:
        assert not {"induction", "duplicate token"} & set(named)
        mass = of_head(done.found, 0, 0)["repeat_previous_mass"]["mean"]
        assert mass == pytest.approx(1, abs=1e-3)
        return
    role = named[name]
    assert role.share > 0.9 and role.rows == half and role.data["rows"] == half
    without = health.examine(problem)
    assert "induction_mass" not in without.found
    assert [head.verdict for head in without.heads] == [head.verdict for head in done.heads]


def test_labels_that_are_all_alike_are_no_induction() -> None:
    rng = np.random.default_rng(0)
    problem = pose(*rng.normal(size=(3, 30, 8)), mask=masker("causal"))
    (head,) = health.examine(problem, tokens=[("x",) * 30]).heads
    assert not {name for name, _ in roles.DETECTORS.values()} & {r.name for r in head.roles}


# -- duplicates -------------------------------------------------------------------------------


@pytest.mark.parametrize(("noise", "levels"), [(0.0, {"watch"}), (0.01, {"watch"}),
                                               (0.03, {"watch", "hint"})])  # fmt: skip
@pytest.mark.parametrize("sharp", [1.0, 2.0])
def test_copies_with_noise_are_duplicates(noise: float, levels: set[str], sharp: float) -> None:
    rng = np.random.default_rng(5)
    query, key, value = rng.normal(size=(3, 6, 96, 32))
    query *= sharp
    for array in (query, key):
        array[4] = array[1] + noise * array[1].std() * rng.normal(size=array[1].shape)
    done = health.examine(pose(query, key, value, mask=masker("causal")))
    found = {
        head.head: finding.level
        for head in done.heads for finding in head.verdict.findings if finding.name == "duplicate"
    }  # fmt: skip
    assert set(found) == {1, 4} and set(found.values()) <= levels


@pytest.mark.parametrize("noise", [0.01, 0.03])
def test_copies_of_a_real_head_are_duplicates(noise: float) -> None:
    problem = attention.gather(files.read(str(SAMPLE)), groups.Problem()).pose()
    rng = np.random.default_rng(0)
    changed = {"query": problem.query.astype(float), "key": problem.key.astype(float)}
    for array in changed.values():
        own = array[:, 9]  # a sharp sink
        array[:, 4] = own + noise * own.std() * rng.normal(size=own.shape)
    heads = health.examine(replace(problem, **changed)).heads
    found = [h.head for h in heads if any(f.name == "duplicate" for f in h.verdict.findings)]
    assert found == [4, 9] * 3 and {heads[n].verdict.level for n in (4, 9)} == {"watch"}


def test_heads_that_share_a_fixed_place_alone_are_no_duplicates() -> None:
    """Two sinks leave 0.1 % each to content of their own: alike, and no copies."""
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, 2, 80, 16))
    query[..., 0], key[..., 0], key[:, 0, 0] = 10, 0, 5.2
    done = health.examine(pose(query, key, value))
    assert min(head.placed for head in done.heads) > 0.99
    assert np.max(done.found["head_similarity"]) < 0.1
    assert not [f for head in done.heads for f in head.verdict.findings if f.name == "duplicate"]
    key[1], query[1] = key[0], query[0]
    done = health.examine(pose(query, key, value))
    assert all("duplicate" in {f.name for f in h.verdict.findings} for h in done.heads)


def test_tokens_are_known_of_queries_and_keys_or_not_at_all() -> None:
    some = [["a", "b", "a"]]
    assert words_of(None, some, 1) is words_of(some, None, 1) is words_of([], some, 1) is None
    words = words_of(some, [["b", "c"]], 2)
    assert words is not None
    query, key = words
    assert query.tolist() == [[0, 1, 0]] * 2 and key.tolist() == [[1, 2]] * 2


def test_the_keys_that_receive_most_are_the_places() -> None:
    """Most of what a head of no order receives, in the order of how much."""
    length, most = 24, [17, 5, 9]
    key = np.zeros((length, 3))
    key[most] = np.eye(3)
    query = np.log([60.0, 30.0, 15.0])[None].repeat(length, 0)  # of 126
    (head,) = health.examine(pose(query, key, key, scale=1.0)).heads
    assert [role.name for role in head.roles] == ["key 17", "key 5"]
    np.testing.assert_allclose([role.share for role in head.roles], [60 / 126, 30 / 126])
