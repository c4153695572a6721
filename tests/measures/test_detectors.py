"""Heads made to do one thing are named by it, and by nothing else.

Tokens are random, so that repeats stand at all distances; a row in which the thing cannot be done
looks at all its keys alike. Weights are said by their logits: keys are unit vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from attncli.attention.language import masker, tensor_masker
from attncli.attention.pose import pose
from attncli.attention.view import Labels
from attncli.studies.health import Head, examine
from attncli.studies.many import Many

LENGTH, WORDS, SHARP = 96, 30, 9.0
SEPARATOR = "."

Thing = Callable[[Sequence[str], int], list[int]]  # the keys that row i looks at


def earlier(tokens: Sequence[str], i: int) -> list[int]:
    return [j for j in range(i) if tokens[j] == tokens[i]]


def induction(tokens: Sequence[str], i: int) -> list[int]:
    return [j + 1 for j in earlier(tokens, i) if j + 1 < i]


def previous_of_repeat(tokens: Sequence[str], i: int) -> list[int]:
    return [i - 1] if earlier(tokens, i) else []


def separators(tokens: Sequence[str], i: int) -> list[int]:
    return [j for j in range(i + 1) if tokens[j] == SEPARATOR]


def offset(d: int) -> Thing:
    return lambda tokens, i: [i + d] if 0 <= i + d < len(tokens) else []


def broad(tokens: Sequence[str], i: int) -> list[int]:
    return []


CAUSAL: dict[str, Thing] = {
    "induction": induction, "duplicate token": earlier,
    "previous token of a repeat": previous_of_repeat, "separators": separators, "broad": broad,
    "self": offset(0), "previous token": offset(-1),
    **{f"offset {d}": offset(d) for d in (-2, -3, -4, -5)},
}  # fmt: skip
BOTH_WAYS: dict[str, Thing] = {
    "induction": induction, "broad": broad, "next token": offset(1), "previous token": offset(-1),
    "duplicate token": lambda tokens, i: [
        j for j in range(len(tokens)) if tokens[j] == tokens[i] and j != i
    ],
    **{f"offset {d:+d}": offset(d) for d in (-5, -2, 2, 3, 4, 5)},
}  # fmt: skip


def text(seed: int, length: int = LENGTH) -> tuple[str, ...]:
    """Random words, every eighth a separator."""
    words = [f"w{n}" for n in np.random.default_rng(seed).integers(0, WORDS, length)]
    words[5::8] = [SEPARATOR] * len(words[5::8])
    return tuple(words)


def logits(thing: Thing, tokens: Sequence[str], noise: float, seed: int = 0) -> Any:
    """The scores of a head ``(L, L)``."""
    z = noise * np.random.default_rng(seed).normal(size=(len(tokens), len(tokens)))
    for i in range(len(tokens)):
        z[i, thing(tokens, i)] += SHARP
    return z


def named(head: Head) -> list[str]:
    return [role.name for role in head.roles]


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_head_is_named_by_what_it_does(name: str, noise: float) -> None:
    tokens = text(0)
    z = logits(CAUSAL[name], tokens, noise)
    problem = pose(z, np.eye(LENGTH), np.eye(LENGTH), scale=1.0, mask=masker("causal"))
    (head,) = examine(problem, tokens=[tokens], effects=False).heads
    assert named(head) == [name]
    assert head.roles[0].share > 0.75


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("name", BOTH_WAYS)
def test_a_head_that_looks_both_ways_is_too(name: str, noise: float) -> None:
    tokens = text(1)
    problem = pose(
        logits(BOTH_WAYS[name], tokens, noise), np.eye(LENGTH), np.eye(LENGTH), scale=1.0
    )
    (head,) = examine(problem, tokens=[tokens], effects=False).heads
    assert named(head) == [name]


def test_a_detector_counts_the_rows_where_it_can_show() -> None:
    tokens = text(2)
    z = logits(induction, tokens, 0)
    problem = pose(z, np.eye(LENGTH), np.eye(LENGTH), scale=1.0, mask=masker("causal"))
    (head,) = examine(problem, tokens=[tokens], effects=False).heads
    rows = sum(bool(induction(tokens, i)) for i in range(LENGTH))
    assert 0 < rows < LENGTH and head.roles[0].rows == rows


def test_grouped_heads_share_their_keys_and_not_their_names() -> None:
    tokens = text(3)
    z = np.stack([logits(thing, tokens, 0.3) for thing in CAUSAL.values()])
    z = np.concatenate([z, z[:1]])  # twelve heads
    eye = np.broadcast_to(np.eye(LENGTH), (3, LENGTH, LENGTH))
    problem = pose(z, eye, eye, scale=1.0, mask=masker("causal"))
    assert problem.kv_heads == 3
    heads = examine(problem, tokens=[tokens], effects=False).heads
    assert [named(head) for head in heads] == [[name] for name in (*CAUSAL, "induction")]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_padding_on_either_side_changes_no_name(side: str, noise: float) -> None:
    """Three texts of a batch, each by itself and all together."""
    lengths, things = (96, 80, 91), [*CAUSAL.values()]
    texts = [text(10 + n, length) for n, length in enumerate(lengths)]
    total = max(lengths)
    z = np.zeros((3, len(things), total, total))
    keep = np.zeros((3, 1, total, total), bool)
    padded = []
    for b, tokens in enumerate(texts):
        start = total - len(tokens) if side == "left" else 0
        at = slice(start, start + len(tokens))
        for h, thing in enumerate(things):
            z[b, h, at, at] = logits(thing, tokens, noise, b)
        keep[b, :, at, at] = np.tri(len(tokens), dtype=bool)
        fill = ("<pad>",) * (total - len(tokens))
        padded.append(fill + tokens if side == "left" else tokens + fill)
    eye = np.broadcast_to(np.eye(total), (3, 1, total, total))
    problem = pose(z, eye, eye, scale=1.0, mask=[tensor_masker(keep, "keep")])
    many = Many()
    layer = many.add("layers.0", problem, Labels(tuple(padded), tuple(padded)))
    assert [named(head) for head in layer.heads] == [[name] for name in CAUSAL]
    each = many.add("layers.1", problem, Labels(tuple(padded), tuple(padded)), batches=range(3))
    assert [named(head) for head in each.heads] == 3 * [[name] for name in CAUSAL]


def test_of_repeats_a_distance_away_the_distance_is_not_named_too() -> None:
    """Tokens twice: an earlier occurrence always stands 40 positions before."""
    half = 40
    tokens = tuple(f"w{n}" for n in [*range(half), *range(half)])
    for name, thing in (("induction", induction), ("duplicate token", earlier)):
        z = logits(thing, tokens, 0.3)
        eye = np.eye(2 * half)
        problem = pose(z, eye, eye, scale=1.0, mask=masker("causal"))
        (head,) = examine(problem, tokens=[tokens], effects=False).heads
        assert named(head) == [name]
        (head,) = examine(problem, effects=False).heads  # without tokens it is all there is to say
        assert named(head) == ["offset -39" if name == "induction" else "offset -40"]


def test_a_previous_token_head_is_not_one_of_repeats() -> None:
    """Its mass on the previous token is the same in all rows, here 40 %."""
    tokens = text(4)
    z = logits(offset(-1), tokens, 0.0)
    z[z > 0] = np.log(0.4 / 0.6 * np.arange(1, LENGTH))  # row i sees i others
    problem = pose(z, np.eye(LENGTH), np.eye(LENGTH), scale=1.0, mask=masker("causal"))
    (head,) = examine(problem, tokens=[tokens], effects=False).heads
    assert named(head)[0] == "previous token"
    assert "previous token of a repeat" not in named(head)
