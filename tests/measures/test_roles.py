"""What heads look at, in words."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.measures import roles
from attncli.studies import health


@pytest.mark.parametrize(
    ("shift", "name"), [(-1, "previous token"), (0, "self"), (1, "next token")]
)
def test_heads_that_look_near_by(shift: int, name: str) -> None:
    length = 30
    problem = pose(60 * np.eye(length, 40, k=shift), np.eye(length, 40))
    (head,) = health.examine(problem).heads
    assert head.roles[0].name == name


def test_separators_first_token_local_and_content() -> None:
    tokens = ["[CLS]", *"abcdefgh", ".", *"ijklmnop", "[SEP]"]
    length = len(tokens)
    toward = np.zeros((length, 2))
    toward[[9, length - 1]] = [5.0, 0.0]
    problem = pose(np.tile([3.0, 0.0], (length, 1)), toward)
    (head,) = health.examine(problem, tokens=[tokens]).heads
    assert head.roles[0].name == "separators" and head.roles[0].share > 0.9
    near = pose(np.zeros((200, 1)), mask=masker("alibi(0.4)"))
    (head,) = health.examine(near).heads
    assert [role.name for role in head.roles] == ["local"]
    scattered = np.random.default_rng(3).permutation(60)
    content = pose(np.eye(60)[scattered] * 60, np.eye(60))
    (head,) = health.examine(content).heads
    assert [role.name for role in head.roles] == ["by content"]


def test_role_words() -> None:
    assert roles.Role("first token", 0.84, "[CLS]", sink=True).words == "[CLS] 84 % (sink)"
    assert roles.Role("broad", 0.9).words == "broad"
