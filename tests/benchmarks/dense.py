"""P1, P2, P3: full and causal attention of float32; all of a cell's competitors in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib.util import find_spec
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from attncli.attention.language import masker
from attncli.attention.pose import pose
from tests.benchmarks.timing import (
    ENGINES,
    STATISTICS,
    Array,
    Line,
    Run,
    Setting,
    Times,
    Unmeasured,
    attending,
    demand,
    geometric_mean,
    in_turn,
    ratio,
    tensors,
)

GEMM = 3000  # rows of the square matrices whose product is the machine's measure


class Cell(NamedTuple):
    heads: int
    length: int
    width: int
    causal: bool

    def __str__(self) -> str:
        shape = f"{self.heads}×{self.length}×{self.width}"
        return f"{shape} {'causal' if self.causal else 'full'}"

    @property
    def operations(self) -> float:
        return 4 * self.heads * self.length**2 * self.width / (2 if self.causal else 1)


SHAPES = (
    (8, 512, 64), (8, 1024, 64), (4, 4096, 64), (8, 2048, 128), (1, 8192, 128), (1, 16384, 64),
)  # fmt: skip
CELLS = [Cell(*shape, causal) for shape in SHAPES for causal in (False, True)]
LONG = 4096  # from here on more is wanted of the numpy engine


def torch_run(q: Array, k: Array, v: Array, causal: bool, threads: int) -> Run:
    import torch

    torch.set_num_threads(threads)
    a, b, c = (torch.from_numpy(x) for x in (q, k, v))
    attention = torch.nn.functional.scaled_dot_product_attention

    def run() -> Any:
        with torch.inference_mode():
            return attention(a, b, c, is_causal=causal).numpy()

    return run


def onnxruntime_run(q: Array, k: Array, v: Array, causal: bool, threads: int) -> Run:
    import onnxruntime  # type: ignore[import-not-found, import-untyped, unused-ignore]
    from onnx import TensorProto, helper

    node = helper.make_node("Attention", ["Q", "K", "V"], ["Y"], is_causal=int(causal))
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
    options.intra_op_num_threads = threads
    # threads that spin after a run would be charged to whoever comes next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"Q": q, "K": k, "V": v})[0]


Make = Callable[[Array, Array, Array, bool, int], Run]
PEERS: dict[str, Make] = {"torch": torch_run, "onnxruntime": onnxruntime_run}


def peers() -> dict[str, Make]:
    """Return those that are installed."""
    return {name: make for name, make in PEERS.items() if find_spec(name)}


@cache
def measured(cell: Cell, setting: Setting) -> Times:
    """Time everything that the three parts compare in a cell, answers checked first.

    By name: each peer, ``gemm``, each engine, and each engine with `` statistics`` behind it.
    """
    q, k, v = tensors(cell.heads, cell.length, cell.width)
    runs = {name: make(q, k, v, cell.causal, setting.threads) for name, make in peers().items()}
    problem = pose(q, k, v, mask=masker("causal") if cell.causal else ())
    ours: dict[str, Run] = {}
    for engine in ENGINES:
        ours[engine] = attending(engine, problem, ("output",), setting)
        ours[f"{engine} statistics"] = attending(engine, problem, STATISTICS, setting)
    right = ours["numpy"]().output
    answers = {name: run() for name, run in runs.items()}
    answers |= {name: run().output for name, run in ours.items()}
    for name, answer in answers.items():
        demand(np.allclose(answer, right, atol=2e-5), f"{name} at {cell}")
    a = np.random.default_rng(0).standard_normal((GEMM, GEMM), dtype=np.float32)
    out = np.empty_like(a)
    runs |= {"gemm": lambda: np.matmul(a, a, out=out)}
    return in_turn(runs | ours, setting, 1.5 if setting.quick else 12)


def fastest(times: Times) -> str:
    """Return the peer that took the least in a cell. Raises Unmeasured where there is none."""
    found = peers()
    if not found:
        raise Unmeasured(f"none of {', '.join(PEERS)} is installed")
    return min(found, key=lambda name: median(times[name]))


def rivals() -> str:
    found = [*peers()]
    return found[0] if len(found) == 1 else f"the faster of {' and '.join(found)}"


def rate(cell: Cell, seconds: float) -> str:
    return f"{cell.operations / seconds / 1e9:.0f} GFLOP/s"


def p1(setting: Setting) -> Iterator[Line]:
    """Output only, against the faster of torch's SDPA and onnxruntime's Attention."""
    against = rivals()
    all_cells: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for cell in CELLS:
        times = measured(cell, setting)
        peer = fastest(times)
        for engine in ENGINES:
            figure, best = ratio(times, peer, engine)
            all_cells[engine].append(figure)
            target = 1.1 if engine == "auto" else 1.05 if cell.length >= LONG else 0.9
            each = "  ".join(f"{name} {ratio(times, name, engine)[0]:.2f}" for name in peers())
            note = f"{each}  {rate(cell, median(times[engine]))}"
            yield Line("P1", f"output, {engine}", str(cell), against, figure, best, target, True,
                       note=note)  # fmt: skip
    for engine, values in all_cells.items():
        mean = geometric_mean(values)
        yield Line("P1", f"output, {engine}: geometric mean", "all", against, mean, max(values),
                   1.3 if engine == "auto" else None, True)  # fmt: skip


def p2(setting: Setting) -> Iterator[Line]:
    """Output only, as a share of what the machine's own matrix product reaches."""
    for cell in CELLS:
        if cell.length < LONG:
            continue
        times = measured(cell, setting)
        for engine in ENGINES:
            share = cell.operations / (2 * GEMM**3)
            figure, best = (share * x for x in ratio(times, "gemm", engine))
            gemm = 2 * GEMM**3 / median(times["gemm"]) / 1e9
            yield Line("P2", f"output, {engine}", str(cell), "the machine's matrix product", figure,
                       best, 0.95 if engine == "auto" else None, True,
                       note=f"product {gemm:.0f} GFLOP/s")  # fmt: skip


def p3(setting: Setting) -> Iterator[Line]:
    """Output with all streaming statistics, against output alone and the best peer's output."""
    for cell in CELLS:
        times = measured(cell, setting)
        for engine in ENGINES:
            what = f"with statistics, {engine}"
            if engine == "auto":
                target = 1.15 if cell.length == 512 else 1.1
            else:
                target = 1.3 if cell.length >= LONG else 1.5
            cost, best = ratio(times, f"{engine} statistics", engine)
            yield Line("P3", what, str(cell), "output alone", cost, best, target, False)
    for cell in CELLS:
        times = measured(cell, setting)
        peer = fastest(times)
        for engine in ENGINES:
            figure, best = ratio(times, peer, f"{engine} statistics")
            yield Line("P3", f"with statistics, {engine}", str(cell),
                       f"the bare output of {rivals()}", figure, best,
                       1.0 if engine == "auto" else None, True, note=peer)  # fmt: skip
