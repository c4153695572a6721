"""The PyTorch engine: scaled_dot_product_attention where it can say the problem, tiles where not.

Which way a problem goes is decided before it runs, by ``_why_tiles`` and ``say``, and is written
into ``Attended.kernel``. Results of one device are never made on another.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch  # noqa: TID253 (loaded only once torch is known to be there)

from attncli.attention.problem import STAGES, Problem
from attncli.attention.rows import Rows
from attncli.engines import ANYHOW, Attended, How
from attncli.engines.torch import tiles
from attncli.engines.torch.device import (
    Inputs,
    describe,
    find_device,
    finite,
    out_of_memory,
    settings,
    to_numpy,
    to_torch,
    wait,
)
from attncli.engines.torch.sdpa_mask import Said, say
from attncli.resources import Progress

if TYPE_CHECKING:
    from attncli.engines.torch.triton_rows import Plan

Array = np.ndarray[Any, np.dtype[Any]]

MATRIX_CELLS = 1 << 24  # SDPA's "math" kernel makes the whole matrix: up to here it may
NOT_FINITE = "numbers that are not finite"
KERNELS = {0: "math", 1: "flash", 2: "memory-efficient", 3: "cudnn"}


def attend(problem: Problem, want: Collection[str], how: How = ANYHOW) -> Attended:
    """Compute on a device: auto (a GPU if there is one), cpu, cuda or cuda:N.

    Threads are those of the CPU. Raises Unavailable for a device that is not there or has too
    little memory.
    """
    place = find_device(how.device)
    with settings(how.threads):
        try:
            inputs = Inputs.of(problem, place)
            wait(place)
            start = time.perf_counter()
            done = compute(problem, want, inputs, how.progress)
            wait(place)
            return attended(problem, done, place, time.perf_counter() - start)
        except torch.OutOfMemoryError:
            raise out_of_memory(problem, place) from None


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
    problem: Problem, want: Collection[str], inputs: Inputs, progress: Progress | None = None
) -> Done:
    """Compute on the device where the inputs are, by the fastest way that is right."""
    call, one_pass, reason = _sdpa(problem, want, inputs)
    if call is not None:
        output, dead = call.run()
        # SDPA lets a hidden NaN through; what reached no output is no matter
        if finite(output):
            kernel = " ".join(filter(None, ["sdpa", call.kernel])) + call.note
            if one_pass is not None:
                lse, rows = one_pass(inputs)
                rows = rows if "row_statistics" in want else {}
                return Done(output, lse, rows, {}, kernel + " + triton statistics")
            lse = torch.full(output.shape[:3], torch.nan, device=output.device)
            if dead is not None:
                lse.masked_fill_(dead, -torch.inf)
            return Done(output, lse, {}, {}, kernel)
        reason = NOT_FINITE
    sheet = tiles.attend(problem, want, inputs, progress=progress)
    return Done(sheet.output, sheet.lse, sheet.rows, sheet.stages, f"tiles: {reason}")


def _sdpa(
    problem: Problem, want: Collection[str], inputs: Inputs
) -> tuple[Call | None, Plan | None, str]:
    """Return a call of SDPA and what adds lse and statistics, or why it must be tiles."""
    reason = _why_tiles(problem, want, inputs)
    if reason:
        return None, None, reason
    said = say(problem.mask, problem.result_dtype)
    if isinstance(said, str):
        return None, None, said
    one_pass = None
    if not {"row_statistics", "lse"}.isdisjoint(want):
        one_pass, why_not = _one_pass(problem, inputs)
        if one_pass is None:
            return None, None, ("statistics" if "row_statistics" in want else "lse") + why_not
    call = Call.of(problem, inputs, said)
    cells = problem.batch * problem.heads * problem.queries * problem.keys
    if call.kernel == "math" and cells > MATRIX_CELLS:
        return None, None, "SDPA would make the whole matrix"
    return call, one_pass, ""


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


def _one_pass(problem: Problem, inputs: Inputs) -> tuple[Plan | None, str]:
    """Return the fused kernel for lse and statistics on a GPU, or None and why it is not there."""
    if inputs.query.device.type != "cuda":
        return None, ""
    try:
        from attncli.engines.torch import triton_rows
    except ImportError:
        return None, " (Triton is not installed)"
    reason = triton_rows.missing()
    return (None, f" ({reason})") if reason else (triton_rows.plan(problem), "")


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
        attention = torch.nn.functional.scaled_dot_product_attention
        output = attention(*self.tensors, **self.options)
        if self.dead is not None:
            output = output.masked_fill(self.dead[..., None], 0)
        return output, self.dead
