"""Calls of the program: random ones, and the door that they go through in this process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import typer

from attncli.cli import COMMANDS, main
from attncli.cli.options import built
from attncli.errors import AttnError
from attncli.files.vocabulary import ROLES
from tests.fuzz import words
from tests.fuzz.broken import odd_document, text_of
from tests.fuzz.seeds import bundle
from tests.support.options import VALUES, write_files

Random = np.random.Generator
NAMES = sorted({name for role in ROLES.values() for name in role.names} | {"id", "x.y", ""})
CODES = {0, 1, 2, 3}
#: What Python or a library says when something went by the program.
NEVER = ("Traceback", "Exception ignored", "Warning:", "internal error", "Fatal Python")
#: Options behind which a file stands that is written.
WRITTEN = ("--output", "-o", "--plot", "--report", "--cases")


class Broken(AssertionError):
    """A fault: what happened, and for which input."""


# -- calls ------------------------------------------------------------------------------------


def command_line(rng: Random, options: int) -> list[str]:
    """Return a command, what it is about, and so many options that exist."""
    name = words.one(rng, [*COMMANDS])
    arguments = [name, *_about(rng, name)]
    for _ in range(options):
        option = _options(name)[int(rng.integers(len(_options(name))))]
        arguments.append(max(option.opts, key=len))
        if not option.is_flag:
            arguments.append(words.value(rng, option.name))
    return [word.replace("\0", "") for word in arguments]  # none can be typed


def learn() -> None:
    """Find out which options each call takes; the working folder keeps what they write."""
    for name, some in ABOUT.items():
        for about in some:
            _taken(name, about)


def sound_line(rng: Random, options: int) -> list[str]:
    """Return a call of so many options each of which alone is taken, in a workplace."""
    name = words.one(rng, [*COMMANDS])
    about = words.one(rng, ABOUT[name])
    some = _taken(name, about)
    chosen = rng.permutation(len(some))[:options]
    return [name, about, *(word for n in chosen for word in some[n])]


#: What a command is usually about.
ABOUT = {
    "compute": ["qkv.npz", "qkv.ndjson"], "mask": ["causal", "window(1, 1) | prefix(1)"],
    "multihead": ["x.npy", "x.ndjson"],
    "inspect": ["qkv.npz", "tensors.npz", "layer.npz", "weights.npy", "two.npz", "layers.npz"],
}  # fmt: skip


def _about(rng: Random, name: str) -> list[str]:
    """Return what a command is usually about, or something odd, or nothing."""
    odd = ["fuzz.json"] if name in ("compute", "inspect") else []
    chosen = words.mask(rng) if name == "mask" else words.one(rng, [*ABOUT[name], *odd])
    if chosen in odd:
        lists = {n: a.astype(float).tolist() for n, a in bundle(rng).items()}
        Path(chosen).write_bytes(text_of(odd_document(rng, lists, NAMES)))
    return [chosen] if rng.random() < 0.95 else []


@cache
def _options(name: str) -> list[Any]:
    door: Any = built(getattr(import_module(f"attncli.cli.{name}"), name))
    return [p for p in door.params if isinstance(p, typer.core.TyperOption)]


@cache
def _taken(name: str, about: str) -> list[list[str]]:
    """Return the options that a call takes, each alone."""
    needed = {"multihead": ["--weights", "layer.npz", "--heads", "2"], "mask": ["--length", "4"]}
    found = []
    for option in _options(name):
        value = [] if option.is_flag else [VALUES.get(option.name, "1")]
        words = [max(option.opts, key=len), *value]
        more = [*needed.get(name, []), *words] if words[0] not in needed.get(name, []) else words
        if words[0] != "--help" and run([name, about, *more], strict=False)[0] in (0, 1):
            found.append(more)
    return found


# -- the door, in this process ----------------------------------------------------------------


@contextlib.contextmanager
def workplace(folder: str) -> Iterator[None]:
    """Work in a folder with the files that options name."""
    before = os.getcwd()
    os.chdir(folder)
    if not Path("qkv.npz").exists():
        write_files(Path())
    os.environ["COLUMNS"] = "80"
    try:
        yield
    finally:
        os.chdir(before)


def run(arguments: list[str], *, strict: bool = True) -> tuple[int, str, str]:
    """Run the program; raise Broken unless it ends as it should."""
    out, err = _Stream(), _Stream()
    kept = sys.argv, sys.stdin
    sys.argv, sys.stdin = ["attncli", *arguments], io.TextIOWrapper(io.BytesIO())
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main()
    except SystemExit as done:
        code = int(done.code or 0)
    finally:
        sys.argv, sys.stdin = kept
    said, told = out.text, err.text
    shown = " ".join(map(repr, arguments))
    for fault in wrong(arguments, code, said, told) if strict else ():
        raise Broken(f"{shown}: {fault}")
    if code not in CODES or "internal error" in told + said:
        raise Broken(f"{shown} ended with {code}: {told[-1800:]}")
    left = [*Path().glob(".attncli-*")]
    if left:
        raise Broken(f"{shown} left {left}")
    return code, said, told


def wrong(arguments: list[str], code: int, said: str, told: str) -> Iterator[str]:
    """Yield what is wrong with an exit code, standard output and standard error together."""
    if code not in CODES:
        yield f"exit code {code}: {told[-1800:]}"
    for word in NEVER:
        if word in told + said:
            yield f"{word!r} in what it says: {(told + said)[-1800:]}"
    if "\x1b" in told + said and "--color" not in arguments:
        yield f"an escape code in what it says: {told[-300:]!r}"
    if "--help" in arguments:
        return
    machine = "--json" in arguments
    if not machine and code in (2, 3):
        errors = [line for line in told.splitlines() if line.startswith("error: ")]
        unread = " cannot be read: " in told  # of some tensors in a table of all
        if len(errors) != 1 and not unread:
            yield f"exit code {code}, and {len(errors)} errors are said: {told[-300:]!r}"
    typed = pairwise(arguments)
    elsewhere = any(option in WRITTEN[:2] and value.startswith("-") for option, value in typed)
    if not machine or elsewhere:  # standard output is a tensor file
        return
    try:
        answers = [json.loads(line, parse_constant=_no_constant) for line in said.splitlines()]
    except ValueError as error:
        yield f"standard output is no JSON: {error}: {said[:300]!r}"
        return
    reasons = {"error", "warnings"}  # a report of tensors that cannot be read warns of them
    if code in (2, 3) and not (len(answers) == 1 and reasons & answers[0].keys()):
        yield f"exit code {code} without an error in JSON: {said[:300]!r}"


class _Stream(io.TextIOWrapper):
    """A stream whose bytes and text are kept."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "utf-8", "surrogateescape", write_through=True)

    @property
    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]


def _no_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


def demand_words(error: AttnError) -> None:
    if not error.message.strip():
        raise Broken(f"{type(error).__name__} says nothing")
