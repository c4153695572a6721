"""The PyTorch engine: scaled_dot_product_attention where it can say the problem, tiles where not.

Which way a problem goes is decided before it runs, by ``_why_tiles`` and ``say``, and is written
into ``Attended.kernel``. Results of one device are never made on another.
"""

from __future__ import annotations

import importlib
import re
import time
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from attncli.backends import DEVICE, STAGES, Attended, Progress
from attncli.backends.sdpa_mask import Said, say
from attncli.errors import InputError, Unavailable
from attncli.problem import Problem
from attncli.rows import Rows

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, np.dtype[Any]]

MATRIX_CELLS = 1 << 24  # SDPA's "math" kernel makes the whole matrix: up to here it may
NOT_FINITE = "numbers that are not finite"
KERNELS = {0: "math", 1: "flash", 2: "memory-efficient", 3: "cudnn"}


def missing() -> str | None:
    """Return why this engine cannot run here, or None."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "torch":
            return "PyTorch is not installed: pip install 'attncli[torch]'"
        return f"PyTorch is installed but does not load ({error}): install it anew"
    return None


def attend(
    problem: Problem,
    want: Collection[str],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    device: str = "auto",
) -> Attended:
    """Compute on ``device``: auto (a GPU if there is one), cpu, cuda or cuda:N.

    ``threads`` are those of the CPU. Raises Unavailable for a device that is not
    there or has too little memory.
    """
    import torch

    place = find_device(device)
    with settings(threads):
        try:
            inputs = Inputs.of(problem, place)
            _wait(place)
            start = time.perf_counter()
            done = compute(problem, want, inputs, progress=progress)
            _wait(place)
            return attended(problem, done, place, time.perf_counter() - start)
        except torch.OutOfMemoryError:
            raise out_of_memory(problem, place) from None


# --- devices ------------------------------------------------------------------------------------


def find_device(name: str) -> torch.device:
    """Return the device of that name; InputError: no such name, Unavailable: no such device."""
    import torch

    match = re.fullmatch(DEVICE, name)
    if not match:
        raise InputError(f"unknown device '{name}'", "it must be auto, cpu, cuda or cuda:N")
    if name == "cpu":
        return torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", torch.cuda.current_device()) if count else torch.device("cpu")
    if not count:
        built = torch.version.cuda or torch.version.hip
        raise Unavailable(
            f"device '{name}' was asked for, but "
            + (
                "no GPU is visible to PyTorch here"
                if built
                else f"this PyTorch ({torch.__version__}) is built without CUDA"
            ),
            "use --device cpu"
            + (" (nvidia-smi says what the driver sees)" if built else "")
            + ("" if built else ", or install a CUDA build: https://pytorch.org/get-started"),
        )
    index = torch.cuda.current_device() if match[1] is None else int(match[1])
    if index >= count:
        there = ", ".join(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(count))
        raise Unavailable(
            f"device '{name}' was asked for, but there is only {there}",
            "use one of these with --device, or --device cpu",
        )
    return torch.device("cuda", index)


def describe(device: torch.device) -> str:
    """Return 'cpu' or 'cuda:0 NVIDIA H100 80GB HBM3'."""
    import torch

    if device.type == "cpu":
        return "cpu"
    return f"{device} {torch.cuda.get_device_name(device)}"


def _wait(device: torch.device) -> None:
    """Wait for what was sent to a GPU."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def out_of_memory(problem: Problem, device: torch.device) -> Unavailable:
    """Return the error that says how much a device has and what would need less."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    p = problem
    size = f"{p.batch} × {p.heads} heads, {p.queries} × {p.keys}, {p.result_dtype}"
    return Unavailable(
        f"{describe(device)} ran out of memory for {size}: {free / 2**30:.1f} of "
        f"{total / 2**30:.1f} GiB are free",
        "compute fewer heads at a time, end what else runs on the device, or use --device cpu",
    )


@contextmanager
def settings(threads: int | None) -> Iterator[None]:
    """Float32 products in float32 (no TF32), no gradients, so many threads; put back afterwards."""
    import torch

    before, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
        with torch.inference_mode():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(before)


# --- arrays and tensors -------------------------------------------------------------------------


def to_torch(array: Array, device: torch.device) -> torch.Tensor:
    """Return a tensor of the same numbers; on the CPU a view where NumPy's memory allows it."""
    import torch

    half = array.dtype.name == "bfloat16"
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(step < 0 or step % array.itemsize for step in array.strides):
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():  # a read-only array: nothing here writes into inputs
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(array.view(np.int16) if half else array)
    return (tensor.view(torch.bfloat16) if half else tensor).to(device)


