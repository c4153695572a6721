"""What is said of any result: in words on the first line, as members of the JSON object."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attncli.attention.problem import Problem
from attncli.errors import counted
from attncli.files.formats.json import Plain
from attncli.studies.attend import Ran, Result
from attncli.studies.bundle import tokens_of as tokens_of

LONGEST_MASK = 48


def headline(result: Result) -> list[str]:
    """Return the facts of the first line: shapes in words, scale, mask, engine."""
    problem, engine = result.problem, result.engine
    scale = _scale_in_words(problem) if problem.scored else problem.scale_source
    facts = [_shapes_in_words(problem), scale]
    if problem.rope is not None:
        facts.append(f"RoPE {problem.rope.text}")
    if problem.softcap is not None:
        facts.append(f"softcap {problem.softcap:.4g}")
    if problem.sink is not None and problem.scored:
        sinks = sorted(set(problem.sink.tolist()))
        facts.append(f"sink {sinks[0]:.4g}" if len(sinks) == 1 else "a sink per head")
    if not problem.mask.trivial and (problem.scored or problem.mask.text):
        lengths = problem.mask.extent.lengths
        said = [f"mask {problem.mask.text.removeprefix('mask ')}"] if problem.mask.text else []
        said += [f"kv lengths {', '.join(map(str, lengths))}"] if lengths else []
        for text in said or ["mask given"]:
            if len(text) > LONGEST_MASK:
                text = text[: LONGEST_MASK // 2] + "…" + text[-LONGEST_MASK // 2 :]
            facts.append(text)
    dtype = engine.dtype
    if problem.result_dtype.name != dtype:
        dtype += f" for {problem.result_dtype.name}"
    device = "" if engine.device == "cpu" else f" on {engine.device}"
    threads = f", {engine.threads} threads" if engine.threads > 1 else ""
    return [*facts, f"{engine.backend} {dtype}{device}{threads}{_note(engine)}"]


def engine_in_words(engine: Ran) -> str:
    """Return which engine ran, of a report on many: 'numpy float64'."""
    return f"{engine.backend} {engine.dtype}{_note(engine)}"


def engine_data(engine: Ran) -> dict[str, Any]:
    """Return what JSON says of the engine that ran."""
    return {
        "backend": engine.backend, "device": engine.device, "dtype": engine.dtype,
        "threads": engine.threads, "kernel": engine.kernel,
        **({"note": engine.note} if engine.note else {}),
    }  # fmt: skip


def _note(engine: Ran) -> str:
    return f" ({engine.note})" if engine.note else ""


def _shapes_in_words(problem: Problem) -> str:
    batch, heads = problem.batch, problem.heads
    parts = []
    if batch != 1 or heads != 1:
        many = f"{batch} × " if batch != 1 else ""
        text = many + counted(heads, "head")
        if problem.kv_heads != heads:
            text += f" ({problem.kv_heads} for keys and values)"
        parts.append(text)
    rows, keys = counted(problem.queries, "query", "queries"), counted(problem.keys, "key")
    past = f" ({problem.past} of them past)" if problem.past else ""
    parts.append(f"{rows} × {keys}{past}")
    if not problem.scored:
        return ", ".join(parts)
    parts.append(f"width {problem.width}")
    if problem.value_width != problem.width:
        parts.append(f"values of width {problem.value_width}")
    return ", ".join(parts)


def _scale_in_words(problem: Problem) -> str:
    source = problem.scale_source
    text = f"scale {problem.scale:.4g}"
    if source.startswith("1/√"):
        return f"{text} = {source}"
    return text if source == "given" else f"{text} ({source})"


def facts_of(result: Result) -> dict[str, Any]:
    """Return what JSON says of any attention: engine, shapes, scale, mask, warnings."""
    problem = result.problem
    data: dict[str, Any] = {
        "engine": Plain(engine_data(result.engine)),
        "shapes": Plain((name, list(shape)) for name, shape in problem.shapes.items()),
        "scale": problem.scale if problem.scored else None,
        "scale_source": problem.scale_source,
        "softcap": problem.softcap,
        "mask": problem.mask.text or None,
        "warnings": list(result.warnings),
    }  # fmt: skip
    if problem.sink is not None and problem.scored:
        data["sink"] = problem.sink
    if problem.rope is not None:  # no option's name: a query that is read back is turned already
        data["rope_applied"] = problem.rope.text
    if problem.mask.extent.lengths is not None:
        data["kv_lengths"] = list(problem.mask.extent.lengths)
    return data


def heads_of(result: Result, pairs: Iterable[tuple[int, int]]) -> list[dict[str, Any]]:
    """Return what JSON says of some heads, (batch, head): their statistics."""
    return [
        {"batch": b, "head": h, "statistics": result.statistics_by_head[b][h]} for b, h in pairs
    ]
