"""Key padding through every door: by flag, by name, in every command alike."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Door = Callable[..., Any]

REAL = np.array([[0, 1, 1, 1], [1, 1, 0, 0]], bool)
RNG = np.random.default_rng(3)
QKV = {name: RNG.normal(size=(2, 2, 4, 4)) for name in ("query", "key", "value")}


def truth(real: np.ndarray) -> np.ndarray:
    """The output by definition, keys that are not ``real`` hidden."""
    scores = QKV["query"] @ QKV["key"].swapaxes(-1, -2) / 2
    e = np.where(real[:, None, None], np.exp(scores), 0)
    return e / e.sum(-1, keepdims=True) @ QKV["value"]


@pytest.fixture(autouse=True)
def _files(tmp_path: Path) -> None:
    np.savez(tmp_path / "qkv.npz", **QKV)
    np.savez(tmp_path / "named.npz", **QKV, key_padding_mask=REAL)
    np.savez(tmp_path / "hf.npz", **QKV, attention_mask=REAL.astype(np.int64))
    np.save(tmp_path / "real.npy", REAL)
    np.save(tmp_path / "torch.npy", ~REAL)
    np.savez(tmp_path / "x.npz", x=RNG.normal(size=(2, 4, 8)), key_padding_mask=REAL)


@pytest.mark.parametrize(
    "told",
    [
        ("named.npz",),
        ("hf.npz",),
        ("qkv.npz", "--key-padding-mask", "real.npy"),
        ("qkv.npz", "--key-padding-mask", "hf.npz::attention_mask"),
        ("qkv.npz", "--key-padding-mask", "torch.npy", "--mask-polarity", "ignore"),
        ("qkv.npz", "--attn-mask", "hf.npz::attention_mask"),
        ("qkv.npz", "-m", "padding('real.npy')"),
    ],
)
def test_compute_hides_padding(door: Door, told: tuple[str, ...]) -> None:
    ran = door("compute", *told, "--json")
    assert (ran.code, ran.err) == (0, "")
    np.testing.assert_allclose(ran.data["output"], truth(REAL), atol=1e-12)


def test_inspect_leaves_padding_out(door: Door) -> None:
    for told in (("named.npz",), ("hf.npz",), ("qkv.npz", "--key-padding-mask", "real.npy")):
        ran = door("inspect", *told, "--causal", "--json")
        assert ran.code == 0, ran.err
        assert ran.err == ""
        rows = [head["statistics"]["rows"] for head in ran.data["heads"]]
        assert rows == [3, 3, 2, 2]
        assert {head["statistics"]["dead_rows"] for head in ran.data["heads"]} == {0}


def test_mask_shows_padding(door: Door) -> None:
    ran = door("mask", "causal", "--key-padding-mask", "real.npy", "--json")
    keep = np.array(ran.data["attn_mask"])[:, 0]
    assert (keep == (np.tri(4, dtype=bool) & REAL[:, None])).all()
    assert (ran.data["empty_rows"], ran.data["padding_rows"]) == (0, 1)
    shown = door("mask", "named.npz", "causal")
    assert "1 of 8 rows are padding, no other is empty" in shown.out
    assert door("mask", "hf.npz", "--against", "padding('real.npy')").code == 0


def test_multihead_reads_the_same(door: Door) -> None:
    told = ("--random-weights", 0, "--heads", 2, "--json", "--include", "weights")
    weights = np.array(door("multihead", "x.npz", *told).data["weights"])
    assert ((weights > 0) == REAL[:, None, None]).all()


def test_json_of_numbers_is_padding_too(door: Door, tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(
        '{"query": [[1, 0], [0, 1], [1, 1]], "attention_mask": [[1, 1, 0]]}'
    )
    ran = door("compute", "one.json", "--json", "--include", "weights")
    assert ran.code == 0 and ran.err == ""
    weights = np.array(ran.data["weights"])
    assert (weights[:, 2] == 0).all() and (weights[:, :2] > 0).all()


def test_two_readings_are_told_apart_aloud(door: Door, tmp_path: Path) -> None:
    q = RNG.normal(size=(4, 1, 4, 4))
    np.savez(tmp_path / "square.npz", query=q, attention_mask=np.tri(4, dtype=np.int64))
    ran = door("compute", "square.npz", "--json")
    assert "read as key padding" in ran.err
    assert "padding(1, 2, 3, 4)" in ran.data["mask"]


def test_a_padding_mask_given_as_another_is_named(door: Door) -> None:
    ran = door("compute", "qkv.npz", "--attn-mask", "real.npy")
    assert ran.code == 2
    assert "--key-padding-mask" in ran.err
    again = door("compute", "qkv.npz", "--key-padding-mask", "real.npy")
    assert again.code == 0
    ran = door("compute", "qkv.npz", "--mask-polarity", "ignore")
    assert ran.code == 2 and "--key-padding-mask FILE" in ran.err


def test_the_batch_of_a_file_is_the_mask_s(door: Door, tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([[0, 0, 1, 1], [0, 1, 1, 1]]))
    ran = door("mask", "causal & segments('ids.npy')", "--length", "4", "--json")
    assert ran.data["shapes"]["attn_mask"] == [2, 1, 4, 4]
    assert ran.data["kept"] == 6 + 7
    none = door("mask", "causal & segments('ids.npy')", "--json")
    assert none.data["shapes"]["attn_mask"] == [2, 1, 4, 4]
    pair = door("mask", "segments((0, 0, 1), (0, 0, 1, 1))", "--json")
    assert pair.data["shapes"]["attn_mask"] == [1, 1, 3, 4]


@pytest.mark.parametrize(
    "told", [("--heads", "9" * 20), ("--batch-size", "9" * 20), ("--length", "9" * 20)]
)
def test_numbers_of_twenty_digits_are_refused_at_once(door: Door, told: tuple[str, ...]) -> None:
    length = () if told[0] == "--length" else ("--length", "5")
    ran = door("mask", "window(1, 1) + alibi", *length, *told)
    assert ran.code == 2
    assert "Traceback" not in ran.err


def test_dialects_as_code_and_arguments(door: Door, tmp_path: Path) -> None:
    said = ("mask", "causal & padding(3, 2, left)", "-l", "4", "--for")
    ran = door(*said, "flex")
    assert "def mask_mod(b, h, q_idx, kv_idx):" in ran.out
    data = door(*said, "flex", "--json").data
    assert data["dialect"]["code"].startswith("def mask_mod")
    assert door(*said, "flex", "-o", "flex.npz").code == 0
    assert np.load(tmp_path / "flex.npz")["real"].tolist() == data["real"]
    assert "cu_seqlens_q: int32 (3,) = 0, 3, 5" in door(*said, "flash").out
    assert "qo_indptr: int32 (3,) = 0, 3, 5" in door(*said, "flashinfer").out
    assert "BlockDiagonalCausalFromBottomRightMask" in door(*said, "xformers").out
