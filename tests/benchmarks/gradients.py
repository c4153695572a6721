"""P6: dQ, dK, dV against torch's autograd through SDPA on the CPU.

Both get q, k, v and dO in float32. ``whole`` is forward and backward, all that either needs;
``backward`` begins with what its own forward kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.engines import How, choose_backward, load, load_backward, there
from tests.benchmarks.dense import Cell
from tests.benchmarks.sparse import extra_memory
from tests.benchmarks.timing import (
    ENGINES,
    Line,
    Run,
    Setting,
    Unmeasured,
    demand,
    in_turn,
    ratio,
    tensors,
)

SHAPES = (
    (8, 512, 64), (8, 1024, 64), (2, 4096, 64), (8, 1024, 128), (4, 2048, 128), (1, 8192, 64),
)  # fmt: skip
QUICK = SHAPES[:3]


def both(cell: Cell, setting: Setting) -> dict[str, Run]:
    """Return what is timed in a cell, by ``name what``; answers are checked."""
    import torch

    torch.set_num_threads(setting.threads)
    q, k, v, grad = tensors(cell.heads, cell.length, cell.width, 4)
    problem = pose(q, k, v, mask=masker("causal") if cell.causal else ())
    a, b, c = leaves = [torch.tensor(x, requires_grad=True) for x in (q, k, v)]
    upward = torch.from_numpy(grad)

    def forward() -> Any:
        return torch.nn.functional.scaled_dot_product_attention(a, b, c, is_causal=cell.causal)

    def back(out: Any) -> Any:
        return torch.autograd.grad(out, leaves, upward, retain_graph=True)

    how = How(setting.threads)
    kept = forward()
    theirs = [x.numpy() for x in back(kept)]
    runs: dict[str, Run] = {
        "torch backward": lambda: back(kept),
        "torch whole": lambda: back(forward()),
    }
    for engine in ENGINES:
        name = choose_backward(there(engine), problem, grad, ())
        attend, backward = load(name).attend, load_backward(name).backward

        def ours(kept: Any = None, attend: Any = attend, backward: Any = backward) -> Any:
            return backward(problem, grad, kept or attend(problem, (), how), how=how)

        done = attend(problem, (), how)
        found = ours(done)
        for one, other in zip((found.query, found.key, found.value), theirs, strict=True):
            near = np.abs(one - other).max() < 2e-5 * np.abs(other).max()
            demand(bool(near), f"{engine} and torch at {cell}")
        runs[f"{engine} backward"] = partial(ours, done)
        runs[f"{engine} whole"] = ours
    return runs


def p6(setting: Setting) -> Iterator[Line]:
    """Gradients of the engines, against torch's autograd through SDPA."""
    if not find_spec("torch"):
        raise Unmeasured("PyTorch is not installed")
    for shape in QUICK if setting.quick else SHAPES:
        for causal in (False, True):
            cell = Cell(*shape, causal)
            times = in_turn(both(cell, setting), setting, 1.5 if setting.quick else 8)
            for engine in ENGINES:
                for what in ("backward", "whole"):
                    figure, best = ratio(times, f"torch {what}", f"{engine} {what}")
                    yield Line("P6", f"gradients, {what}, {engine}", str(cell), "torch autograd",
                               figure, best, 1.3 if engine == "auto" else None, True)  # fmt: skip
    short, long = 32768, 65536
    for engine in ENGINES:
        one, two = (
            extra_memory(engine, n, "window(512) & causal", ("gradients",), setting)
            for n in (short, long)
        )
        growth = two / one
        yield Line("P6", f"gradients, memory, {engine}", f"{long}", f"{short}", growth, growth, 2.2,
                   False, note=f"{one:.0f}, {two:.0f} MiB beyond inputs and results")  # fmt: skip
