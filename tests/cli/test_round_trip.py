"""What is written with query, key and value is the whole problem: read again, the same numbers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

import attncli as package
from tests.conftest import Ran

Door = Callable[..., Ran]
Array = np.ndarray[Any, np.dtype[Any]]

WHOLE = "query,key,value"
ANSWER = ("--json", "--include", "output,weights,lse,row_statistics")
FAMILIES = ("plain", "heads", "batch", "blhd", "blhd3", "packed", "packed batch")
DTYPES = {
    "float64": np.float64, "float32": np.float32, "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}  # fmt: skip


def shaped(canonical: Array, family: str) -> Array:
    """``(B, H, L, D)`` as a family has it."""
    b, h, n, d = canonical.shape
    lengths_first = canonical.swapaxes(1, 2)  # (B, L, H, D)
    return {
        "plain": canonical[0, 0], "heads": canonical[0], "batch": canonical,
        "blhd": lengths_first, "blhd3": lengths_first[0],
        "packed": lengths_first[0].reshape(n, h * d),
        "packed batch": lengths_first.reshape(b, n, h * d),
    }[family]  # fmt: skip


class Asked:
    """A random problem: files in ``folder`` and the options that make a problem of them."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng, self.folder = np.random.default_rng(seed), folder
        pick = self.pick
        self.family = pick(*FAMILIES)
        self.dtype = pick(*DTYPES)
        many, batched = self.family != "plain", "batch" in self.family or self.family == "blhd"
        self.groups = pick(1, 2) if many else 1
        self.heads = self.groups * (pick(1, 3) if many else 1)
        self.batch = pick(1, 2) if batched else 1
        self.width, self.value_width = 2 * pick(1, 2, 3), pick(1, 4)
        self.past = pick(0, 0, 2)
        self.queries = pick(1, 3, 5)
        self.new = self.queries if self.past else pick(self.queries, self.queries + 2)
        self.keys = self.past + self.new
        self.options: list[str] = []
        self.tensors()
        self.masks()
        self.others()

    def pick(self, *words: Any) -> Any:
        return words[int(self.rng.integers(len(words)))]

    def file(self, name: str, array: Array) -> str:
        """A .safetensors file: NumPy's own would lose bfloat16."""
        from attncli import files

        files.write(str(self.folder / f"{name}.safetensors"), {name: array})
        return f"{name}.safetensors"

    def drawn(self, heads: int, length: int, width: int, family: str) -> Array:
        made = self.rng.normal(size=(self.batch, heads, length, width)).astype(DTYPES[self.dtype])
        return shaped(made, family)

    def tensors(self) -> None:
        sizes = {
            "query": (self.heads, self.queries, self.width),
            "key": (self.groups, self.new, self.width),
            "value": (self.groups, self.new, self.value_width),
        }
        for name, size in sizes.items():
            self.options += [f"--{name}", self.file(name, self.drawn(*size, self.family))]
        if self.past:
            apart = {"packed": "heads", "packed batch": "batch"}  # as ONNX has it
            family = self.pick(self.family, apart.get(self.family, self.family))
            for name, width in (("past_key", self.width), ("past_value", self.value_width)):
                past = self.drawn(self.groups, self.past, width, family)
                self.options += [f"--{name.replace('_', '-')}", self.file(name, past)]
        if self.family.startswith("packed"):
            self.options += ["--heads", str(self.heads)]
            if self.groups != self.heads:
                self.options += ["--kv-heads", str(self.groups)]
        if self.family.startswith("blhd"):
            self.options += ["--layout", "blhd"]

    def masks(self) -> None:
        lengths = ",".join(str(self.pick(*range(1, self.keys + 1))) for _ in range(self.batch))
        if not self.past and self.pick(0, 0, 1):
            self.options += ["--kv-lengths", lengths]
        corner = "" if self.past or self.queries == self.keys else "bottom_right"
        text = self.pick(
            "", "", f"causal({corner})", f"window(2, 0{corner and ', ' + corner})", "prefix(2)",
            f"padding({lengths})", f"causal({corner}) & alibi", "random(0.7, 3)",
            f"padding({lengths}) & ~prefix(1) | prefix(1)", "file('keep.safetensors')",
        )  # fmt: skip
        if text.startswith("file"):
            self.file("keep", self.rng.random((self.queries, self.keys)) < 0.8)
        self.options += ["--mask", text.replace("()", "")] if text else []
        shape = self.pick((self.keys,), (self.queries, self.keys), ())
        if shape and self.pick(0, 1):
            keep = self.rng.random(shape) < 0.8
            bias = np.where(keep, self.rng.normal(size=shape), -np.inf)
            kind = self.pick("bool", "float")
            self.options += ["--attn-mask", self.file("m", keep if kind == "bool" else bias)]
            if kind == "bool" and self.pick(0, 1):
                self.options += ["--mask-polarity", "ignore"]

    def others(self) -> None:
        self.options += self.pick([], ["--scale", "none"], ["--scale", "0.3"])
        self.options += self.pick([], [], ["--softcap", "1.5"])
        sinks = ",".join(f"{x:.3f}" for x in self.rng.normal(size=self.heads))
        self.options += self.pick([], [], ["--sink", "0.25"], [f"--sink={sinks}"])
        self.options += self.pick(
            [], [], ["--rope", "half", "--rope-theta", "100"], ["--rope", "interleaved"]
        )
        self.options += self.pick([], [], ["--dtype", self.pick(*DTYPES)])
        self.options += self.pick([], [], ["--softmax-dtype", self.pick(*DTYPES)])
        if self.pick(0, 1):
            self.options += ["--query-tokens", " ".join("abcde"[: self.queries])]
            self.options += ["--key-tokens", " ".join("abcdefgh"[: self.keys])]


