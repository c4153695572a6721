"""What lies beside a checkpoint's weights: config.json, or Meta's params.json."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from attncli.errors import FileError
from attncli.files.folders import weights_in
from attncli.files.texts import read_text

#: Formats that say all of it themselves: what lies beside is of another file.
OWN = (".gguf",)


def read_config(path: str, what: str = "a model's config.json") -> dict[str, Any]:
    """Read config.json (or Meta's params.json). Raises FileError for anything but an object."""
    import json

    text = read_text(path, what)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise FileError(f"{path} holds no object", f"expected {what}")
    return found


def config_beside(ref: str) -> dict[str, Any] | None:
    """Return the config.json (or params.json) beside a checkpoint, or None without one."""
    path = ref
    while "::" in path and not os.path.exists(path):
        path = path.rpartition("::")[0]
    folder = path if os.path.isdir(path) else os.path.dirname(path)
    with suppress(FileError):
        if (weights_in(path) if folder == path else path).lower().endswith(OWN):
            return None
    for name in ("config.json", "params.json"):
        beside = os.path.join(folder, name)
        if path != "-" and os.path.isfile(beside):
            return read_config(beside)
    return None


def config_of(ref: str, stated: str | None) -> dict[str, Any] | None:
    """Return the config that somebody named, else the one beside a checkpoint."""
    return config_beside(ref) if stated is None else read_config(stated)
