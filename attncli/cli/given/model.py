"""What a model reads, from options; and one of its attention calls, as a problem to be answered."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from attncli import files
from attncli.attention.problem import Problem
from attncli.attention.view import Labels
from attncli.cli.given.expected import Theirs, expected_of
from attncli.cli.given.many import named
from attncli.cli.given.reader import Array, Reader, numbers
from attncli.cli.given.tokens import Tokens, labels_of, tokens_of
from attncli.errors import InputError, counted, listed
from attncli.studies import many
from attncli.studies.bundle import PROBLEM

if TYPE_CHECKING:
    from attncli.cli.groups.model import Given
    from attncli.cli.options import Group
    from attncli.resources import Progress
    from attncli.studies.model.loading import Loaded


def sources(source: str, given: Given) -> list[str]:
    """Return the files that are read: those of the model, and those that options name."""
    inside = [entry.path for entry in os.scandir(source)] if os.path.isdir(source) else []
    texts = [text[1:] for text in given.text or () if text.startswith("@")]
    ids = [given.ids] if given.ids and numbers(given.ids) is None else []
    named = [*(given.image or ()), *(given.audio or ()), *ids]
    return [*inside, *texts, *named]


@dataclass(frozen=True, eq=False)
class Read:
    """What a model is given, by the names that it has for it, and what there is to say of it."""

    batch: Mapping[str, Any]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def read(loaded: Loaded, given: Given) -> Read:
    """Return what the model is given; InputError for what does not go together."""
    from attncli.studies.model import loading, media

    if given.ids is not None and given.text is not None:
        raise InputError("--text and --ids are two ways to say what the model reads", "choose one")
    found = []
    if given.image is not None:
        found.append(media.read_images(loaded, given.image))
    if given.audio is not None:
        found.append(media.read_audio(loaded, given.audio))
    words = {}
    if given.ids is not None:
        typed = numbers(given.ids)
        ids = files.read_tensor(given.ids) if typed is None else np.array(typed)
        words = loading.read_ids(loaded, ids)
    elif given.text is not None:
        words = loading.read_texts(loaded, [loading.text_of(one) for one in given.text])
    batch = media.together(loaded, words, *found)
    return Read(
        batch,
        tuple(note for one in found for note in one.notes),
        (*loaded.warnings, *(text for one in found for text in one.warnings)),
    )


# -- one call ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Called:
    """An attention call of a model, posed already: what `attention.Inputs` are of files.

    ``seen`` are the labels by its tokenizer; ``tokens`` those that options give in their place.
    """

    problem: Problem
    seen: Labels
    tokens: Mapping[str, Tokens]
    notes: tuple[str, ...]
    sources: tuple[str, ...]
    expected: Mapping[str, Theirs] = field(default_factory=dict)
    grad_output: Array | None = None

    def pose(self) -> Problem:
        """Return the problem."""
        return self.problem

    def labels(self, problem: Problem) -> Labels:
        """Return the labels, which must be as many as the positions they label."""
        said = labels_of(self.tokens, problem)
        return Labels(said.query or self.seen.query, said.key or self.seen.key)


def call(
    source: str, given: Given, layer: str | None, flags: Group, dtype: str | None,
    progress: Progress | None = None,
) -> Called:  # fmt: skip
    """Run a model and return the attention call of one layer.

    ``layer`` is a number, a short name or the path of a module. Raises InputError where that is
    none of them or nothing, with the layers there are, and where the model does not call it.
    """
    from attncli.studies.model import loading
    from attncli.studies.model.capture import short_names

    loaded = loading.load(source, dtype=dtype, device=getattr(flags, "device", "auto"))
    modules = {module: name or "model" for name, module in loaded.model.named_modules()}
    names = [*short_names(modules)]
    if layer is None:
        raise InputError(
            f"{source} has {counted(len(names), 'layer')} of attention: nothing says which",
            f"--layer: one of {listed(many.labels_of(names), 60)}",
        )
    reader = Reader(None, flags)
    it_reads = read(loaded, given)
    name, problem, labels = _choose(loaded, it_reads.batch, names, layer, progress)
    notes = (
        f"{name} of {type(loaded.model).__name__}, the rest by transformers in {loaded.dtype}",
        *it_reads.notes,
    )
    return Called(
        replace(problem, warnings=(*it_reads.warnings, *problem.warnings)), labels,
        tokens_of(reader), notes, tuple(sources(source, given)), expected_of(reader),
    )  # fmt: skip


def _choose(
    loaded: Loaded, batch: Mapping[str, Any], names: list[str], layer: str,
    progress: Progress | None,
) -> tuple[str, Problem, Labels]:  # fmt: skip
    """Return the call that ``layer`` means among those that there are.

    A module that is called again has calls of its own names, which are known when the model has
    run: where ``layer`` then means another one, it runs again.
    """
    wanted = ""
    with suppress(InputError):
        wanted = named(names, layer, loaded.source)
    ran, kept = _run(loaded, batch, wanted, progress, len(names))
    every = [*names, *(name for name in ran if name not in names)]
    meant = named(every, layer, loaded.source)
    if meant not in ran:
        raise InputError(
            f"{meant} of {loaded.source} takes no part in what the model was given",
            f"--layer: one of {listed(many.labels_of(ran), 60)}",
        )
    if meant != wanted:
        _, kept = _run(loaded, batch, meant, progress, len(ran))
    return meant, *kept[0]


def _run(
    loaded: Loaded, batch: Mapping[str, Any], wanted: str, progress: Progress | None, count: int
) -> tuple[list[str], list[tuple[Problem, Labels]]]:
    """Run the model; return the names of all calls, and the one that is wanted."""
    from attncli.studies.model import loading
    from attncli.studies.model.capture import capture

    ran: list[str] = []
    kept: list[tuple[Problem, Labels]] = []

    def told(path: str, problem: Problem, labels: Labels) -> None:
        ran.append(many.call_name(path, seen.calls[path]))
        if ran[-1] == wanted:
            own: Any = {one: np.array(getattr(problem, one)) for one in PROBLEM}
            kept.append((replace(problem, **own), labels))
        if progress:
            progress(min(len(ran) / max(count, 1), 1))

    with capture(loaded.model, told=told, words=loaded.tokenizer) as seen:
        loading.run(loaded, batch)
    return ran, kept
