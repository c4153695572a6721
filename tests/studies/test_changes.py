"""Which layers belong together, problems that wait, and what became of heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.attention.view import Labels
from attncli.errors import InputError
from attncli.studies.changes import Changes, Side, Waiting, paired


def problem(seed: int = 0, batch: int = 1, length: int = 6) -> Any:
    rng = np.random.default_rng(seed)
    tensors = (rng.normal(size=(batch, 2, length, 4)) for _ in range(3))
    return pose(*tensors, mask=[masker("causal")])


@pytest.mark.parametrize(
    ("before", "after", "pairs", "alone", "by"),
    [
        (["a"], ["b"], [(0, 0)], ([], []), "name"),
        (["l.0", "l.1"], ["l.1", "l.0"], [(0, 1), (1, 0)], ([], []), "name"),
        (["l.0", "l.1"], ["l.1", "l.2"], [(1, 0)], (["l.0"], ["l.2"]), "name"),
        (["l.0", "l.1"], ["m.l.0.attn", "m.l.1.attn"], [(0, 0), (1, 1)], ([], []), "number"),
        (["layer_2", "layer_10"], ["l.10"], [(1, 0)], (["layer_2"], []), "number"),
    ],
)  # fmt: skip
def test_layers_belong_together(
    before: list[str], after: list[str], pairs: Any, alone: Any, by: str
) -> None:
    found = paired(before, after)
    assert [*found.pairs] == pairs and found.by == by
    assert tuple(map(list, found.alone)) == alone


def test_layers_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(InputError, match=r"l\.0, l\.1 and x, y"):
        paired(["l.0", "l.1"], ["x", "y"])


def test_what_waited_is_as_it_was() -> None:
    with Waiting() as waiting:
        for n in range(3):
            waiting.add("layer", problem(n), Labels())
        assert waiting.names == ("layer", "layer.call2", "layer.call3")
        for n, name in enumerate(waiting.names):
            for one in ("query", "key", "value"):
                taken = getattr(waiting.take(name).problem, one)
                np.testing.assert_array_equal(taken, getattr(problem(n), one))
        assert waiting.size >= 3 * 3 * 2 * 6 * 4 * 8


def test_heads_of_a_batch_are_together_or_apart() -> None:
    before, after = problem(batch=2), problem(batch=2)
    after.query[1, 0] *= 3
    apart, together = Changes(), Changes()
    apart.add("x", Side(before), Side(after), batches=(0, 1))
    together.add("x", Side(before), Side(after))
    own = {(one.batch, one.head): one.found for one in apart.heads}
    assert [at for at, found in own.items() if found["change"]] == [(1, 0)]
    moved = {one.head: one.found for one in together.heads}
    assert moved[0]["js"]["mean"] == pytest.approx(own[1, 0]["js"]["mean"] / 2)
    assert 0 < moved[0]["output_change"] < own[1, 0]["output_change"]
    assert not moved[1]["change"]


def test_padding_is_not_compared() -> None:
    rng = np.random.default_rng(0)
    tensors = [rng.normal(size=(1, 2, 6, 4)) for _ in range(3)]
    before = pose(*tensors, mask=[masker("padding(4)")])
    for tensor in tensors:
        tensor[:, :, 4:] = 9
    after = pose(*tensors, mask=[masker("padding(4)")])
    changes = Changes()
    changes.add("x", Side(before), Side(after))
    assert [one.amount for one in changes.heads] == [0, 0]


def test_a_difference_is_after_less_before() -> None:
    before, after = problem(), problem()
    after.query[:, 1] *= 4
    changes = Changes()
    changes.add("x", Side(before), Side(after))
    same, moved = changes.heads
    assert same.differing == ["head_similarity"]  # the other head is not what it was
    assert "entropy" in moved.differing
    for quantile, value in moved.difference["entropy"].items():
        was, now = (one.statistics["entropy"][quantile] for one in (moved.before, moved.after))
        assert value == now - was
    assert "sink_key" not in moved.difference


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (problem(length=5), ("6 queries and 6 keys in before", "5 queries and 5 keys in after")),
        (problem(batch=2), ("1 batch element in before", "2 batch elements in after")),
    ],
)
def test_other_shapes_are_an_error_that_names_both(other: Any, words: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        Changes().add("x", Side(problem()), Side(other))
    assert all(word in caught.value.message for word in words)
