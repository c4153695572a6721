"""LoRA adapters of PEFT on the model that they adapt: W + s·B·A (Hu et al. 2021).

s = α/r, or α/√r (Kalajdzievski 2023); DoRA (Liu et al. 2024) then brings each row to its learned
norm. The rules are those of peft/tuners/lora.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from attncli import files
from attncli.errors import InputError, listed
from attncli.files.bundle import Bundle
from attncli.files.formats.entry import Array, Entry
from attncli.models.beside import config_beside, read_config
from attncli.models.lazily import Change, changed, with_entries

CONFIG = "adapter_config.json"
PREFIX = "base_model.model."
#: ``….q_proj.lora_A.weight``; ``lora_A.default.weight`` where the name of the adapter was kept.
PART = re.compile(
    r"^(.*)\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.(weight|bias))?$"
)
#: Parts of a module's path that PEFT puts between.
WRAPPED = re.compile(r"\.(base_layer|modules_to_save(\.default)?|original_module)(?=\.|$)")
#: Ways to begin that change the weights of the base itself, which then are other ones.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq")


class Factors(NamedTuple):
    """The parts of one module's update by their name: A ``(r, in)``, B ``(out, r)``, …."""

    module: str
    parts: Mapping[str, str]


def is_adapter(names: Collection[str]) -> bool:
    """Whether some names are those of a LoRA adapter."""
    return any(PART.match(name) for name in names)


def base_of(
    adapter: Bundle, config: Mapping[str, Any] | None, base: str | None
) -> tuple[Bundle, Mapping[str, Any] | None]:
    """Return the model that an adapter is for, and its config.

    ``base``, or what adapter_config.json names where that is a folder or a file here. Raises
    InputError where it is not.
    """
    named = _said(adapter).get("base_model_name_or_path")
    beside = os.path.join(os.path.dirname(adapter.source), str(named))
    here = [path for path in (str(named), beside) if named and _is_model(path)]
    found = base or next(iter(here), "")
    if not found:
        names = f"the base that it names, '{named}', is not here" if named else "it names no base"
        raise InputError(
            f"{adapter.source} is an adapter, without the weights that it adapts: {names}",
            "say where they are: --base FOLDER",
        )
    return files.read(found), config_beside(found) if config is None else config


def _is_model(path: str) -> bool:
    """Whether a path is a file, or a folder with a model's config."""
    return os.path.isfile(path) or (os.path.isdir(path) and config_beside(path) is not None)


def merged(adapter: Bundle, base: Bundle) -> Bundle:
    """Return the base's tensors with the adapter in them, each made when it is asked for.

    Raises InputError for an adapter of another kind, and for one that does not fit its base.
    """
    said = _said(adapter)
    _check(said, adapter)
    changes: dict[str, Change] = {}
    used: set[str] = set()
    notes = [f"LoRA of {adapter.source} on {base.source}: W + s·B·A"]
    for factors in _modules(adapter):
        name = _target(base, factors.module, "weight", adapter.source)
        changes[name] = _update(adapter, factors, said, base, name)
        rank = adapter.header(factors.parts["A"]).shape[0]
        stated = _of_module(said, "rank_pattern", factors.module, said.get("r", rank))
        if stated != rank:
            notes.append(f"{CONFIG} says rank {stated}, its factors have {rank}: the factors won")
        used |= {*factors.parts.values()}
    if said.get("use_dora"):
        notes.append("DoRA: its rows have the norms of lora_magnitude_vector")
    replaced = {}
    for name in adapter.tensors:
        if name not in used:
            module, _, leaf = WRAPPED.sub("", name.removeprefix(PREFIX)).rpartition(".")
            target = _target(base, module, leaf, adapter.source)
            replaced[target] = _entry(adapter, name)
    if replaced:
        notes.append(f"saved with it, in place of the base's: {listed(sorted(replaced), 4)}")
    return with_entries(changed(base, changes, notes), replaced)


def _said(adapter: Bundle) -> dict[str, Any]:
    path = os.path.join(os.path.dirname(adapter.source), CONFIG)
    if not os.path.isfile(path):
        raise InputError(
            f"{adapter.source} is an adapter and {CONFIG} is not beside it",
            "it says α, by which its weights are scaled; or merge it into its model and save that",
        )
    return read_config(path, f"an adapter's {CONFIG}")


