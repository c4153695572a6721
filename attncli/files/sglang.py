"""Dumps of SGLang: which of their tensors are query, key and value of an attention layer.

``debug_utils/dumper.py`` writes a folder with a file a tensor: ``step=0___rank=0___name=….pt``;
``--debug-tensor-dump-output-folder`` a file ``Pass00000.pt`` for each forward pass, with what its
modules gave. Neither holds what the cache held before, nor how many heads there are.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType

import numpy as np

from attncli.errors import FileError, counted, numbered
from attncli.files.bundle import DUMP, Bundle, Lazy
from attncli.files.formats.entry import Array, Entry, reading

NOTE = "mask, scale and softcap are not in a dump: a decoder's needs --causal"
ALONE = "no seq_lens there: taken as one sequence from its first token"

#: Tags of a file's name that part what is told apart by nothing else; the first that is there.
_PARTS = (("step", ("step", "forward_pass_id", "curr_step")), ("rank", ("rank",)))
_HOOKED = "non_intrusive__"
#: What SGLang's attention layers are called in its models, and their arguments and result.
_LAYER = re.compile(
    r"(?P<where>.*attn\.(?:attn|attn_mha)|.*attention\.attn)\.(?P<what>inputs\.\w+|output)"
)
#: Names that people choose: attn_q, my__k.
_NAMED = re.compile(r"(?:(?P<where>.+)__)?(?:attn_)?(?P<what>q|k|v|query|key|value|out|output)")
_ROLES = {
    "query": ("inputs.0", "inputs.q", "q", "query"),
    "key": ("inputs.1", "inputs.k", "k", "key"),
    "value": ("inputs.2", "inputs.v", "v", "value"),
    "expected": ("output", "out"),
    "sinks": ("inputs.sinks",),
}
_PLAYED = {name: role for role, names in _ROLES.items() for name in names}
_TURNED = re.compile(r"(?P<where>.*)\.rotary_emb\.1")  # after RoPE: query .0, key .1


def is_dump(folder: str) -> bool:
    """Whether a folder holds files that SGLang's dumper has named."""
    with reading(folder):
        return any(_tags(name) for name in os.listdir(folder))


def of_folder(folder: str, read: Callable[[str], Bundle]) -> Bundle:
    """The tensors of a folder: those of layers as ``step0.rank0.PATH.attn.query`` and so on.

    What has the same name again, as where no step was counted, lies below ``again1``.
    """
    found: dict[str, Entry] = {}
    ends: dict[str, Entry] = {}  # seq_lens, by the pass
    passes: dict[str, str] = {}  # of each layer
    strange: dict[str, list[str]] = {}  # inputs of a layer that nothing reads
    seen: Counter[tuple[str, str, str]] = Counter()
    with reading(folder):
        files = [(name, tags) for name in os.listdir(folder) if (tags := _tags(name))]
    for file, tags in sorted(files, key=_order):
        entry, name = _value(os.path.join(folder, file), read), tags["name"]
        layer_id = "" if name.startswith(_HOOKED) else tags.get("layer_id", "")
        again = seen[_pass(tags), layer_id, name]
        seen[_pass(tags), layer_id, name] += 1
        at = _joined(_pass(tags), again and f"again{again}")
        if name == "seq_lens":
            ends[at] = entry
            continue
        where, role = _placed(name)
        layer = _joined(at, layer_id and f"layer{layer_id}", where)
        passes[layer] = at
        if role.startswith("inputs."):
            strange.setdefault(layer, []).append(role.removeprefix("inputs."))
        found[_joined(layer, role)] = entry
    for layer in _layers(found):
        lacks = [role for role in ("key", "value") if f"{layer}.{role}" not in found]
        if lacks:
            found[f"{layer}.query"] = _refused(f"{folder}: {layer} has no {' and no '.join(lacks)}")
        elif layer in strange:
            found[f"{layer}.query"] = _refused(
                f"{folder}: {layer} also takes {numbered(strange[layer])}, which changes the result"
            )
    return _told(folder, found, lambda layer: ends.get(passes[layer]))


def of_pass(bundle: Bundle) -> Bundle:
    """The outputs of one forward pass, with the query, key and value of its layers.

    Query and key are what RoPE gave, the value is what follows them in ``qkv_proj``. A bundle that
    is no such pass is returned as it is.
    """
    tensors = bundle.tensors
    hits = [hit for name in tensors if (hit := _TURNED.fullmatch(name))]
    if not hits or not isinstance(tensors, Lazy):
        return bundle
    found = {name: tensors.entry(name) for name in tensors}
    for hit in hits:
        where = hit["where"]
        projected = next(
            (f"{where}.{n}" for n in ("v_proj", "qkv_proj") if f"{where}.{n}" in tensors), None
        )
        if projected is None or f"{where}.rotary_emb.0" not in tensors:
            continue
        layer = f"{where}.attn"
        found[f"{layer}.query"] = tensors.entry(f"{where}.rotary_emb.0")
        found[f"{layer}.key"] = tensors.entry(f"{where}.rotary_emb.1")
        found[f"{layer}.value"] = _last(tensors, projected, where)
        if layer in found:
            found[f"{layer}.expected"] = found.pop(layer)
    lengths = next((n for n in tensors if n.endswith("forward_batch_info.seq_lens")), None)
    ends = None if lengths is None else tensors.entry(lengths)
    told = _told(bundle.source, found, lambda layer: ends)
    return replace(told, options=MappingProxyType({**bundle.options, **told.options}))


