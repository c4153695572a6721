"""Many attention problems, one a layer or a text: what is known of every head, and no tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from attncli.attention.problem import Problem
from attncli.attention.shares import Exchange
from attncli.attention.view import Labels
from attncli.engines import DEFAULT
from attncli.measures.evidence import Evidence
from attncli.measures.policy import POLICY, Finding, Rule, Verdict, judge
from attncli.measures.pooled import pooled
from attncli.measures.roles import CONTENT, SHARE, Role, detected
from attncli.measures.statistic import Summaries, of_head
from attncli.models.finding import telling_parts
from attncli.models.matching import numbers
from attncli.resources import Progress
from attncli.studies import health
from attncli.studies.attend import Ran
from attncli.studies.health import TOLD, Examination, examine
from attncli.studies.sent import said_in, text_of

MOST_ROLES = 3  # of a head, as of one text


@dataclass(frozen=True, eq=False)
class LayerHealth:
    """What is known of one problem: ``heads`` are judged, ``found`` their statistics by name.

    ``batches`` are the batch elements that these are of, ``(len(batches), H)``, or None where all
    are taken together, ``(1, H)``. ``missing`` are the statistics that are not there, and what each
    would need. ``shapes`` are those of query, key and value, or of the weights, as they came in;
    ``queries`` and ``keys`` how many there are, ``batch`` how many batch elements.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    batch: int
    queries: int
    keys: int
    kv_heads: int
    scale: float | None
    scale_source: str
    softcap: float | None
    mask: str
    engine: Ran
    sampled: tuple[int, int]
    missing: Mapping[str, str]
    found: Summaries
    heads: tuple[health.Head, ...]
    batches: tuple[int, ...] | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Head:
    """One head of one layer; ``label`` and ``index`` are the layer's, ``batch`` None for all."""

    layer: LayerHealth
    label: str
    index: int
    at: int  # of the layer among all
    row: int  # of the statistics: its batch element's
    batch: int | None
    head: int
    verdict: Verdict
    roles: tuple[Role, ...]

    @property
    def name(self) -> str:
        """As in ``18.6``; ``0/18.6`` of one batch element."""
        own = f"{self.label}.{self.head}"
        return own if self.batch is None else f"{self.batch}/{own}"

    @property
    def statistics(self) -> dict[str, Any]:
        """Its statistics by name, a number or quantiles each."""
        return of_head(self.layer.found, self.row, self.head)

    @property
    def reasons(self) -> list[str]:
        """Why it is not ok, in words, the worst first."""
        return self.verdict.reasons


SAID = (LayerHealth, health.Head, Verdict, Finding, Role, Ran)  # what processes say of layers


