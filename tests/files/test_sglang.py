"""Dumps of SGLang: what is found in them, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import attncli
from attncli import files
from attncli.cli.compute import Asked
from attncli.cli.given.attention import gather
from attncli.errors import AttnError
from attncli.studies import attend

torch = pytest.importorskip("torch")

HEADS, KV_HEADS, WIDTH, LENGTHS = 4, 2, 8, (3, 2)
ROWS = sum(LENGTHS)
LAYER = "model.layers.{}.self_attn"
FLAGS = {"heads": HEADS, "kv_heads": KV_HEADS, "causal": True}

Saved = dict[str, Any]


def projected(layer: int = 0, rows: int = ROWS) -> dict[str, np.ndarray[Any, Any]]:
    """Query, key and value ``(rows, H·D)`` of a layer."""
    draw = np.random.default_rng([layer, rows])
    widths = {"q": HEADS * WIDTH, "k": KV_HEADS * WIDTH, "v": KV_HEADS * WIDTH}
    return {n: draw.normal(size=(rows, width)).astype(np.float32) for n, width in widths.items()}


def alone(tensors: dict[str, np.ndarray[Any, Any]], lengths: tuple[int, ...] = LENGTHS) -> Any:
    """The output of each sequence on its own, ``(rows, H·D)``."""
    found, end = [], 0
    for length in lengths:
        q, k, v = (tensors[n][end : end + length] for n in "qkv")
        found.append(attncli.attend(q, k, v, mask="causal", heads=HEADS, kv_heads=KV_HEADS).output)
        end += length
    return np.concatenate(found)


def put(folder: Path, name: str, value: Any, index: int, **tags: object) -> None:
    """Save a tensor as the dumper does, tags in its name and once more beside it."""
    said = {"step": 0, "rank": 0, "dump_index": index, "name": name} | tags
    file = "___".join(f"{key}={one}" for key, one in said.items()) + ".pt"
    folder.mkdir(exist_ok=True)
    meta = said | {"world_size": 1, "sglang_parallel_info": {"tp_rank": 0}}
    torch.save({"value": torch.as_tensor(value), "meta": meta}, folder / file)


def dumped(folder: Path, layers: int = 1, **tags: object) -> Path:
    """A dump of whole layers, as ``non_intrusive_mode=all`` makes it."""
    put(folder, "seq_lens", np.array(LENGTHS), 0, **tags)
    put(folder, "positions", np.array([0, 1, 2, 0, 1]), 1, **tags)
    for layer in range(layers):
        tensors = projected(layer)
        for n, tensor in enumerate(tensors.values()):
            name = f"non_intrusive__{LAYER.format(layer)}.attn.inputs.{n}"
            put(folder, name, tensor, 10 + n, layer_id=layer, **tags)
        name = f"non_intrusive__{LAYER.format(layer)}.attn.output"
        put(folder, name, alone(tensors), 20, layer_id=layer, **tags)
        name = f"non_intrusive__{LAYER.format(layer)}.mlp.output"
        put(folder, name, np.ones((ROWS, 3)), 21, layer_id=layer, **tags)
    return folder


def output_of(ref: object, **flags: Any) -> Any:
    problem = gather(files.read(str(ref)), Asked(**FLAGS | flags)).pose()
    return attend.solve(problem).output


def refusal(ref: object, **flags: Any) -> str:
    with pytest.raises(AttnError) as error:
        output_of(ref, **flags)
    return str(error.value)


def test_a_lone_layer_is_found_by_itself(tmp_path: Path) -> None:
    folder = dumped(tmp_path / "dump")
    np.testing.assert_allclose(output_of(folder), alone(projected()), atol=1e-6)
    bundle = files.read(str(folder))
    assert bundle.kind == "dump"
    assert set(bundle.tensors) == {
        f"step0.rank0.{LAYER.format(0)}.attn.{role}"
        for role in ("query", "key", "value", "expected", "cu_seqlens")
    } | {"step0.rank0.positions", f"step0.rank0.non_intrusive__{LAYER.format(0)}.mlp.output"}


def test_a_layer_of_several_is_named(tmp_path: Path) -> None:
    folder = dumped(tmp_path / "dump", layers=3)
    wrong = refusal(folder)
    assert f"choose one of 3 (step0.rank0.{LAYER.format(0)}.attn" in wrong
    hint = wrong.rpartition(": ")[2]  # what it tells to type works
    np.testing.assert_allclose(output_of(hint), alone(projected()), atol=1e-6)
    ref = f"{folder}::step0.rank0.{LAYER.format(2)}.attn"
    np.testing.assert_allclose(output_of(ref), alone(projected(2)), atol=1e-6)


def test_steps_and_ranks_lie_apart_and_so_does_what_comes_again(tmp_path: Path) -> None:
    folder = tmp_path / "dump"
    for step, rank in ((0, 0), (0, 1), (1, 0)):
        dumped(folder, step=step, rank=rank)
    for n, (name, tensor) in enumerate(projected(7).items()):
        put(folder, name, tensor, n)
        put(folder, name, tensor + 1, 5 + n)
    layers = [name for name in files.read(str(folder)).tensors if name.endswith("query")]
    assert sorted(layers) == sorted(
        [f"step{s}.rank{r}.{LAYER.format(0)}.attn.query" for s, r in ((0, 0), (0, 1), (1, 0))]
        + ["step0.rank0.attn.query", "step0.rank0.again1.attn.query"]
    )


def test_sequences_are_those_of_the_same_pass(tmp_path: Path) -> None:
    for n, lengths in enumerate((LENGTHS, (1, 4))):
        put(tmp_path, "seq_lens", np.array(lengths), 10 * n)
        for role, tensor in projected(n).items():
            put(tmp_path, role, tensor, 10 * n + 1, layer_id=5)
    for at, n, lengths in (("", 0, LENGTHS), ("again1.", 1, (1, 4))):
        out = output_of(f"{tmp_path}::step0.rank0.{at}layer5.attn")
        np.testing.assert_allclose(out, alone(projected(n), lengths), atol=1e-6)


@pytest.mark.parametrize("name", ["q", "attn_q", "attn__q", "my_block__attn_q"])
def test_names_that_people_choose(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "dump"
    put(folder, "seq_lens", np.array(LENGTHS), 0)
    put(folder, "layer_start__hidden_states", np.ones((ROWS, 6)), 1, layer_id=4)
    for n, (role, tensor) in enumerate(projected().items()):
        put(folder, name.removesuffix("q") + role, tensor, 2 + n, layer_id=4)
    np.testing.assert_allclose(output_of(folder), alone(projected()), atol=1e-6)


def test_an_older_dump_has_the_tensor_alone(tmp_path: Path) -> None:
    for role, tensor in projected().items():
        tags = f"forward_pass_id=3___rank=0___name={role}___dump_index=1.pt"
        torch.save(torch.as_tensor(tensor), tmp_path / tags)
    given = gather(files.read(str(tmp_path)), Asked(**FLAGS))
    assert any("taken as one sequence" in note for note in given.notes)
    np.testing.assert_allclose(output_of(tmp_path), alone(projected(), (ROWS,)), atol=1e-6)


def test_files_of_a_dump_by_name(tmp_path: Path) -> None:
    folder = dumped(tmp_path / "dump")
    refs = {}
    for role, n in (("query", 0), ("key", 1), ("value", 2)):
        refs[role] = str(next(folder.glob(f"*attn.inputs.{n}___*")))
    problem = gather(None, Asked(**FLAGS | refs)).pose()
    expected = alone(projected(), (ROWS,))  # a file says nothing of sequences
    np.testing.assert_allclose(attend.solve(problem).output, expected, atol=1e-6)


def test_heads_are_asked_for(tmp_path: Path) -> None:
    folder = dumped(tmp_path / "dump")
    assert "add --heads H and --kv-heads G" in refusal(folder, heads=None, kv_heads=None)


def test_heads_that_are_a_dimension_are_read(tmp_path: Path) -> None:
    for n, (role, tensor) in enumerate(projected().items()):
        put(tmp_path, role, tensor.reshape(ROWS, -1, WIDTH), n)
    put(tmp_path, "seq_lens", np.array(LENGTHS), 9)
    out = output_of(tmp_path, heads=None, kv_heads=None)
    np.testing.assert_allclose(out.reshape(ROWS, -1), alone(projected()), atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: put(d, "seq_lens", np.array([9, 2]), 0), "5 queries for 11 keys of seq_lens"),
        (lambda d: put(d, f"non_intrusive__{LAYER.format(0)}.attn.inputs.k_rope", np.ones(2), 30),
         "also takes 1 (k_rope), which changes the result"),
        (lambda d: next(d.glob("*inputs.1___*")).unlink(), "attn has no key"),
        (lambda d: [f.unlink() for f in d.glob("*inputs.[12]___*")], "has no key and no value"),
        (lambda d: next(d.glob("*inputs.0___*")).write_bytes(b"x"), "is in no known format"),
        (lambda d: torch.save([torch.ones(2), torch.ones(3)], next(d.glob("*inputs.0___*"))),
         "expected one tensor, its value"),
    ],
)  # fmt: skip
def test_what_would_be_another_answer_is_refused(
    tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    folder = dumped(tmp_path / "dump")
    change(folder)
    assert words in refusal(folder)


def test_a_dump_without_attention_lists_what_it_holds(tmp_path: Path) -> None:
    put(tmp_path, "logits", np.ones((2, 3)), 0)
    put(tmp_path, "hidden", np.ones((2, 3)), 1)
    assert "it holds step0.rank0.logits, step0.rank0.hidden" in refusal(tmp_path)


# -- Pass00000.pt -----------------------------------------------------------------------------


def passed(path: Path, layers: int = 1, **changed: Any) -> Path:
    """The outputs of a forward pass, as --debug-tensor-dump-output-folder saves them."""
    said: Saved = {}
    for layer in range(layers):
        own, where = projected(layer), LAYER.format(layer)
        turned = {n: torch.as_tensor(own[n]) for n in "qk"}
        raw = [own["q"] * 0, own["k"] * 0, own["v"]]  # before RoPE: not what is compared
        said[f"{where}.qkv_proj"] = torch.as_tensor(np.concatenate(raw, -1))
        said[f"{where}.rotary_emb"] = [turned["q"], turned["k"]]
        said[f"{where}.attn"] = torch.as_tensor(alone(own))
        said[f"{where}.o_proj"] = torch.ones(ROWS, 3)
    said["model.forward_batch_info.seq_lens"] = torch.tensor(LENGTHS)
    torch.save(said | changed, path)
    return path


def test_a_pass_has_its_layers(tmp_path: Path) -> None:
    path = passed(tmp_path / "Pass00000.pt", layers=2)
    for layer in range(2):
        ref = f"{path}::{LAYER.format(layer)}.attn"
        np.testing.assert_allclose(output_of(ref), alone(projected(layer)), atol=1e-6)
        found = files.read(ref)
        expected = found.tensors[f"{LAYER.format(layer)}.attn.expected"]
        np.testing.assert_allclose(expected, alone(projected(layer)))


def test_a_pass_of_a_decode_step_is_refused(tmp_path: Path) -> None:
    lengths = {"model.forward_batch_info.seq_lens": torch.tensor([7, 9, 4, 4, 4])}
    assert "5 queries for 28 keys" in refusal(passed(tmp_path / "Pass00001.pt", **lengths))


def test_a_projection_too_narrow_for_a_value(tmp_path: Path) -> None:
    name = f"{LAYER.format(0)}.qkv_proj"
    path = passed(tmp_path / "Pass00000.pt", **{name: torch.ones(ROWS, HEADS * WIDTH)})
    assert "no value is left" in refusal(path)


def test_other_files_of_pytorch_are_what_they_were(tmp_path: Path) -> None:
    torch.save({"q": torch.ones(2, 3), "attn": torch.ones(2)}, tmp_path / "x.pt")
    bundle = files.read(str(tmp_path / "x.pt"))
    assert (bundle.kind, set(bundle.tensors), bundle.notes) == ("torch", {"q", "attn"}, ())
