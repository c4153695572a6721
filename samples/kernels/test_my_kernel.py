"""Tests of a kernel, to be copied: put yours into the import, and into the cases what it can do."""

import numpy as np
import pytest
from tiled import attention

import attncli

normal = np.random.default_rng(0).normal


@pytest.mark.parametrize("length", [1, 15, 16, 17, 100])
def test_lengths(length):
    q, k, v = normal(size=(3, 2, length, 8)).astype(np.float32)
    output, lse = attention(q, k, v)
    attncli.assert_close({"output": output, "lse": lse}, {"query": q, "key": k, "value": v})


@pytest.mark.parametrize("queries", [1, 24, 40])
def test_causal(queries):
    q, k, v = normal(size=(3, 2, 40, 8)).astype(np.float32)
    problem = {"query": q[:, -queries:], "key": k, "value": v, "mask": "causal(bottom_right)"}
    attncli.assert_close(attention(q[:, -queries:], k, v, causal=True)[0], problem)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_grouped_heads(dtype):
    q, k, v = (normal(size=(heads, 40, 8)).astype(dtype) for heads in (6, 2, 2))
    attncli.assert_close(attention(q, k, v)[0], {"query": q, "key": k, "value": v})
