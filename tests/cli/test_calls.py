"""Calls of other libraries, as their scripts save them: the answer is what the library computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Ran

Run = Callable[..., Ran]
RNG = np.random.default_rng(11)


def attention(q: Any, k: Any, v: Any, keep: Any = True, scale: float | None = None) -> Any:
    """The definition in float64: (…, L, D), keys repeated for grouped heads, empty rows 0."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    if k.ndim > 2 and k.shape[-3] != q.shape[-3]:
        k, v = (np.repeat(a, q.shape[-3] // a.shape[-3], -3) for a in (k, v))
    z = q @ k.swapaxes(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    z = np.where(keep, z, -np.inf)
    e = np.exp(z - np.maximum(z.max(-1, keepdims=True), -1e300))
    total = e.sum(-1, keepdims=True)
    return np.divide(e, total, out=np.zeros_like(e), where=total > 0) @ v


def heads_first(*arrays: Any) -> list[Any]:
    return [np.swapaxes(a, -3, -2) for a in arrays]


def computed(door: Run, tmp_path: Path, *options: object, **members: Any) -> Any:
    """What `compute` makes of an .npz with these members."""
    np.savez(tmp_path / "call.npz", **members)
    ran = door("compute", "call.npz", "-o", "out.npz", *options)
    assert ran.code == 0, ran.err
    assert "not read" not in ran.err
    return np.load(tmp_path / "out.npz")["output"]


def refused(door: Run, tmp_path: Path, *fragments: str, **members: Any) -> None:
    np.savez(tmp_path / "call.npz", **members)
    ran = door("compute", "call.npz")
    assert ran.code == 2
    assert [f for f in fragments if f not in ran.err] == [], ran.err


def close(found: Any, wanted: Any) -> None:
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-12)


Q, K, V = RNG.normal(size=(3, 2, 4, 5, 6))  # (B, H, L, D)


# -- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("query_states", "key_states", "value_states"),
        ("query_layer", "key_layer", "value_layer"),
        ("xq", "xk", "xv"),
        ("XQ", "XK", "XV"),
    ],
)
def test_tensors_by_other_names(door: Run, tmp_path: Path, names: tuple[str, ...]) -> None:
    found = computed(door, tmp_path, **dict(zip(names, (Q, K, V), strict=True)))
    close(found, attention(Q, K, V))


CAUSAL = np.tri(5, dtype=bool)
DISTANCE = np.arange(5)[:, None] - np.arange(5)


