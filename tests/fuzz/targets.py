"""What is attacked, one input a call. What is raised is a fault."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import typer

from attncli.attention.language import masker
from attncli.attention.masks import Extent
from attncli.attention.predicates import EMPTY, FULL
from attncli.cli import COMMANDS, main
from attncli.cli.options import built
from attncli.errors import AttnError
from attncli.files.formats import FORMATS
from attncli.files.sniffing import read_whole
from attncli.files.vocabulary import ROLES
from tests.fuzz import words
from tests.fuzz.broken import odd_document, spoilt, text_of
from tests.fuzz.seeds import bundle, every
from tests.support.options import write_files

Random = np.random.Generator
MOST = 1 << 22  # bytes of a tensor that is made: a header may say what it likes
NAMES = sorted({name for role in ROLES.values() for name in role.names} | {"id", "x.y", ""})
CODES = {0, 1, 2, 3}


class Broken(AssertionError):
    """A fault: what happened, and for which input."""


def file(rng: Random) -> None:
    """A file of any format, broken, is read or refused."""
    seeds = every()
    suffix = [*seeds][int(rng.integers(len(seeds)))]
    data = spoilt(rng, seeds[suffix], [*seeds.values()])
    try:
        found = read_whole(data, f"x{suffix}", None)
        for name in found.tensors:
            header = found.header(name)
            if int(np.prod(header.shape, dtype=object)) * 16 < MOST:
                np.asarray(found.tensors[name])
    except AttnError as error:
        _said(error)


def document(rng: Random) -> None:
    """A JSON document with odd members is read or refused."""
    lists = {name: array.astype(float).tolist() for name, array in bundle(rng).items()}
    data = text_of(odd_document(rng, lists, NAMES))
    try:
        found = read_whole(data, "x.json", None)
        for name in found.tensors:
            np.asarray(found.tensors[name])
    except AttnError as error:
        _said(error)


def mask(rng: Random) -> None:
    """A mask expression is refused, or all that it says of itself is true."""
    text = words.mask(rng)
    extent = Extent(*(int(n) for n in rng.integers(1, 6, 4)))
    try:
        found = masker(text)(extent)
        keep = found.dense()
        found.tensor()
    except AttnError as error:
        return _said(error)
    edges = np.unique([0, extent.keys // 2, extent.keys])
    for b, h in np.ndindex(keep.shape[:2]):
        states = found.tiles(b, h, 0, extent.queries, edges)
        seen = np.zeros(extent.keys, bool)
        for start, stop in found.spans(b, h, 0, extent.queries):
            seen[start:stop] = True
        if keep[b, h][:, ~seen].any():
            raise Broken(f"{text}: keys outside its spans are seen")
        for a, z, state in zip(edges, edges[1:], states, strict=False):
            tile = keep[b, h][:, a:z]
            if (state == EMPTY and tile.any()) or (state == FULL and not tile.all()):
                raise Broken(f"{text}: a tile is not {state}")
    return None


def command(rng: Random) -> None:
    """A command line of options that exist ends with a code of its own and says why."""
    name = words.one(rng, [*COMMANDS])
    arguments = [name, *_inputs(rng, name)]
    for _ in range(int(rng.integers(0, 5))):
        option = _options(name)[int(rng.integers(len(_options(name))))]
        arguments.append(max(option.opts, key=len))
        if not option.is_flag:
            arguments.append(words.value(rng, option.name).replace("\0", ""))  # none can be typed
    run(arguments)


def lines(rng: Random) -> None:
    """Each line of NDJSON, broken or not, is answered by one line."""
    count = int(rng.integers(2, 6))
    some = []
    for _ in range(count):
        lists: Any = {n: a.astype(float).tolist() for n, a in bundle(rng).items()}
        lists = odd_document(rng, lists, NAMES) if rng.random() < 0.6 else lists
        some.append(text_of(lists) if rng.random() < 0.95 else spoilt(rng, text_of(lists), [b"}"]))
    whole = [line.replace(b"\n", b" ") or b"x" for line in some]
    Path("fuzz.ndjson").write_bytes(b"\n".join(whole) + b"\n")
    name = words.one(rng, ["compute", "inspect"])
    code, out, _ = run([name, "fuzz.ndjson", "--format", "ndjson"], strict=False)
    if code in (0, 1):
        answers = [json.loads(line) for line in out.splitlines()]
        asked = [n for n, line in enumerate(whole, 1) if line.strip()]
        if [answer["line"] for answer in answers] != asked:
            raise Broken(f"{name}: {len(answers)} answers to {len(asked)} lines: {whole}")


def page(rng: Random) -> None:
    """Tokens of any text stay text in a page."""
    nasty = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&lt;", "\u2028",
             "'\"`", "${x}", "\x00", "]]>", "<!--", "\ud7ff", "a\nb", "{{x}}"]  # fmt: skip
    tokens = [words.one(rng, nasty) + str(n) for n in range(3)]
    one = {"query": rng.normal(size=(3, 2)).tolist(), "tokens": tokens}
    Path("page.json").write_bytes(text_of(one))
    code, _, _ = run(["compute", "page.json", "--report", "page.html"])
    text = Path("page.html").read_text("utf-8") if code == 0 else ""
    if "<script>alert" in text or "<img src=x" in text:
        raise Broken(f"a token became markup: {tokens}")


TARGETS: dict[str, Callable[[Random], None]] = {
    one.__name__: one for one in (file, document, mask, command, lines, page)
}


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
    if code not in CODES or "Traceback" in told + said or "internal error" in told + said:
        raise Broken(f"{shown} ended with {code}: {told[-1800:]}")
    if code in (2, 3) and strict and not (told.startswith(("error: ", "warning: ")) or said):
        raise Broken(f"{shown} ended with {code} and said: {told[:300]!r}")
    if code == 0 and strict and "--json" in arguments and said.startswith("{"):
        for one in said.splitlines():  # an object, or one a line
            json.loads(one, parse_constant=_no_constant)
    left = [*Path().glob(".attncli-*")]
    if left:
        raise Broken(f"{shown} left {left}")
    return code, said, told


class _Stream(io.TextIOWrapper):
    """A stream whose bytes and text are kept."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), "utf-8", "surrogateescape", write_through=True)

    @property
    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode("utf-8", "replace")  # type: ignore[attr-defined]


def _no_constant(name: str) -> None:
    raise Broken(f"JSON holds {name}")


def _said(error: AttnError) -> None:
    if not error.message.strip():
        raise Broken(f"{type(error).__name__} says nothing")


_KNOWN: dict[str, list[Any]] = {}


def _options(name: str) -> list[Any]:
    if name not in _KNOWN:
        from importlib import import_module

        door: Any = built(getattr(import_module(f"attncli.cli.{name}"), name))
        _KNOWN[name] = [p for p in door.params if isinstance(p, typer.core.TyperOption)]
    return _KNOWN[name]


def _inputs(rng: Random, name: str) -> list[str]:
    """Return what the command is about: usually what it takes."""
    usual = {
        "compute": ["qkv.npz", "qkv.ndjson", "fuzz.json"], "mask": [words.mask(rng)],
        "multihead": ["x.npy", "x.ndjson"],
        "inspect": ["qkv.npz", "tensors.npz", "layer.npz", "weights.npy", "fuzz.json"],
    }[name]  # fmt: skip
    chosen = words.one(rng, usual)
    if chosen == "fuzz.json":
        lists = {n: a.astype(float).tolist() for n, a in bundle(rng).items()}
        Path(chosen).write_bytes(text_of(odd_document(rng, lists, NAMES)))
    return [chosen] if rng.random() < 0.95 else []


assert FORMATS
