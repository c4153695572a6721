"""P7, P8, P10, P12: commands as processes, and files."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np

from attncli import files
from tests.benchmarks.timing import (
    ONE_THREAD,
    Line,
    Setting,
    Times,
    attncli,
    demand,
    in_turn,
    processes,
    ran,
    ratio,
    tensors,
)

SDPA = (
    "import numpy, torch; f = numpy.load({path!r}); "
    "t = [torch.from_numpy(f[n]) for n in ('query', 'key', 'value')]; "
    "print(torch.nn.functional.scaled_dot_product_attention(*t).tolist())"
)
#: layers, query heads, key heads, width of the model, of a shape that people know
SMALL = (30, 9, 3, 576)  # SmolLM2-135M
LARGE = (1, 32, 8, 4096)  # a layer of 32 of an 8B Llama
LAYERS = 32


def saved(folder: str, heads: int, length: int, width: int) -> str:
    path = str(Path(folder) / "qkv.npz")
    arrays = (x[0] for x in tensors(heads, length, width))
    np.savez(path, **dict(zip(("query", "key", "value"), arrays, strict=True)))
    return path


def p7(setting: Setting) -> Iterator[Line]:
    """compute on a small file, a whole process, against a script of torch, and import numpy."""
    with TemporaryDirectory() as folder:
        path = saved(folder, 2, 16, 8)
        commands = {
            "ours": attncli("compute", path, "--json"),
            "a torch script": [*attncli()[:1], "-c", SDPA.format(path=path)],
            "import numpy": [sys.executable, "-c", "import numpy"],
        }
        if find_spec("torch"):
            ours, theirs = (json.loads(ran(commands[n]).out) for n in ("ours", "a torch script"))
            demand(np.allclose(ours["output"], theirs, atol=2e-5), "compute and torch")
        else:
            del commands["a torch script"]
        times = processes(commands, setting, 5 if setting.quick else 15)
    for other, target in (("a torch script", 0.15), ("import numpy", 1.8)):
        if other in times:
            cost, best = ratio(times, "ours", other)
            yield Line("P7", "compute, a small file", "2×16×8", other, cost, best, target, False)


def p8(setting: Setting) -> Iterator[Line]:
    """JSON in and out, through files of the same content."""
    array = np.random.default_rng(0).standard_normal((400, 500))
    with TemporaryDirectory() as folder:
        path, out = (Path(folder) / name for name in ("in.json", "out.json"))
        path.write_text(json.dumps({"query": array.tolist()}))

        def plain() -> Any:
            return np.array(json.loads(path.read_text())["query"])

        def write_plain() -> Any:
            out.write_text(json.dumps({"query": array.tolist()}))

        def read() -> Any:
            return files.read_tensor(f"{path}::query")

        def write() -> Any:
            files.write(str(out), {"query": array})

        demand(np.array_equal(read(), plain()), "files.read_tensor and json.loads")
        write()
        demand(np.array_equal(json.loads(out.read_text())["query"], array), "files.write and json")
        times = in_turn(
            {"json.loads": plain, "read": read, "json.dumps": write_plain, "write": write},
            setting, 2 if setting.quick else 6,
        )  # fmt: skip
    for what, other, mine, target in (
        ("JSON in", "json.loads", "read", 4), ("JSON out", "json.dumps", "write", 20)
    ):  # fmt: skip
        gain, best = ratio(times, other, mine)
        yield Line("P8", what, "200,000 numbers", other, gain, best, target, True)


def same(one: Any, other: Any) -> bool:
    """Whether two answers say the same but for rounding."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return math.isclose(one, other, rel_tol=1e-3, abs_tol=1e-5)
    return bool(one == other)


def p10(setting: Setting) -> Iterator[Line]:
    """inspect, 12 heads of 4096 × 64, against compute of the same; whole processes."""
    with TemporaryDirectory() as folder:
        path = saved(folder, 12, 4096, 64)
        more = ("--json", "--threads", str(setting.threads))
        commands = {name: attncli(name, path, *more) for name in ("compute", "inspect")}
        computed, inspected = (json.loads(ran(words).out) for words in commands.values())
        for ours, theirs in zip(computed["heads"], inspected["heads"], strict=True):
            shared = ours["statistics"].keys() & theirs["statistics"].keys()
            demand(
                len(shared) > 10
                and all(same(ours["statistics"][n], theirs["statistics"][n]) for n in shared),
                "compute and inspect",
            )
        times = processes(commands, setting, 3 if setting.quick else 5)
    cost, best = ratio(times, "inspect", "compute")
    yield Line("P10", "inspect", "12×4096×64", "compute", cost, best, 3.0, False)


def checkpoint(folder: str, layers: int, heads: int, kv_heads: int, width: int) -> str:
    """Save a Llama of random weights, attention only, in bfloat16."""
    rng, kv = np.random.default_rng(0), width // heads * kv_heads
    shapes = {"q": (width, width), "k": (kv, width), "v": (kv, width), "o": (width, width)}
    weights = {
        f"model.layers.{n}.self_attn.{name}_proj.weight":
            (0.02 * rng.standard_normal(shape, dtype=np.float32)).astype(ml_dtypes.bfloat16)
        for n in range(layers) for name, shape in shapes.items()
    }  # fmt: skip
    files.write(os.path.join(folder, "model.safetensors"), weights)
    config = {
        "model_type": "llama", "hidden_size": width, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "num_hidden_layers": layers, "rope_theta": 10000.0,
    }  # fmt: skip
    Path(folder, "config.json").write_text(json.dumps(config))
    return folder


def p12(setting: Setting) -> Iterator[Line]:
    """inspect CHECKPOINT as it is called, against itself with one BLAS thread; an 8B shape."""
    rounds = 3 if setting.quick else 5
    with TemporaryDirectory() as folder:
        words = attncli("inspect", checkpoint(folder, *SMALL), "--json")
        free, held = ran(words), ran(words, ONE_THREAD)
        demand(same(json.loads(free.out), json.loads(held.out)), "BLAS threads")
        cpu: Times = {"free": [], "held": []}
        wall: Times = {"free": [], "one": []}
        for _ in range(rounds):
            free, held = ran(words), ran(words, ONE_THREAD)
            cpu["free"].append(free.cpu)
            cpu["held"].append(held.cpu)
            if not setting.cpu:
                wall["free"].append(free.wall)
                wall["one"].append(ran([*words, "--threads", "1"], ONE_THREAD).wall)
    cost, best = ratio(cpu, "free", "held")
    # 1.0 is wanted: what is less than half of its last digit away is noise
    yield Line("P12", "inspect, 270 heads, CPU time", "SmolLM2-135M's shape", "one BLAS thread",
               cost, best, 1.05, False, note=f"{min(cpu['free']):.1f} s")  # fmt: skip
    if not setting.cpu:
        gain, best = ratio(wall, "one", "free")
        yield Line("P12", "inspect, 270 heads, elapsed", "SmolLM2-135M's shape", "--threads 1",
                   gain, best, 1.5, True)  # fmt: skip
    with TemporaryDirectory() as folder:
        words = attncli("inspect", checkpoint(folder, *LARGE), "--json")
        nothing = attncli("--version")
        times = [LAYERS * (ran(words).cpu - ran(nothing).cpu) for _ in range(rounds)]
    seconds = sorted(times)[len(times) // 2]
    yield Line("P12", "inspect, 1,024 heads, CPU time", f"an 8B's layer × {LAYERS}", "60 s",
               seconds, min(times), 60, False, " s")  # fmt: skip
