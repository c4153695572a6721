"""From a file of attention weights alone to a problem that gives them back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from attncli.attention.masks import Extent
from attncli.attention.problem import Masker, Problem
from attncli.attention.view import Labels
from attncli.attention.weights import of_weights
from attncli.cli import groups
from attncli.cli.given import attention
from attncli.cli.given.expressions import maskers_of, said_of
from attncli.cli.given.reader import Array, Reader
from attncli.cli.given.tokens import Tokens, labels_of, tokens_of
from attncli.errors import InputError, counted
from attncli.files.attentions import NAME, weights_in
from attncli.files.bundle import Bundle

#: What is said of weights, too: which keys were hidden, and what positions are called.
READ = {*groups.Mask.members, *groups.Padding.members, *groups.Polarity.members}
READ |= {*groups.Labels.members}
CROSS = re.compile("cross|encoder_attn", re.IGNORECASE)


@dataclass(frozen=True)
class Inputs:
    """Weights as they came, and what was said of them; ``sources`` are the files read.

    ``recognise``: the mask is left to be seen from the zeros. ``apart``: of cross-attention.
    """

    weights: Array
    name: str
    masks: tuple[Masker, ...]
    recognise: bool
    apart: bool
    tokens: Mapping[str, Tokens] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def pose(self) -> tuple[Problem, tuple[str, ...]]:
        """Return the problem and its notes, or raise InputError for what are no weights."""
        problem, found = of_weights(
            self.weights, self.masks, name=self.name, recognise=self.recognise, apart=self.apart
        )
        return replace(problem, warnings=(*self.warnings, *problem.warnings)), (*self.notes, *found)

    def labels(self, problem: Problem | Extent) -> Labels:
        """Return the labels, which must be as many as the positions they label."""
        return labels_of(self.tokens, problem)


def gather(bundle: Bundle | None, flags: groups.Problem) -> attention.Inputs | Inputs:
    """Find query, key and value in ``bundle`` and ``flags``, or attention weights alone.

    Raises AttnError for what is missing or does not fit, and for options that say something of
    scores where there are none.
    """
    layers = weights_in(bundle) if bundle and flags.query is None else {}
    if not layers:
        return attention.gather(bundle, flags)
    if len(layers) > 1:
        raise InputError(
            f"{next(iter(layers.values())).source} holds weights of {counted(len(layers), 'layer')}"
            ", and one is expected", "one layer a line, or all of them in a file of their own",
        )  # fmt: skip
    return _weights(next(iter(layers.values())), flags)


def posed(
    given: attention.Inputs | Inputs, start: int | None
) -> tuple[Problem, Labels, tuple[str, ...]]:
    """Return the problem, its labels and its notes; query 0 is at key ``start``, where said."""
    if isinstance(given, Inputs):
        problem, notes = given.pose()
    else:
        problem, notes = given.pose(), given.notes
    if start is not None:
        problem = replace(problem, mask=problem.mask.placed(start))
    return problem, given.labels(problem), notes


def _weights(bundle: Bundle, flags: groups.Problem) -> Inputs:
    idle = [
        name for name in groups.Problem.members
        if name not in READ and getattr(flags, name) not in (None, False)
    ]  # fmt: skip
    if idle:
        raise InputError(
            f"--{idle[0].replace('_', '-')} has no use in {bundle.source}: attention weights alone",
            "leave it out: the weights hold what came of it",
        )
    reader = Reader(bundle, flags)
    found = reader.tensor("weights")
    assert found, "a bundle of weights has them"
    name = bundle.whole.get(NAME) or "weights"
    apart = bool(CROSS.search(name))
    if apart:
        reader.notes.append("cross-attention, by its name: a query has no place among the keys")
    masks = maskers_of(reader, flags)
    tokens = tokens_of(reader)
    reader.warn_of_unread()
    return Inputs(
        reader.noted(name, *found), name, tuple(masks), not said_of(flags),
        apart, tokens, tuple(dict.fromkeys(reader.notes)),
        tuple(dict.fromkeys(reader.sources)), tuple(dict.fromkeys(reader.warnings)),
    )  # fmt: skip
