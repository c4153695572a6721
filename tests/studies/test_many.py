"""Many problems: of each what a single examination finds, and batch elements together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.attention.problem import Problem
from attncli.attention.view import Labels
from attncli.measures.statistic import of_head
from attncli.studies.health import examine
from attncli.studies.many import Many, indices_of, labels_of
from tests.support.reports import problem


def close(got: Any, want: Any, rel: float = 1e-9) -> None:
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=rel, abs=1e-12, nan_ok=True), name


def texts(lengths: Sequence[int], total: int) -> tuple[Problem, list[Problem]]:
    """Sentences padded on the right to one batch, and each of them alone."""
    rng = np.random.default_rng(3)
    query, key, value = rng.normal(size=(3, len(lengths), 2, total, 4))
    mask = masker(f"padding({', '.join(map(str, lengths))})")
    whole = pose(query, key, value, mask=[mask, masker("causal(top_left)")])
    alone = [
        pose(query[b, :, :n], key[b, :, :n], value[b, :, :n], mask=[masker("causal")])
        for b, n in enumerate(lengths)
    ]
    return whole, alone


def test_a_head_is_what_an_examination_says() -> None:
    many, one = Many(), problem(1, 3, 7, mask="causal")
    for name in ("layers.0", "layers.1"):
        many.add(name, one)
    done = examine(one)
    for head in many.heads:
        close(head.statistics, of_head(done.found, 0, head.head))
        judged = done.heads[head.head]
        assert (head.verdict, head.roles) == (judged.verdict, judged.roles)
    assert [head.name for head in many.heads] == ["0.0", "0.1", "0.2", "1.0", "1.1", "1.2"]


def test_batch_elements_are_pooled_row_by_row() -> None:
    whole, alone = texts((5, 9), 9)
    many = Many()
    many.add("layers.0", whole)
    each = [examine(one).evidence for one in alone]
    for head in many.heads:
        found, h = head.statistics, head.head
        assert head.batch is None and found["rows"] == 14
        for name in ("entropy", "max_weight", "previous_mass", "mean_distance"):
            rows = np.concatenate([one.values(name)[0, h][one.chosen[0, h]] for one in each])
            assert found[name]["median"] == pytest.approx(np.median(rows))
            assert found[name]["mean"] == pytest.approx(rows.mean())
        assert found["logit_max"] == pytest.approx(
            max(float(one.values("logit_max")[0, h]) for one in each)
        )
        received = np.zeros(9)
        for one in each:
            mass = one.sweep.received[0, h]
            received[: len(mass)] += mass
        assert found["sink_key"] == received.argmax()
        assert found["sink_mass"] == pytest.approx(received.max() / 12)
        masses: dict[int, float] = {}
        for one in each:
            n = one.problem.queries
            for at, mass in enumerate(one.sweep.diagonals[0, h].tolist()):
                masses[at - n + 1] = masses.get(at - n + 1, 0.0) + mass
        best = max(masses, key=lambda d: masses[d])
        assert found["top_offset"] == best
        assert found["offset_mass"] == pytest.approx(masses[best] / 12)


def test_offsets_are_pooled_from_where_each_text_stands() -> None:
    rng, size, lengths = np.random.default_rng(0), 12, (7, 12)
    key = np.broadcast_to(np.eye(size), (2, 1, size, size))
    starts = [n - 4 for n in lengths]
    query = np.stack([100 * np.eye(size)[start - 2 : start + 2] for start in starts])[:, None]
    value = rng.normal(size=(2, 1, size, 3))
    looks = pose(query, key, value, mask=[masker("causal")], kv_lengths=list(lengths))
    many = Many()
    many.add("layers.0", looks)
    (head,) = many.heads
    assert head.statistics["top_offset"] == -2
    assert head.statistics["offset_mass"] == pytest.approx(1)
    assert head.roles[0].name == "offset -2"


def test_batch_elements_one_by_one() -> None:
    whole, alone = texts((5, 9), 9)
    many = Many()
    many.add("layers.3", whole, batches=[1])
    done = examine(alone[1])
    names = ("entropy", "logit_max", "head_similarity", "sink_mass")
    for head in many.heads:
        assert head.batch == 1 and head.name == f"1/3.{head.head}"
        want = of_head(done.found, 0, head.head)
        close({n: head.statistics[n] for n in names}, {n: want[n] for n in names})


def test_repeated_tokens_are_found_in_all_texts() -> None:
    size = 16
    tokens = tuple("abcdefgh" * 2)
    after = np.zeros((size, size))
    for i in range(8, size):
        after[i, i - 7] = 100  # the key after the earlier occurrence
    query = np.stack([after, after])[:, None]
    key = np.broadcast_to(np.eye(size), (2, 1, size, size))
    many = Many()
    one = pose(query, key, key, mask=[masker("causal")])
    many.add("layers.0", one, Labels((tokens,), (tokens,)))
    (head,) = many.heads
    assert head.roles[0].name == "induction" and head.roles[0].rows == 16
    assert head.statistics["induction_mass"]["mean"] == pytest.approx(1)


def test_no_tensor_is_kept() -> None:
    many = Many()
    layer = many.add("layers.0", problem(1, 2, 600))
    for value in layer.found.values():
        for one in value.values() if isinstance(value, Mapping) else [value]:
            assert np.size(one) == 2 and (one.base is None or one.base.size < 600)
    assert not any(isinstance(v, Problem) for v in vars(layer).values())


def test_a_layer_that_is_called_twice_has_two_names() -> None:
    many = Many()
    for _ in range(2):
        many.add("albert.attention", problem(1, 1, 3))
    assert [layer.name for layer in many.layers] == ["albert.attention", "albert.attention.call2"]
    assert len({head.name for head in many.heads}) == 2


@pytest.mark.parametrize(
    ("names", "labels", "indices"),
    [
        (["model.layers.0.attn", "model.layers.10.attn"], ["0", "10"], [0, 10]),
        (["enc.layers.0.self", "dec.layers.0.self", "dec.layers.0.cross"],
         ["enc.0.self", "dec.0.self", "dec.0.cross"], [0, 0, 0]),
        (["layer_2", "layer_11"], ["2", "11"], [2, 11]),
        (["before", "after"], ["before", "after"], [0, 1]),
        (["stages.0.blocks.1.attn", "stages.1.blocks.0.attn"], ["0.1", "1.0"], [0, 1]),
        ([], [], []),
    ],
)  # fmt: skip
def test_names(names: list[str], labels: list[str], indices: list[int]) -> None:
    assert labels_of(names) == labels and indices_of(names) == indices


def test_names_are_those_among_all() -> None:
    many = Many(among=["enc.layers.0.self", "dec.layers.0.self"])
    many.add("dec.layers.0.self", problem(1, 1, 3))
    assert [head.name for head in many.heads] == ["dec.0.0"]
