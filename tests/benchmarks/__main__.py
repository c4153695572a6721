"""Speed against other libraries, side by side: ``python -m tests.benchmarks [P1 …] [--quick]``.

Every part checks its answers first, then times all competitors in turn within one process, and
reports ratios: absolute times of a shared machine mean little. Prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
if any(name in os.environ for name in UNSET):  # both are read when NumPy is loaded
    os.execve(
        sys.executable,
        [sys.executable, "-m", "tests.benchmarks", *sys.argv[1:]],
        {name: value for name, value in os.environ.items() if name not in UNSET},
    )

import numpy as np  # noqa: E402

from attncli.attention.masks import Extent, Mask  # noqa: E402
from attncli.attention.patterns import Band, Blocks  # noqa: E402
from attncli.attention.pose import pose  # noqa: E402
from attncli.attention.predicates import FAR  # noqa: E402
from attncli.attention.problem import Problem  # noqa: E402
from attncli.engines import How  # noqa: E402
from attncli.engines.numpy import forward  # noqa: E402

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[], Any]
THREADS = 2
RESULTS = Path(__file__).with_name("results.json")
STATISTICS = ("output", "lse", "row_statistics")


@dataclass(frozen=True)
class Line:
    """One measured ratio. ``ratio`` is other / ours in time: above 1 we are faster."""

    part: str
    cell: str
    against: str
    ratio: float
    best: float
    target: str
    met: bool
    note: str = ""


def in_turn(runs: dict[str, Run], seconds: float) -> dict[str, list[float]]:
    """Time each run again and again, in turn; return the seconds of every round.

    A pool of threads spins on for a while after its work, and a pool that rested is slow to wake:
    each turn waits for the one before to fall asleep, runs once untimed, then is timed.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    spent = 0.0
    while len(times[next(iter(times))]) < 6 or spent < seconds:
        for name, run in runs.items():
            time.sleep(0.25)
            run()
            for _ in range(3):
                start = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - start)
                spent += times[name][-1]
        if len(times[name]) >= 60:
            break
    return times


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def ratio(times: dict[str, list[float]], other: str, ours: str) -> tuple[float, float]:
    """How many times longer the other takes: medians, and bests."""
    return median(times[other]) / median(times[ours]), min(times[other]) / min(times[ours])


def causal(extent: Extent) -> Mask:
    return Mask(extent, Band(-FAR, 0, (0,) * extent.batch))


def tensors(heads: int, length: int, width: int) -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((1, heads, length, width), dtype=np.float32) for _ in range(3)]


# --- the others ---------------------------------------------------------------------------------


def torch_run(q: Array, k: Array, v: Array, masked: bool) -> Run:
    import torch

    torch.set_num_threads(THREADS)
    a, b, c = (torch.from_numpy(x) for x in (q, k, v))
    attention = torch.nn.functional.scaled_dot_product_attention

    def run() -> Any:
        with torch.inference_mode():
            return attention(a, b, c, is_causal=masked).numpy()

    return run


def onnxruntime_run(q: Array, k: Array, v: Array, masked: bool) -> Run:
    import onnxruntime  # type: ignore[import-untyped]
    from onnx import TensorProto, helper

    node = helper.make_node("Attention", ["Q", "K", "V"], ["Y"], is_causal=int(masked))
    shape = ["b", "h", "l", "d"]
    takes, gives = (
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in names]
        for names in ("QKV", "Y")
    )
    model = helper.make_model(
        helper.make_graph([node], "attention", takes, gives),
        opset_imports=[helper.make_opsetid("", 23)], ir_version=10,
    )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    # threads that spin after a run would be charged to whoever comes next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"Q": q, "K": k, "V": v})[0]


def jax_run(q: Array, k: Array, v: Array, masked: bool) -> Run:
    import jax

    attention = jax.jit(lambda a, b, c: jax.nn.dot_product_attention(a, b, c, is_causal=masked))
    a, b, c = (jax.numpy.asarray(x.swapaxes(1, 2)) for x in (q, k, v))
    return lambda: np.asarray(attention(a, b, c)).swapaxes(1, 2)


Make = Callable[[Array, Array, Array, bool], Run]
OTHERS: dict[str, Make] = {"torch": torch_run, "onnxruntime": onnxruntime_run, "jax": jax_run}


def installed() -> dict[str, Make]:
    """Return the others that can run here; name those that cannot."""
    from importlib.util import find_spec

    found = {name: make for name, make in OTHERS.items() if find_spec(name)}
    for name in OTHERS.keys() - found.keys():
        print(f"not installed, left out: {name}", file=sys.stderr)
    return found


# --- the parts ----------------------------------------------------------------------------------


