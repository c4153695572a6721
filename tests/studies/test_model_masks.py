"""Masks that models ask for: read as what they say, and made only for who wants them dense."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from transformers import masking_utils as theirs  # noqa: E402

import attncli  # noqa: E402
from attncli.attention.masks import Extent, Mask  # noqa: E402
from attncli.studies.model import asked, interface  # noqa: E402
from tests.support import families  # noqa: E402

Array = np.ndarray[Any, np.dtype[Any]]

IDS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]])
IMAGE = torch.tensor([[-1, -1, 0, 0, 0, -1, -1, 1, 1, -1, -1], [-1] * 6 + [0] * 5])
PADDED = torch.tensor([[1] * 11, [0] * 4 + [1] * 7], dtype=torch.bool)


def by_place(b: Any, h: Any, i: Any, j: Any) -> Any:
    """As somebody's own and_mask_function may be."""
    return (i + 2 * j) % 3 > 0


#: What models ask for: batch of 2, as ``sdpa_mask`` takes it, and what is read of it.
ASKED: dict[str, tuple[dict[str, Any], str]] = {
    "causal, padding": (dict(attention_mask=PADDED), "causal & padding(11, 7, left)"),
    "both ways": (
        dict(mask_function=theirs.bidirectional_mask_function, attention_mask=PADDED),
        "padding(11, 7, left)",
    ),
    "window": (
        dict(mask_function=theirs.sliding_window_causal_mask_function(4), local_size=4),
        "causal & window(3)",
    ),
    "window both ways": (
        dict(mask_function=theirs.sliding_window_bidirectional_mask_function(3), local_size=3),
        "window(3, 3)",
    ),
    "chunks, padding": (
        dict(
            mask_function=theirs.chunked_causal_mask_function(3, torch.tensor([0, 4])),
            attention_mask=PADDED, local_size=3,
        ),
        "chunks(3, 0, 4) & padding(11, 7, left)",
    ),
    "cache": (dict(q_length=4, q_offset=7), "causal(bottom_right)"),
    "cache, window": (
        dict(q_length=4, q_offset=9, kv_offset=2, local_size=4,
             mask_function=theirs.sliding_window_causal_mask_function(4)),
        "causal(bottom_right) & window(3, bottom_right)",
    ),
    "images": (
        dict(mask_function=theirs.or_masks(
            theirs.causal_mask_function, theirs.blockwise_overlay(IMAGE))),
        "",
    ),
    "packed": (
        dict(mask_function=theirs.packed_sequence_compatibility_function(
            theirs.causal_mask_function, torch.arange(11).expand(2, -1), IDS.expand(2, -1))),
        "",
    ),
    "by somebody": (
        dict(mask_function=theirs.and_masks(theirs.causal_mask_function, by_place),
             use_vmap=True, attention_mask=PADDED),
        "padding",
    ),
}  # fmt: skip


def ask(**more: Any) -> dict[str, Any]:
    given = dict(batch_size=2, q_length=11, kv_length=11, q_offset=0, kv_offset=0)
    given |= dict(mask_function=theirs.causal_mask_function, allow_is_causal_skip=False)
    return {**given, **more}


def dense(given: dict[str, Any]) -> Array:
    return np.asarray(theirs.sdpa_mask(**given).expand(2, 1, -1, -1).numpy())


@pytest.mark.parametrize("name", ASKED)
def test_a_mask_is_read_as_what_it_says(name: str) -> None:
    given, words = ask(**ASKED[name][0]), ASKED[name][1]
    mask, whole = asked.asked_mask(**given), dense(given)
    assert mask.shape == whole.shape and mask.dtype == torch.bool
    extent = Extent(2, 3, *whole.shape[2:])
    real = given.get("attention_mask")
    place = interface.Place("here", real_keys=None if real is None else real.numpy())
    bound = Mask(extent)
    for one in interface._read(mask, extent, place, None):
        bound = bound & one(extent)
    assert mask.made is None
    np.testing.assert_array_equal(bound.dense(), np.broadcast_to(whole, (2, 3, *whole.shape[2:])))
    ours = "as the model's function gives it" in bound.text
    assert words in bound.text and ours == (words in ("", "padding"))
    if real is not None:
        np.testing.assert_array_equal(bound.padding(), ~real.numpy())


