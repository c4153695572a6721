"""Every shape family comes in and goes back; what does not fit is said with its shapes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import attncli
from attncli.attention.pose import pose
from attncli.errors import InputError
from tests.support.problems import normals

normal = normals(7)


B, H, G, LQ, LK, D, DV = 2, 4, 2, 3, 5, 6, 7
Q, K, V = normal(B, H, LQ, D), normal(B, G, LK, D), normal(B, G, LK, DV)
TRUTH = attncli.attend(Q, K, V, backend="reference").output


def packed(x: np.ndarray) -> np.ndarray:
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def test_families_say_the_same() -> None:
    def out(*arrays: np.ndarray, **options: Any) -> np.ndarray:
        return attncli.attend(*arrays, backend="reference", **options).output

    assert TRUTH.shape == (B, H, LQ, DV)
    np.testing.assert_allclose(out(Q[0], K[0], V[0]), TRUTH[0])
    np.testing.assert_allclose(out(Q[0, 0], K[0, 0], V[0, 0]), TRUTH[0, 0])
    swapped = [x.swapaxes(1, 2) for x in (Q, K, V)]
    np.testing.assert_allclose(out(*swapped, layout="blhd"), TRUTH.swapaxes(1, 2))
    np.testing.assert_allclose(
        out(*(x[0] for x in swapped), layout="blhd"), TRUTH[0].swapaxes(0, 1)
    )
    flat = [packed(x) for x in (Q, K, V)]
    np.testing.assert_allclose(out(*flat, heads=H, kv_heads=G), packed(TRUTH))
    np.testing.assert_allclose(out(*(x[0] for x in flat), heads=H, kv_heads=G), packed(TRUTH)[0])


def test_rows_keep_heads_as_a_dimension() -> None:
    def shape(*arrays: np.ndarray, **options: Any) -> tuple[int, ...]:
        result = attncli.attend(*arrays, backend="reference", want=("weights",), **options)
        assert result.weights is not None
        assert result.lse.shape == result.weights.shape[:-1]
        return result.weights.shape

    assert shape(Q, K, V) == (B, H, LQ, LK)
    assert shape(Q[0], K[0], V[0]) == (H, LQ, LK)
    assert shape(Q[0, 0], K[0, 0], V[0, 0]) == (LQ, LK)
    assert shape(packed(Q)[0], packed(K)[0], packed(V)[0], heads=H, kv_heads=G) == (H, LQ, LK)
    assert shape(packed(Q), packed(K), packed(V), heads=H, kv_heads=G) == (B, H, LQ, LK)


def test_a_missing_value_is_the_key_and_a_missing_key_the_query() -> None:
    x = normal(4, 4)
    alone = attncli.attend(x, backend="reference").output
    np.testing.assert_array_equal(alone, attncli.attend(x, x, x, backend="reference").output)
    two = attncli.attend(x, x + 1, backend="reference").output
    np.testing.assert_array_equal(two, attncli.attend(x, x + 1, x + 1, backend="reference").output)


def test_grouped_heads_are_repeated_not_tiled() -> None:
    whole = attncli.attend(Q, K.repeat(H // G, 1), V.repeat(H // G, 1), backend="reference")
    np.testing.assert_allclose(whole.output, TRUTH)


def test_past_goes_before_the_new_keys_and_moves_causal() -> None:
    k, v = normal(1, 1, 6, 4), normal(1, 1, 6, 4)
    q = normal(1, 1, 2, 4)
    cached = attncli.attend(
        q, k[:, :, 4:], v[:, :, 4:], past_key=k[:, :, :4], past_value=v[:, :, :4], mask="causal",
        backend="reference",
    )  # fmt: skip
    whole = attncli.attend(q, k, v, mask="causal(bottom_right)", backend="reference")
    np.testing.assert_allclose(cached.output, whole.output)
    assert cached.problem.past == 4


def test_rope_stands_where_the_mask_s_corner_says() -> None:
    q, k = normal(2, 4), normal(6, 4)
    first = attncli.attend(q, k, rope="half", mask="causal(top_left)", backend="reference")
    alone = attncli.attend(q, k[:2], rope="half", mask="causal", backend="reference")
    np.testing.assert_allclose(first.problem.query, alone.problem.query)
    last = attncli.attend(q, k, rope="half", mask="causal(bottom_right)", backend="reference")
    whole = attncli.attend(
        np.concatenate([k[:4], q]), k, rope="half", mask="causal", backend="reference"
    )
    np.testing.assert_allclose(last.problem.query[0, 0], whole.problem.query[0, 0, 4:])


def test_kv_lengths_hide_the_rest_of_the_cache() -> None:
    padded = attncli.attend(Q, K, V, kv_lengths=[2, 4], mask="causal", backend="reference")
    for b, n in enumerate((2, 4)):
        short = attncli.attend(
            Q[b], K[b, :, :n], V[b, :, :n], mask="causal(bottom_right)", backend="reference"
        )
        np.testing.assert_allclose(padded.output[b], short.output)


@pytest.mark.parametrize(
    ("dtypes", "dtype", "arithmetic", "result"),
    [
        (("float32",) * 3, None, "float32", "float32"),
        (("float16",) * 3, None, "float32", "float16"),
        (("bfloat16",) * 3, None, "float32", "bfloat16"),
        (("float16", "bfloat16", "float16"), None, "float32", "float32"),
        (("float32", "float64", "float32"), None, "float64", "float64"),
        (("int64",) * 3, None, "float64", "float64"),
        (("float32",) * 3, "float64", "float64", "float64"),
        (("float64",) * 3, "bfloat16", "float32", "bfloat16"),
        ((">f4",) * 3, None, "float32", "float32"),
    ],
)
def test_dtypes(dtypes: tuple[str, ...], dtype: str | None, arithmetic: str, result: str) -> None:
    types = [ml_dtypes.bfloat16 if d == "bfloat16" else d for d in dtypes]
    q, k, v = (np.ones((2, 2)).astype(d) for d in types)
    problem = pose(q, k, v, dtype=dtype)
    assert (problem.dtype.name, problem.result_dtype.name) == (arithmetic, result)
    output = attncli.attend(q, k, v, dtype=dtype, backend="reference").output
    assert output.dtype.name == result


def test_scales() -> None:
    q = normal(3, 16)
    assert pose(q).scale == 0.25
    assert pose(q).scale_source == "1/√16"
    assert pose(q, scale="none").scale == 1
    assert pose(q, scale=0.5).scale == 0.5
    assert "negative" in pose(q, scale=-1.0).warnings[0]
    assert "same weight" in pose(q, scale=0).warnings[0]
    assert pose(np.zeros((3, 0))).scale == 1


BAD: list[tuple[dict[str, Any], str]] = [
    ({"query": normal(4, 64), "key": normal(5, 32)}, "key has width 32 but query has width 64"),
    ({"query": normal(4, 64), "key": normal(5, 32)}, "key (5, 32), query (4, 64)"),
    ({"query": normal(4, 6), "key": normal(5, 4), "value": normal(5, 4)}, "width"),
    ({"query": normal(4, 6), "key": normal(3, 4)}, "their last dimensions must match"),
    ({"query": normal(4, 6), "key": normal(6, 9)}, "transpose"),
    ({"query": normal(4, 64), "key": normal(5, 16)}, "use --heads"),
    ({"query": normal(4, 6), "key": normal(5, 6), "value": normal(4, 6)}, "value has length 4"),
    ({"query": normal(4, 6), "key": normal(5, 6), "value": normal(3, 5)}, "transpose"),
    ({"query": normal(2, 3, 4, 5), "key": normal(3, 3, 4, 5)}, "batch 3 but query has batch 2"),
    ({"query": normal(1, 4, 4, 5), "key": normal(1, 3, 4, 5)}, "query has 4 heads but key has 3"),
    (
        {"query": normal(1, 4, 4, 5), "key": normal(1, 2, 4, 5), "value": normal(1, 1, 4, 5)},
        "heads",
    ),
    ({"query": normal(1, 7, 4, 5), "key": normal(1, 9, 4, 5)}, "--layout blhd"),
    ({"query": normal(2, 4, 5), "key": normal(4, 5)}, "same number of dimensions"),
    ({"query": np.array(3.0)}, "0 dimensions"),
    ({"query": normal(4)}, "[[…]]"),
    ({"query": normal(1, 1, 1, 2, 2)}, "5 dimensions"),
    ({"query": normal(2, 2) + 1j}, "complex"),
    ({"query": np.array([["a"]])}, "expected numbers"),
    ({"query": normal(4, 6), "heads": 4}, "does not divide into 4 heads"),
    ({"query": normal(4, 6), "heads": 0}, "at least 1"),
    ({"query": normal(1, 1, 4, 6), "heads": 2}, "unpacks"),
    ({"query": normal(4, 6), "kv_heads": 2}, "without --heads"),
    ({"query": normal(4, 6), "heads": 3, "kv_heads": 2}, "key of its own"),
    (
        {"query": normal(4, 6), "key": normal(4, 6), "heads": 3, "kv_heads": 4},
        "kv_heads must divide 6",
    ),
    ({"query": normal(4, 6), "layout": "lbhd"}, "bhld or blhd"),
    ({"query": normal(4, 6), "scale": float("nan")}, "finite"),
    ({"query": normal(4, 6), "softcap": 0}, "positive"),
    ({"query": normal(4, 6), "softcap": float("inf")}, "positive"),
    ({"query": normal(4, 6), "sink": [1.0, 2.0]}, "one logit"),
    ({"query": normal(4, 6), "sink": float("nan")}, "not finite"),
    ({"query": normal(4, 6), "dtype": "float8"}, "unknown dtype"),
    ({"query": normal(4, 6), "kv_lengths": [1, 2]}, "2 numbers but the batch has 1"),
    ({"query": normal(4, 6), "kv_lengths": [5]}, "expected 0 to 4"),
    ({"query": normal(4, 6), "kv_lengths": [-1]}, "expected 0 to 4"),
    ({"query": normal(4, 6), "kv_lengths": [1.5]}, "integer"),
    ({"query": normal(4, 6), "past_key": normal(2, 6)}, "without past_value"),
    ({"query": normal(4, 6), "past_key": normal(2, 6), "past_value": normal(3, 6)}, "in length"),
    (
        {"query": normal(4, 6), "past_key": normal(2, 5), "past_value": normal(2, 6)},
        "past_key (2, 5)",
    ),
]


@pytest.mark.parametrize(("arguments", "fragment"), BAD)
def test_what_does_not_fit_is_said(arguments: dict[str, Any], fragment: str) -> None:
    with pytest.raises(InputError) as caught:
        pose(**arguments)
    assert fragment in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("shape_q", "shape_k", "shape_v", "expected"),
    [
        ((0, 4), (3, 4), (3, 2), (0, 2)),
        ((3, 4), (0, 4), (0, 2), (3, 2)),
        ((3, 0), (3, 0), (3, 2), (3, 2)),
        ((3, 4), (3, 4), (3, 0), (3, 0)),
        ((0, 2, 3, 4), (0, 2, 3, 4), (0, 2, 3, 4), (0, 2, 3, 4)),
        ((2, 0, 3, 4), (2, 0, 3, 4), (2, 0, 3, 4), (2, 0, 3, 4)),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_zero_length_dimensions_have_defined_results(
    shape_q: tuple[int, ...], shape_k: tuple[int, ...], shape_v: tuple[int, ...],
    expected: tuple[int, ...], backend: str,
) -> None:  # fmt: skip
    q, k, v = np.ones(shape_q), np.ones(shape_k), np.ones(shape_v)
    result = attncli.attend(q, k, v, backend=backend, want=("row_statistics", "weights"))
    assert result.output.shape == expected
    assert np.isfinite(result.output).all()
    attncli.statistics(result)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((5, 4), {}),
        ((3, 5, 4), {}),
        ((5, 3, 4), {"layout": "blhd"}),
        ((2, 3, 5, 4), {}),
        ((2, 5, 3, 4), {"layout": "blhd"}),
        ((5, 12), {"heads": 3}),
        ((2, 5, 12), {"heads": 3}),
        ((1, 5, 12), {"heads": 3}),
    ],
)
def test_restore_undoes_canonical_in_every_family(
    shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    array = np.random.default_rng(0).standard_normal(shape)
    asked = pose(array, **options)
    np.testing.assert_array_equal(asked.family.restore(asked.query), array)
