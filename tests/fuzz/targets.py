"""What is attacked, one input a call. What is raised is a fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from attncli.attention.language import masker
from attncli.attention.masks import Extent
from attncli.attention.predicates import EMPTY, FULL
from attncli.errors import AttnError
from attncli.files.sniffing import read_whole
from tests.fuzz import words
from tests.fuzz.beside import checkpoint, parts, policy
from tests.fuzz.broken import odd_document, spoilt, text_of
from tests.fuzz.calls import NAMES, Broken, Random, command_line, demand_words, run
from tests.fuzz.candidates import candidate
from tests.fuzz.seeds import bundle, every

MOST = 1 << 22  # bytes of a tensor that is made: a header may say what it likes


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
        demand_words(error)


def document(rng: Random) -> None:
    """A JSON document with odd members is read or refused."""
    lists = {name: array.astype(float).tolist() for name, array in bundle(rng).items()}
    data = text_of(odd_document(rng, lists, NAMES))
    try:
        found = read_whole(data, "x.json", None)
        for name in found.tensors:
            np.asarray(found.tensors[name])
    except AttnError as error:
        demand_words(error)


def mask(rng: Random) -> None:
    """A mask expression is refused, or all that it says of itself is true."""
    text = words.mask(rng)
    extent = Extent(*(int(n) for n in rng.integers(1, 6, 4)))
    try:
        found = masker(text)(extent)
        keep = found.dense()
        found.tensor()
    except AttnError as error:
        return demand_words(error)
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
    run(command_line(rng, int(rng.integers(0, 5))))


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
    """Words of a file stay text in a page: tokens, names of tensors, its own name, a mask's."""
    nasty = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&lt;", "\u2028",
             "'\"`", "${x}", "\x00", "]]>", "<!--", "\ud7ff", "a\nb", "{{x}}"]  # fmt: skip
    tokens = [words.one(rng, nasty) + str(n) for n in range(3)]
    one = {"query": rng.normal(size=(3, 2)).tolist(), "tokens": tokens}
    stem = words.one(rng, ["page", *nasty]).replace("/", "\u2215").replace("\0", "")
    layers = {f"{words.one(rng, nasty)}.{n}.{name}": value for n in range(2) for name, value in
              one.items()}  # fmt: skip
    many = rng.random() < 0.5
    Path(f"{stem}.json").write_bytes(text_of(layers if many else one))
    np.save(f"{stem}.npy", np.tri(3, dtype=bool))
    name = ascii(f"{stem}.npy") if rng.random() < 0.3 else ""
    code, _, _ = run(["inspect" if many else "compute", f"./{stem}.json", "--report", "page.html",
                      *(["--mask", f"file({name})"] if name else [])])  # fmt: skip
    text = Path("page.html").read_text("utf-8") if code == 0 else ""
    if "<script>alert" in text or "<img src=x" in text:
        raise Broken(f"a word became markup: {stem!r}, {layers if many else tokens}")


TARGETS: dict[str, Callable[[Random], None]] = {
    one.__name__: one
    for one in (file, document, mask, command, lines, page, policy, checkpoint, parts, candidate)
}