def _check(said: Mapping[str, Any], adapter: Bundle) -> None:
    """Raise InputError for what PEFT does otherwise than is computed here."""
    kind = said.get("peft_type")
    begun = str(said.get("init_lora_weights")).lower()
    trouble = (
        (kind != "LORA", f"peft_type is {kind!r}"),
        (begun.startswith(CHANGES_BASE), f"init_lora_weights '{begun}' changes the base itself"),
        (bool(said.get("alora_invocation_tokens")), "aLoRA adapts only some tokens of a text"),
        (bool(said.get("layer_replication")), "layer_replication makes layers anew"),
        (bool(said.get("target_parameters")), "target_parameters are not computed"),
        (bool(said.get("trainable_token_indices")), "trainable_token_indices are not computed"),
        (bool(said.get("use_qalora")), "use_qalora is not computed"),
        (bool(said.get("lora_bias")), "lora_bias is not computed"),
    )
    for odd, words in trouble:
        if odd:
            raise InputError(
                f"{adapter.source}: {CONFIG}: {words}",
                "merge it with PEFT, model.merge_and_unload(), and save that",
            )


def _modules(adapter: Bundle) -> list[Factors]:
    """Return the factors of every module; InputError where one of a pair is missing."""
    found: dict[str, dict[str, str]] = {}
    for name in adapter.tensors:
        part = PART.match(name)
        if part and part[3] != "bias":
            role = part[2].removeprefix("embedding_")
            module = WRAPPED.sub("", part[1].removeprefix(PREFIX))
            found.setdefault(module, {})[role] = name
            if part[2].startswith("embedding"):
                found[module]["embedding"] = name
    for module, parts in found.items():
        missing = [role for role in "AB" if role not in parts]
        if missing:
            raise InputError(
                f"{adapter.source}: {module} has no lora_{missing[0]}", "an update is B·A: both"
            )
    return [Factors(module, parts) for module, parts in found.items()]


def _target(base: Bundle, module: str, leaf: str, source: str) -> str:
    """Return the tensor of the base that a module means, with or without what wraps the model."""
    whole = f"{module}.{leaf}"
    if whole in base.tensors:
        return whole
    ends = [n for n in base.tensors if whole.endswith("." + n) or n.endswith("." + whole)]
    if len(ends) != 1:
        raise InputError(
            f"{source} adapts '{whole}', and {base.source} has "
            + (f"{len(ends)} of that name" if ends else "no such tensor"),
            "give the model that it was made for: --base FOLDER",
        )
    return ends[0]


def _scale(said: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = _of_module(said, "alpha_pattern", module, said.get("lora_alpha", 8))
    if type(alpha) not in (int, float) or not math.isfinite(alpha):
        raise InputError(
            f"{CONFIG}: lora_alpha of {module} is {alpha!r}", "expected a finite number"
        )
    return float(alpha / (rank**0.5 if said.get("use_rslora") else rank))


def _of_module(said: Mapping[str, Any], member: str, module: str, default: Any) -> Any:
    """Return what a member says of a module, by its path's end or an expression for that."""
    patterns = said.get(member) or {}
    if not isinstance(patterns, dict):
        raise InputError(f"{CONFIG}: {member} is {patterns!r}", "expected an object, or null")
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise InputError(
                f"{CONFIG}: {member} has '{pattern}', which is no expression: {error}",
                "expected the end of a module's path",
            ) from None
    return default


def _update(
    adapter: Bundle, factors: Factors, said: Mapping[str, Any], base: Bundle, target: str
) -> Callable[[Array], Array]:
    """Return what adds the update to a weight; InputError where shapes do not fit."""
    a, b = (adapter.header(factors.parts[role]).shape for role in "AB")
    shape = base.header(target).shape
    turned = "embedding" in factors.parts or bool(said.get("fan_in_fan_out"))
    made = (b[0], a[1]) if len(a) == len(b) == 2 else ()
    if len(made) != 2 or not a[0] or a[0] != b[1] or (made[::-1] if turned else made) != shape:
        raise InputError(
            f"{adapter.source}: B {b} · A {a} of {factors.module} is no update of '{target}' "
            f"{shape}",
            "give the model that it was made for: --base FOLDER",
        )
    if said.get("use_dora") and "magnitude_vector" not in factors.parts:
        raise InputError(
            f"{adapter.source}: {factors.module} has no lora_magnitude_vector",
            f"{CONFIG} says use_dora: it is the norm of each row",
        )
    scale = _scale(said, factors.module, a[0])

    def updated(weight: Array) -> Array:
        parts = {
            role: np.asarray(adapter.tensors[name]).astype(np.float32)
            for role, name in factors.parts.items()
        }
        update = parts["B"] @ parts["A"] * np.float32(scale)
        whole = np.asarray(weight).astype(np.float32) + (update.T if turned else update)
        if "magnitude_vector" in parts:
            axis = 0 if turned else 1
            size = np.linalg.norm(whole, axis=axis, keepdims=True)
            whole = whole * (np.expand_dims(parts["magnitude_vector"].ravel(), axis) / size)
        return np.asarray(whole)

    return updated


def _entry(adapter: Bundle, name: str) -> Entry:
    return Entry(lambda: adapter.tensors[name], lambda: adapter.header(name))