class Many:
    """Attention problems, one added after the other; of each O(heads) numbers stay.

    The arguments are those of `health.examine`. ``among`` are the names of all that there is, where
    only some are added: they get the short names and numbers that they have among these. ``seen``
    is called with each layer while its tensors are at hand. With an ``exchange`` several processes
    take the layers in turn (``skips``), and ``join`` brings them together.
    """

    def __init__(
        self, *, policy: Sequence[Rule] = POLICY, seed: int = 0, backend: str = DEFAULT,
        device: str = "auto", threads: int | None = None, among: Sequence[str] = (),
        seen: Callable[[LayerHealth, Examination, Labels], None] | None = None,
        exchange: Exchange | None = None,
    ) -> None:  # fmt: skip
        self.layers: list[LayerHealth] = []
        self._exchange, self._places = exchange, count()
        self._own: list[int] = []  # the places of its layers among those of all processes
        self.seed = seed
        self._seen = seen
        self._among = list(dict.fromkeys(among))
        self._names: set[str] = set()
        self._policy = policy
        self._examine = partial(
            examine, effects=False, policy=policy, grad_output=f"random:{seed}", seed=seed,
            backend=backend, device=device, threads=threads,
        )  # fmt: skip

    def skips(self, name: str) -> bool:
        """Return whether the next problem is that of another process, which examines it."""
        place, exchange = next(self._places), self._exchange
        if exchange is None or place % exchange.ranks == exchange.rank:
            self._own.append(place)
            return False
        self._new(name)
        return True

    def join(self) -> None:
        """Bring the layers of all processes together, in the order in which they came."""
        if self._exchange is None:
            return
        ours = text_of(list(zip(self._own, self.layers, strict=True)), SAID)
        every = [one for text in self._exchange.texts(ours) for one in said_in(text, SAID)]
        self.layers = [layer for _, layer in sorted(every, key=lambda one: one[0])]

    def add(
        self,
        name: str,
        problem: Problem,
        labels: Labels | None = None,
        notes: Collection[str] = (),
        *,
        batches: Sequence[int] | None = None,
        progress: Progress | None = None,
    ) -> LayerHealth:
        """Examine a problem and keep what is known of its heads.

        ``batches`` are the batch elements whose heads are judged one by one; None takes the rows of
        all of them together. A name that was there before, as of a layer that is called twice, gets
        a number behind it. Raises AttnError for what cannot be run.
        """
        done = self.examine(problem, labels, progress)
        layer = self.keep(name, done, notes, batches=batches)
        if self._seen:
            self._seen(layer, done, labels or Labels())
        return layer

    def examine(
        self, problem: Problem, labels: Labels | None = None, progress: Progress | None = None
    ) -> Examination:
        """Return all that is known of a problem; see ``add``."""
        labels = labels or Labels()
        return self._examine(
            problem, tokens=labels.key, query_tokens=labels.query, progress=progress
        )

    def keep(
        self, name: str, done: Examination, notes: Collection[str] = (), *,
        batches: Sequence[int] | None = None,
    ) -> LayerHealth:  # fmt: skip
        """Keep what an examination says of the heads; see ``add``."""
        found, heads, p = done.found, done.heads, done.result.problem
        if batches is not None:
            at = list(batches)
            found = {name: _some(values, at) for name, values in found.items()}
            heads = tuple(head for b in at for head in heads if head.batch == b)
        elif p.batch > 1:
            found, heads = _pooled(done.evidence, heads, self._policy)
        extent = p.mask.extent
        layer = LayerHealth(
            self._new(name),
            p.shapes, p.batch, p.queries, p.keys, p.kv_heads, p.scale if p.scored else None,
            p.scale_source, p.softcap,
            p.mask.text or ("given" if p.scored and not (p.mask.trivial or extent.lengths) else ""),
            done.result.engine, (done.sample.rows, done.sample.total), done.missing, found, heads,
            None if batches is None else tuple(batches), tuple(done.result.warnings), tuple(notes),
        )  # fmt: skip
        self.layers.append(layer)
        return layer

    def _new(self, name: str) -> str:
        again = new_name(name, self._names)
        self._names.add(again)
        if again not in self._among:
            self._among.append(again)
        return again

    def called(self, layer: LayerHealth) -> tuple[str, int]:
        """Return the short name of a layer, and the number by which --layer knows it."""
        return self._called[layer.name]

    @property
    def _called(self) -> dict[str, tuple[str, int]]:
        known = zip(labels_of(self._among), indices_of(self._among), strict=True)
        return dict(zip(self._among, known, strict=True))

    @property
    def heads(self) -> list[Head]:
        """Every head of every layer, in order."""
        called = self._called
        return [
            head
            for at, layer in enumerate(self.layers)
            for head in heads_of(layer, *called[layer.name], at)
        ]


def heads_of(layer: LayerHealth, label: str, index: int, at: int = 0) -> list[Head]:
    """Return the heads of one layer that is called so."""
    rows = {b: row for row, b in enumerate(layer.batches or ())}
    apart = layer.batches is not None
    return [
        Head(
            layer, label, index, at, rows.get(one.batch, 0), one.batch if apart else None,
            one.head, one.verdict, one.roles,
        )
        for one in layer.heads
    ]  # fmt: skip


# -- names ------------------------------------------------------------------------------------


def call_name(name: str, n: int) -> str:
    """Return what the ``n``-th call of a layer is called, from 1 on."""
    return name if n == 1 else f"{name}.call{n}"


