"""``compute --grad-output`` through the door."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attncli
from tests.support.program import Door


@pytest.fixture
def bundle(tmp_path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    arrays = {
        "query": rng.normal(size=(2, 4, 5, 6)), "key": rng.normal(size=(2, 2, 5, 6)),
        "value": rng.normal(size=(2, 2, 5, 3)), "up": rng.normal(size=(2, 4, 5, 3)),
    }  # fmt: skip
    np.savez(tmp_path / "qkv.npz", **{k: v for k, v in arrays.items() if k != "up"})
    np.save(tmp_path / "up.npy", arrays["up"])
    return arrays


@pytest.mark.parametrize("spec", ["ones", "random", "random:7", "up.npy"])
@pytest.mark.parametrize("backend", ["numpy", "reference"])
def test_gradients_are_those_of_torch(
    door: Door, tmp_path: Path, bundle: dict[str, np.ndarray], spec: str, backend: str
) -> None:
    torch = pytest.importorskip("torch")
    names = "output,grad_query,grad_key,grad_value"
    done = door(
        "compute", "qkv.npz", "--causal", "--grad-output", spec, "--include", names,
        "--backend", backend, "-o", "out.npz",
    )  # fmt: skip
    assert done.code == 0, done.err
    saved = np.load(tmp_path / "out.npz")
    upward = bundle["up"]
    if spec == "ones":
        upward = np.ones_like(upward)
    elif spec.startswith("random"):
        seed = int(spec.partition(":")[2] or 0)
        upward = np.random.default_rng(seed).standard_normal(upward.shape)
    leaves = [torch.tensor(bundle[n], requires_grad=True) for n in ("query", "key", "value")]
    output = torch.nn.functional.scaled_dot_product_attention(
        *leaves, is_causal=True, enable_gqa=True
    )
    output.backward(torch.tensor(upward))
    for name, leaf in zip(("query", "key", "value"), leaves, strict=True):
        np.testing.assert_allclose(saved[f"grad_{name}"], leaf.grad.numpy(), atol=1e-12)
    assert "Gradients" in done.out


def test_json_carries_gradients_and_their_norms(door: Door, bundle: Any) -> None:
    found = door("compute", "qkv.npz", "--grad-output", "ones", "--json").data
    assert np.array(found["grad_key"]).shape == (2, 2, 5, 6)
    norms = np.linalg.norm(found["grad_query"], axis=-1)
    mean = found["heads"][5]["statistics"]["grad_query_norm"]["mean"]
    assert mean == pytest.approx(norms[1, 1].mean())


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("-o", "o.npz", "--include", "grad_query"), "--grad-output ones"),
        (("--grad-output", "twos"), "no such file"),
        (("--grad-output", "random:x"), "whole number"),
        (("--grad-output", "qkv.npz::query"), "but the output is (2, 4, 5, 3)"),
    ],
)
def test_bad_upstream_gradients_are_refused(
    door: Door, bundle: Any, arguments: tuple[str, ...], fragment: str
) -> None:
    done = door("compute", "qkv.npz", *arguments)
    assert done.code == 2
    assert fragment in done.err


def test_gradients_turn_back_with_the_corner_of_the_mask() -> None:
    """Finite differences where fewer queries than keys stand at the top left."""
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 4)), rng.normal(size=(5, 4))

    def total(query: np.ndarray) -> float:
        mask = "causal(top_left)"
        done = attncli.attend(query, k, rope="half", mask=mask, backend="reference")
        return float((done.output * np.arange(8.0).reshape(2, 4)).sum())

    found = attncli.attend(
        q, k, rope="half", mask="causal(top_left)", backend="reference", want=("gradients",),
        grad_output=np.arange(8.0).reshape(2, 4),
    )  # fmt: skip
    assert found.gradients is not None
    for at in np.ndindex(q.shape):
        step = np.zeros_like(q)
        step[at] = 1e-6
        slope = (total(q + step) - total(q - step)) / 2e-6
        assert found.gradients.query[at] == pytest.approx(slope, abs=1e-6)


def test_a_bundle_gives_the_gradient_of_the_output(door: Door, bundle: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", **np.load("qkv.npz"), grad_output=bundle["up"])
    own, flag, other = (
        door("compute", *call, "--include", "grad_query", "--json").data["grad_query"]
        for call in (
            ["all.npz"],
            ["qkv.npz", "--grad-output", "up.npy"],
            ["all.npz", "--grad-output", "ones"],
        )
    )  # fmt: skip
    assert own == flag != other
