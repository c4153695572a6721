"""Answers that are right: what honest implementations return, for the judge to pass.

Every question below is put to every source that can say it, in four precisions. Deterministic by
seed. onnxruntime is asked where it is installed, ONNX's own evaluator where it is not.
"""

from __future__ import annotations

import functools
import importlib.util
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.support import faults_masks as masks
from tests.support.faults import Case, Generator, ask
from tests.support.faults_kernel import DTYPES, INF, Array, Kernel, Question, gradients, stages
from tests.support.faults_scores import capped, sunk, turning, turning_cache

Answers = Mapping[str, Array]
HALVES = ("float16", "bfloat16")
TORCH = {
    "float64": torch.float64, "float32": torch.float32,
    "float16": torch.float16, "bfloat16": torch.bfloat16,
}  # fmt: skip


@dataclass(frozen=True)
class Honest:
    """A right answer. ``strained``: scores were rounded to a half, and they are large."""

    name: str
    case: Case
    strained: bool = False


# -- questions


def _ties(rng: Generator, dtype: Any) -> Question:
    """Small integers: many logits are equal."""
    asked = ask(rng, dtype, size=1.0)
    return replace(asked, query=np.round(asked.query), key=np.round(asked.key), scale=0.5)


def _same_keys(rng: Generator, dtype: Any) -> Question:
    asked = ask(rng, dtype)
    return replace(asked, key=np.repeat(asked.key[:, :, :1], asked.shape[3], 2))


def _offset(rng: Generator, dtype: Any) -> Question:
    asked = masks.causal(ask(rng, dtype))
    return replace(asked, value=(asked.value.astype(np.float32) + 100).astype(dtype))


def _far_keys(rng: Generator, dtype: Any) -> Question:
    """Keys with a large mean: logits are large together, their differences are not."""
    asked = ask(rng, dtype, size=1.0)
    return replace(asked, key=(asked.key.astype(np.float32) + 10).astype(dtype))


def _other_width(rng: Generator, dtype: Any) -> Question:
    asked = ask(rng, dtype, width=48)
    return replace(asked, value=asked.value[..., :20])


def _masked(rng: Generator, dtype: Any) -> Question:
    asked = ask(rng, dtype)
    return masks.tensor(asked, masks.scattered(rng, asked))


def _sparse(rng: Generator, dtype: Any) -> Question:
    asked = ask(rng, dtype)
    return masks.tensor(asked, masks.scattered(rng, asked, 0.03))


def _biased(rng: Generator, dtype: Any) -> Question:
    asked = ask(rng, dtype)
    bias = rng.standard_normal(asked.shape[2:]).astype(dtype).astype(np.float32)
    return replace(asked, said={"attn_mask": bias}, bias=bias)


def _padded(rng: Generator, dtype: Any) -> Question:
    asked = ask(rng, dtype)
    keep = np.arange(asked.shape[3]) < np.array([[asked.shape[3]], [asked.shape[3] - 61]])
    return replace(asked, said={"key_padding_mask": keep}, keep=keep[:, None, None])


def _plain(**sizes: Any) -> Callable[[Generator, Any], Question]:
    return lambda rng, dtype: ask(rng, dtype, **sizes)


def _causal(**sizes: Any) -> Callable[[Generator, Any], Question]:
    return lambda rng, dtype: masks.causal(ask(rng, dtype, **sizes))


QUESTIONS: Mapping[str, Callable[[Generator, Any], Question]] = {
    "plain": _plain(),
    "causal": _causal(),
    "causal, fewer queries": lambda r, d: masks.causal(masks.shorter(r, d), "bottom_right"),
    "causal from the top left": lambda r, d: masks.causal(masks.shorter(r, d), "top_left"),
    "window": lambda r, d: masks.window(ask(r, d)),
    "bool mask": _masked,
    "sparse bool mask": _sparse,
    "float mask": _biased,
    "GQA": _plain(heads=8, groups=2),
    "MQA, causal": _causal(heads=4, groups=1),
    "key padding": _padded,
    "kv_lengths": masks.cached,
    "past": masks.decoding,
    "documents": lambda r, d: masks.documents(ask(r, d)),
    "alibi": lambda r, d: masks.alibi(masks.causal(ask(r, d))),
    "sink": sunk,
    "softcap": capped,
    "rope": turning,
    "rope after a cache": turning_cache,
    "dead rows": masks.with_dead_rows,
    "one key": _plain(queries=40, keys=1),
    "two keys": _plain(queries=40, keys=2, size=6.0),
    "one query": _plain(queries=1, keys=300),
    "width 1": _plain(width=1),
    "width 2": _causal(width=2),
    "width 4": _plain(width=4, size=8.0),
    "long rows": _plain(batch=1, heads=2, queries=24, keys=2000),
    "long flat rows": _plain(batch=1, heads=2, queries=24, keys=2000, size=0.1),
    "logits of σ 10": _causal(size=10.0),
    "logits of σ 30": _plain(size=30.0),
    "scale 1": _causal(width=64, size=0.5, scale=1.0),
    "tiny inputs": _plain(size=1e-3),
    "values around 100": _offset,
    "keys around 10": _far_keys,
    "ties": _ties,
    "all keys the same": _same_keys,
    "narrow values": _other_width,
}
LARGE = ("logits of σ 10", "logits of σ 30", "keys around 10", "softcap", "width 4", "two keys")


