"""The words that options, files and the mathematics share. Nothing is loaded for them.

What a mask of ``MASKS`` does stands in ``patterns``, ``biases`` and ``language`` under its name.
"""

from __future__ import annotations

from dataclasses import dataclass

FLOATS = ("float64", "float32", "float16", "bfloat16")
#: What happens to a score on its way to a weight: the taps of ONNX's Attention, in order.
STAGES = ("scores", "softcapped", "masked", "weights")
LAYOUTS = ("bhld", "blhd")
POLARITIES = ("keep", "ignore")
ROPE_STYLES = ("half", "interleaved")
#: Libraries that take a mask each in their own way.
DIALECTS = ("sdpa", "mha", "onnx", "hf", "flash")
CORNERS = ("top_left", "bottom_right")


@dataclass(frozen=True)
class Word:
    """One mask. ``forms``: all ways to write it; ``usual`` and ``meaning``: its line of help.

    ``cornered``: its last argument may be one of CORNERS. ``tells``: the size that a list of its
    arguments has, batch, heads or keys.
    """

    forms: str
    usual: str
    meaning: str
    cornered: bool = False
    tells: str | None = None


MASKS = {
    "causal": Word(
        "causal, causal(top_left), causal(bottom_right)", "causal", "j ≤ i + o", cornered=True
    ),
    "window": Word(
        "window(left), window(left, right)", "window(left, right)",
        "i + o − left ≤ j ≤ i + o + right; inf opens", cornered=True,
    ),
    "prefix": Word("prefix(n)", "prefix(n)", "j < n"),
    "padding": Word(
        "padding(n1, n2, …), padding('file')", "padding(n1, n2, …)",
        "j < the length of the sequence, or ('file')", tells="batch",
    ),
    "segments": Word(
        "segments(id, id, …), segments('file')", "segments(id, id, …)",
        "the same document, or ('file')", cornered=True, tells="keys",
    ),
    "global_rows": Word("global_rows(n)", "global_rows(n)", "i < n"),
    "dilated": Word(
        "dilated(step)", "dilated(step)", "j − i − o a multiple of step", cornered=True
    ),
    "blocks": Word("blocks(size)", "blocks(size)", "the same block of that size", cornered=True),
    "random": Word(
        "random(p), random(p, seed)", "random(p, seed)", "each cell with probability p"
    ),
    "file": Word("file('path'), file('path', 'name')", "file('path', 'name')", "a mask tensor"),
    "alibi": Word(
        "alibi, alibi(slope, …)", "alibi, alibi(s1, …)", "a bias of −slope·|i + o − j|",
        cornered=True, tells="heads",
    ),
    "relative": Word(
        "relative('file')", "relative('file')", "a bias by distance j − i − o", cornered=True
    ),
}  # fmt: skip


def help_lines(indent: str) -> str:
    """Return a line for each mask, how it is written and what it means."""
    width = max(len(word.usual) for word in MASKS.values()) + 2
    return "\n".join(f"{indent}{word.usual.ljust(width)}{word.meaning}" for word in MASKS.values())
