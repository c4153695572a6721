"""The standard probe of a model: random tokens and the same ones again, which no text predicts.

What a head does with the second half shows whether it finds repeats (Olsson et al. 2022).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from attncli.errors import InputError, counted
from attncli.studies.model.capture import Words
from attncli.studies.model.loading import Loaded, positions_of, read_ids

Array = np.ndarray[Any, np.dtype[Any]]

REPEAT = "repeat"
LENGTH = 40  # tokens, twice
SEQUENCES = 4
SHORTER = f"a shorter one: --probe {REPEAT}:{{}}"


@dataclass(frozen=True)
class Probe:
    """``length`` random tokens twice, in so many sequences."""

    length: int = LENGTH
    sequences: int = SEQUENCES

    @property
    def words(self) -> str:
        """As in '4 × 40 random tokens twice'."""
        return f"{self.sequences} × {counted(self.length, 'random token')} twice"


def parse(text: str) -> Probe:
    """Return what ``repeat`` or ``repeat:50`` names; raise InputError for anything else."""
    said = re.fullmatch(f"{REPEAT}(?::([0-9]{{1,9}}))?", text)
    if said is None:
        raise InputError(
            f"unknown --probe '{text}'",
            f"expected {REPEAT}, or {REPEAT}:50 for 50 tokens twice in place of {LENGTH}",
        )
    found = Probe(int(said[1])) if said[1] else Probe()
    if found.length < 2:
        raise InputError(f"--probe {text} repeats {counted(found.length, 'token')}",
                         "at least 2, better 20 or more")  # fmt: skip
    return found


def read_probe(loaded: Loaded, probe: Probe, seed: int = 0) -> dict[str, Any]:
    """Return what the model is given: a batch of sequences, each of its tokens all different.

    Tokens are those of the vocabulary that are not special; before and behind them stands what the
    tokenizer puts there, or the token of the beginning where there is one. Raises InputError for a
    model that reads no tokens, has too few of them, or too few positions.
    """
    before, behind = _around(loaded)
    tokens = _vocabulary(loaded, {*before, *behind})
    most = positions_of(loaded)
    fits = min((most - len(before) - len(behind)) // 2, len(tokens))
    if probe.length > fits:
        lacks = (
            f"{counted(len(tokens), 'token')} that are not special" if fits == len(tokens)
            else f"{most:,} positions"
        )  # fmt: skip
        raise InputError(
            f"{type(loaded.model).__name__} has {lacks}, too few for a probe of "
            f"{counted(probe.length, 'token')} twice",
            SHORTER.format(fits) if fits >= 2 else "give it a text: --text",
        )
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(probe.sequences):
        own = rng.choice(tokens, probe.length, replace=False)
        rows.append([*before, *own, *own, *behind])
    return read_ids(loaded, np.array(rows, np.int64))


def words_of(loaded: Loaded) -> Words:
    """Return names of tokens that tell all of them apart, as decoded text does not."""

    def read(ids: Any) -> list[str]:
        if loaded.tokenizer is None:
            return [*map(str, ids)]
        tokens = loaded.tokenizer.convert_ids_to_tokens(list(ids))
        return [
            str(one) if token is None else token for one, token in zip(ids, tokens, strict=True)
        ]

    return read


def _vocabulary(loaded: Loaded, around: set[int]) -> Array:
    """Return the ids of the tokens that are not special, ascending; those around a text are."""
    embedding = loaded.model.get_input_embeddings()
    if not isinstance(embedding, import_module("torch").nn.Embedding):
        raise InputError(
            f"{type(loaded.model).__name__} reads no tokens", "a probe is made of them"
        )
    known = {*range(embedding.num_embeddings)} - around
    for name, said in vars(loaded.model.config.get_text_config()).items():
        if name.endswith("_token_id"):
            known -= {*said} if isinstance(said, list) else {said}
    tokenizer = loaded.tokenizer
    if tokenizer is not None:
        known &= {*tokenizer.get_vocab().values()}
        known -= {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return np.array(sorted(known), np.int64)


def _around(loaded: Loaded) -> tuple[list[int], list[int]]:
    """Return the special tokens that stand before and behind a text."""
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        first = getattr(loaded.model.config.get_text_config(), "bos_token_id", None)
        known = getattr(loaded.model.get_input_embeddings(), "num_embeddings", 0)
        # a small vocabulary, and a configuration that kept its family's token
        return ([int(first)] if first is not None and first < known else []), []
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    starts = range(len(whole) - len(bare) + 1)
    at = next((n for n in starts if whole[n : n + len(bare)] == bare), len(whole))
    before, behind = whole[:at], whole[at + len(bare) :]
    first = tokenizer.bos_token_id
    return ([first] if not before and first is not None else before), behind