def to_numpy(tensor: torch.Tensor, dtype: np.dtype[Any]) -> Array:
    """Return an array of ``dtype``, rounded once."""
    import torch

    kind = dtype_of(dtype)
    tensor = tensor.to(kind).cpu()
    return tensor.view(torch.int16).numpy().view(dtype) if dtype.name == "bfloat16" else (
        tensor.numpy()
    )  # fmt: skip


def dtype_of(dtype: np.dtype[Any]) -> torch.dtype:
    """Return torch's dtype of that name."""
    import torch

    found = getattr(torch, dtype.name)
    assert isinstance(found, torch.dtype)
    return found


@dataclass(frozen=True)
class Inputs:
    """Query ``(B, H, Lq, D)``, key ``(B, G, Lk, D)`` and value ``(B, G, Lk, Dv)`` on a device."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor

    @classmethod
    def of(cls, problem: Problem, device: torch.device) -> Inputs:
        kind = dtype_of(problem.result_dtype)
        arrays = problem.query, problem.key, problem.value
        return cls(*(to_torch(array, device).to(kind) for array in arrays))

    def finite(self) -> bool:
        """Whether every number is."""
        return all(map(finite, (self.query, self.key, self.value)))


def finite(tensor: torch.Tensor) -> bool:
    """Whether every number is; a sum is, unless it overflows: then each is looked at."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


@dataclass(frozen=True)
class Done:
    """Results on the device: output ``(B, H, Lq, Dv)``, lse and rows ``(B, H, Lq)``.

    Stages are arrays already: matrices that a device need not hold whole.
    """

    output: torch.Tensor
    lse: torch.Tensor
    rows: dict[str, torch.Tensor]
    stages: dict[str, Array]
    kernel: str


def attended(problem: Problem, done: Done, device: torch.device, seconds: float) -> Attended:
    """Bring the results back from the device."""
    import torch

    return Attended(
        output=to_numpy(done.output, problem.result_dtype),
        lse=to_numpy(done.lse, problem.dtype),
        rows=Rows(**{k: v.cpu().numpy() for k, v in done.rows.items()}) if done.rows else None,
        stages=done.stages,
        kernel=done.kernel,
        threads=torch.get_num_threads(),
        device=describe(device),
        seconds=seconds,
    )


# --- which way ----------------------------------------------------------------------------------


