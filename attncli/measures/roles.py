"""What a head seems to look at, with the evidence: shares of its mass, nothing more.

The classes are those of Clark et al. 2019 (previous and next token, self, [CLS], [SEP] and
punctuation, broad), any other offset, the attention sink of Xiao et al. 2024, and on repeated
tokens the detectors of Olsson et al. 2022. Labels give places their names; which mass lies on
fixed places, and so every verdict, is found without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from attncli.measures.cells import weights_at
from attncli.measures.statistic import STATISTICS

if TYPE_CHECKING:
    from attncli.measures.evidence import Evidence

Array = np.ndarray[Any, np.dtype[Any]]

SHARE = 0.3  # of the mass: enough to be named (a sink, in Gu et al. 2025)
REST = 0.15  # at least, of a second place, which needs SHARE of what the first leaves
LIFT = 2.0  # and this many times what equal weights would give
SURE = 0.9  # of the mass: named whatever equal weights would give
FEW = 4  # rows, before one key is called a sink, or a far offset a place
MOST = 4  # keys, and offsets, that are looked at
LOCAL = 0.6  # of the mass within cells.NEAR positions
BROAD = 0.7  # of the largest entropy there is
OFFSETS = {-1: "previous token", 0: "self", 1: "next token"}
PREVIOUS_OF_REPEAT = "previous token of a repeat"
#: Statistics of the rows whose token occurs again, what they are called, and which of their keys
#: ``Sweep.occurrences`` counts, if any.
DETECTORS = {
    "induction_mass": ("induction", 1),
    "duplicate_mass": ("duplicate token", 0),
    "repeat_previous_mass": (PREVIOUS_OF_REPEAT, None),
}
CONTENT = ("broad", "by content")

SEPARATORS = frozenset(
    [
        *("[SEP]", "</s>", "<sep>", "<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|eot_id|>"),
        *("<eos>", "<EOS>", ".", ",", ";", ":", "!", "?", "…", "\\n", "\n", "Ċ", "<0x0A>"),
    ]
)


@dataclass(frozen=True)
class Role:
    """``share`` of the mass goes to the place ``name``; ``token``: what stands there, if known.

    ``rows``: how many rows the share is of, where it is not of all that have a choice.
    """

    name: str
    share: float
    token: str | None = None
    sink: bool = False
    rows: int | None = None

    @property
    def words(self) -> str:
        """As in '[CLS] 84 % (sink)'."""
        if self.name in CONTENT:
            return self.name
        place = self.token or self.name
        return f"{place} {100 * self.share:.0f} %" + (" (sink)" if self.sink else "")

    @property
    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        token = {"token": self.token} if self.token is not None else {}
        evidence = "normalized_entropy" if self.name in CONTENT else "mass"
        rows = {"rows": self.rows} if self.rows is not None else {}
        return {"role": self.name, **token, evidence: self.share, "sink": self.sink, **rows}


@dataclass(frozen=True)
class _Place:
    """Where mass may go: a key, or an offset j − i; ``even``: what equal weights would give."""

    role: Role
    even: float
    key: int | None = None
    offset: int | None = None


def looks_at(
    now: Evidence, own: Mapping[str, Any], b: int, h: int,
    tokens: Sequence[str] | None = None, self_attention: bool = True,
) -> tuple[list[Role], float]:  # fmt: skip
    """Return what a head looks at, the most telling first, and its mass on fixed places.

    own: its statistics; tokens: labels of the keys; self_attention: whether offsets mean anything.
    """
    rows, cells = int(now.sweep.rows[b, h]), int(now.sweep.cells[b, h])
    if not rows:
        return [], 0.0
    even = rows / max(cells, rows)
    at = now.problem.mask.positions() if self_attention else None
    keys = _keys(now, b, h, even)
    offsets = [] if at is None else _offsets(now, b, h, at[b], even)
    fixed = _union(now, b, h, _telling([*keys, *offsets]), 0 if at is None else at[b])
    seen = _telling([*(_labelled(now, b, h, keys, tokens, even) if tokens else keys), *offsets])
    found = detected(now, own, b, h) if self_attention else []
    also = set() if not found or at is None else _of_repeats(now, b, h, found, seen, at[b])
    named = [one.role for one in seen if one.offset is None or one.offset not in also]
    local, spread = _mean(own, "local_mass"), own["normalized_entropy"]["median"]
    if not found and not (named and named[0].share >= LOCAL):
        if local >= LOCAL and 9 * even <= local / 1.5 and self_attention:
            named.append(Role("local", local))
        elif spread >= BROAD:
            named.append(Role("broad", spread))
        elif not named and spread == spread:
            named.append(Role("by content", spread))
    return [*found, *named][:3], fixed


def _keys(now: Evidence, b: int, h: int, even: float) -> list[_Place]:
    """Return the first key that is no padding and, of enough rows, those that receive most."""
    received, rows = now.sweep.received[b, h], int(now.sweep.rows[b, h])
    first = int(now.keys[b, now.problem.group(h)].argmax())
    most = np.argsort(-received, kind="stable")[: MOST if rows >= FEW else 0]
    return [
        _Place(
            Role("first token" if j == first else f"key {j}", received[j].item() / rows, sink=True),
            even, key=j,
        )
        for j in dict.fromkeys([first, *most.tolist()])
    ]  # fmt: skip


def _offsets(now: Evidence, b: int, h: int, at: int, even: float) -> list[_Place]:
    """Return self, previous and next token and, of enough rows, the offsets that receive most.

    at: the position of query 0 among the keys.
    """
    mass, rows = now.sweep.diagonals[b, h], int(now.sweep.rows[b, h])
    first = 1 - now.problem.queries - at  # the offset of the first diagonal
    most = np.argsort(-mass, kind="stable")[: MOST if rows >= FEW else 0] + first
    return [
        _Place(
            Role(OFFSETS.get(d, f"offset {d:+d}"), mass[d - first].item() / rows), even, offset=d
        )
        for d in dict.fromkeys([*OFFSETS, *most.tolist()])
        if 0 <= d - first < len(mass)
    ]


def _labelled(
    now: Evidence, b: int, h: int, keys: Sequence[_Place], tokens: Sequence[str], even: float
) -> list[_Place]:
    """Return the keys by their labels, all separators but the first token as one place."""
    received, rows = now.sweep.received[b, h], int(now.sweep.rows[b, h])
    at = [j for j, token in enumerate(tokens) if token in SEPARATORS and j != keys[0].key]
    found = [
        _Place(Role(one.role.name, one.role.share, tokens[one.key], sink=True), even, one.key)
        for one in keys
        if one.key is not None and one.key not in at
    ]
    if at and rows >= FEW:
        share = float(received[at].sum()) / rows
        token = tokens[max(at, key=lambda j: received[j])]
        found.append(_Place(Role("separators", share, token, sink=True), len(at) * even))
    return found


def _telling(places: Sequence[_Place]) -> list[_Place]:
    """Return the places with enough mass to be named, the most first."""
    ordered = sorted(places, key=lambda place: -place.role.share)
    most = ordered[0].role.share if ordered else 0.0
    if most < SHARE:
        return []
    enough = max(REST, SHARE * (1 - most))
    return [
        place for place in ordered
        if (share := place.role.share) >= enough
        and (share >= LIFT * place.even or share > SURE)
    ]  # fmt: skip


def _union(now: Evidence, b: int, h: int, places: Sequence[_Place], at: int) -> float:
    """Return the share of the mass on these places, a cell that lies on two of them counted once.

    A key and an offset share one cell, two keys or two offsets none.
    """
    keys = [place.key for place in places if place.key is not None]
    offsets = [place.offset for place in places if place.offset is not None]
    total = sum(place.role.share for place in places)
    if keys and offsets:
        j, d = np.array([*product(keys, offsets)]).T
        i, chosen = j - d - at, now.chosen[b, h]
        assert now.lse is not None
        both = weights_at(now.problem, b, h, np.asarray(now.lse[b, h], np.float64), i, j)
        counted = np.isfinite(both) & chosen[np.clip(i, 0, len(chosen) - 1)]
        total -= float(both[counted].sum()) / int(now.sweep.rows[b, h])
    return min(total, 1.0)


def detected(now: Evidence, own: Mapping[str, Any], b: int, h: int) -> list[Role]:
    """Return what the rows whose token occurs again look at, the most first.

    Each is told by LIFT from what shows nothing: equal weights, or of the previous token what the
    other rows give it.
    """
    if now.words is None:
        return []
    roles = []
    for statistic, (name, which) in DETECTORS.items():
        of = getattr(now, STATISTICS[statistic].over)[b, h]
        rows = int(of.sum())
        if statistic not in own or rows < FEW:
            continue
        share = _mean(own, statistic)
        if which is None:
            count = int(now.sweep.rows[b, h])
            others = _mean(own, "previous_mass") * count - share * rows
            even = others / (count - rows) if count > rows else share
        else:
            seen = now.repeats.occurrences[b, h, of, which]
            even = float(np.mean(seen / now.rows.n[b, h, of]))
        if share >= max(SHARE, LIFT * even):
            roles.append(Role(name, share, rows=rows))
    return sorted(roles, key=lambda role: -role.share)


def _of_repeats(
    now: Evidence, b: int, h: int, found: Sequence[Role], seen: Sequence[_Place], at: int
) -> set[int]:
    """Return the offsets that are nothing but what was detected: mostly the distance to a repeat.

    at: the position of query 0 among the keys.
    """
    assert now.words is not None
    own, others = (one[b] for one in now.words)
    offsets = {-1} if any(role.name == PREVIOUS_OF_REPEAT for role in found) else set()
    for place in seen:
        if place.offset is None or place.offset in OFFSETS:
            continue
        i = np.flatnonzero(now.chosen[b, h])
        i = i[(i + at + place.offset >= 1) & (i + at + place.offset < len(others))]
        j = i + at + place.offset
        alike = (own[i] == others[j]) | ((own[i] == others[j - 1]) & (j < i + at))
        if 2 * np.count_nonzero(alike) > len(i):
            offsets.add(place.offset)
    return offsets


def _mean(found: Mapping[str, Any], name: str) -> float:
    value = found.get(name)
    share = value["mean"] if isinstance(value, Mapping) else 0.0
    return float(share) if share == share else 0.0
