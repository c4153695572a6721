"""What lies beside tensors, or is told in several files: configs, shards, parts, policies."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from attncli import files
from attncli.errors import AttnError
from attncli.files.formats.json import dumps
from attncli.measures.policy import LIMITS, POLICY, read_policy
from attncli.models.families import FAMILIES
from tests.fuzz import words
from tests.fuzz.broken import EDGES, odd_document, spoilt, text_of
from tests.fuzz.calls import Random, demand_words, run
from tests.support.program import ROOT

TOML = [
    "0.5", "-1", "false", "true", "'x'", "inf", "nan", "[1]", "{}", "1979-05-27", "0x" + "f" * 6000,
    "9" * 5000, "1e400", "[" * 3000, '"""', "1_0", "", "\n", "# x", "{ a = 1, a = 2 }", "\x00", "é",
]  # fmt: skip

LIKELY = [0, 1, 2, 0.5, True, "LG", [2, 1]]  # what a member of config.json may be


def policy(rng: Random) -> None:
    """A policy is read as one, or refused."""
    lines = []
    for _ in range(int(rng.integers(1, 6))):
        name = words.one(rng, [*(rule.name for rule in POLICY), "x", "'a b'", "flat.hint", ""])
        level = words.one(rng, [*LIMITS, "worst", "watch.x", ""])
        way = rng.random()
        lines.append(f"[{name}]" if way < 0.4 else f"{level} = {words.one(rng, TOML)}")
    data = "\n".join(lines).encode()
    if rng.random() < 0.3:
        data = spoilt(rng, data, [b"[[x]]\n", b"watch = 1\r\n", b"\xef\xbb\xbf"])
    Path("fuzz.toml").write_bytes(data)
    try:
        read_policy("fuzz.toml")
    except AttnError as error:
        demand_words(error)


@cache
def _members() -> list[str]:
    """Return what the code that reads config.json asks it for."""
    sources = (path.read_text() for path in (ROOT / "attncli" / "models").glob("*.py"))
    return sorted(
        {word for text in sources for word in re.findall(r'"([a-z]+(?:_[a-z]+)+)"', text)}
    )


def checkpoint(rng: Random) -> None:
    """A folder with an odd config.json, an odd index or shards that do not fit is refused."""
    folder = Path("fuzz-model")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config: Any = {
        "model_type": words.one(rng, [*FAMILIES, "x", ""]),
        "num_attention_heads": 2, "hidden_size": 8, "num_hidden_layers": 2, "rope_theta": 100.0,
        "rope_scaling": {"rope_type": "llama3", "factor": 2.0}, "layer_types": ["full_attention"],
        "text_config": {"num_key_value_heads": 1},
    }  # fmt: skip
    for _ in range(int(rng.integers(0, 4))):
        config[words.one(rng, _members())] = LIKELY[int(rng.integers(len(LIKELY)))]
    if rng.random() < 0.8:
        config = odd_document(rng, config, _members())
    (folder / "config.json").write_bytes(text_of(config))
    names = [f"model.layers.{n}.self_attn.{p}_proj.weight" for n in range(2) for p in "qkvo"]
    arrays = {name: rng.normal(size=(8, 8)).astype("f4") for name in names}
    shards = ["a.safetensors", "b.safetensors"]
    if rng.random() < 0.5:
        files.write(str(folder / "model.safetensors"), arrays)
    else:
        for n, shard in enumerate(shards):
            files.write(str(folder / shard), dict([*arrays.items()][n::2]))
        index: Any = {
            "metadata": {"total_size": 1},
            "weight_map": {name: shards[n % 2] for n, name in enumerate(arrays)},
        }
        if rng.random() < 0.7:
            odd = ["weight_map", "metadata", *names[:3], "../x", "/etc/passwd", "."]
            index = odd_document(rng, index, odd)
        (folder / "model.safetensors.index.json").write_bytes(text_of(index))
    if rng.random() < 0.2:
        path = folder / words.one(rng, sorted(p.name for p in folder.iterdir()))
        path.write_bytes(spoilt(rng, path.read_bytes(), [b"{}"]))
    np.save("fuzz-x.npy", rng.normal(size=(3, 8)))
    run(_call(rng, str(folder)))


def _call(rng: Random, folder: str) -> list[str]:
    """Return a call that reads a checkpoint."""
    calls = (
        ["inspect", folder], ["inspect", folder, "--header"], ["inspect", folder, "--json"],
        ["multihead", "fuzz-x.npy", "-w", folder, "--layer", "0"],
        ["multihead", "fuzz-x.npy", "-w", f"{folder}::model.layers.1.self_attn"],
        ["multihead", "fuzz-x.npy", "-w", folder, "--layer", "1", "--heads", "2", "--json"],
        ["multihead", "-w", folder, "--list"], ["inspect", folder, "--composition", "K"],
        ["inspect", folder, "--compare", folder],
    )  # fmt: skip
    return calls[int(rng.integers(len(calls)))]


def parts(rng: Random) -> None:
    """Parts of a problem that do not fit, or say what cannot be, are not merged."""
    for part in (1, 2):
        path = f"part{part}.safetensors"
        found = files.read(path)
        arrays = {name: np.asarray(array) for name, array in found.tensors.items()}
        said: Any = found.options["partial"]
        said = json.loads(said) if isinstance(said, str) else json.loads(dumps(said))
        if rng.random() < 0.6:
            said = odd_document(rng, said, [*said, *said])
            if isinstance(said, dict) and rng.random() < 0.3:
                name = words.one(rng, ["of", "past", "shape", "keys", "family"])
                number = EDGES[int(rng.integers(len(EDGES)))]
                said[name] = number if name in ("of", "past") else [number] * 7
        if rng.random() < 0.3:
            name = words.one(rng, sorted(arrays))
            array = arrays[name]
            arrays[name] = [array[..., :1], array.astype("i4"), np.array(1.0), array * np.nan][
                int(rng.integers(4))
            ]
        text = json.dumps(said)
        if rng.random() < 0.1:
            text = words.one(rng, ["[" * 9000, "9" * 5000, "{", "null", "NaN"])
        files.write(f"fuzz{part}.safetensors", arrays, extra={"partial": text})
    how = words.one(rng, ["--json", "--quiet", "--full"])
    run(["compute", "--merge", "fuzz1.safetensors", "fuzz2.safetensors",
         *([how, "-o", "fuzz-merged.npz"] if how == "--quiet" else [how])])  # fmt: skip