# -- sources in NumPy


def _tiled(**switches: Any) -> Callable[[Question], Answers]:
    return Kernel(**switches)


def _dense(dtype: Any) -> Callable[[Question], Answers]:
    def source(asked: Question) -> Answers:
        found = stages(asked, dtype)
        kept = {n: found[n].astype(asked.dtype) for n in ("scores", "weights", "output")}
        lse = found["lse"]
        return kept | {"lse": lse if asked.dtype == np.float64 else lse.astype(np.float32)}

    return source


def _shuffled(asked: Question) -> Answers:
    """Keys in another order, the query scaled before it meets them."""
    order = np.random.default_rng(7).permutation(asked.shape[3])
    q, k, v = asked.wide(np.float32)
    keep = np.broadcast_to(asked.keep, asked.shape)[..., order]
    bias = np.broadcast_to(asked.bias, asked.shape)[..., order]
    moved = Question(q, k[:, :, order], v[:, :, order], keep=keep, bias=bias, scale=asked.factor)
    moved = replace(moved, softcap=asked.softcap, sink=asked.sink)
    return {"output": stages(moved, np.float32)["output"].astype(asked.dtype)}


def _rounded_inputs(half: str) -> Callable[[Question], Answers | None]:
    """A half kernel that is given float32 tensors."""

    def source(asked: Question) -> Answers | None:
        if asked.dtype != np.float32 or asked.rope is not None:
            return None
        q, k, v = (x.astype(DTYPES[half]) for x in (asked.query, asked.key, asked.value))
        return {"output": Kernel()(replace(asked, query=q, key=k, value=v))["output"]}

    return source


def _rounded_output(half: str) -> Callable[[Question], Answers | None]:
    """A float32 kernel whose output is kept in a half."""

    def source(asked: Question) -> Answers | None:
        if asked.dtype != np.float32:
            return None
        return {"output": Kernel()(asked)["output"].astype(DTYPES[half])}

    return source


def _kept_wide(asked: Question) -> Answers | None:
    """A half in a float32 array, as ``tensor.float().numpy()``: NumPy has no bfloat16."""
    if asked.dtype.itemsize != 2:
        return None
    return {"output": Kernel()(asked)["output"].astype(np.float32)}


def all_wide(case: Case) -> Case:
    """Question and answer in float32 arrays that hold a half's numbers."""
    q = case.asked
    wide = {n: getattr(q, n).astype(np.float32) for n in ("query", "key", "value")}
    return Case(replace(q, **wide), {n: a.astype(np.float32) for n, a in case.answered.items()})


# -- sources in PyTorch


def to_torch(x: Array) -> torch.Tensor:
    """A tensor of the same type."""
    dtype = TORCH[x.dtype.name]
    return torch.from_numpy(np.ascontiguousarray(x, np.float64)).to(dtype)


def from_torch(x: torch.Tensor) -> Array:
    """An array of the same type."""
    name = str(x.dtype).removeprefix("torch.")
    return x.detach().to(torch.float64).numpy().astype(DTYPES[name])


def _torch_inputs(asked: Question) -> tuple[torch.Tensor, ...]:
    q, k = asked.turned()
    return to_torch(q), to_torch(k), to_torch(asked.value)


def _torch_mask(asked: Question, dtype: torch.dtype) -> torch.Tensor | None:
    """Bool where there is no bias, else float with −∞."""
    keep = np.broadcast_to(asked.keep, asked.shape)
    if np.ndim(asked.bias):
        mask = np.where(keep, np.broadcast_to(asked.bias, asked.shape), -INF)
        return torch.from_numpy(mask).to(dtype)
    return None if keep.all() else torch.from_numpy(keep.copy())


