"""Every option in every mode: it has an effect, or an error of its own, or it is refused.

Both lists come from the program: the options from what Typer built, their uses from the signatures
of the modes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli.cli import COMMANDS
from attncli.cli.options import Mode, built
from attncli.engines import DEFAULT, ENGINES
from attncli.files.formats import WRITABLE
from tests.support.model import write_model
from tests.support.options import VALUES, WITHOUT_EFFECT, write_files
from tests.support.program import Door

#: How each mode is called: the modes that must let an option pass, and a call that gets there.
CALLS: dict[str, tuple[tuple[str, ...], str]] = {
    "compute one": (("one",), "compute qkv.npz"),
    "compute one_part": (("one_part",), "compute qkv.npz --part 1/2 -o -.json"),
    "compute merge": (("merge",), "compute part1.safetensors part2.safetensors --merge"),
    "compute lines": (("lines",), "compute qkv.ndjson"),
    "compute reading": (("reading",), "compute llama --ids positions.npy --layer 1"),
    "compute write_cases": (("write_cases",), "compute --cases tests.jsonl"),
    "compute judge_folder": (("judge_folder",), "compute qkv.ndjson --candidate answers"),
    "compute judge_command": (("judge_command",), "compute qkv.ndjson -- cat answers/1.npy"),
    "mask draw": (("draw",), "mask padding(3,2) -l 4"),
    "mask translate": (("translate",), "mask padding(3,2) -l 4 --for sdpa"),
    "multihead list_layers": (("list_layers",), "multihead -w layer.npz --list"),
    "multihead checkpoint": (("checkpoint",), "multihead x.npy -w layer.npz"),
    "multihead learning": (("learning",), "multihead x.npy --random-weights 0 --heads 2"),
    "multihead lines": (("learning", "lines"), "multihead x.ndjson --random-weights 0 --heads 2"),
    "inspect health": (("health",), "inspect qkv.npz"),
    "inspect lines": (("lines",), "inspect qkv.ndjson"),
    "inspect sweep": (("sweep",), "inspect --sweep-dim 4"),
    "inspect tensors": (("tensors",), "inspect tensors.npz"),
    "inspect header": (("header",), "inspect qkv.npz --header"),
    "inspect checkpoint": (("checkpoint",), "inspect layer.npz"),
    "inspect composition": (("composition",), "inspect two.npz --composition"),
    "inspect many": (("many",), "inspect layers.npz"),
    "inspect weights": (("health",), "inspect weights.npy"),
    "inspect reading": (("reading",), "inspect llama --ids positions.npy"),
    "inspect compared": (("compared",), "inspect qkv.npz --compare more.npz"),
    "inspect compared_weights": (("compared_weights",), "inspect layer.npz --compare layer.npz"),
    "inspect compared_models": (
        ("compared_models",), "inspect llama --ids positions.npy --compare llama",
    ),
}  # fmt: skip
READ = {"text", "ids", "image", "audio", "probe", "compare", "composition"}
#: What chooses another mode in place of this one.
CHOOSES = {
    "mask draw": {"dialect"},
    "compute one": {"candidate", "part", "merge", *READ},
    "compute one_part": {"candidate", "merge", *READ},
    "compute merge": {"candidate", *READ},
    "compute lines": {"candidate", "merge", *READ},
    "compute reading": {"candidate", "merge"},
    "compute judge_folder": {"merge"},
    "compute judge_command": {"merge"},
    "inspect health": {"header", "filter", "sort", *READ},
    "inspect weights": {"header", "filter", "sort", *READ},
    "inspect tensors": {"query", "header", *READ},
    "inspect checkpoint": {"query", "header", "filter", "sort", *READ},
    "inspect lines": {"query", *READ},
    "inspect many": {"query", "header", *READ},
    "inspect header": {"compare", "composition"},
    "inspect composition": {"compare"},
    "inspect reading": READ,
    "inspect compared": READ,
    "inspect compared_weights": READ,
}
#: What leaves no trace where an answer is right.
UNSEEN = {
    "compute one_part": {"backend", "format"},  # in a file that takes the place of the report
    "compute judge_folder": {"dtype", "softmax_dtype"},
    "compute judge_command": {"dtype", "softmax_dtype", "timeout"},
    "inspect many": {"map"},  # of the entropy, as without it
    "inspect compared": {"dtype"},  # of results: in more digits than the table has
    "inspect weights": {"seed"},  # there is no gradient, and nothing is sampled
    "inspect reading": {"map"},  # it is the one that is shown
}


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    write_files(tmp_path)
    if re.search(r"\b(reading|compared_models)\b", request.node.name):
        pytest.importorskip("transformers")
        write_model(tmp_path / "llama")
    monkeypatch.chdir(tmp_path)


def modes(command: str) -> dict[str, Mode]:
    """The modes of a command, by the names of their functions."""
    module = import_module(f"attncli.cli.{command}")
    return {name: some for name, some in vars(module).items() if isinstance(some, Mode)}


def options(command: str) -> dict[str, str]:
    """The options of a command: the flag by name."""
    params = built(getattr(import_module(f"attncli.cli.{command}"), command)).params
    return {p.name: max(p.opts, key=len) for p in params if p.param_type_name == "option"}


def pairs(case: str, used: bool) -> Iterator[tuple[str, str, list[str]]]:
    """The options that the call does not hold and that are used there or not: name, flag, typed."""
    command = case.split()[0]
    names, call = CALLS[case]
    held = set(call.replace("-w", "--weights").replace("-l ", "--length ").split())
    for name, flag in options(command).items():
        if flag not in held and used == all(name in modes(command)[n].used for n in names):
            yield name, flag, [flag, *VALUES[name].split()]


def calling(case: str, *typed: str) -> list[str]:
    """A call with some options more, which come before a command."""
    words = CALLS[case][1].split()
    at = words.index("--") if "--" in words else len(words)
    return [*words[:at], *typed, *words[at:]]


def test_every_mode_is_walked() -> None:
    for command in COMMANDS:
        walked = {
            n for case, (names, _) in CALLS.items() if case.startswith(command) for n in names
        }
        assert walked == set(modes(command))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_use_and_every_use_an_option(command: str) -> None:
    used = set().union(*(some.used for some in modes(command).values()))
    assert set(options(command)) <= used


@pytest.mark.parametrize("case", CALLS)
def test_what_has_no_use_is_refused(case: str, door: Door) -> None:
    accepted = []
    for name, flag, typed in pairs(case, used=False):
        if name in CHOOSES.get(case, ()):
            continue
        ran = door(*calling(case, *typed))
        if ran.code != 2 or flag not in ran.out + ran.err:
            accepted.append((flag, ran))
    assert not accepted


@pytest.mark.parametrize("case", CALLS)
def test_what_has_a_use_is_seen(case: str, door: Door) -> None:
    plain = door(*calling(case))
    assert plain.code == 0, plain.err
    ignored = []
    for name, flag, typed in pairs(case, used=True):
        ran = door(*calling(case, *typed))
        same = name in {*WITHOUT_EFFECT, *UNSEEN.get(case, ())} or (
            name == "json" and plain.out.startswith("{")
        )
        if ran == plain and not same:
            ignored.append(flag)
    assert not ignored


def test_what_options_take_is_what_there_is() -> None:
    params = {p.name: p for p in built(import_module("attncli.cli.compute").compute).params}
    assert params["backend"].metavar.split("|") == [DEFAULT, *ENGINES]
    assert set(re.findall(r"\.[a-z]+", params["output"].help)) == set(WRITABLE)


def test_the_hint_of_a_refusal_works(door: Door) -> None:
    ran = door("inspect", "tensors.npz", "--what-if", "scale=none")
    assert "-q tensors.npz::NAME" in ran.err
    ran = door("inspect", "-q", "tensors.npz::a", "--what-if", "scale=none")
    assert ran.code == 0 and np.load("tensors.npz")["a"].shape == (3, 4)


def test_what_is_typed_as_the_default_is_typed(door: Door) -> None:
    ran: Any = door("inspect", "qkv.npz", "--header", "--backend", DEFAULT)
    assert (ran.code, ran.out) == (2, "")
    assert "--backend has no use in" in ran.err
