"""What a head seems to look at, with the evidence: shares of its mass, nothing more.

The classes are those of Clark et al. 2019 (previous and next token, self, [CLS], [SEP] and
punctuation, broad) and the attention sink of Xiao et al. 2024.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SHARE = 0.3  # of the mass: enough to be named (a sink, in Gu et al. 2025)
REST = 0.15  # at least, of a second place, which needs SHARE of what the first leaves
LIFT = 2.0  # and this many times what equal weights would give
FEW = 4  # rows, before one key is called a sink
LOCAL = 0.6  # of the mass within sweep.NEAR positions
BROAD = 0.7  # of the largest entropy there is

SEPARATORS = frozenset(
    [
        *("[SEP]", "</s>", "<sep>", "<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|eot_id|>"),
        *("<eos>", "<EOS>", ".", ",", ";", ":", "!", "?", "…", "\\n", "\n", "Ċ", "<0x0A>"),
    ]
)


@dataclass(frozen=True)
class Role:
    """``share`` of the mass goes to the place ``name``; ``token``: what stands there, if known."""

    name: str
    share: float
    token: str | None = None
    sink: bool = False

    @property
    def words(self) -> str:
        """As in '[CLS] 84 % (sink)'."""
        if self.name in ("broad", "by content"):
            return self.name
        place = self.token or self.name
        return f"{place} {100 * self.share:.0f} %" + (" (sink)" if self.sink else "")

    @property
    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        token = {"token": self.token} if self.token is not None else {}
        evidence = "normalized_entropy" if self.name in ("broad", "by content") else "mass"
        return {"role": self.name, **token, evidence: self.share, "sink": self.sink}


def looks_at(
    found: Mapping[str, Any], received: Sequence[float], rows: int, cells: int,
    tokens: Sequence[str] | None, self_attention: bool = True,
) -> tuple[list[Role], float]:  # fmt: skip
    """Return what ``roles`` says of a head whose keys received so much mass from its rows.

    received ``(Lk)``: of each key, summed over ``rows`` rows that see ``cells`` keys in all.
    """
    separators = float("nan")
    if tokens and rows:
        at = [j for j in range(min(len(tokens), len(received))) if tokens[j] in SEPARATORS]
        separators = float(sum(received[j] for j in at)) / rows
    return roles(found, separators, cells / rows if rows else 0.0, tokens, self_attention)


def roles(
    found: Mapping[str, Any], separators: float, visible: float, tokens: Sequence[str] | None,
    self_attention: bool = True,
) -> tuple[list[Role], float]:  # fmt: skip
    """Return what a head looks at, the most telling first, and its mass on fixed places.

    found: its statistics; separators: its mean mass on separators (NaN: no labels); visible: how
    many keys its rows see on average; tokens: labels of the keys.
    """
    even = 1 / max(visible, 1)
    first = _mean(found, "first_key_mass")
    places = [Role("first token", first, tokens[0] if tokens else None, sink=True)]
    if self_attention:
        places += [
            Role("previous token", _mean(found, "previous_mass")),
            Role("next token", _mean(found, "next_mass")),
            Role("self", _mean(found, "diagonal_mass")),
        ]
    at, mass = int(found.get("sink_key", -1)), float(found.get("sink_mass", 0))
    token = tokens[at] if tokens and 0 <= at < len(tokens) else None
    if at > 0 and token not in SEPARATORS and found.get("rows_with_choice", 0) >= FEW:
        places.append(Role(f"key {at}", mass, token, sink=True))
    elif separators == separators and token in SEPARATORS:
        places.append(Role("separators", separators, token, sink=True))
    places.sort(key=lambda role: -role.share)
    rest = places[0].share if places[0].share >= SHARE else 0.0
    named = [
        role for n, role in enumerate(places)
        if (role.share >= SHARE or (n and role.share >= max(REST, SHARE * (1 - rest)) and rest))
        and (role.share >= LIFT * even or role.share > 0.9)
    ]  # fmt: skip
    fixed = sum(role.share for role in named)
    spread = found["normalized_entropy"]["median"]
    local = _mean(found, "local_mass")
    if not (named and named[0].share >= LOCAL):
        if local >= LOCAL and 9 * even <= local / 1.5 and self_attention:
            named.append(Role("local", local))
        elif spread >= BROAD:
            named.append(Role("broad", spread))
        elif not named and spread == spread:
            named.append(Role("by content", spread))
    return named[:3], min(fixed, 1.0)


def _mean(found: Mapping[str, Any], name: str) -> float:
    value = found.get(name)
    share = value["mean"] if isinstance(value, Mapping) else 0.0
    return float(share) if share == share else 0.0
