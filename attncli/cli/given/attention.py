"""From files and flags to a problem: which tensor plays which role, and what labels it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from attncli import files
from attncli.attention.masks import Extent
from attncli.attention.pose import pose
from attncli.attention.problem import Problem, Scale
from attncli.attention.view import Labels
from attncli.cli import groups
from attncli.cli.given import calls
from attncli.cli.given import names as given_names
from attncli.cli.given.expected import Theirs, expected_of
from attncli.cli.given.expressions import maskers_of
from attncli.cli.given.names import DTYPES, without_role
from attncli.cli.given.reader import Array, Reader, is_number, is_word, numbers
from attncli.cli.given.rope import rope_of
from attncli.cli.given.sequences import Call
from attncli.cli.given.tokens import Tokens, labels_of, tokens_of
from attncli.errors import InputError
from attncli.files.attentions import NO_QUERY, looks_like_weights
from attncli.files.bundle import Bundle


class Inputs(NamedTuple):
    """``arguments`` for ``problem.pose``; ``tokens`` by role; ``sources`` are the files read.

    ``grad_output`` is that of the file, where a command asks for one and no flag gives it;
    ``expected`` are results to be judged, by stage.
    """

    arguments: Mapping[str, Any]
    tokens: Mapping[str, Tokens] = MappingProxyType({})
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    grad_output: Array | None = None
    expected: Mapping[str, Theirs] = MappingProxyType({})

    def pose(self) -> Problem:
        """Return the problem, or raise InputError for what does not fit together."""
        problem = pose(**self.arguments)
        return replace(problem, warnings=(*self.warnings, *problem.warnings))

    def labels(self, problem: Problem | Extent) -> Labels:
        """Return the labels, which must be as many as the positions they label."""
        return labels_of(self.tokens, problem)


def gather(bundle: Bundle | None, flags: groups.Posed) -> Inputs:
    """Find every tensor and option of an attention problem in ``bundle`` and ``flags``.

    Raises InputError or FileError for what is missing, ambiguous or of the wrong type.
    """
    reader = Reader(bundle, flags)
    scale, source = scale_of(reader)
    bundle = reader.bundle
    if bundle:
        _refuse_to_turn_again(bundle, flags)
        given_names.refuse_slips(bundle, [name for name, said in vars(flags).items() if said])
        given_names.refuse_groups(bundle)
    call = calls.read(reader, flags, _query, kv_lengths_of(reader))
    arguments = {
        **call.arguments(),
        "mask": [*maskers_of(reader, call.flags), *call.masks],
        "scale": scale,
        "scale_source": source,
        "softcap": _softcap(reader),
        "sink": sink_of(reader),
        **{name: reader.pick(name, is_word) for name in DTYPES},
        "rope": rope_of(reader),
    }
    tokens = tokens_of(reader)
    said = getattr(flags, "grad_output", "no such option")
    upstream = reader.tensor("grad_output") if said is None else None
    expected = expected_of(reader) if hasattr(flags, "rtol") else {}
    _note_what_is_missing(reader, call)
    _note_dropout(reader)
    reader.warn_of_unread()
    return Inputs(
        arguments,
        tokens,
        tuple(dict.fromkeys(reader.notes)),
        tuple(dict.fromkeys(reader.sources)),
        tuple(dict.fromkeys(reader.warnings)),
        upstream[0] if upstream else None,
        expected,
    )


def _refuse_to_turn_again(bundle: Bundle, flags: groups.Rope) -> None:
    """Raise InputError for RoPE on what was written with RoPE applied."""
    turned = bundle.options.get("rope_applied")
    if turned and flags.rope is not None:
        raise InputError(
            f"{bundle.source}: query and key are turned already (RoPE {turned})",
            "leave --rope out",
        )


def upstream(spec: str | None) -> Any:
    """Return the gradient of the output that ``--grad-output`` means: a word or a tensor."""
    if spec is None or (spec.partition(":")[0] in ("ones", "random") and not os.path.exists(spec)):
        return spec or "ones"
    bundle = files.read(spec)
    found = files.find(bundle, "grad_output") if len(bundle.tensors) > 1 else None
    return found[1] if found else files.read_tensor(spec)


def _softcap(reader: Reader) -> float | None:
    """Return the cap; 0 is none, as in flash-attention."""
    value: float | None = reader.pick("softcap", is_number)
    return None if value == 0 else value


def _note_what_is_missing(reader: Reader, call: Call) -> None:
    """Say what takes the place of key and value, and what the query looks like."""
    if call.key is None:
        both = "key and value are" if call.value is None else "key is"
        reader.notes.append(f"{both} missing: the query is used")
        if call.value is None and looks_like_weights(call.query):
            reader.notes.append(NO_QUERY)
    elif call.value is None:
        reader.notes.append("value is missing: the key is used")


def _note_dropout(reader: Reader) -> None:
    """Warn that a result with dropout is another at every run."""
    rate = reader.checked("dropout", is_number)
    if rate and reader.bundle:
        reader.warnings.append(
            f"{reader.bundle.source}: '{reader.spelt['dropout']}' is {rate:g}: nothing is dropped "
            "here, as in evaluation"
        )


def _query(reader: Reader) -> Array:
    """Return the query; failing that hidden states, failing that the only tensor there is."""
    found = reader.tensor("query", reader.flag("query"))
    bundle = reader.bundle
    if bundle is None:
        if found is None:
            raise InputError("no query", "name it: -q FILE")
        return reader.noted("query", *found)
    if reader.flag("query") is not None and "" in bundle.tensors:
        raise InputError(
            f"{bundle.source} is one unnamed tensor, but --query is given as well",
            f"say what it is: -k {bundle.source}",
        )
    found = found or reader.tensor("hidden_states")
    if found is None:
        rest = [name for name in without_role(bundle) if not given_names.is_known(name)]
        if len(rest) != 1 or files.is_result(bundle):
            raise given_names.no_query(bundle, rest)
        reader.taken.add(rest[0])
        found = bundle.tensors[rest[0]], bundle.kind
    return reader.noted("query", *found)


def kv_lengths_of(reader: Reader) -> Any:
    """Return the valid keys of each batch element, or None."""
    text = reader.flag("kv_lengths")
    found = numbers(text)
    if found is not None:
        if not all(n >= 0 and n.is_integer() for n in found):
            raise InputError(
                f"--kv-lengths is '{text}'", "expected numbers of keys, as in 18,13,15"
            )
        return [int(n) for n in found]
    if text is None and "kv_lengths" in reader.options:
        return reader.checked("kv_lengths", _is_count_or_zero)
    tensor = reader.tensor("kv_lengths", text)
    return tensor[0] if tensor else None


def sink_of(reader: Reader) -> Any:
    """Return the extra logit: a number, one per head, or None."""
    text = reader.flag("sink")
    found = numbers(text)
    if found is not None:
        return found[0] if len(found) == 1 else np.array(found)
    if text is None and "sink" in reader.options:
        return reader.checked("sink", is_number)
    tensor = reader.tensor("sink", text)
    return tensor[0] if tensor else None


def scale_of(reader: Reader) -> tuple[Scale, str]:
    """Return the scale and who said it, for the report."""
    text = reader.flag("scale")
    if text is None:
        value = reader.checked("scale", _is_scale)
        return ("auto", "") if value is None else (value, "from file")
    if text in ("auto", "none"):
        return text, ""
    number = _parsed(text)
    if number is None:
        raise InputError(f"--scale is '{text}'", "expected a number, auto or none")
    return number, "given"


def _parsed(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_count_or_zero(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_scale(value: Any) -> bool:
    return is_number(value) or value in ("auto", "none")
