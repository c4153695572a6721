"""P9: the torch engine on a GPU against scaled_dot_product_attention alone on the same card.

    python -m tests.benchmarks.p9 [--tune] [--json FILE]

Answers are checked before anything is timed. Times are those of the device (CUDA events, the
median of some runs, inputs already there), taken in turn. Targets (bfloat16, L = 16384): output
≥ 0.95 times SDPA's speed, output and statistics ≥ 0.5 times. ``--tune`` tries tile shapes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TARGETS = {"output": 0.95, "output + statistics": 0.5}
CASES = [  # batch, heads, key/value heads, length, width, mask
    (1, 16, 16, 16384, 128, None),
    (1, 16, 16, 16384, 128, "causal"),
    (1, 32, 8, 16384, 128, "causal"),
    (1, 16, 16, 16384, 64, None),
    (1, 16, 16, 16384, 64, "causal"),
]
SHAPES = [
    (128, 128, 8, 3), (128, 128, 8, 2), (64, 128, 4, 2), (64, 128, 4, 3), (128, 64, 8, 3),
    (128, 64, 4, 3), (64, 64, 4, 3), (128, 256, 8, 2),
]  # fmt: skip


def timed(torch: Any, works: dict[str, Callable[[], object]], runs: int = 15) -> dict[str, float]:
    """Return the median milliseconds of each, run in turn after a warm-up."""
    for work in works.values():
        work()
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            work()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end))
    return {name: statistics.median(found) for name, found in times.items()}


def check(engine: Any, problem: Any, inputs: Any, done: Any) -> None:
    """Hold sampled rows of each head against float64 on the CPU."""
    from attncli.attention import definition
    from attncli.attention.rows import Rows

    rows = np.unique(np.linspace(0, problem.queries - 1, 17).astype(int))
    head = problem.heads - 1
    stage = definition.stages(problem, 0, head, rows)
    value = problem.value[0, problem.group(head)].astype(np.float64)
    error = np.abs(engine.to_numpy(done.output, np.dtype(np.float32))[0, head, rows]
                   - stage["weights"] @ value).max()  # fmt: skip
    assert error < 2.0**-7, f"output is off by {error}"  # values of size one in bfloat16
    right = Rows.dense(stage["masked"], stage["scores"], stage["keep"])
    for name in ("m", "e1", "es", "e2", "e3", "mean", "m2", "amax", "first"):
        ours, truth = done.rows[name].cpu().numpy()[0, head, rows], getattr(right, name)
        near = np.allclose(ours, truth, rtol=2e-4, atol=2e-4)
        assert near, f"{name} is off by {np.abs(ours - truth).max()}"
    assert (done.rows["n"].cpu().numpy()[0, head, rows] == right.n).all()
    assert (done.rows["top_j"].cpu().numpy()[0, head, rows] == right.top_j).all()


def measure(tune: bool) -> list[dict[str, Any]]:
    """Run all cases and print a line each."""
    import ml_dtypes
    import torch

    from attncli.attention.language import masker
    from attncli.attention.pose import pose
    from attncli.engines.torch import forward
    from attncli.engines.torch.device import Inputs, describe, find_device

    device = torch.device("cuda")
    print(f"{describe(find_device('cuda'))}, torch {torch.__version__}")
    results = []
    for batch, heads, groups, length, width, mask in CASES:
        rng = np.random.default_rng(0)
        arrays = [
            rng.standard_normal((batch, h, length, width), np.float32).astype(ml_dtypes.bfloat16)
            for h in (heads, groups, groups)
        ]
        problem = pose(*arrays, mask=[masker(mask)] if mask else [])
        inputs = Inputs.of(problem, device)
        everything = {"output", "row_statistics"}
        with torch.inference_mode():
            done = forward.compute(problem, everything, inputs)
            check(forward, problem, inputs, done)

            def plain(inputs: Any = inputs, causal: bool = bool(mask), groups: int = groups) -> Any:
                return torch.nn.functional.scaled_dot_product_attention(
                    inputs.query, inputs.key, inputs.value, is_causal=causal,
                    enable_gqa=groups != inputs.query.shape[1],
                )  # fmt: skip

            def ours(want: Any, problem: Any = problem, inputs: Any = inputs) -> Any:
                return forward.compute(problem, want, inputs)

            times = timed(
                torch,
                {
                    "sdpa": plain,
                    "output": lambda: ours({"output"}),
                    "output + statistics": lambda: ours({"output", "row_statistics"}),
                },
            )
            case = f"{heads}/{groups} heads, L {length}, D {width}, {mask or 'full'}"
            flops = 4 * batch * heads * length**2 * width / (2 if mask else 1)
            result: dict[str, Any] = {"case": case, "kernel": done.kernel, "ms": times}
            result["tflops"] = flops / times["sdpa"] / 1e9
            print(f"{case}: SDPA {times['sdpa']:.2f} ms, {result['tflops']:.0f} TFLOP/s")
            for name, target in TARGETS.items():
                ratio = result[name] = times["sdpa"] / times[name]
                verdict = "met" if ratio >= target else "missed"
                print(f"    {name}: {times[name]:.2f} ms, {ratio:.2f}× (≥ {target}×: {verdict})")
            print(f"    {done.kernel}")
            if tune:
                result["tune"] = shapes(torch, problem, inputs)
        results.append(result)
    return results


def shapes(torch: Any, problem: Any, inputs: Any) -> dict[str, float]:
    """Time the statistics kernel alone for each tile shape."""
    from attncli.engines.torch import triton_rows

    low, high = [-triton_rows.FAR], [triton_rows.FAR if problem.mask.trivial else 0]
    found = {}
    for shape in SHAPES:

        def work(shape: Any = shape) -> Any:
            return triton_rows.row_sums(
                inputs.query, inputs.key, problem.scale, low, high, [problem.keys], shape
            )

        try:
            found[str(shape)] = timed(torch, {"": work}, 7)[""]
        except Exception as error:  # a shape the card has no room for
            print(f"        {shape}: {type(error).__name__}")
            continue
        print(f"        {shape}: {found[str(shape)]:.2f} ms")
    return found


def main() -> int:
    """Measure, or say why not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    try:
        import torch
    except ImportError:
        print("P9 was not measured: PyTorch is not installed", file=sys.stderr)
        return 3
    if not torch.cuda.is_available():
        print("P9 was not measured: no GPU is visible to PyTorch here", file=sys.stderr)
        return 3
    results = measure(options.tune)
    if options.json:
        options.json.write_text(json.dumps({"P9": results, "targets": TARGETS}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