def ours(problem: Problem, want: tuple[str, ...] = ("output",)) -> Run:
    return lambda: forward.attend(problem, want, How(THREADS)).output


def p1(quick: bool) -> Iterator[Line]:
    """Output only, against the fastest of the others."""
    cells = [
        (h, n, d)
        for d in (64, 128)
        for h, n in ((1, 512), (8, 512), (8, 1024), (4, 2048), (4, 4096), (1, 8192), (1, 16384))
    ]
    if quick:
        cells = [(8, 512, 64), (8, 1024, 64), (4, 4096, 64), (1, 8192, 128)]
    found, fastest, torches = installed(), list[float](), list[float]()
    for h, n, d in cells:
        for masked in (False, True):
            q, k, v = tensors(h, n, d)
            runs = {name: make(q, k, v, masked) for name, make in found.items()}
            if n > 8192:
                runs.pop("jax", None)  # its matrix of weights takes gigabytes
            runs["ours"] = ours(pose(q, k, v, mask=causal if masked else ()))
            truth = runs["ours"]()
            for name, run in runs.items():
                if not np.allclose(run(), truth, atol=2e-5):
                    raise SystemExit(f"{name} disagrees at {h}x{n}x{d}")
            times = in_turn(runs, 1 if quick else 3)
            each = {name: ratio(times, name, "ours") for name in runs if name != "ours"}
            flops = 4 * h * n * n * d / (2 if masked else 1)
            rate = flops / median(times["ours"]) / 1e9
            best = min(each, key=lambda name: each[name][0])
            fastest.append(each[best][0])
            torches.append(each["torch"][0]) if "torch" in each else None
            note = "  ".join(f"{name} {a:.2f}" for name, (a, _) in each.items())
            cell = f"{h}x{n}x{d} {'causal' if masked else 'full'}"
            yield Line("P1", cell, best, *each[best], ">= 1.0", each[best][0] >= 1,
                       f"{note}  {rate:.0f} GFLOP/s")  # fmt: skip
    for name, values, wanted in (("fastest", fastest, 1.3), ("torch", torches, 1.6)):
        if values:
            mean = math.exp(sum(map(math.log, values)) / len(values))
            yield Line("P1", "geometric mean", name, mean, max(values), f">= {wanted}",
                       mean >= wanted)  # fmt: skip


def p2(quick: bool) -> Iterator[Line]:
    """The share of what the machine's own matrix product reaches."""
    a = np.random.default_rng(0).standard_normal((3000, 3000), dtype=np.float32)
    out = np.empty_like(a)
    for h, n, d, wanted in ((1, 4096, 64, 0.65), (1, 8192, 64, 0.65), (1, 4096, 128, 0.75)):
        times = in_turn(
            {"gemm": lambda: np.matmul(a, a, out=out), "ours": ours(pose(*tensors(h, n, d)))},
            1 if quick else 3,
        )
        gemm = 2 * len(a) ** 3 / median(times["gemm"])
        share = 4 * h * n * n * d / median(times["ours"]) / gemm
        best = 4 * h * n * n * d / min(times["ours"]) / (2 * len(a) ** 3 / min(times["gemm"]))
        yield Line("P2", f"{h}x{n}x{d} full", "GEMM", share, best, f">= {wanted}", share >= wanted,
                   f"GEMM {gemm / 1e9:.0f} GFLOP/s")  # fmt: skip


def p3(quick: bool) -> Iterator[Line]:
    """Output with all statistics, against output alone."""
    for h, n, d in ((4, 2048, 64), (4, 4096, 64), (1, 8192, 128)):
        for name, mask, size in (("full", (), 1), ("causal", causal, 1), ("full, steep", (), 20)):
            q, k, v = tensors(h, n, d)
            problem = pose(q * np.float32(size), k, v, mask=mask)
            runs = {"alone": ours(problem), "statistics": ours(problem, STATISTICS)}
            times = in_turn(runs, 1 if quick else 3)
            cost, best = (1 / x for x in ratio(times, "alone", "statistics"))
            yield Line("P3", f"{h}x{n}x{d} {name}", "output alone", cost, best, "<= 1.25",
                       cost <= 1.25)  # fmt: skip


def p4(quick: bool) -> Iterator[Line]:
    """Sparse masks, against as many multiply-adds done densely."""
    n = 16384 if quick else 65536
    masks = {
        "window(1024) & causal": (lambda e: Mask(e, Band(-1024, 0, (0,) * e.batch)), 1025),
        "documents of 1024": (lambda e: Mask(e, Blocks(1024, (0,) * e.batch)), 1024),
    }
    for name, (mask, seen) in masks.items():
        q, k, v = tensors(1, n, 64)
        side = round(math.sqrt(n * seen))
        runs = {
            "dense": ours(pose(*tensors(1, side, 64))),
            "sparse": ours(pose(q, k, v, mask=mask)),
        }
        times = in_turn(runs, 2 if quick else 6)
        cost, best = (1 / x for x in ratio(times, "dense", "sparse"))
        yield Line("P4", f"1x{n}x64 {name}", f"dense {side}", cost, best, "<= 1.3", cost <= 1.3)


