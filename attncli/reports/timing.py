"""How long an engine took, at what rate, in how much memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from attncli.reports.blocks import Column, Table
from attncli.resources import peak_memory
from attncli.studies.attend import Result


def timing_of(result: Result) -> dict[str, Any]:
    """Return seconds, GFLOP/s (two products over the visible cells) and peak memory in bytes."""
    problem = result.problem
    cells = problem.batch * problem.heads * problem.queries * problem.keys
    if result.rows is not None:
        cells = int(result.rows.n.sum())
    flops = 2 * cells * (problem.width + problem.value_width)
    rate = flops / result.seconds / 1e9 if result.seconds > 0 else math.nan
    return {"seconds": result.seconds, "gflops": rate, "peak_memory_bytes": peak_memory()}


def timing_table(result: Result, timing: Mapping[str, Any]) -> Table:
    """Return a row for what ``timing_of`` says."""
    peak = timing["peak_memory_bytes"]
    columns = [Column("seconds"), Column("GFLOP/s"), Column("peak memory", sub="MiB")]
    cells = [timing["seconds"], timing["gflops"], None if peak is None else peak / 2**20]
    return Table("Time", columns, [cells], [result.engine.kernel or result.engine.backend])


def timing_line(result: Result, timing: Mapping[str, Any]) -> str:
    """Return the same as a line, for those who see no table."""
    peak = timing["peak_memory_bytes"]
    memory = "" if peak is None else f", peak memory {peak / 2**20:.1f} MiB"
    engine = result.engine
    ran = ", ".join(filter(None, (engine.backend, engine.kernel)))
    return f"{ran}: {timing['seconds']:.3g} s, {timing['gflops']:.4g} GFLOP/s{memory}"