@pytest.mark.slow
@pytest.mark.parametrize("block", range(8))
def test_all_options_come_back_in_every_writing(block: int, door: Door, tmp_path: Path) -> None:
    """25 random option sets × --json, -o .json, -o .safetensors: the same to the last bit."""
    for seed in range(25 * block, 25 * block + 25):
        options = Asked(seed, tmp_path).options
        wanted = door("compute", *options, *ANSWER)
        assert wanted.code == 0, (shlex.join(options), wanted.out)
        written = door("compute", *options, "--include", WHOLE, "--json", "-o", "o.json")
        (tmp_path / "report.json").write_text(written.out)
        assert written.code == 0
        assert door("compute", *options, "--include", WHOLE, "-o", "o.safetensors").code == 0
        for name in ("report.json", "o.json", "o.safetensors"):
            again = door("compute", name, *ANSWER)
            assert again.code == 0, (shlex.join(options), name, again.out)
            assert not again.err.replace(wanted.err, ""), (shlex.join(options), name, again.err)
            for member in ("output", "weights", "lse", "row_statistics", "query_tokens",
                           "key_tokens", "tokens", "heads"):  # fmt: skip
                assert again.data.get(member) == wanted.data.get(member), (
                    seed, shlex.join(options), name, member
                )  # fmt: skip


LAYER = ("multihead", "x.npy", "--random-weights", "0", "--heads", "4")
LAYERS = {
    "plain": [], "grouped": ["--kv-heads", "2", "--causal"],
    "cached": ["--past-key", "past.npy", "--past-value", "past.npy", "--causal"],
    "padded cache": ["--memory", "memory.npy", "--kv-lengths", "5,3", "--mask", "causal"],
    "turned": ["--rope", "half", "--softcap", "2", "--sink", "0.5"],
    "half": ["--dtype", "float16", "--rope", "interleaved"],
    "padding": ["--key-padding-mask", "padding.npy", "--causal"],
    "a key of zeros": ["--add-zero-attn", "--tokens", "a b c"],
}  # fmt: skip


@pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)
def test_the_attention_of_a_layer_comes_back(
    options: list[str], door: Door, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    for name, shape in (("x", (2, 3, 8)), ("past", (2, 4, 2, 2)), ("memory", (2, 6, 8))):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=shape))
    np.save(tmp_path / "padding.npy", np.array([[1, 1, 1], [1, 1, 0]], bool))
    asked = ["--include", "query,key,value,heads,weights", "-o"]
    report = door(*LAYER, *options, "--json", *asked, "o.json")
    assert report.code == 0, report.out
    assert door(*LAYER, *options, *asked, "o.safetensors").code == 0
    (tmp_path / "report.json").write_text(report.out)
    saved = load_file(tmp_path / "o.safetensors")
    for name in ("report.json", "o.json", "o.safetensors"):
        again = door("compute", name, "--json", "--include", "output,weights")
        assert (again.code, again.err) == (0, report.err.partition("wrote")[0]), (name, again)
        for member, array in (("output", saved["heads"]), ("weights", saved["weights"])):
            found = np.array(again.data[member]).astype(array.dtype)
            np.testing.assert_array_equal(found, array)


