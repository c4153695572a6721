"""Labels of queries and keys: from flags, files and bundles, one tuple a batch element."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attncli.attention.masks import Extent
from attncli.attention.problem import Problem
from attncli.attention.view import Labels
from attncli.cli import groups
from attncli.cli.given.reader import Reader
from attncli.cli.options import BATCH
from attncli.errors import FileError, InputError, counted
from attncli.files.texts import read_text
from attncli.files.vocabulary import ROLES

Tokens = tuple[tuple[str, ...], ...]


def tokens_of(reader: Reader) -> dict[str, Tokens]:
    """Return the tokens that command line or file give, by the names of the options."""
    found = {name: _tokens(reader, name) for name in groups.Labels.members}
    typed = reader.flag("tokens") is not None  # and wins over labels of the file
    return {
        name: tokens
        for name, tokens in found.items()
        if tokens is not None and not (typed and reader.flag(name) is None)
    }


def labels_of(tokens: Mapping[str, Tokens], problem: Problem | Extent) -> Labels:
    """Return the labels; InputError unless they are as many as the positions they label."""
    roles = {"query": problem.queries, "key": problem.keys}
    found: dict[str, Tokens] = {}
    both = tokens.get("tokens")
    if both is not None:
        unlabelled = [role for role in roles if f"{role}_tokens" not in tokens]
        if not unlabelled:
            raise InputError(
                "tokens labels nothing: query_tokens and key_tokens are given", "leave it out"
            )
        if len({roles[role] for role in unlabelled}) > 1:
            raise InputError(
                "tokens labels queries and keys alike, but there are "
                f"{counted(problem.queries, 'query', 'queries')} and "
                f"{counted(problem.keys, 'key')}",
                "give --query-tokens and --key-tokens",
            )
        found = dict.fromkeys(unlabelled, both)
    for role, length in roles.items():
        name = f"{role}_tokens" if f"{role}_tokens" in tokens else "tokens"
        some = tokens.get(name)
        if some is not None:
            _check_tokens(name, some, role, length, problem.batch)
            found[role] = some
    return Labels(found.get("query"), found.get("key"))


def _tokens(reader: Reader, name: str) -> Tokens | None:
    text, bundle = reader.flag(name), reader.bundle
    if text is not None:
        return _token_file(reader, text[1:]) if text.startswith("@") else (tuple(text.split()),)
    value = reader.checked(name, lambda v: _token_lists(_split(v)) is not None)
    if value is not None:
        return _token_lists(_split(value))
    found = reader.tensor(name)
    if not found or not bundle:
        return None
    tokens = _token_lists(found[0].tolist())
    if tokens is None:
        raise InputError(
            f"{bundle.source}: '{reader.spelt[name]}' holds {found[0].dtype} {found[0].shape}",
            f"expected {ROLES[name].expected}",
        )
    return tokens


def _split(value: Any) -> Any:
    return value.split() if isinstance(value, str) else value


def _token_file(reader: Reader, path: str) -> Tokens:
    reader.sources.append(path)
    text = read_text(path, "tokens, one a line")
    if not text.lstrip().startswith("["):
        return (tuple(text.splitlines()),)
    import json

    try:
        tokens = _token_lists(json.loads(text))
    except (ValueError, RecursionError):
        return (tuple(text.splitlines()),)  # a token such as [CLS] begins like a list
    if tokens is None:
        raise FileError(f"{path} is JSON, but no list of tokens", 'expected ["I", "like", "you"]')
    return tokens


def _check_tokens(name: str, tokens: Tokens, role: str, length: int, batch: int) -> None:
    if len(tokens) not in (1, batch):
        raise InputError(
            f"{name} has {counted(len(tokens), 'list')} but the batch has {batch}",
            "give one list for each batch element, or one for all",
        )
    for b, some in enumerate(tokens):
        if len(some) != length:
            where = f" for batch element {b}" if len(tokens) > 1 else ""
            raise InputError(
                f"{name} has {counted(len(some), 'token')}{where} "
                f"but the {role} has length {length}",
                "give one token for each position (they are split on blanks)"
                + (f"; {BATCH}" if batch > 1 else ""),
            )


def _token_lists(value: Any) -> Tokens | None:
    """A list of tokens, or one for each batch element; token ids are tokens too."""
    if not isinstance(value, list):
        return None
    lists = value if value and all(isinstance(item, list) for item in value) else [value]
    if not all(type(token) in (str, int) for some in lists for token in some):
        return None
    return tuple(tuple(map(str, some)) for some in lists)
