"""P4 and P5: masks of which little is seen, and memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from attncli.attention import definition
from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.attention.problem import Masker, Problem
from attncli.attention.tensors import attention_masker
from tests.benchmarks.timing import (
    ENGINES,
    STATISTICS,
    Array,
    Line,
    Setting,
    Unmeasured,
    attending,
    attncli,
    demand,
    in_turn,
    ran,
    ratio,
    tensors,
)

BLOCK, SEEN = 128, 1 / 8  # random blocks: the size (FlexAttention's), the share that is seen
MEMORY = r"""
import re, sys
from pathlib import Path
import numpy as np
from attncli.attention.language import masker
from attncli.attention.pose import pose
from attncli.engines import How, choose, load, load_backward, there
backend, length, mask, want, threads = sys.argv[1:]
want, threads = tuple(want.split(",")), int(threads)
rng = np.random.default_rng(0)
q, k, v = (rng.standard_normal((1, 1, int(length), 64), dtype=np.float32) for _ in range(3))

def memory(name):  # getrusage begins with what the parent had when it forked
    return int(re.search(name + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

problem = pose(q, k, v, mask=masker(mask) if mask else ())
name = choose(there(backend), problem, ("output",))[0]
attend, backward = load(name).attend, load_backward(name).backward
before = memory("VmRSS")
done = attend(problem, [w for w in want if w != "gradients"], How(threads))
kept = [done.output, done.lse]
if done.rows:  # its others are zeros that nobody wrote, and take nothing
    kept += [array for name, array in vars(done.rows).items() if name != "others"]
if "gradients" in want:
    found = backward(problem, v, done, how=How(threads))
    kept += [found.query, found.key, found.value]
print((memory("VmHWM") - before) / 2**10 - sum(array.nbytes for array in kept) / 2**20)
"""


def extra_memory(
    backend: str, length: int, mask: str, want: tuple[str, ...], setting: Setting
) -> float:
    """Return MiB beyond inputs and results, one head, in a process of its own.

    Raises Unmeasured where the system does not say.
    """
    if not Path("/proc/self/status").exists():
        raise Unmeasured("peak memory is read from /proc/self/status, which is not here")
    words = [backend, str(length), mask, ",".join(want), str(setting.threads)]
    return float(ran([*attncli()[:1], "-c", MEMORY, *words]).out)


def random_blocks(length: int) -> Array:
    some = np.random.default_rng(0).random((length // BLOCK, length // BLOCK)) < SEEN
    return some.repeat(BLOCK, 0).repeat(BLOCK, 1)


def right(problem: Problem, output: Array) -> bool:
    """Whether some rows of the first head are what the definition says."""
    rows = np.unique(np.linspace(0, problem.queries - 1, 7).astype(int))
    stage = definition.stages(problem, 0, 0, rows)
    return np.allclose(output[0, 0, rows], stage["weights"] @ problem.value[0, 0], atol=2e-5)


def p4(setting: Setting) -> Iterator[Line]:
    """Sparse masks, against as many multiply-adds done densely."""
    long, n = (16384, 4096) if setting.quick else (65536, 8192)
    blocks = random_blocks(n)
    cases: list[tuple[str, int, Masker, float, float]] = [  # mask, seen cells, target
        ("window(1024) & causal", long, masker("window(1024) & causal"),
         long * 1025 - 1024 * 1025 / 2, 1.2),
        ("documents of 1024", long, masker("blocks(1024)"), long * 1024, 1.2),
        (f"random blocks of {BLOCK}", n, attention_masker(blocks, "keep", "attn_mask"),
         float(blocks.sum()), 1.5),
        ("dilated(8)", n, masker("dilated(8)"), n * n / 8, 2.0),
    ]  # fmt: skip
    for name, length, mask, seen, target in cases:
        side = round(math.sqrt(seen))
        problem, full = pose(*tensors(1, length, 64), mask=mask), pose(*tensors(1, side, 64))
        share = seen / side**2
        for engine in ENGINES:
            runs = {"dense": attending(engine, full, ("output",), setting)}
            runs["output"] = attending(engine, problem, ("output",), setting)
            runs["with statistics"] = attending(engine, problem, STATISTICS, setting)
            for what in ("output", "with statistics"):
                demand(right(problem, runs[what]().output), f"{engine}, {name}")
            times = in_turn(runs, setting, 1 if setting.quick else 6)
            for what, wanted in (("output", target), ("with statistics", 1.1 * target)):
                cost, best = (x / share for x in ratio(times, what, "dense"))
                yield Line("P4", f"{what}, {engine}", f"{name}, {length}", "the same count, dense",
                           cost, best, round(wanted, 2) if engine == "auto" else None, False,
                           note=f"dense {side}")  # fmt: skip


def p5(setting: Setting) -> Iterator[Line]:
    """Peak memory beyond inputs and results: one head of 131072, width 64."""
    length = 131072
    masks = ("window(1024) & causal",) if setting.quick else ("", "causal")
    for mask in masks:
        for engine in ENGINES:
            for want, target in ((("output",), 36), (STATISTICS, 87)):
                extra = extra_memory(engine, length, mask, want, setting)
                what = "output" if len(want) == 1 else "with statistics"
                yield Line("P5", f"{what}, {engine}", f"{length} {mask or 'full'}",
                           "inputs and results", extra, extra, target, False, " MiB")  # fmt: skip