def compute(
    problem: Problem, want: Collection[str], inputs: Inputs, *, progress: Progress | None = None
) -> Done:
    """Compute on the device where the inputs are, by the fastest way that is right."""
    import torch

    from attncli.backends import torch_tiles

    reason = _why_tiles(problem, want, inputs)
    said = Said() if reason else say(problem.mask, problem.result_dtype)
    if isinstance(said, str):
        reason, said = said, Said()
    one_pass = None
    if not reason and not {"row_statistics", "lse"}.isdisjoint(want):
        one_pass, why_not = _one_pass(problem, inputs)
        if one_pass is None:
            reason = ("statistics" if "row_statistics" in want else "lse") + why_not
    call = None if reason else Call.of(problem, inputs, said)
    cells = problem.batch * problem.heads * problem.queries * problem.keys
    if call and call.kernel == "math" and cells > MATRIX_CELLS:
        call, reason = None, "SDPA would make the whole matrix"
    output, dead = call.run() if call else (None, None)
    # SDPA lets a hidden NaN through; what reached no output is no matter
    if output is not None and not finite(output):
        call, reason = None, NOT_FINITE
    if call is None or output is None:
        sheet = torch_tiles.attend(problem, want, inputs, progress=progress)
        return Done(sheet.output, sheet.lse, sheet.rows, sheet.stages, f"tiles: {reason}")
    kernel = " ".join(filter(None, ["sdpa", call.kernel])) + call.note
    if one_pass is not None:
        lse, rows = one_pass(inputs)
        rows = rows if "row_statistics" in want else {}
        return Done(output, lse, rows, {}, kernel + " + triton statistics")
    lse = torch.full(output.shape[:3], torch.nan, device=output.device)
    if dead is not None:
        lse.masked_fill_(dead, -torch.inf)
    return Done(output, lse, {}, {}, kernel)


def _why_tiles(problem: Problem, want: Collection[str], inputs: Inputs) -> str:
    """Return why SDPA cannot compute this whatever its mask, or ''."""
    p = problem
    wanted = [name for name in STAGES if name in want]
    if wanted:
        return " and ".join(wanted)
    if p.softcap is not None:
        return "softcap"
    if p.sink is not None:
        return "sink"
    if p.softmax_dtype is not None:
        return f"softmax in {p.softmax_dtype}"
    if p.scale == 0:
        return "scale 0"
    if not all(inputs.query.shape + inputs.value.shape):
        return "nothing to compute"
    statistics = not {"row_statistics", "lse"}.isdisjoint(want)
    return NOT_FINITE if statistics and not inputs.finite() else ""


def _one_pass(problem: Problem, inputs: Inputs) -> tuple[Any, str]:
    """Return the fused kernel for lse and statistics on a GPU, or None and why it is not there."""
    if inputs.query.device.type != "cuda":
        return None, ""
    try:
        module = importlib.import_module("attncli.backends.torch_triton")
        reason = module.missing()
    except ImportError:
        reason = "Triton is not installed"
    return (None, f" ({reason})") if reason else (module.plan(problem), "")


@dataclass(frozen=True)
class Call:
    """A call of scaled_dot_product_attention, and what SDPA will make of it."""

    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    options: dict[str, Any]
    dead: torch.Tensor | None
    kernel: str
    note: str

    @classmethod
    def of(cls, problem: Problem, inputs: Inputs, said: Said) -> Call:
        import torch

        query, key, value = inputs.query, inputs.key, inputs.value
        if problem.scale < 0:
            query = -query  # some kernels take the maximum before they scale
        if said.keys is not None:
            key, value = key[:, :, : said.keys], value[:, :, : said.keys]
        mask, dead = None, None
        if said.mask is not None:
            mask = to_torch(said.mask, query.device)
            dead = ~(mask if said.mask.dtype == bool else mask != -torch.inf).any(-1)
            if said.mask.dtype != bool:
                mask = mask.to(query.dtype)
        options = {
            "attn_mask": mask, "dropout_p": 0.0, "is_causal": said.causal,
            "scale": abs(problem.scale), "enable_gqa": problem.heads != problem.kv_heads,
        }  # fmt: skip
        choose = getattr(torch, "_fused_sdp_choice", None)
        choice = choose(query, key, value, **options) if choose else None
        note = ", causal" if said.causal else ", mask tensor" if mask is not None else ""
        kernel = "" if choice is None else KERNELS.get(choice, "")
        return cls((query, key, value), options, dead, kernel, note)

    def run(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the output ``(B, H, Lq, Dv)`` and which rows see no key."""
        import torch

        attention = torch.nn.functional.scaled_dot_product_attention
        output = attention(*self.tensors, **self.options)
        if self.dead is not None:
            output = output.masked_fill(self.dead[..., None], 0)
        return output, self.dead
