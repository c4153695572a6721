"""Small data sets in the layout of FlashInfer Trace, and what their workloads must answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

import attncli
from attncli import files

HEADS, KV_HEADS, WIDTH, ROPE_WIDTH = 4, 2, 8, 4
SCALE = 0.3

#: The axes of each input, as the definitions of flashinfer-bench name them.
INPUTS: Mapping[str, tuple[str, ...]] = {
    "q": ("total_q", "num_qo_heads", "head_dim"),
    "k": ("total_kv", "num_kv_heads", "head_dim"),
    "v": ("total_kv", "num_kv_heads", "head_dim"),
    "k_cache": ("num_pages", "page_size", "num_kv_heads", "head_dim"),
    "v_cache": ("num_pages", "page_size", "num_kv_heads", "head_dim"),
    "q_nope": ("total_q", "num_qo_heads", "head_dim_ckv"),
    "q_pe": ("total_q", "num_qo_heads", "head_dim_kpe"),
    "ckv_cache": ("num_pages", "page_size", "head_dim_ckv"),
    "kpe_cache": ("num_pages", "page_size", "head_dim_kpe"),
    "qo_indptr": ("len_indptr",),
    "kv_indptr": ("len_indptr",),
    "kv_indices": ("num_kv_indices",),
    "kv_last_page_len": ("batch_size",),  # an axis that real definitions leave undefined
}
CONSTANT = {
    "num_qo_heads": HEADS, "num_kv_heads": KV_HEADS, "head_dim": WIDTH, "head_dim_ckv": WIDTH,
    "head_dim_kpe": ROPE_WIDTH,
}  # fmt: skip
TENSORS = {
    "gqa_ragged": ("q", "k", "v"),
    "gqa_paged": ("q", "k_cache", "v_cache"),
    "mla_paged": ("q_nope", "q_pe", "ckv_cache", "kpe_cache"),
}


def definition(name: str, op_type: str, inputs: Sequence[str], page: int = 1) -> dict[str, Any]:
    """A definition with these inputs; its reference would tell if somebody ran it."""
    axes = {axis: {"type": "const", "value": n} for axis, n in CONSTANT.items()}
    axes["page_size"] = {"type": "const", "value": page}
    for axis in ("total_q", "total_kv", "num_pages", "len_indptr", "num_kv_indices"):
        axes[axis] = {"type": "var"}
    kinds = {n: "int32" if "ind" in n or "len" in n else "bfloat16" for n in inputs}
    return {
        "name": name, "op_type": op_type, "tags": ["stage:prefill"], "axes": axes,
        "constraints": ["total_q == qo_indptr[-1].item()"],
        "inputs": {n: {"shape": list(INPUTS[n]), "dtype": kinds[n]} for n in inputs}
        | {"sm_scale": {"shape": None, "dtype": "float32"}},
        "outputs": {"output": {"shape": ["total_q", "num_qo_heads", "head_dim"],
                               "dtype": "bfloat16"}},
        "reference": "def run(*args):\n    raise SystemExit('executed')\n",
    }  # fmt: skip


def dataset(
    root: Path,
    tensors: Mapping[str, np.ndarray[Any, Any]],
    op_type: str = "gqa_ragged",
    name: str = "made_prefill_causal",
    random: Sequence[str] = (),
    **changed: Any,
) -> Path:
    """Write one definition, one workload and its blob; return the path of the workloads.

    ``random`` inputs lie in no file; ``changed`` members of the line replace what it would say.
    """
    page = next((a.shape[1] for n, a in tensors.items() if n.endswith("_cache")), 1)
    made = definition(name, op_type, list(tensors), page)
    axes = {
        axis: size
        for n, array in tensors.items()
        for axis, size in zip(INPUTS[n], array.shape, strict=True)
        if made["axes"].get(axis, {}).get("type") == "var"
    }
    blob = f"./blob/workloads/{op_type}/{name}/{name}_0.safetensors"
    given: dict[str, Any] = {
        n: {"type": "random"} if n in random
        else {"type": "safetensors", "path": blob, "tensor_key": n}
        for n in tensors
    }  # fmt: skip
    given["sm_scale"] = {"type": "scalar", "value": SCALE}
    work = {"uuid": "7f-1", "axes": axes, "inputs": given}
    line = {"definition": name, "solution": None, "workload": work, "evaluation": None} | changed
    for path, text in (
        (root / "definitions" / op_type / f"{name}.json", json.dumps(made)),
        (root / "workloads" / op_type / f"{name}.jsonl", json.dumps(line) + "\n"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (root / blob).parent.mkdir(parents=True, exist_ok=True)
    files.write(str(root / blob), {n: a for n, a in tensors.items() if n not in random})
    return root / "workloads" / op_type / f"{name}.jsonl"


def normal(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Numbers of the data sets' dtype."""
    draw = np.random.default_rng([seed, *shape])
    return draw.standard_normal(shape).astype(ml_dtypes.bfloat16)