@pytest.mark.parametrize("name", ["images", "packed", "by somebody"])
def test_cells_of_a_function_are_those_of_its_mask(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked, "STEP", 4)
    given = ask(**ASKED[name][0])
    cells, whole = asked.Cells(asked.asked_mask(**given)), dense(given)
    i, j = np.array([[7], [0], [10], [7]]), np.array([[0, 3, 10]])
    for b in range(2):
        np.testing.assert_array_equal(cells.allows(b, 0, i, j), whole[b, 0][i, j])
        np.testing.assert_array_equal(cells.block(b, 0, 3, 9, 2, 7), whole[b, 0, 3:9, 2:7])


def test_whatever_else_is_done_with_a_mask_is_done_with_the_dense_one() -> None:
    given = ask(**ASKED["window"][0])
    whole = theirs.sdpa_mask(**given)
    for use in (
        lambda m: m[:, :, 1:, :4],
        lambda m: ~m,
        lambda m: m.to(torch.float32),
        lambda m: torch.cat([m, m], -1),
        lambda m: torch.nn.functional.pad(m, (0, 2), value=True),
        lambda m: m.sum(-1),
        lambda m: torch.where(m, 0.0, -1.0),
        lambda m: torch.zeros(2, 1, 11, 11).masked_fill_(m, 1),
        lambda m: m.numpy(),
    ):
        mask = asked.asked_mask(**given)
        got, want = use(mask), use(whole)
        assert not isinstance(got, asked.Asked) and mask.made is not None
        np.testing.assert_array_equal(np.asarray(got), np.asarray(want))
    mask = asked.asked_mask(**given)
    assert (mask.ndim, mask.device.type, mask.size(-1), mask.dim()) == (4, "cpu", 11, 4)
    assert mask.detach() is mask and mask.made is None


def test_a_mask_that_is_clear_is_known_unread() -> None:
    ones = torch.ones(2, 11, dtype=torch.bool)
    causal = partial(ask, allow_is_causal_skip=True)
    assert asked.asked_mask(**causal(attention_mask=ones)).known == ("causal",)
    assert asked.asked_mask(**causal(attention_mask=PADDED)).known is None
    assert asked.asked_mask(**causal(local_size=12)).known == ("causal",)
    assert asked.asked_mask(**causal(local_size=11)).known is None
    both = ask(allow_is_causal_skip=False, allow_is_bidirectional_skip=True)
    assert asked.asked_mask(**both, attention_mask=ones).known == ()


class Largest(TorchDispatchMode):  # type: ignore[misc]
    """Notes how large the largest tensor is that is made."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, (tuple, list)) else [found]:
            if torch.is_tensor(one):
                size = one.untyped_storage().nbytes() // one.element_size()
                self.elements = max(self.elements, size)
        return found


@pytest.mark.parametrize("key", ["mistral", "bert", "gemma2", "modernbert"])
def test_no_tensor_is_as_large_as_a_mask(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    length = 2048
    config = {**families.FAMILIES[key], "max_position_embeddings": length}
    monkeypatch.setitem(families.FAMILIES, key, config)
    model = families.build(key)
    mask = torch.ones(1, length, dtype=torch.long)
    mask[0, :300] = 0
    given = {"input_ids": torch.randint(4, 64, (1, length)), "attention_mask": mask}
    masks = []

    def told(name: str, problem: Any, labels: Any) -> None:
        masks.append(problem.mask.text)

    with torch.no_grad(), Largest() as largest, attncli.capture(model, told=told):
        model(**given)
    assert masks and all("padding(1748, left)" in one for one in masks)
    assert largest.elements <= asked.STEP * length < length**2 / 2


@pytest.mark.filterwarnings("ignore")  # PyTorch's own, while it compiles
def test_a_compiled_model_is_captured_as_it_is() -> None:
    model = families.build("mistral")
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    given = {"input_ids": torch.arange(4, 22).reshape(2, 9), "attention_mask": mask}
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        with attncli.capture(model) as want:
            model(**given)
        with attncli.capture(compiled) as seen:
            compiled(**given)
    torch.compiler.reset()
    assert [layer.mask for layer in seen.layers] == ["causal & window(3) & padding(9, 6, left)"] * 2
    for ours, other in zip(seen.layers, want.layers, strict=True):
        assert ours.module == other.module
        for name, values in ours.statistics["entropy"].items():  # type: ignore[union-attr]
            np.testing.assert_allclose(values, other.statistics["entropy"][name], rtol=1e-5)