def new_name(name: str, known: Container[str]) -> str:
    """Return what the next call of a layer is called, of which some calls may be known."""
    return next(again for n in count(1) if (again := call_name(name, n)) not in known)


def labels_of(names: Sequence[str]) -> list[str]:
    """Return a short name for each layer, none twice, as checkpoints have them.

    The number in its name (``10`` of ``layers.10``, ``3`` of ``layer_3``), all its numbers, what
    tells the names apart (``decoder.0.encoder_attn``), or the name.
    """
    if not names:
        return []
    telling = telling_parts(names)
    ways = (
        lambda name: ".".join(map(str, numbers_of(name)[:1])) * (len(numbers_of(name)) == 1),
        lambda name: ".".join(map(str, numbers_of(name))),
        telling,
        lambda name: name,
    )
    for way in ways:
        found = [way(name) for name in names]
        if all(found) and len({*found}) == len(found):
            return found
    return [f"{name} ({n})" for n, name in enumerate(names)]


def indices_of(names: Sequence[str]) -> list[int]:
    """Return the number by which --layer and --filter know each layer.

    It stands in the name where every name has one; else it is the layer's place.
    """
    found = [numbers_of(name) for name in names]
    if all(len(one) == 1 for one in found):
        return [one[0] for one in found]
    return list(range(len(names)))


def numbers_of(name: str) -> tuple[int, ...]:
    """Return the numbers between the dots of a name, else the one at its end."""
    end = re.search(r"\d{1,9}$", name)
    return numbers(name) or ((int(end[0]),) if end else ())


# -- batch elements together ------------------------------------------------------------------


def _some(values: Any, at: Sequence[int]) -> Any:
    if isinstance(values, Mapping):
        return {quantile: one[at] for quantile, one in values.items()}
    return values[at]


def _pooled(
    each: Evidence, heads: Sequence[health.Head], policy: Sequence[Rule]
) -> tuple[Summaries, tuple[health.Head, ...]]:
    """Return statistics ``(1, H)`` of all rows, and the verdicts on them."""
    together = pooled(each)
    found = together.summaries(together.known(TOLD))
    judged = []
    for h in range(each.problem.heads):
        own = [head for head in heads if head.head == h]
        rows = [int(each.sweep.rows[head.batch, h]) for head in own]
        total = sum(rows) or 1
        placed = sum(head.placed * n for head, n in zip(own, rows, strict=True)) / total
        facts = together.judged(found, 0, h)
        seen = detected(together, facts, 0, h)
        places = [one for one in _together(own, rows) if not (seen and one.name in CONTENT)]
        verdict = judge(facts, placed, policy)
        judged.append(health.Head(0, h, verdict, (*seen, *places)[:MOST_ROLES], placed))
    return found, tuple(judged)


def _together(heads: Sequence[health.Head], rows: Sequence[int]) -> tuple[Role, ...]:
    """Return the places of a head in all batch elements: of the mean of their shares.

    A place has its token where that is the same in all. A text in which a place is not named counts
    as nothing there. That a head looks broadly, or by content, is said where it has no place, as of
    most rows.
    """
    summed: dict[str, list[tuple[Role, int]]] = {}
    for head, n in zip(heads, rows, strict=True):
        for role in head.roles:
            if role.rows is None:  # those of repeats are of all rows together
                summed.setdefault(role.name, []).append((role, n))
    total = sum(rows) or 1
    found, content = [], []
    for name, some in summed.items():
        tokens = {role.token for role, _ in some}
        token = tokens.pop() if len(tokens) == 1 else None
        if name in CONTENT:
            there = sum(n for _, n in some)
            mean = sum(role.share * n for role, n in some) / max(there, 1)
            content.append((there, Role(name, mean)))
        else:
            share = sum(role.share * n for role, n in some) / total
            found.append(Role(name, share, token, some[0][0].sink))
    found = [role for role in found if role.share >= SHARE]
    found.sort(key=lambda role: -role.share)
    if not found and content:
        found = [max(content, key=lambda one: one[0])[1]]
    return tuple(found)