def sdpa(
    asked: Question, tensors: tuple[torch.Tensor, ...], backend: SDPBackend | None
) -> torch.Tensor | None:
    """scaled_dot_product_attention by one of its kernels, or as it likes best."""
    if asked.softcap or asked.sink is not None:
        return None
    q, k, v = tensors
    mask = _torch_mask(asked, q.dtype)
    square = asked.said.get("mask") == "causal" and asked.shape[2] == asked.shape[3]
    call = functools.partial(
        torch.nn.functional.scaled_dot_product_attention, q, k, v, scale=asked.factor,
        attn_mask=None if square else mask, is_causal=square,
        enable_gqa=q.shape[1] != k.shape[1],
    )  # fmt: skip
    if backend is None:
        return call()
    if backend == SDPBackend.FLASH_ATTENTION and (
        q.shape[3] != v.shape[3] or masks_nothing(asked)  # its dead rows are NaN on the CPU
    ):
        return None
    with sdpa_kernel(backend):
        return call()


def masks_nothing(asked: Question) -> bool:
    """Whether a row sees no key."""
    return not np.broadcast_to(asked.keep, asked.shape).any(-1).all()


def _sdpa(backend: SDPBackend | None) -> Callable[[Question], Answers | None]:
    def source(asked: Question) -> Answers | None:
        found = sdpa(asked, _torch_inputs(asked), backend)
        return None if found is None else {"output": from_torch(found)}

    return source


def _eager(asked: Question) -> Answers | None:
    """transformers' eager_attention_forward: all in the inputs' type but the softmax."""
    if masks_nothing(asked):
        return None  # its finfo.min makes them a mean
    q, k, v = _torch_inputs(asked)
    each = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(each, 1), v.repeat_interleave(each, 1)
    z = q @ k.transpose(-1, -2) * asked.factor
    if asked.softcap:
        z = torch.tanh(z / asked.softcap) * asked.softcap
    mask = _torch_mask(asked, q.dtype)
    if mask is not None:
        if mask.dtype == torch.bool:
            hidden, mask = ~mask, torch.zeros(mask.shape, dtype=q.dtype)
            mask = mask.masked_fill(hidden, torch.finfo(q.dtype).min)
        z = z + mask
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    if asked.sink is not None:
        sink = torch.from_numpy(asked.sink).to(z.dtype)[None, :, None, None]
        z = torch.cat([z, sink.expand(*z.shape[:3], 1)], -1)
    weights = torch.softmax(z, -1, dtype=wide).to(q.dtype)[..., : asked.shape[3]]
    return {"weights": from_torch(weights), "output": from_torch(weights @ v)}


def _mha(asked: Question) -> Answers | None:
    """torch's MultiheadAttention: the query is scaled first, the mask enters by baddbmm."""
    if asked.dtype.itemsize == 2 or asked.softcap or asked.sink is not None or masks_nothing(asked):
        return None
    q, k, v = (to_torch(x) for x in asked.wide(asked.dtype))
    flat = [x.reshape(-1, *x.shape[2:]) for x in (q * asked.factor, k.contiguous(), v.contiguous())]
    mask = _torch_mask(asked, q.dtype)
    if mask is None:
        z = torch.bmm(flat[0], flat[1].transpose(1, 2))
    else:
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=q.dtype).masked_fill(~mask, -INF)
        z = torch.baddbmm(mask.reshape(-1, *asked.shape[2:]), flat[0], flat[1].transpose(1, 2))
    weights = torch.softmax(z, -1)
    output = torch.bmm(weights, flat[2]).reshape(*q.shape[:3], -1)
    return {
        "weights": from_torch(weights.reshape(asked.shape)), "output": from_torch(output)
    }  # fmt: skip


# -- ONNX


