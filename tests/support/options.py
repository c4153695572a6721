"""A value of each option that changes something or is an error, and the files that it names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from attncli import attend, files
from attncli.studies import partial
from attncli.studies.attend import posed

#: What stands after the flag; nothing after one that takes no value.
VALUES = {
    "query": "more.npz::query", "key": "more.npz::key", "value": "more.npz::value",
    "past_key": "past.npy", "past_value": "past.npy", "kv_lengths": "2", "layout": "blhd",
    "heads": "2", "kv_heads": "1", "tokens": "a", "query_tokens": "a", "key_tokens": "a",
    "mask": "prefix(2)", "causal": "", "attn_mask": "bool.npy",
    "mask_polarity": "ignore", "scale": "3", "softcap": "0.5", "sink": "1", "dtype": "float16",
    "softmax_dtype": "float16", "rope": "half", "rope_theta": "7", "rope_dim": "2",
    "rope_scaling": '{"rope_type":"linear","factor":2}', "positions": "positions.npy",
    "rope_cos": "cos.npy", "rope_sin": "cos.npy", "backend": "reference", "device": "cpu",
    "threads": "1", "grad_output": "ones", "time": "", "batch": "1", "head": "1", "rows": "1",
    "keys": "99", "top": "1", "heatmap": "", "scale_by": "row", "steps": "", "full": "",
    "output": "out.json", "quiet": "", "plot": "picture.svg", "report": "page.html",
    "include": "row_statistics", "format": "csv", "json": "", "color": "always",
    "no_color": "", "length": "5", "query_length": "3", "key_length": "5", "batch_size": "3",
    "past": "1", "against": "prefix(1)", "view": "tokens", "additive": "", "dialect": "mha",
    "memory": "memory.npy", "memory_value": "memory.npy", "seq_first": "", "weights": "layer.npz",
    "layer": "nothing", "list_layers": "", "arch": "llama", "config": "missing.json",
    "base": "layer.npz",
    "head_dim": "3", "input_norm": "none", "random_weights": "1", "model_dim": "4",
    "key_padding_mask": "padding.npy", "add_zero_attn": "", "what_if": "scale=none",
    "sweep_dim": "8", "fail_on": "watch", "policy": "missing.toml", "seed": "1", "header": "",
    **dict.fromkeys(
        ("expect", "expect_weights", "expect_lse", "expect_scores", "expect_grad_query",
         "expect_grad_key", "expect_grad_value"), "more.npz::value"
    ), "rtol": "0", "atol": "0",
    "cases": "tests.jsonl", "candidate": "answers", "timeout": "0.0001", "explain": "none",
    "filter": "q*", "sort": "-name", "map": "entropy", "query_start": "1",
    "compare": "more.npz", "text": "a", "ids": "positions.npy", "image": "a.png", "audio": "a.wav",
    "probe": "repeat:4",
    "attention_weights": "weights.npy", "composition": "",
    "shard": "keys", "part": "1/2", "merge": "",
}  # fmt: skip

#: What is used and leaves no trace in these small calls: the same result by other means, or what
#: only long tables, sick heads, wrong answers and terminals show.
WITHOUT_EFFECT = ("threads", "device", "full", "fail_on", "color", "no_color", "explain")


def write_files(folder: Path) -> None:
    """Write the files of ``VALUES``, and a bundle, a layer and tensors to call with them."""
    rng = np.random.default_rng(0)
    qkv = {name: rng.normal(size=(2, 2, 4, 4)) for name in ("query", "key", "value")}
    np.savez(folder / "qkv.npz", **qkv)
    np.savez(folder / "more.npz", **{name: 2 * array for name, array in qkv.items()})
    for part in (1, 2):
        kept, _ = partial.compute(posed(**qkv), part, 2)
        files.write(str(folder / f"part{part}.safetensors"), kept.arrays, extra=kept.options)
    line = json.dumps({name: array.tolist() for name, array in qkv.items()})
    (folder / "qkv.ndjson").write_text(f"{line}\n{line}\n")
    (folder / "answers").mkdir()  # to the two lines
    for name in ("1", "2"):
        np.save(folder / "answers" / f"{name}.npy", attend(**qkv).output.astype(np.float32))
    np.save(folder / "past.npy", rng.normal(size=(2, 2, 1, 4)))
    np.save(folder / "bool.npy", np.tri(4, dtype=bool))
    np.save(folder / "padding.npy", np.arange(8).reshape(2, 4) % 4 < 2)
    np.save(folder / "positions.npy", np.arange(4) + 3)
    np.save(folder / "cos.npy", np.ones((4, 2)))
    np.save(folder / "x.npy", rng.normal(size=(2, 4, 8)))
    np.save(folder / "memory.npy", rng.normal(size=(2, 4, 8)))
    x = json.dumps({"x": rng.normal(size=(2, 4, 8)).tolist()})
    (folder / "x.ndjson").write_text(f"{x}\n{x}\n")
    many = {f"layers.{n}.{name}": array * (n + 1) for n in range(2) for name, array in qkv.items()}
    np.savez(folder / "layers.npz", **many)
    np.save(folder / "weights.npy", np.full((2, 3, 3), 1 / 3))
    layer = {name: rng.normal(size=(8, 8)) for name in ("wq", "wk", "wv", "wo")}
    np.savez(folder / "layer.npz", **layer)
    two = {f"layers.{n}.{name}": rng.normal(size=(8, 8)) for n in range(2) for name in layer}
    np.savez(folder / "two.npz", **two)
    (folder / "config.json").write_text('{"num_attention_heads": 4}')  # beside the layer
    np.savez(folder / "tensors.npz", a=rng.normal(size=(3, 4)), b=np.zeros(2))