def p5(quick: bool) -> Iterator[Line]:
    """Peak memory beyond inputs and outputs, one head."""
    n = 32768 if quick else 131072
    for masked in (False, True):
        problem = pose(*tensors(1, n, 64), mask=causal if masked else ())
        for want in (("output",), STATISTICS):
            tracemalloc.start()
            got = forward.attend(problem, want, How(THREADS))
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            kept = got.output.nbytes + got.lse.nbytes
            kept += sum(a.nbytes for a in vars(got.rows).values()) if got.rows else 0
            extra = (peak - kept) / 2**20
            cell = f"1x{n}x64 {'causal' if masked else 'full'} {want[-1]}"
            yield Line("P5", cell, "MiB", extra, extra, "<= 200", extra <= 200)


def p7(quick: bool) -> Iterator[Line]:
    """A whole process on a small file."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "small.npz")
        q, k, v = (x[0] for x in tensors(2, 16, 8))
        np.savez(path, query=q, key=k, value=v)
        code = (
            f"import numpy, torch; f = numpy.load({path!r}); "
            "t = [torch.from_numpy(f[n]) for n in ('query', 'key', 'value')]; "
            "print(torch.nn.functional.scaled_dot_product_attention(*t))"
        )
        commands = {
            "ours": [sys.executable, "-m", "attncli", "compute", path, "--json"],
            "torch": [sys.executable, "-c", code],
            "import numpy": [sys.executable, "-c", "import numpy"],
        }
        if "torch" not in installed():
            del commands["torch"]

        def command(words: list[str]) -> Run:
            return lambda: subprocess.run(words, check=True, capture_output=True)

        times = in_turn({n: command(w) for n, w in commands.items()}, 5 if quick else 20)
    for other, wanted in (("torch", 0.25), ("import numpy", 2.0)):
        if other in times:
            cost, best = (1 / x for x in ratio(times, other, "ours"))
            yield Line("P7", "compute small.npz", other, cost, best, f"<= {wanted}", cost <= wanted)


def p8(quick: bool) -> Iterator[Line]:
    """JSON in and out, through files of the same content."""
    from attncli import files

    array = np.random.default_rng(0).standard_normal((400, 500))
    with tempfile.TemporaryDirectory() as folder:
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

        if not np.array_equal(read(), plain()):
            raise SystemExit("files.read_tensor disagrees with json")
        write()
        if not np.array_equal(json.loads(out.read_text())["query"], array):
            raise SystemExit("files.write disagrees with json")
        times = in_turn(
            {"json.loads": plain, "read": read, "json.dumps": write_plain, "write": write},
            1 if quick else 4,
        )
    for other, mine, wanted in (("json.loads", "read", 4), ("json.dumps", "write", 20)):
        gain, best = ratio(times, other, mine)
        yield Line("P8", f"{mine} 4 MB", other, gain, best, f">= {wanted}", gain >= wanted)


PARTS = {"P1": p1, "P2": p2, "P3": p3, "P4": p4, "P5": p5, "P7": p7, "P8": p8}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"any of {' '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer cells, shorter runs")
    parser.add_argument("-o", "--output", default=str(RESULTS), help="where the JSON goes")
    options = parser.parse_args()
    unknown = set(options.parts) - PARTS.keys()
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    import threadpoolctl

    blas = [info for info in threadpoolctl.threadpool_info() if info["user_api"] == "blas"]
    for info in blas:
        print(f"{info['internal_api']} {info['version']}, kernel {info.get('architecture')}")
    lines = []
    for part in options.parts or PARTS:
        print(f"\n{part}  {PARTS[part].__doc__}")
        for line in PARTS[part](options.quick):
            lines.append(line)
            mark = "ok  " if line.met else "MISS"
            print(
                f"  {mark} {line.cell:<42} {line.against:<14} {line.ratio:7.2f}  "
                f"(best {line.best:.2f})  {line.target:<8} {line.note}",
                flush=True,
            )
    report = {"blas": blas, "threads": THREADS, "lines": [asdict(line) for line in lines]}
    Path(options.output).write_text(json.dumps(report, indent=1))
    print(f"\n{sum(line.met for line in lines)} of {len(lines)} met; wrote {options.output}")


if __name__ == "__main__":
    main()
