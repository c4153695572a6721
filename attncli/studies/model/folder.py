"""A folder of transformers, before anything of it is loaded: where, of what kind, how large."""

from __future__ import annotations

import os
from collections.abc import Mapping
from glob import glob
from importlib import import_module
from typing import Any

from attncli.errors import FileError, InputError, TooLarge
from attncli.resources import available_memory, readable_bytes

SIZES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
FOUND = {"local_files_only": True, "trust_remote_code": False}


def is_model(source: str) -> bool:
    """Whether this is a folder with the config.json of a model."""
    return os.path.isfile(os.path.join(source, "config.json"))


def find_folder(source: str) -> str:
    """Return the folder of a model."""
    if is_model(source):
        return source
    if os.path.isdir(source):
        raise FileError(f"{source} has no config.json", "expected a folder of transformers")
    if os.path.exists(source):
        raise FileError(f"{source} is no folder", "expected the folder that holds config.json")
    if source.count("/") != 1 or source[0] in "./~":
        cached = f", or OWNER/{source} of Hugging Face's local cache" * ("/" not in source)
        raise FileError(
            f"there is no folder {source}", f"expected a folder of transformers{cached}"
        )
    hub = import_module("transformers.utils")
    try:
        found = hub.cached_file(source, "config.json", **FOUND)
    except (OSError, ValueError):
        found = None
    if found is None:
        raise FileError(
            f"there is no folder {source}, and no model of that name in the local cache of "
            "Hugging Face", f"nothing is downloaded here: hf download {source} does it",
        )  # fmt: skip
    return os.path.dirname(str(found))


def demand_own_code(source: str, config: Mapping[str, Any]) -> list[str]:
    """Return a warning of code of the folder that is not run; InputError where it is needed."""
    known = import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    kind = config.get("model_type")
    if isinstance(kind, str) and kind in known:
        own = f"{source} has code of its own (auto_map), which is never run here: transformers' is"
        return [own] if config.get("auto_map") else []
    if config.get("auto_map"):
        raise InputError(
            f"{source} is a model with code of its own (auto_map), which is never run here",
            "run it yourself: with attncli.capture(model) as seen: …",
        )
    if not isinstance(kind, str):
        raise InputError(
            f"config.json of {source} names no model_type", "expected a folder of transformers"
        )
    raise InputError(
        f"transformers knows no model_type '{kind}' (config.json of {source})",
        "it may need a newer transformers: pip install -U transformers",
    )


def demand_known_quantisation(source: str, config: Mapping[str, Any]) -> None:
    """Raise InputError for a quantisation that transformers would pass over in silence."""
    told = config.get("quantization_config") or {}
    known = import_module("transformers.quantizers.auto").AUTO_QUANTIZATION_CONFIG_MAPPING
    if not isinstance(told, dict):
        raise InputError(
            f"quantization_config of {source} is no object", "expected that of transformers"
        )
    method = told.get("quant_method")
    if told and method not in [*known] and not any("load_in_" in name for name in told):
        raise InputError(
            f"{source} is quantised by '{method}', which transformers does not know",
            "it may need a newer transformers, or give weights that are not quantised",
        )


def check_memory(source: str, folder: str, config: Mapping[str, Any], dtype: str | None) -> None:
    """Raise TooLarge where the weights do not fit, FileError where there are none."""
    files = next((some for one in WEIGHTS if (some := glob(os.path.join(folder, one)))), [])
    if not files:
        raise FileError(f"{source} holds no weights", f"expected {' or '.join(WEIGHTS)}")
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if config.get("quantization_config"):
        stored = dtype or stored  # how much it becomes is transformers' affair
    size = sum(map(os.path.getsize, files))
    need = {
        name: size * SIZES[name] // SIZES.get(stored, 4) for name in (dtype or stored, "bfloat16")
        if name in SIZES
    }  # fmt: skip
    asked, room = need.get(dtype or stored, size), available_memory()
    if room is not None and asked > room:
        less = need["bfloat16"]
        raise TooLarge(
            f"{source} needs {readable_bytes(asked)} as {dtype or stored}; "
            f"{readable_bytes(room)} are free",
            f"--dtype bfloat16 needs {readable_bytes(less)}" if less <= room
            else "attncli inspect without --text reads its weights, one layer at a time",
        )  # fmt: skip
