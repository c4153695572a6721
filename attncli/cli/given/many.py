"""The problems in several files, in folders and in files of many layers, by their names."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from attncli import files
from attncli.cli.given.names import of_model
from attncli.errors import AttnError, FileError, InputError, listed, nearest, numbered
from attncli.files.attentions import ROLE, weights_in
from attncli.files.bundle import Bundle, path_of, prefixes
from attncli.studies.many import indices_of, labels_of


@dataclass(frozen=True)
class Source:
    """One problem; ``load`` opens its file again, so that few are open at a time."""

    name: str
    load: Callable[[], Bundle]


@dataclass(frozen=True)
class Sources:
    """All problems in order, the files they are in, and which files were left out."""

    found: tuple[Source, ...]
    paths: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def of_bundle(bundle: Bundle, fewest: int = 2, weights: bool = False) -> Sources:
    """Return the problems of one file of layers, by what stands before their tensors.

    ``weights``: somebody said that its tensors are attention weights.
    """
    layers = {} if weights else files.problems_of(bundle, fewest)
    layers = layers or {name or ROLE: one for name, one in weights_in(bundle, weights).items()}
    found = tuple(Source(name, partial(layers.__getitem__, name)) for name in layers)
    return Sources(found, (path_of(bundle),))


def of_one(bundle: Bundle) -> Sources:
    """Return the one problem of a file that holds no layers."""
    path = path_of(bundle)
    return Sources((Source(_names([path])[0], partial(_same, bundle)),), (path,))


def of_references(references: Sequence[str]) -> Sources:
    """Return the problems of files and folders; several in a file are called ``FILE.LAYER``.

    A file of a folder without a query is left out, with a warning; one that was named raises
    FileError, and so do files of lines, and a folder without any.
    """
    paths: list[str] = []
    optional: set[str] = set()
    for ref in references:
        inside = files.captures_in(ref) if os.path.isdir(ref) else []
        paths += inside or [ref]
        optional.update(inside)
    names = _names(paths)

    @lru_cache(1)  # the layers of a file come one after the other
    def opened(path: str) -> dict[str, Bundle]:
        return layers_of(files.read(path))

    def layers_of(bundle: Bundle) -> dict[str, Bundle]:
        return files.problems_of(bundle) or weights_in(bundle)

    def layer_of(path: str, layer: str) -> Bundle:
        return opened(path)[layer]

    found: list[Source] = []
    warnings = []
    for path, name in zip(paths, names, strict=True):
        bundle = files.read(path)
        layers = layers_of(bundle)
        if len(layers) > 1:
            found += [Source(f"{name}.{one}", partial(layer_of, path, one)) for one in layers]
        elif layers or path not in optional or _holds_problem(bundle):
            found.append(Source(name, partial(files.read, path)))
        else:
            warnings.append(f"{path} is not read: it has no query")
    if not found:
        raise FileError(
            f"no file in {', '.join(references)} has a query; there are {numbered(paths)}",
            "expected query, key and value by name, or layers.3.query and so on",
        )
    return Sources(tuple(found), tuple(paths), tuple(warnings))


def of_records(records: files.Records) -> Iterator[Source]:
    """Yield the problems of NDJSON as they come, by their id or the number of their line.

    Raises the AttnError of a line that is none.
    """
    for record in records:
        if isinstance(record, AttnError):
            raise record
        said = record.options.get("id")
        name = f"line.{records.line}" if said is None else str(said)
        yield Source(name, partial(_same, record))


def choose(bundle: Bundle | None, layer: str) -> Bundle:
    """Return the one problem that --layer names, by number, short name or whole name."""
    found = files.problems_of(bundle, 1) if bundle else {}
    if not bundle or not found:
        where = bundle.source if bundle else "--query"
        raise InputError(
            f"--layer {layer}: {where} holds no layers of queries and keys",
            (bundle and of_model(bundle))
            or "leave it out, or give a file with layers.0.query, layers.1.query and so on",
        )
    return found[named([*found], layer, bundle.source)]


def named(names: Sequence[str], layer: str, source: str) -> str:
    """Return the one of ``names`` that --layer means: a number, a short name or a whole one.

    Raises InputError where that is none of them, or several.
    """
    indices = indices_of(names)
    labels, numbers = labels_of(names), [*map(str, indices)]
    if layer.startswith("-") and layer[1:].isdecimal():  # from the end, as --head -1
        there = sorted({*indices})
        layer = str(there[int(layer)]) if 0 < int(layer[1:]) <= len(there) else layer
    for called in (names, labels, numbers):
        hits = [name for name, own in zip(names, called, strict=True) if own == layer]
        if len(hits) == 1:
            return hits[0]
        if hits:
            raise InputError(f"--layer {layer} means {len(hits)} layers", f"one of {listed(hits)}")
    raise InputError(
        f"{source} has no layer '{layer}'", nearest(layer, labels, f"one of {listed(labels)}")
    )


def _same(bundle: Bundle) -> Bundle:
    return bundle


def _holds_problem(bundle: Bundle) -> bool:
    return bool(prefixes(bundle)) or "query" in bundle.by_role or "qkv" in bundle.by_role


def _names(paths: Sequence[str]) -> list[str]:
    """Return the names of files, without folder and suffix where that tells them apart."""
    stems = [path.removesuffix(".index.json") for path in paths]
    stems = [os.path.splitext(stem)[0] for stem in stems]
    short = [os.path.basename(stem) or stem for stem in stems]
    ways = short, stems, [*map(os.path.basename, paths)], [*paths]
    return next((some for some in ways if len({*some}) == len(paths)), [*paths])
