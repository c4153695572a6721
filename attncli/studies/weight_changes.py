"""Two checkpoints: what became of each head, by the weights alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from attncli.errors import InputError
from attncli.measures.changes import changes_of_weights
from attncli.measures.circuits import judged, weight_facts
from attncli.measures.policy import POLICY, Rule, judge
from attncli.models.finding import labels as labels_of_layers
from attncli.models.layer import Layer
from attncli.resources import Job, Progress, run_jobs, stages
from attncli.studies.changes import Change, State

#: Roles of tensors that projections are made of.
PROJECTED = ("query", "key", "value", "qkv", "kv", "up", "down", "query_down", "output", "gate")

Array = np.ndarray[Any, np.dtype[Any]]


def weight_changes(
    before: Sequence[Layer], after: Sequence[Layer], *, policy: Sequence[Rule] = POLICY,
    sources: tuple[str, str] = ("before", "after"), threads: int | None = None,
    progress: Progress | None = None,
) -> list[Change]:  # fmt: skip
    """Return what became of each head by the weights alone; layers belong together by their places.

    ``threads`` pairs of layers are in memory at a time. Raises InputError where two are not of one
    size, in words of ``sources``.
    """
    for was, now in zip(before, after, strict=True):
        _demand_alike(was, now, sources)
    part = stages(progress, (1, 1, 1))
    sides = []
    for layers in (before, after):
        facts = weight_facts(layers, threads=threads, progress=next(part))
        sides.append([
            [State({**one.of_head(h), **found}, judge(found, 0.0, policy))
             for h, found in enumerate(some)]
            for one, some in zip(facts, judged(facts), strict=True)
        ])  # fmt: skip
    found: dict[int, dict[str, Array]] = {}

    def compare(n: int) -> None:
        found[n] = changes_of_weights(before[n], after[n])

    jobs: list[Job] = [partial(compare, n) for n in range(len(before))]
    run_jobs(jobs, threads, False, next(part))
    labels = labels_of_layers(before)
    return [
        Change(
            f"{labels[n]}.{h}", layer.name, layer.index, n, None, h,
            {name: array[h].item() for name, array in found[n].items()},
            sides[0][n][h], sides[1][n][h],
        )
        for n, layer in enumerate(before) for h in range(layer.heads)
    ]  # fmt: skip


def _demand_alike(before: Layer, after: Layer, sources: tuple[str, str]) -> None:
    """Raise InputError unless the weights of both have the same sizes."""
    sizes = [
        {
            "heads": one.heads, "head_dim": one.head_dim, "value_dim": one.value_dim,
            "inputs": one.model_dim, "key inputs": one.key_input, "value inputs": one.value_input,
            "outputs": one.output_dim, "output projections": int("output" in one.tensors),
        }
        for one in (before, after)
    ]  # fmt: skip
    apart = [name for name in sizes[0] if sizes[0][name] != sizes[1][name]]
    if apart:
        words = [", ".join(f"{name} {own[name]}" for name in apart) for own in sizes]
        raise InputError(
            f"{before.name or 'the layer'} has {words[0]} in {sources[0]} and {words[1]} in "
            f"{sources[1]}",
            "expected two checkpoints of one architecture",
        )


def unseen_tensors(before: Layer, after: Layer) -> list[str]:
    """Return what differs, or what one has alone, of two layers: however each stores it.

    For layers whose circuits are the same: what `change` does not count, such as output biases.
    """
    was, now = _contents(before), _contents(after)
    turns = [one.rope.style if one.rope else "" for one in (before, after)]
    other = turns[0] != turns[1]  # rows in another order, as the circuits say
    return [
        part for part in dict.fromkeys([*was, *now])
        if not (other and part.startswith(("query", "key")))
        and ((part in was) != (part in now)
             or not np.array_equal(was[part], now[part], equal_nan=True))
    ]  # fmt: skip


def _contents(layer: Layer) -> dict[str, Array]:
    """Return the weights of a layer as torch's Linear has them, and its other tensors by role."""
    found = {name: a for name, a in vars(layer.projections()).items() if a is not None}
    plain = {*PROJECTED, *(f"{role}_bias" for role in PROJECTED), "q_bias", "v_bias"}
    return found | {role: layer.tensor(name) for role, name in layer.tensors.items()
                    if role not in plain}  # fmt: skip
