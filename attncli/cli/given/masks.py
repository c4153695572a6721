"""Mask expressions, files and sizes from the command line become bound masks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import and_
from typing import Any

import numpy as np

from attncli import files
from attncli.attention import language
from attncli.attention.masks import Extent, Mask
from attncli.attention.problem import Masker
from attncli.attention.view import Labels
from attncli.attention.words import MASKS
from attncli.cli import groups
from attncli.cli.given.expressions import TENSORS, files_in, reading
from attncli.cli.given.reader import Reader, is_truth, is_word
from attncli.cli.given.tokens import Tokens, labels_of, tokens_of
from attncli.cli.groups.mask import Described
from attncli.errors import FileError, InputError, counted, listed
from attncli.files.bundle import Bundle
from attncli.files.formats import SUFFIXES
from attncli.files.vocabulary import PLAYED
from attncli.measures.masks import check_size

Array = np.ndarray[Any, np.dtype[Any]]

SIZES = ("batch", "heads", "queries", "keys")
PROBLEM = ("query", "hidden_states", "key", "value")  # of a file in which a mask stands
MOST_PLANES = 1 << 20  # batch elements times heads: each is looked at


@dataclass(frozen=True)
class GivenMask:
    """A bound mask, the one it is compared with, labels of rows and columns, the files read."""

    mask: Mask
    against: Mask | None
    labels: Labels
    sources: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Source:
    """One expression or file: how to bind it, and the sizes that it speaks of by itself."""

    masker: Masker
    tensor: bool
    batch: int | None = None
    heads: int | None = None
    queries: int | None = None
    keys: int | None = None
    warnings: tuple[str, ...] = ()
    tokens: Mapping[str, Tokens] = field(default_factory=dict)


def gather_mask(expressions: Sequence[str], flags: Described) -> GivenMask:
    """Bind mask expressions and files to one size.

    The size comes from the lengths given, else from the tokens, else from a tensor or a list in
    the expressions, or from the problem in whose file one stands. Raises InputError when nothing
    says it, AttnError for what does not fit.
    """
    reader = Reader(None, flags)
    tokens: Mapping[str, Tokens] = tokens_of(reader)
    sources = [_source(text, flags.mask_polarity) for text in expressions]
    padding = flags.key_padding_mask
    if padding is not None:
        sources.append(_padding(padding, flags.mask_polarity))
    other = None if flags.against is None else _source(flags.against, flags.mask_polarity)
    if flags.mask_polarity and not any(s.tensor for s in (*sources, other) if s):
        raise InputError(
            "--mask-polarity is given, but there is no mask tensor",
            "name its file in place of an expression, or as --key-padding-mask; in file('…') ~ "
            "turns it round",
        )
    if not tokens and flags.length is flags.query_length is flags.key_length is None:
        tokens = next((source.tokens for source in sources if source.tokens), tokens)
    extent = _extent(flags, tokens, [*sources, other] if other else sources)
    check_size(extent)
    mask = Mask(extent)
    for source in sources:
        mask = mask & source.masker(extent)
    texts = [text for text in (*expressions, flags.against, padding) if text]
    read = (*texts, *(name for text in texts for name in files_in(text)), *reader.sources)
    against = other.masker(extent) if other else None
    warnings = [line for s in (*sources, *([other] if other else [])) for line in s.warnings]
    return GivenMask(mask, against, labels_of(tokens, extent), read, tuple(warnings))


def _extent(flags: Described, tokens: Mapping[str, Tokens], sources: Sequence[_Source]) -> Extent:
    """Return the size: from lengths, else from tokens, else what the masks speak of."""

    def told(name: str) -> int | None:
        return _first(*(getattr(source, name) for source in sources))

    named = {name: len(some[0]) for name, some in tokens.items()}
    both = named.get("tokens")
    queries = _first(
        flags.query_length, flags.length, named.get("query_tokens"), both, told("queries")
    )
    keys = _first(flags.key_length, flags.length, named.get("key_tokens"), both, told("keys"))
    if queries is None and keys is None:
        raise InputError(
            "nothing says how long the mask is",
            "give --length 8, or --query-length and --key-length, or --tokens 'I like you'",
        )
    past = flags.past
    if keys is None and queries is not None:
        keys = queries + (past or 0)  # the new keys follow those of the cache
    queries = keys if queries is None else queries
    assert queries is not None and keys is not None
    lengths = None if flags.kv_lengths is None else _lengths(flags.kv_lengths)
    size = flags.batch_size or told("batch") or (len(lengths) if lengths else 1)
    _check_cache(past, lengths, keys, size)
    heads = flags.heads or told("heads") or 1
    if size * heads > MOST_PLANES:
        raise InputError(
            f"a batch of {size} with {heads} heads is {size * heads} masks",
            f"expected at most {MOST_PLANES}",
        )
    return Extent(
        size, heads, queries, keys, past=past,
        lengths=None if lengths is None else tuple(lengths) * (size if len(lengths) == 1 else 1),
    )  # fmt: skip


def _check_cache(past: int | None, lengths: Sequence[int] | None, keys: int, batch: int) -> None:
    """Raise InputError for a cache that does not fit among the keys."""
    if lengths is not None and past is not None:
        raise InputError("--past and --kv-lengths are both given", "a cache is one or the other")
    if past is not None and past > keys:
        raise InputError(f"--past is {past} but there {_are(keys, 'key')}", "it is among them")
    for n in lengths or ():
        if n > keys:
            raise InputError(f"--kv-lengths has {n} but there {_are(keys, 'key')}")
    if lengths is not None and len(lengths) not in (1, batch):
        found = counted(len(lengths), "number")
        raise InputError(f"--kv-lengths has {found} for a batch of {batch}")


def _are(number: int, one: str) -> str:
    return f"{'is' if number == 1 else 'are'} {counted(number, one)}"


def _first(*numbers: int | None) -> int | None:
    return next((n for n in numbers if n is not None), None)


def _lengths(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
        if min(numbers) < 0:
            raise ValueError
    except ValueError:
        raise InputError(f"--kv-lengths is '{text}'", "expected numbers such as 18,13,15") from None
    return numbers


def _source(text: str, polarity: str | None) -> _Source:
    if text == "-" or os.path.exists(text) or ("::" in text and "(" not in text):
        reader = Reader(files.read(text), groups.Polarity(mask_polarity=polarity))
        bundle = reader.bundle
        assert bundle
        expression = reader.checked("mask", is_word)
        if expression is None and reader.checked("causal", is_truth):
            expression = "causal"
        roles = [role for role in TENSORS if role in bundle.by_role]
        named, lengths = tokens_of(reader), _lengths_in(reader, bundle)
        if expression is not None and not roles:
            reader.warn_of_unread()
            made = _expression(expression)
            queries, keys = lengths
            return replace(
                made, warnings=tuple(reader.warnings), tokens=named,
                queries=_first(made.queries, queries), keys=_first(made.keys, keys),
            )  # fmt: skip
        tensors = [(role, reader.spelt[role], reader.tensor(role)) for role in roles]
        reader.taken |= {*bundle.tensors} if len(bundle.tensors) == 1 else set()
        polarity = reader.pick("mask_polarity", is_word)
        reader.warn_of_unread()
        parts = [_tensor(found[0], role, name, polarity) for role, name, found in tensors if found]
        if not parts:
            _refuse_others(bundle, text)
            parts = [_tensor(files.read_tensor(text), "attn_mask", text, polarity)]
        return replace(_joined(parts), warnings=tuple(reader.warnings), tokens=named)
    if text.endswith(SUFFIXES):
        raise FileError(f"no such file: {text}", "expected a mask expression or a mask file")
    return _expression(text)


def _lengths_in(reader: Reader, bundle: Bundle) -> tuple[int | None, int | None]:
    """Return how many queries and keys the problem has in whose file a mask stands."""
    reader.taken |= {name for role in PROBLEM for name in bundle.by_role.get(role, ())}
    if "layout" in reader.options or "past_key" in bundle.by_role:
        return None, None
    shapes = [
        bundle.header(names[0]).shape for role in PROBLEM[:3]
        if len(names := bundle.by_role.get(role, ())) == 1
    ]  # fmt: skip
    if not shapes or any(len(shape) < 2 for shape in shapes):
        return None, None
    return shapes[0][-2], shapes[-1][-2]


def _refuse_others(bundle: Bundle, text: str) -> None:
    """Raise InputError for a file whose one tensor says that it is something else."""
    names = [name for name in bundle.tensors if PLAYED.get(name.lower())]
    if names and "::" not in text:
        raise InputError(
            f"{bundle.source} holds no mask; it holds {listed(bundle.tensors)}",
            f"a mask is called mask or attn_mask; any other is named: {bundle.ref(names[0])}",
        )


def _joined(parts: Sequence[_Source]) -> _Source:
    """Return the mask tensors of one file together: all must allow."""
    first, *others = parts
    if not others:
        return first
    sizes: dict[str, Any] = {
        size: _first(*(getattr(part, size) for part in parts)) for size in SIZES
    }
    return _Source(lambda e: reduce(and_, (part.masker(e) for part in parts)), True, **sizes)


def _expression(text: str) -> _Source:
    sizes: dict[str, Any] = {**language.told(text)}
    return _Source(language.masker(text), False, **sizes)


def _padding(ref: str, polarity: str | None) -> _Source:
    """Return the key padding mask that ``--key-padding-mask`` names."""
    bundle = files.read(ref)
    found = files.find(bundle, "key_padding_mask") if len(bundle.tensors) > 1 else None
    array = found[1] if found else files.read_tensor(ref)
    return _tensor(array, "key_padding_mask", "key_padding_mask", polarity)


def _tensor(array: Array, role: str, name: str, polarity: str | None) -> _Source:
    array = np.asarray(array)
    named = MASKS["file"].tells[-1]
    if array.ndim == 2 and (role == "key_padding_mask" or name.lower() == "attention_mask"):
        named = ("batch", "keys")
    names = named[-array.ndim :] if 0 < array.ndim <= len(named) else ()
    masker = reading(role, name)(array, polarity or "keep", name)
    sizes: dict[str, Any] = {**language.sizes(names, array.shape[-len(names) :])}
    return _Source(masker, True, **sizes)
