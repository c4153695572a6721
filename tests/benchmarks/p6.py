"""P6: gradients of the numpy engine against torch's autograd through SDPA on the CPU.

    python -m tests.benchmarks.p6 [--quick] [--json FILE]

Both get q, k, v and dO in float32 and give dQ, dK, dV, with two threads, in turn, in one process.
``whole`` is forward and backward, all that either needs; ``backward`` begins with what its own
forward kept. Answers are checked first. Ratios are other / ours in time, from medians: above 1 we
are faster; the target is 1.2. Memory is what the gradients take beyond inputs and results.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")  # they slow NumPy down; read when it is loaded
if __name__ == "__main__" and any(name in os.environ for name in UNSET):
    os.execve(
        sys.executable,
        [sys.executable, "-m", "tests.benchmarks.p6", *sys.argv[1:]],
        {name: value for name, value in os.environ.items() if name not in UNSET},
    )

import numpy as np  # noqa: E402

from attncli.attention.masks import Extent, Mask  # noqa: E402
from attncli.attention.patterns import Band  # noqa: E402
from attncli.attention.pose import pose  # noqa: E402
from attncli.attention.predicates import FAR  # noqa: E402
from attncli.attention.problem import Problem  # noqa: E402
from attncli.engines import How  # noqa: E402
from attncli.engines.numpy import backward as numpy_backward  # noqa: E402
from attncli.engines.numpy import forward as numpy_forward  # noqa: E402

Array = np.ndarray[Any, np.dtype[Any]]
THREADS, TARGET = 2, 1.2
LENGTHS = ((8, 512), (8, 1024), (4, 2048), (2, 4096), (1, 8192))
CELLS = [(h, n, d) for d in (64, 128) for h, n in LENGTHS]


@dataclass(frozen=True)
class Line:
    """One cell: ratios of torch's time to ours, and ours in GFLOP/s (ten per cell and channel)."""

    heads: int
    length: int
    width: int
    mask: str
    whole: float
    backward: float
    rate: float


def causal(extent: Extent) -> Mask:
    return Mask(extent, Band(-FAR, 0, (0,) * extent.batch))


def case(heads: int, length: int, width: int, masked: bool) -> tuple[Problem, Array]:
    rng = np.random.default_rng(0)
    q, k, v, grad = (
        rng.standard_normal((1, heads, length, width), dtype=np.float32) for _ in range(4)
    )
    return pose(q, k, v, mask=causal if masked else ()), grad


def measure(cells: list[tuple[int, int, int]], seconds: float) -> Iterator[Line]:
    import torch

    torch.set_num_threads(THREADS)
    for heads, length, width in cells:
        for masked in (False, True):
            problem, grad = case(heads, length, width, masked)
            leaves = [
                torch.tensor(a, requires_grad=True)
                for a in (problem.query, problem.key, problem.value)
            ]
            upward = torch.from_numpy(grad)

            def forward(leaves: Any = leaves, masked: bool = masked) -> Any:
                return torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=masked)

            def back(out: Any, leaves: Any = leaves, upward: Any = upward) -> Any:
                return torch.autograd.grad(out, leaves, upward)

            def ours(problem: Problem = problem) -> Any:
                return numpy_forward.attend(problem, (), How(THREADS))

            def ours_back(done: Any, problem: Problem = problem, grad: Array = grad) -> Any:
                return numpy_backward.backward(problem, grad, done, how=How(THREADS))

            found = ours_back(ours())
            for a, b in zip((found.query, found.key, found.value), back(forward()), strict=True):
                theirs = b.numpy()
                if not np.abs(a - theirs).max() < 2e-5 * np.abs(theirs).max():
                    raise SystemExit(f"torch disagrees at {heads}x{length}x{width}")
            whole, part = in_turn({"torch": (forward, back), "ours": (ours, ours_back)}, seconds)
            flops = 10 * heads * length**2 * width / (2 if masked else 1)
            yield Line(
                heads, length, width, "causal" if masked else "full",
                whole["torch"] / whole["ours"], part["torch"] / part["ours"],
                flops / part["ours"] / 1e9,
            )  # fmt: skip


Pair = tuple[Callable[[], Any], Callable[[Any], Any]]


def in_turn(pairs: dict[str, Pair], seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """Return the median seconds of forward and backward, and of backward alone, by name."""
    whole: dict[str, list[float]] = {name: [] for name in pairs}
    part: dict[str, list[float]] = {name: [] for name in pairs}
    until, rounds = time.perf_counter() + seconds, 0
    while rounds < 7 or (time.perf_counter() < until and rounds < 100):
        for name, (forward, back) in pairs.items():
            time.sleep(0.01)  # threads of the one before may still be spinning
            start = time.perf_counter()
            kept = forward()
            middle = time.perf_counter()
            back(kept)
            end = time.perf_counter()
            whole[name].append(end - start)
            part[name].append(end - middle)
        rounds += 1
    one, two = ({n: statistics.median(t) for n, t in times.items()} for times in (whole, part))
    return one, two


def memory(length: int, width: int) -> float:
    """Return MiB beyond inputs, forward results and gradients, one head, full."""
    problem, grad = case(1, length, width, False)
    done = numpy_forward.attend(problem, (), How(THREADS))
    tracemalloc.start()
    found = numpy_backward.backward(problem, grad, done, how=How(THREADS))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (peak - found.query.nbytes - found.key.nbytes - found.value.nbytes) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer cells, shorter runs")
    parser.add_argument("--json", default="", help="where the figures go")
    options = parser.parse_args()
    cells = [(8, 512, 64), (4, 2048, 64), (4, 2048, 128)] if options.quick else CELLS
    print("heads length width mask     whole  backward  GFLOP/s (backward)")
    lines = []
    for line in measure(cells, 1 if options.quick else 4):
        lines.append(line)
        print(
            f"{line.heads:5} {line.length:6} {line.width:5} {line.mask:<7} {line.whole:6.2f} "
            f"{line.backward:9.2f} {line.rate:8.0f}  {'ok' if line.whole >= TARGET else 'MISS'}",
            flush=True,
        )
    means = {
        name: math.exp(statistics.fmean(math.log(getattr(line, name)) for line in lines))
        for name in ("whole", "backward")
    }
    print(f"geometric mean: whole {means['whole']:.2f}, backward {means['backward']:.2f}")
    length = 8192 if options.quick else 32768
    extra = memory(length, 64)
    print(f"memory beyond inputs and results at 1x{length}x64: {extra:.0f} MiB")
    if options.json:
        found = {"lines": [asdict(line) for line in lines], "means": means, "memory_mib": extra}
        Path(options.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