def _told(source: str, found: Mapping[str, Entry], ends: Callable[[str], Entry | None]) -> Bundle:
    """The bundle of a dump, whose layers know where their sequences begin."""
    entries = dict(found)
    notes = [NOTE]
    for layer in _layers(found):
        lengths = ends(layer)
        if lengths is None:
            notes.append(ALONE)
        else:
            entries[f"{layer}.cu_seqlens"] = _starts(
                source, layer, lengths, found[f"{layer}.query"]
            )
    options = {f"{layer}.layout": "blhd" for layer in _layers(found)}
    return Bundle(
        source, DUMP, Lazy(entries), MappingProxyType(options), notes=tuple(dict.fromkeys(notes))
    )


# -- names ----------------------------------------------------------------------------------------


def _tags(file: str) -> dict[str, str]:
    """The tags in a file's name; none where it is not the dumper's."""
    stem, suffix = os.path.splitext(file)
    parts = [part.partition("=") for part in stem.split("___")]
    if suffix != ".pt" or not all(equals for _, equals, _ in parts):
        return {}
    tags = {key: value for key, _, value in parts}
    return tags if "name" in tags else {}


def _order(file: tuple[str, Mapping[str, str]]) -> tuple[int, str]:
    """Files in the order in which they were written."""
    name, tags = file
    index = tags.get("dump_index", "")
    return int(index) if index.isdecimal() else 0, name


def _pass(tags: Mapping[str, str]) -> str:
    """The forward pass and the rank that a tensor comes from: step0.rank0."""
    said = ((word, next((tags[n] for n in names if n in tags), "")) for word, names in _PARTS)
    return _joined(*(value and word + value for word, value in said))


def _joined(*parts: str | int) -> str:
    """A name of those parts that are there."""
    return ".".join(str(part) for part in parts if part)


def _placed(name: str) -> tuple[str, str]:
    """The module of a tensor and the role it plays there, its own name where it plays none."""
    if name.startswith(_HOOKED):
        hit = _LAYER.fullmatch(name.removeprefix(_HOOKED))
    else:
        hit = _NAMED.fullmatch(name)
    if not hit:
        return "", name
    return hit["where"] or "attn", _PLAYED.get(hit["what"], hit["what"])


def _layers(names: Iterable[str]) -> Iterator[str]:
    """The modules that have a query."""
    return (name.removesuffix(".query") for name in list(names) if name.endswith(".query"))


# -- tensors --------------------------------------------------------------------------------------


def _value(path: str, read: Callable[[str], Bundle]) -> Entry:
    """The one tensor of a file: itself, or the ``value`` beside its ``meta``."""

    @cache
    def load() -> Array:
        tensors = read(path).tensors
        name = next((n for n in ("value", "") if n in tensors), None)
        if name is None:
            raise FileError(f"{path} holds {numbered(tensors)}; expected one tensor, its value")
        return tensors[name]

    return Entry(load)


def _starts(source: str, layer: str, lengths: Entry, query: Entry) -> Entry:
    """Where each sequence begins ``(S + 1,)``; FileError where the cache held some of it before."""

    def load() -> Array:
        starts = np.concatenate([[0], np.cumsum(lengths.load().ravel().astype(np.int64))])
        rows = len(query.load())
        if starts[-1] != rows:
            raise FileError(
                f"{source}: {layer} has {counted(rows, 'query', 'queries')} for "
                f"{counted(int(starts[-1]), 'key')} of seq_lens; the others are not in a dump",
                "dump a pass that reads whole prompts: its first, without a cached prefix",
            )
        return starts

    return Entry(load)


def _last(tensors: Lazy, projected: str, where: str) -> Entry:
    """The value: all that a projection gives, or what follows query and key in it."""

    def load() -> Array:
        whole = tensors[projected]
        if projected.endswith(".v_proj"):
            return whole
        parts = [tensors[f"{where}.rotary_emb.{n}"] for n in (0, 1)]
        width = sum(int(np.prod(part.shape[1:])) for part in parts)
        if whole.ndim != 2 or whole.shape[1] <= width or len(whole) != len(parts[0]):
            raise FileError(
                f"{projected} is {whole.shape}, query and key are {parts[0].shape} and "
                f"{parts[1].shape}: no value is left"
            )
        return whole[:, width:]

    return Entry(load)


def _refused(what: str) -> Entry:
    """A query whose answer would be another one than the layer's."""

    def load() -> Array:
        raise FileError(what, "to go ahead name the tensors: -q FILE -k FILE -v FILE")

    return Entry(load)