def test_a_cache_comes_back_as_it_was_given(door: Door, tmp_path: Path) -> None:
    """ONNX: packed queries, (B, G, P, D) past, and present alike."""
    rng = np.random.default_rng(2)
    np.savez(
        tmp_path / "x.npz", q=rng.normal(size=(2, 3, 12)), k=rng.normal(size=(2, 3, 6)),
        v=rng.normal(size=(2, 3, 6)), past_key=rng.normal(size=(2, 2, 4, 3)),
        past_value=rng.normal(size=(2, 2, 4, 3)),
    )  # fmt: skip
    call = ["compute", "x.npz", "--heads", 4, "--kv-heads", 2, "--causal"]
    saved = {}
    for past in ("kept apart", "packed"):
        if past == "packed":
            arrays = dict(np.load(tmp_path / "x.npz"))
            for name in ("past_key", "past_value"):
                arrays[name] = arrays[name].swapaxes(1, 2).reshape(2, 4, 6)
            np.savez(tmp_path / "x.npz", **arrays)
        done = door(*call, "-o", "o.npz", "--include", "output,present_key,present_value,key")
        assert done.code == 0, done.err
        saved[past] = dict(np.load(tmp_path / "o.npz"))
    first, second = saved.values()
    assert first["key"].shape == (2, 3, 6)
    assert first["present_key"].shape == (2, 2, 7, 3)
    np.testing.assert_array_equal(first["present_key"][:, :, :4], np.load("x.npz")["past_key"]
                                  .reshape(2, 4, 2, 3).swapaxes(1, 2))  # fmt: skip
    for name in ("present_key", "present_value"):
        packed = first[name].swapaxes(1, 2).reshape(2, 7, 6)
        np.testing.assert_array_equal(second[name], packed)
    np.testing.assert_array_equal(first["output"], second["output"])


def test_npz_names_what_it_does_not_hold_and_how_to_say_it(door: Door, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(3).normal(size=(5, 12)))
    call = ["compute", "x.npy", "--heads", 3, "--mask", "causal & window(2)", "--softcap", 3,
            "--tokens", "a b c d e", "--scale", 0.3]  # fmt: skip
    written = door(*call, "--include", WHOLE, "-o", "o.npz")
    warning = next(x for x in written.err.splitlines() if "holds no options" in x)
    assert "nor tokens" in warning
    flags = shlex.split(warning.partition("read it with ")[2])
    again = door("compute", "o.npz", *flags, *ANSWER)
    assert again.data["output"] == door(*call, *ANSWER).data["output"]
    assert "holds no options" not in door(*call, "-o", "o.npz").err  # a result, no problem


def test_what_is_turned_is_not_turned_again(door: Door, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(4).normal(size=(5, 4)))
    call = ["compute", "x.npy", "--rope", "half", "--include", WHOLE]
    for name in ("o.json", "o.safetensors"):
        door(*call, "-o", name)
        ran = door("compute", name, "--rope", "half")
        assert (ran.code, "turned already" in ran.err) == (2, True)
        assert "leave --rope out" in ran.err and door("compute", name).code == 0


def test_a_mask_of_a_file_goes_along_whole(door: Door, tmp_path: Path) -> None:
    """The expression would read another file elsewhere, or none."""
    np.save(tmp_path / "x.npy", np.random.default_rng(5).normal(size=(2, 1, 4, 3)))
    np.save(tmp_path / "lengths.npy", np.array([3, 2]))
    call = ["compute", "x.npy", "-m", "causal & padding('lengths.npy')"]
    wanted = door(*call, *ANSWER).data
    door(*call, "--include", WHOLE, "-o", "o.json")
    (tmp_path / "lengths.npy").unlink()
    again = door("compute", "o.json", *ANSWER)
    assert again.code == 0, again.err
    assert again.data["row_statistics"] == wanted["row_statistics"]
    assert again.data["heads"] == wanted["heads"]  # padding is still padding


def test_what_json_cannot_say_is_refused(door: Door, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", q=np.zeros((1, 2, 0, 4)), k=np.ones((1, 2, 3, 4)))
    for written in (["--json"], ["-o", "o.json"]):
        ran = door("compute", "x.npz", "--include", WHOLE, *written)
        assert ran.code == 2 and "JSON cannot say that query is (1, 2, 0, 4)" in ran.out + ran.err
    assert door("compute", "x.npz", "--include", WHOLE, "-o", "o.safetensors").code == 0
    assert door("compute", "o.safetensors").code == 0


def test_the_python_face_agrees(door: Door, tmp_path: Path) -> None:
    """What was written is what attend takes: the numbers of another door."""
    x = np.random.default_rng(6).normal(size=(2, 5, 6))
    np.save(tmp_path / "x.npy", x)
    ran = door("compute", "x.npy", "--heads", 2, "--causal", "--json", "--include",
               f"{WHOLE},output")  # fmt: skip
    data = json.loads(ran.out)
    again = package.attend(
        *(np.array(data[name]) for name in WHOLE.split(",")), heads=data["num_heads"],
        mask=data["mask"], scale=data["scale"],
    )  # fmt: skip
    np.testing.assert_array_equal(again.output, np.array(data["output"]))
