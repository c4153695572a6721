"""P9: the torch engine on a GPU against scaled_dot_product_attention alone on the same card.

Times are those of the device (CUDA events, the median of some runs, inputs already there), taken in
turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from tests.benchmarks.timing import Line, Setting, Unmeasured

TARGETS = {"output": 0.95, "with statistics": 0.55}
CASES = [  # batch, heads, key/value heads, length, width, mask
    (1, 16, 16, 16384, 128, None),
    (1, 16, 16, 16384, 128, "causal"),
    (1, 32, 8, 16384, 128, "causal"),
    (1, 16, 16, 16384, 64, None),
    (1, 16, 16, 16384, 64, "causal"),
]


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


def p9(setting: Setting) -> Iterator[Line]:
    """The torch engine on a GPU, bfloat16, against SDPA alone."""
    try:
        import torch
    except ImportError:
        raise Unmeasured("PyTorch is not installed") from None
    if not torch.cuda.is_available():
        raise Unmeasured("no GPU is visible to PyTorch here")
    import ml_dtypes

    from attncli.attention.language import masker
    from attncli.attention.pose import pose
    from attncli.engines.torch import forward
    from attncli.engines.torch.device import Inputs, describe, find_device

    card = describe(find_device("cuda"))
    for batch, heads, groups, length, width, mask in CASES[:2] if setting.quick else CASES:
        rng = np.random.default_rng(0)
        arrays = [
            rng.standard_normal((batch, h, length, width), np.float32).astype(ml_dtypes.bfloat16)
            for h in (heads, groups, groups)
        ]
        problem = pose(*arrays, mask=[masker(mask)] if mask else [])
        inputs = Inputs.of(problem, torch.device("cuda"))
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

            works = {
                "sdpa": plain,
                "output": lambda: ours({"output"}),
                "with statistics": lambda: ours({"output", "row_statistics"}),
            }
            times = timed(torch, works)
        case = f"{heads}/{groups} heads, {length}×{width} {mask or 'full'}"
        flops = 4 * batch * heads * length**2 * width / (2 if mask else 1)
        note = f"{card}; SDPA {flops / times['sdpa'] / 1e9:.0f} TFLOP/s; {done.kernel}"
        for what, target in TARGETS.items():
            gain = times["sdpa"] / times[what]
            yield Line("P9", f"{what}, bfloat16", case, "torch SDPA alone", gain, gain, target,
                       True, note=note)  # fmt: skip