def offsets(*lengths: int) -> np.ndarray[Any, Any]:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def ragged(queries: Sequence[int], keys: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs of gqa_ragged for sequences of these lengths."""
    return {
        "q": normal(sum(queries), HEADS, WIDTH),
        "k": normal(sum(keys), KV_HEADS, WIDTH, seed=1),
        "v": normal(sum(keys), KV_HEADS, WIDTH, seed=2),
        "qo_indptr": offsets(*queries), "kv_indptr": offsets(*keys),
    }  # fmt: skip


def paged(
    queries: Sequence[int] | None,
    tables: Sequence[Sequence[int]],
    last: Sequence[int],
    page: int = 4,
    latent: bool = False,
) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs of gqa_paged, or of mla_paged where ``latent``; without ``queries`` a decode step."""
    rows = len(tables) if queries is None else sum(queries)
    flat = [n for table in tables for n in table]
    pages = max(flat, default=0) + 2
    made = {
        "q_nope": normal(rows, HEADS, WIDTH), "q_pe": normal(rows, HEADS, ROPE_WIDTH),
        "ckv_cache": normal(pages, page, WIDTH, seed=1),
        "kpe_cache": normal(pages, page, ROPE_WIDTH, seed=2),
    } if latent else {
        "q": normal(rows, HEADS, WIDTH),
        "k_cache": normal(pages, page, KV_HEADS, WIDTH, seed=1),
        "v_cache": normal(pages, page, KV_HEADS, WIDTH, seed=2),
    }  # fmt: skip
    if queries is not None:
        made["qo_indptr"] = offsets(*queries)
    made["kv_indptr"] = offsets(*map(len, tables))
    made["kv_indices"] = np.array(flat, np.int32)
    if page > 1:
        made["kv_last_page_len"] = np.array(last, np.int32)
    return made


def unpaged(inputs: Mapping[str, Any]) -> Iterator[tuple[Any, Any, Any]]:
    """Query ``(H, L, D)``, key and value ``(G, L, D)`` of each sequence, page after page."""
    a = {name: np.asarray(array, np.float64) if array.ndim > 1 else array
         for name, array in inputs.items()}  # fmt: skip
    if "q_nope" in a:
        a["q"] = np.concatenate([a["q_nope"], a["q_pe"]], -1)
        a["k_cache"] = np.concatenate([a["ckv_cache"], a["kpe_cache"]], -1)[:, :, None]
        a["v_cache"] = a["ckv_cache"][:, :, None]
    ends = a["kv_indptr"]
    starts = a.get("qo_indptr", np.arange(len(ends)))
    for s in range(len(ends) - 1):
        if "k" in a:
            key, value = (a[name][ends[s] : ends[s + 1]] for name in "kv")
        else:
            table = a["kv_indices"][ends[s] : ends[s + 1]]
            size = a["k_cache"].shape[1]
            short = size - a["kv_last_page_len"][s] if "kv_last_page_len" in a else 0
            length = max(len(table) * size - short, 0) if len(table) else 0
            key, value = (
                a[name][table].reshape(-1, *a[name].shape[2:])[:length]
                for name in ("k_cache", "v_cache")
            )
        query = a["q"][starts[s] : starts[s + 1]]
        yield tuple(array.swapaxes(0, 1) for array in (query, key, value))


def expected(inputs: Mapping[str, Any], causal: bool = True) -> tuple[Any, Any]:
    """Output ``(T, H, D)`` and lse ``(T, H)`` of every sequence on its own, in float64."""
    outputs, sums = [], []
    for query, key, value in unpaged(inputs):
        if not key.shape[1]:
            outputs.append(np.zeros((query.shape[1], HEADS, value.shape[-1])))
            sums.append(np.full((query.shape[1], HEADS), -np.inf))
            continue
        mask = "causal(bottom_right)" if causal else None
        got = attncli.attend(
            query, key, value, mask=mask, scale=SCALE, backend="reference", want=("output", "lse")
        )
        outputs.append(got.output.swapaxes(0, 1))
        sums.append(got.lse.swapaxes(0, 1))
    return np.concatenate(outputs), np.concatenate(sums)