def _onnx(asked: Question) -> Answers | None:
    """The operator Attention of opset 23."""
    if asked.dtype != np.float32 or importlib.util.find_spec("onnx") is None:
        return None
    if asked.sink is not None or masks_nothing(asked) or np.ndim(asked.bias):
        return None
    from onnx import TensorProto, helper

    q, k = asked.turned()
    feeds = {"q": q, "k": k, "v": asked.value}
    if not np.all(asked.keep):
        feeds["mask"] = np.broadcast_to(asked.keep, asked.shape).copy()
    node = helper.make_node(
        "Attention", list(feeds), ["y"], scale=asked.factor, softcap=asked.softcap or 0.0
    )
    kinds = {n: TensorProto.BOOL if n == "mask" else TensorProto.FLOAT for n in feeds}
    graph = helper.make_graph(
        [node], "attention",
        [helper.make_tensor_value_info(n, kinds[n], x.shape) for n, x in feeds.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    if importlib.util.find_spec("onnxruntime") is not None:
        import onnxruntime

        run = onnxruntime.InferenceSession(model.SerializeToString()).run
    else:
        from onnx.reference import ReferenceEvaluator

        run = ReferenceEvaluator(model).run
    return {"output": np.asarray(run(None, feeds)[0])}


SOURCES: Mapping[str, Callable[[Question], Answers | None]] = {
    "tiles of 64": _tiled(),
    "tiles of 16": _tiled(tile_q=16, tile_k=16),
    "tiles of 128 × 32, last keys first": _tiled(tile_q=128, tile_k=32, backwards=True),
    "exp2": _tiled(base2=True),
    "NumPy float32": _dense(np.float32),
    "NumPy float64": _dense(np.float64),
    "keys shuffled": _shuffled,
    "bfloat16 kernel": _rounded_inputs("bfloat16"),
    "float16 kernel": _rounded_inputs("float16"),
    "bfloat16 output": _rounded_output("bfloat16"),
    "float16 output": _rounded_output("float16"),
    "half in float32": _kept_wide,
    "sdpa": _sdpa(None),
    "sdpa math": _sdpa(SDPBackend.MATH),
    "sdpa flash": _sdpa(SDPBackend.FLASH_ATTENTION),
    "eager": _eager,
    "mha": _mha,
    "onnx": _onnx,
}


# -- gradients


def _backward(asked: Question, rng: Generator) -> Iterator[tuple[str, Case]]:
    upstream = rng.standard_normal(asked.query.shape).astype(asked.dtype)
    found = {n: a.astype(asked.dtype) for n, a in gradients(asked, upstream, np.float32).items()}
    yield "NumPy float32", Case(asked, Kernel()(asked) | found, upstream)
    for name, backend in (
        ("sdpa math", SDPBackend.MATH),
        ("sdpa flash", SDPBackend.FLASH_ATTENTION),
    ):
        tensors = tuple(x.requires_grad_() for x in _torch_inputs(asked))
        output = sdpa(asked, tensors, backend)
        if output is None:
            continue
        output.backward(to_torch(upstream))
        names = ("grad_query", "grad_key", "grad_value")
        given = {n: from_torch(x.grad) for n, x in zip(names, tensors, strict=True)}
        yield name, Case(asked, {"output": from_torch(output)} | given, upstream)


BACKWARD = (
    "plain",
    "causal",
    "window",
    "bool mask",
    "float mask",
    "GQA",
    "softcap",
    "logits of σ 10",
)


def honest(
    seed: int = 0,
    dtypes: tuple[str, ...] = ("float64", "float32", "float16", "bfloat16"),
    every: int = 1,
) -> Iterator[Honest]:
    """Yield right answers: every question to every source that can say it.

    ``every`` n: one in n of them, others with each seed; what is left out is not computed.
    """
    number = seed
    for dtype in dtypes:
        for kind, question in QUESTIONS.items():
            rng = np.random.default_rng([seed, zlib.crc32(kind.encode())])
            asked = question(rng, DTYPES[dtype])
            for source, answer in SOURCES.items():
                number += 1
                found = None if number % every else answer(asked)
                if found is not None:
                    strained = kind in LARGE and _rounds_scores(source, dtype)
                    yield Honest(f"{kind} · {source} · {dtype}", Case(asked, found), strained)
            number += 1
            if dtype in HALVES and asked.rope is None and not number % every:
                case = all_wide(Case(asked, Kernel()(asked)))
                yield Honest(f"{kind} · all in float32 arrays · {dtype}", case)
            number += 1
            if kind in BACKWARD and not number % every:
                for source, case in _backward(asked, rng):
                    yield Honest(f"{kind} · {source} backward · {dtype}", case)


def _rounds_scores(source: str, dtype: str) -> bool:
    return source.endswith("kernel") or (source == "eager" and dtype in HALVES)


def main() -> None:
    """Print how far each answer is from the truth, in errors of one kernel: 1 is usual."""
    count = 0
    for one in honest():
        count += 1
        case = one.case
        if case.answered["output"].dtype != case.asked.dtype or "arrays" in one.name:
            continue  # errors of another type are no measure
        if (ratio := case.ratio()) > 4:
            print(f"{one.name:60}{ratio:12.3g}{'  strained' if one.strained else ''}", flush=True)
    print(count, "answers")


if __name__ == "__main__":
    main()