@pytest.mark.parametrize(
    ("members", "keep", "scale"),
    [
        ({"softmax_scale": 0.3}, True, 0.3),
        ({"sm_scale": np.float32(0.5)}, True, 0.5),
        ({"scaling": 2}, True, 2),
        ({"is_causal": True}, CAUSAL, None),
        ({"is_causal": False}, True, None),
        ({"causal": True, "window_size": (1, 0)}, CAUSAL & (DISTANCE <= 1), None),
        ({"causal": True, "window_size": (-1, -1)}, CAUSAL, None),
        ({"window_size": (1, 2)}, (DISTANCE <= 1) & (DISTANCE >= -2), None),
        ({"window_size": (-1, 1)}, DISTANCE >= -1, None),
        ({"sliding_window": 2, "is_causal": True}, CAUSAL & (DISTANCE < 2), None),
        ({"sliding_window": 3}, CAUSAL & (DISTANCE < 3), None),
        ({"sliding_window": 2, "causal": False}, abs(DISTANCE) < 2, None),
        ({"left_window_size": 1, "right_window_size": 0}, CAUSAL & (DISTANCE < 2), None),
        ({"attn_bias": CAUSAL}, CAUSAL, None),
        ({"mask": "causal"}, CAUSAL, None),
        ({"seqused_k": [3, 5]}, np.arange(5) < np.array([3, 5]).reshape(2, 1, 1, 1), None),
        ({"seqused_q": [3, 5]}, (np.arange(5) < np.array([[3], [5]]))[:, None, :, None], None),
        ({"num_heads": 4, "num_key_value_heads": 4, "dropout_p": 0.0}, True, None),
        ({"softcap": 0.0, "deterministic": False, "max_seqlen_q": 5}, True, None),
        ({"id": 7, "enable_gqa": False}, True, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("suffix", ["npz", "json", "pt"])
def test_options_by_other_names(
    door: Run, tmp_path: Path, members: dict[str, Any], keep: Any, scale: float | None, suffix: str
) -> None:
    whole = {"q": Q, "k": K, "v": V, **members}
    path = tmp_path / f"call.{suffix}"
    if suffix == "npz":
        np.savez(path, **whole)
    elif suffix == "json":
        path.write_text(json.dumps(whole, default=lambda a: a.tolist()))
    else:
        torch = pytest.importorskip("torch")
        torch.save({n: torch.from_numpy(a) if isinstance(a, np.ndarray) else a
                    for n, a in whole.items()}, path)  # fmt: skip
    ran = door("compute", path.name, "-o", "out.npz")
    assert (ran.code, "not read" in ran.err) == (0, False), ran.err
    close(np.load(tmp_path / "out.npz")["output"], attention(Q, K, V, keep, scale))


def test_a_sink_by_its_name_in_gpt_oss(door: Run, tmp_path: Path) -> None:
    sink = RNG.normal(size=4)
    z = Q @ K.swapaxes(-1, -2) / np.sqrt(6)
    e = np.exp(z)
    weights = e / (e.sum(-1, keepdims=True) + np.exp(sink)[:, None, None])
    close(computed(door, tmp_path, q=Q, k=K, v=V, s_aux=sink), weights @ V)


def test_alibi_slopes_stand_at_the_end(door: Run, tmp_path: Path) -> None:
    slopes = np.array([0.5, 0.25, 0.125, 0.0625])
    q = Q[:, :, 3:]
    distance = abs(np.arange(2)[:, None] + 3 - np.arange(5))
    z = q @ K.swapaxes(-1, -2) / np.sqrt(6) - slopes[:, None, None] * distance
    e = np.exp(z)
    wanted = e / e.sum(-1, keepdims=True) @ V
    close(computed(door, tmp_path, q=q, k=K, v=V, alibi_slopes=slopes), wanted)


@pytest.mark.parametrize(
    ("members", "fragments"),
    [
        ({"softmax_scale": "big"}, ["'softmax_scale' is", "expected a number"]),
        ({"scale": [1.0, 2.0]}, ["'scale' has shape (2,)"]),
        ({"is_causal": "yes"}, ["'is_causal' is", "true or false"]),
        ({"num_heads": 3}, ["'num_heads' is 3", "4 heads", "layout blhd"]),
        ({"scale": 1, "sm_scale": 2}, ["'scale' and 'sm_scale'", "which is the scale"]),
        ({"window_size": [1, 2, 3]}, ["'window_size' is [1, 2, 3]", "-1 is open"]),
        ({"window_size": 4}, ["'window_size' is 4", "[left, right]"]),
        ({"sliding_window": -2}, ["'sliding_window' is -2", "positive integer"]),
        ({"head_mask": [1.0]}, ["'head_mask' changes the result", "leave it out"]),
        ({"leftpad_k": [1, 2]}, ["'leftpad_k' changes the result"]),
        ({"alibi_slopes": [[1.0] * 4] * 2}, ["'alibi_slopes' is (2, 4)"]),
        ({"mask": "windo(2)"}, ["unknown mask 'windo'"]),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_the_words_of_the_file(
    door: Run, tmp_path: Path, members: dict[str, Any], fragments: list[str]
) -> None:
    refused(door, tmp_path, *fragments, q=Q, k=K, v=V, **members)


def test_what_nothing_reads_is_named(door: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", q=Q, k=K, v=V, hidden_states=Q, comment=1, dropout_p=0.5)
    ran = door("compute", "a.npz")
    assert ran.code == 0
    assert "'hidden_states', 'comment' are not read" in " ".join(ran.err.split())
    assert "'dropout_p' is 0.5: nothing is dropped here" in ran.err


# -- packed tensors ---------------------------------------------------------------------------


def test_qkv_is_split(door: Run, tmp_path: Path) -> None:
    between = np.stack(heads_first(Q, K, V), 2)  # (B, L, 3, H, D)
    wanted = attention(Q, K, V)
    close(computed(door, tmp_path, qkv=between), heads_first(wanted)[0])
    close(computed(door, tmp_path, qkv=np.stack([Q, K, V])), wanted)  # (3, B, H, L, D)
    rows = [a.reshape(2, 5, 24) for a in heads_first(Q, K, V)]
    side = np.concatenate(rows, -1)  # (B, L, 3·H·D)
    close(computed(door, tmp_path, qkv=side, num_heads=4), heads_first(wanted)[0].reshape(2, 5, 24))
    kv = np.stack(heads_first(K, V), 2)  # (B, L, 2, H, D)
    close(computed(door, tmp_path, q=heads_first(Q)[0], kv=kv), heads_first(wanted)[0])


def test_qkv_of_grouped_heads_side_by_side(door: Run, tmp_path: Path) -> None:
    k, v = K[:, :2], V[:, :2]
    rows = [a.reshape(2, 5, -1) for a in heads_first(Q, k, v)]
    found = computed(
        door, tmp_path, qkv=np.concatenate(rows, -1), num_heads=4, num_key_value_heads=2
    )
    close(found, heads_first(attention(Q, k, v))[0].reshape(2, 5, 24))


@pytest.mark.parametrize(
    ("shape", "more"),
    [((3, 5, 3, 4, 6), {}), ((2, 5, 72), {}), ((3, 5, 72), {"heads": 4}), ((2, 5, 4, 6), {}),
     ((2, 5, 70), {"heads": 4})],
)  # fmt: skip
def test_qkv_of_two_readings_or_none_is_refused(
    door: Run, tmp_path: Path, shape: tuple[int, ...], more: dict[str, int]
) -> None:
    refused(door, tmp_path, f"'qkv' is {shape}", "(…, 3, H, D)", qkv=np.zeros(shape), **more)


# -- caches -----------------------------------------------------------------------------------


def test_a_cache_without_new_keys_is_what_is_attended_to(door: Run, tmp_path: Path) -> None:
    close(
        computed(door, tmp_path, q=Q[:, :, 3:], k_cache=K, v_cache=V), attention(Q, K, V)[:, :, 3:]
    )
    keep = np.arange(5) <= np.arange(2)[:, None] + 3
    found = computed(door, tmp_path, q=Q[:, :, 3:], k_cache=K, v_cache=V, causal=True)
    close(found, attention(Q[:, :, 3:], K, V, keep))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("paged", [False, True])
def test_flash_attn_with_kvcache(
    door: Run, tmp_path: Path, causal: bool, new: bool, paged: bool
) -> None:
    rng = np.random.default_rng(3)
    q = rng.normal(size=(2, 2, 4, 8))  # (B, Lq, H, D)
    cache = rng.normal(size=(2, 2, 12, 2, 8))  # keys and values (B, S, G, D)
    fresh = rng.normal(size=(2, 2, 2, 2, 8))
    lengths = np.array([3, 9], np.int32)
    full = cache.copy()
    for b, n in enumerate(lengths if new else ()):
        full[:, b, n : n + 2] = fresh[:, b]
    valid = lengths + (2 if new else 0)
    rows, keys = np.arange(2)[:, None], np.arange(12)
    keep = np.stack([(keys < n) & (keys <= rows + (n - 2 if causal else 12)) for n in valid])
    wanted = attention(*heads_first(q, *full), keep[:, None])
    k, v = cache
    call: dict[str, Any] = {"q": q, "cache_seqlens": lengths, "causal": causal}
    if paged:
        table = np.array([[4, 0, 2], [1, 5, 3]], np.int32)
        pages = np.zeros((2, 6, 4, 2, 8))
        for b in range(2):
            for n, page in enumerate(table[b]):
                pages[:, page] = cache[:, b, 4 * n : 4 * n + 4]
        (k, v), call["block_table"] = pages, table
    if new:
        call |= {"k": fresh[0], "v": fresh[1]}
    found = computed(door, tmp_path, k_cache=k, v_cache=v, **call)
    close(found, heads_first(wanted)[0])


def test_a_cache_that_does_not_fit_is_refused(door: Run, tmp_path: Path) -> None:
    q = np.zeros((2, 2, 4, 8))
    cache = {"k_cache": np.zeros((2, 12, 2, 8)), "v_cache": np.zeros((2, 12, 2, 8))}
    new = {"k": np.zeros((2, 2, 2, 8)), "v": np.zeros((2, 2, 2, 8))}
    refused(door, tmp_path, "room for 12 keys", q=q, **cache, **new, cache_seqlens=[3, 11])
    pages = {"block_table": [[0, 7], [1, 0]]}
    refused(door, tmp_path, "names page 7", "0 to 1", q=q, **cache, **pages, cache_seqlens=[13, 1])
    refused(door, tmp_path, "without lengths", q=q, **cache, **pages)


# -- sequences end to end ---------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("ends", [([0, 3, 5], [0, 3, 5]), ([0, 2, 5], [0, 4, 9]), ([0, 1, 1, 5],
                                  [0, 2, 4, 9])])  # fmt: skip
def test_cu_seqlens_are_sequences_of_their_own(
    door: Run, tmp_path: Path, ends: tuple[list[int], list[int]], causal: bool
) -> None:
    rng = np.random.default_rng(5)
    qs, ks = ends
    q, k, v = (rng.normal(size=(n, h, 8)) for n, h in ((5, 4), (ks[-1], 2), (ks[-1], 2)))
    wanted = np.zeros((5, 4, 8))
    for a, b, c, d in zip(qs, qs[1:], ks, ks[1:], strict=False):
        keep = np.arange(d - c) <= np.arange(b - a)[:, None] + (d - c) - (b - a) if causal else True
        wanted[a:b] = heads_first(attention(*heads_first(q[a:b], k[c:d], v[c:d]), keep))[0]
    members = {"cu_seqlens_q": qs, "cu_seqlens_k": ks, "causal": causal, "max_seqlen_k": 9}
    for backend in ("numpy", "reference"):
        found = computed(door, tmp_path, "--backend", backend, q=q, k=k, v=v, **members)
        close(found, wanted)
    if causal:
        del members["causal"]
        close(computed(door, tmp_path, "--causal", q=q, k=k, v=v, **members), wanted)


@pytest.mark.parametrize(
    ("starts", "fragment"),
    [([0, 3, 6], "ends at 6, but there are 5 positions"), ([1, 5], "where each sequence begins"),
     ([0, 4, 3, 5], "where each sequence begins"), ([0.5, 5], "where each sequence begins")],
)  # fmt: skip
def test_cu_seqlens_that_do_not_fit(
    door: Run, tmp_path: Path, starts: list[Any], fragment: str
) -> None:
    refused(door, tmp_path, fragment, q=Q[0, 0], k=K[0, 0], v=V[0, 0], cu_seqlens=starts)


def test_other_masks_beside_sequences_that_differ(door: Run, tmp_path: Path) -> None:
    members = {"q": Q[0, 0], "k": K[0, 0], "v": V[0, 0]}
    np.savez(tmp_path / "a.npz", **members, cu_seqlens_q=[0, 2, 5], cu_seqlens_k=[0, 3, 5])
    ran = door("compute", "a.npz", "-m", "window(1, 1)")
    assert ran.code == 2
    assert "window(1, 1) beside cu_seqlens" in ran.err


def test_position_ids_that_begin_anew_are_sequences(door: Run, tmp_path: Path) -> None:
    ids = np.array([0, 0, 0, 1, 1])
    keep = (ids[:, None] == ids) & CAUSAL
    found = computed(door, tmp_path, q=Q, k=K, v=V, is_causal=True, position_ids=[[0, 1, 2, 0, 1]])
    close(found, attention(Q, K, V, keep))
    both = np.array([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]])
    keep = np.stack([keep, CAUSAL])[:, None]
    found = computed(door, tmp_path, q=Q, k=K, v=V, is_causal=True, position_ids=both)
    close(found, attention(Q, K, V, keep))
    close(computed(door, tmp_path, q=Q, k=K, v=V, position_ids=np.arange(5)), attention(Q, K, V))


# -- what is taken for what -------------------------------------------------------------------


def test_what_takes_the_place_of_key_and_value_is_said(door: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", q=Q, k=K)
    assert "value is missing: the key is used" in door("compute", "a.npz").out
    assert "key and value are missing: the query is used" in door("compute", "-q", "a.npz::q").out
    np.savez(tmp_path / "a.npz", q=Q, k=K, v=V)
    assert "missing" not in door("compute", "a.npz").out


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_weights_are_not_taken_for_queries_in_silence(
    door: Run, tmp_path: Path, dtype: str
) -> None:
    e = np.exp(RNG.normal(size=(2, 6, 6)))
    np.save(tmp_path / "w.npy", (e / e.sum(-1, keepdims=True)).astype(dtype))
    np.save(tmp_path / "x.npy", e.astype(dtype))
    for command in ("compute", "inspect"):
        assert "look like attention weights" in " ".join(door(command, "w.npy").out.split())
        assert "look like attention weights" not in " ".join(door(command, "x.npy").out.split())


def test_bfloat16_that_was_saved_as_uint16(door: Run, tmp_path: Path) -> None:
    import ml_dtypes

    halves = [a.astype(ml_dtypes.bfloat16) for a in (Q, K, V)]
    members = dict(zip("qkv", (a.view(np.uint16) for a in halves), strict=True))
    np.savez(tmp_path / "a.npz", **members)
    ran = door("compute", "a.npz", "--json")
    assert "query: uint16 is read as the bits of bfloat16" in ran.data["notes"]
    wanted = attention(*halves)
    np.testing.assert_allclose(np.array(ran.data["output"], float), wanted, atol=0.02)
    np.savez(tmp_path / "b.npz", q=np.array([[1, 2], [3, 4]], np.uint16))
    assert "query converted from uint16" in door("compute", "b.npz").out
