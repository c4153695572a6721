"""The words that options, files and the mathematics share. Nothing is loaded for them.

What a mask of ``MASKS`` does stands in ``patterns``, ``biases`` and ``language`` under its name.
"""

# No `from __future__ import annotations` here: NamedTuple would compile each text.

from typing import NamedTuple

FLOATS = ("float64", "float32", "float16", "bfloat16")
#: What happens to a score on its way to a weight: the taps of ONNX's Attention, in order.
STAGES = ("scores", "softcapped", "masked", "weights")
LAYOUTS = ("bhld", "blhd")
AXES = ("keys", "heads", "batch")  # along which processes divide a problem
POLARITIES = ("keep", "ignore")
ROPE_STYLES = ("half", "interleaved")
#: Libraries that take a mask each in their own way.
DIALECTS = ("sdpa", "mha", "onnx", "hf", "flash", "flex", "flashinfer", "xformers")
CORNERS = ("top_left", "bottom_right")
SIDES = ("left", "right")


class Word(NamedTuple):
    """One mask. ``forms``: all ways to write it; ``usual`` and ``meaning``: its line of help.

    ``last``: the words of which one may be its last argument. ``tells``: the dimensions that a list
    among its arguments has, by rank; ``skip``: the arguments before that list. ``path``: arguments
    name one tensor, as a path, or a path and a name.
    """

    forms: str
    usual: str
    meaning: str
    last: tuple[str, ...] = ()
    tells: tuple[tuple[str, ...], ...] = ()
    skip: int = 0
    path: bool = False


MASKS = {
    "causal": Word(
        "causal, causal(top_left), causal(bottom_right)", "causal", "j ≤ i + o", last=CORNERS
    ),
    "window": Word(
        "window(left), window(left, right)", "window(left, right)",
        "i + o − left ≤ j ≤ i + o + right; inf opens", last=CORNERS,
    ),
    "prefix": Word("prefix(n)", "prefix(n)", "j < n"),
    "padding": Word(
        "padding(n1, n2, …), padding(n1, n2, …, left), padding([[1, 0, …], …]), padding('file')",
        "padding(n1, n2, …)",
        "j < length, or ('file'); left: the last n are real",
        last=SIDES, tells=(("batch",), ("batch", "keys")),
    ),
    "segments": Word(
        "segments(id, id, …), segments((id, …), (id, …)), segments('file')",
        "segments(id, id, …)",
        "the same document, or ('file');\nids of queries and of keys: ((…), (…))",
        last=CORNERS, tells=(("keys",), ("batch", "keys")),
    ),
    "global_rows": Word("global_rows(n)", "global_rows(n)", "i < n"),
    "dilated": Word(
        "dilated(step)", "dilated(step)", "j − i − o a multiple of step", last=CORNERS
    ),
    "blocks": Word("blocks(size)", "blocks(size)", "the same block of that size", last=CORNERS),
    "chunks": Word(
        "chunks(size), chunks(size, start, …)", "chunks(size)",
        "the same block and j ≤ i + o (Llama 4); (size, s, …):\n"
        "blocks counted from key s",
        last=CORNERS, tells=(("batch",),), skip=1,
    ),
    "random": Word(
        "random(p), random(p, seed)", "random(p, seed)", "each cell with probability p"
    ),
    "file": Word(
        "file('path'), file('path', 'name')", "file('path', 'name')", "a mask tensor",
        tells=(
            ("keys",), ("queries", "keys"), ("heads", "queries", "keys"),
            ("batch", "heads", "queries", "keys"),
        ), path=True,
    ),
    "alibi": Word(
        "alibi, alibi(slope, …)", "alibi, alibi(s1, …)", "a bias of −slope·|i + o − j|",
        last=CORNERS, tells=(("heads",),),
    ),
    "relative": Word(
        "relative('file')", "relative('file')", "a bias by distance j − i − o",
        last=CORNERS, tells=((), ("heads", "")), path=True,
    ),
}  # fmt: skip


def help_lines(indent: str) -> str:
    """Return a line for each mask, how it is written and what it means."""
    width = max(len(word.usual) for word in MASKS.values()) + 2
    lines = []
    for word in MASKS.values():
        first, *more = word.meaning.splitlines()
        lines.append(f"{indent}{word.usual.ljust(width)}{first}")
        lines += [f"{indent}{' ' * width}{line}" for line in more]
    return "\n".join(lines)
