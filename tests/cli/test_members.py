"""The same names in every format and command: used, refused or named, and never dropped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import files
from tests.conftest import Ran

Run = Callable[..., Ran]
X = np.array([[1.0, 0.5], [0.2, 1.0], [0.3, 0.1]])


def save(path: Path, members: dict[str, Any]) -> str:
    arrays = {n: np.asarray(m) for n, m in members.items() if not isinstance(m, str)}
    words = {n: m for n, m in members.items() if isinstance(m, str)}
    match path.suffix:
        case ".json":
            path.write_text(json.dumps(members, default=lambda a: a.tolist()))
        case ".npz":
            np.savez(path, **members)
        case ".safetensors":
            files.write(str(path), arrays, extra=words)
        case ".pt":
            torch = pytest.importorskip("torch")
            torch.save({n: torch.as_tensor(a) if a.ndim else a.item() for n, a in arrays.items()}
                       | words, path)  # fmt: skip
    return path.name


FORMATS = [".json", ".npz", ".safetensors", ".pt"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_compute_reads_the_same_in_every_format(door: Run, tmp_path: Path, suffix: str) -> None:
    members = {"q": X, "k": X, "v": X, "sm_scale": 0.25, "is_causal": True, "mask": "prefix(2)",
               "softcap": 3.0, "s_aux": 0.5, "cache_seqlens": 2, "tokens": "a b c"}  # fmt: skip
    ran = door("compute", save(tmp_path / f"x{suffix}", members), "--json")
    assert (ran.code, ran.err) == (0, "")
    scores = 3 * np.tanh(X @ X.T * 0.25 / 3)
    keep = (np.arange(3) < 2) & (np.arange(3) <= np.arange(3)[:, None] - 1)
    e = np.where(keep, np.exp(scores), 0)
    wanted = e / (e.sum(-1, keepdims=True) + np.exp(0.5)) @ X
    np.testing.assert_allclose(ran.data["output"], wanted, atol=1e-12)
    assert ran.data["tokens"] == ["a", "b", "c"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_wrong_kind_and_an_unknown_name_in_every_format(
    door: Run, tmp_path: Path, suffix: str
) -> None:
    ran = door("compute", save(tmp_path / f"x{suffix}", {"q": X, "k": X, "sm_scale": "big"}))
    assert (ran.code, "'sm_scale' is \"big\"" in ran.err) == (2, True)
    ran = door("compute", save(tmp_path / f"y{suffix}", {"q": X, "k": X, "causal": 1.5}))
    assert (ran.code, "'causal' is 1.5" in ran.err) == (2, True)
    ran = door("compute", save(tmp_path / f"z{suffix}", {"q": X, "k": X, "extra": X, "why": "no"}))
    assert (ran.code, "'extra', 'why' are not read" in ran.err) == (0, True)


@pytest.mark.parametrize("suffix", FORMATS)
def test_multihead_reads_the_same_names(door: Run, tmp_path: Path, suffix: str) -> None:
    random = ("--random-weights", 0, "--json", "--include", "output")
    members = {"x": X, "num_heads": 2, "is_causal": True, "softmax_scale": 0.5, "extra": X}
    ran = door("multihead", save(tmp_path / f"x{suffix}", members), *random)
    assert (ran.code, ran.err) == (0, f"warning: x{suffix}: 'extra' is not read\n")
    np.save(tmp_path / "x.npy", X)
    asked = door("multihead", "x.npy", *random, "--heads", 2, "--causal", "--scale", 0.5)
    np.testing.assert_array_equal(ran.data["output"], asked.data["output"])
    ran = door("multihead", save(tmp_path / f"y{suffix}", {"x": X, "num_heads": "two"}), *random)
    assert ran.code == 2
    assert ran.data["error"]["message"] == f"y{suffix}: 'num_heads' is \"two\""


@pytest.mark.parametrize("suffix", FORMATS)
def test_mask_reads_the_same_names(door: Run, tmp_path: Path, suffix: str) -> None:
    hidden = np.tri(3, k=-1, dtype=bool).T
    members = {"attn_bias": hidden, "mask_polarity": "ignore", "extra": X}
    ran = door("mask", save(tmp_path / f"m{suffix}", members), "--against", "causal")
    assert (ran.code, ran.err) == (0, f"warning: m{suffix}: 'extra' is not read\n")
    if suffix == ".json":
        ran = door("mask", save(tmp_path / "e.json", {"mask": "causal"}), "-l", 3,
                   "--against", "causal")  # fmt: skip
        assert (ran.code, ran.err) == (0, "")


def test_inspect_recognises_what_compute_reads(door: Run, tmp_path: Path) -> None:
    for members in ({"data": {"query": X, "key": X}}, {"xq": X, "xk": X}, {"qkv": [X, X, X]}):
        text = json.dumps(members, default=lambda a: a.tolist())
        (tmp_path / "x.json").write_text(text)
        assert "1 head · 0 critical" in door("inspect", "x.json").out, text


def test_a_hint_names_all_three_and_works(door: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 4, 2))
    np.savez(tmp_path / "a.npz", my_v=v, my_q=q, my_k=k)
    np.savez(tmp_path / "l.npz", **{"0.k": k, "0.q": q, "0.v": v, "1.q": k})
    wanted = door("compute", "a.npz", "-q", "a.npz::my_q", "-k", "a.npz::my_k", "-v",
                  "a.npz::my_v", "--json").data["output"]  # fmt: skip
    for file in ("a.npz", "l.npz"):
        ran = door("compute", file)
        assert ran.code == 2
        hint = ran.err.split(": ")[-1].split()
        followed = door("compute", *(hint if file == "l.npz" else [file, *hint]), "--json")
        assert followed.data["output"] == wanted


def test_text_where_a_tensor_should_be_is_an_expression_or_refused(
    door: Run, tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"q": X.tolist(), "attn_mask": "causal"}))
    assert door("compute", "a.json", "--json").data["mask"] == "causal"
    for text, said in (("keys", 'key is "keys" (a string)'), ("k.npy", "no such file: k.npy")):
        (tmp_path / "a.json").write_text(json.dumps({"q": X.tolist(), "key": text}))
        ran = door("compute", "a.json")
        assert (ran.code, said in ran.err) == (2, True)
