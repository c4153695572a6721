"""What is said: hints that work, what is left out, numbers that do not exist, names, labels."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import render
from attncli.errors import InputError
from tests.conftest import Ran

Door = Callable[..., Ran]
NASTY = "\x1b[31m\x9b2J‮\x7f```\n<b>|&lt;$x$ # é"
CONTROL = [chr(n) for n in (*range(9), *range(11, 32), *range(127, 160), 0x202E, 0x2066)]

LAYER = "multihead h.npy --random-weights 0 --heads 2"
TWO = "multihead --random-weights 0 --model-dim 4 --heads 2"
WRONG_AND_RIGHT = {
    "quiet": ("compute x.npy --quiet", "-o FILE", "compute x.npy --quiet -o o.npz"),
    "quiet -": ("compute x.npy --quiet -o -", "-o FILE", "compute x.npy --quiet -o o.npz"),
    "quie": ("compute x.npy -o o.npz --quie", "--quiet", "compute x.npy -o o.npz --quiet"),
    "json": ("compute x.npy --jsn", "--json", "compute x.npy --json"),
    "twice": ("compute x.npy --scale 1 --scale 2", "leave all but one", "compute x.npy --scale 2"),
    "batch": (f"{TWO} --tokens 'the cat' --tokens 'a dog'", "--tokens @FILE with",
              f"{TWO} --tokens @batch.json"),
    "pad": (f"{TWO} --tokens @ragged.json", "[PAD]", f"{TWO} --tokens @padded.json"),
    "labels": ("compute b.npy --tokens 'a b c'", "--tokens @FILE with",
               "compute b.npy --tokens @batch.json"),
    "steps": ("compute long.npy --steps", "--rows 0:4", "compute long.npy --steps --rows 0:4 "
              "--keys 0:4"),
    "steps csv": ("compute x.npy --steps --json", "leave out --steps", "compute x.npy --json"),
    "include": ("compute x.npy --include weights", "add -o FILE",
                "compute x.npy --include weights -o o.npz"),
    "include json": ("compute x.npy --include weights", "or --json",
                     "compute x.npy --include weights --json"),
    "weight": ("compute x.npy --json --include weight", "'weights'",
               "compute x.npy --json --include weights"),
    "suffix": ("compute x.npy -o o.txt", ".npz", "compute x.npy -o o.npz"),
    "several": ("compute x.npy -o o.npy --include output,lse", "write .npz",
                "compute x.npy -o o.npz --include output,lse"),
    "formats": ("compute x.npy --json --format csv", "give one", "compute x.npy --json"),
    "gradient": ("compute x.npy --json --include grad_query", "--grad-output ones",
                 "compute x.npy --json --include grad_query --grad-output ones"),
    "folder": ("compute x.npy -o nowhere/o.npz", "mkdir -p nowhere", "compute x.npy -o o.npz"),
    "nothing": ("multihead h.npy", "multihead --random-weights 0 --model-dim 8 --heads 2 --tokens",
                "multihead --random-weights 0 --model-dim 8 --heads 2 --tokens 'the cat sat'"),
    "empty range": ("compute x.npy --rows 3:1", "1:3", "compute x.npy --rows 1:3"),
    "memory": (f"{LAYER} --head-dim 999999999999", "smaller", f"{LAYER} --head-dim 3"),
    "large": (f"{LAYER} --head-dim 99999999999999999999", "at most", f"{LAYER} --head-dim 3"),
    "empty": ("compute e.npz --json --include query,key", "-o FILE.safetensors",
              "compute e.npz -o o.safetensors --include query,key"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, shape in (("x", (3, 2)), ("h", (3, 4)), ("b", (2, 1, 2, 3)), ("long", (40, 2))):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=shape))
    np.savez(tmp_path / "e.npz", q=np.zeros((1, 0, 4)), k=np.ones((1, 3, 4)))
    for name, words in (
        ("batch", [["the", "cat"], ["a", "dog"]]), ("ragged", [["the", "cat"], ["a"]]),
        ("padded", [["the", "cat"], ["a", "[PAD]"]]),
    ):  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(words))


@pytest.mark.parametrize(("wrong", "hint", "right"), WRONG_AND_RIGHT.values(), ids=WRONG_AND_RIGHT)
def test_whoever_types_what_the_hint_says_gets_further(
    wrong: str, hint: str, right: str, door: Door
) -> None:
    ran = door(*shlex.split(wrong))
    assert (ran.code, hint in ran.out + ran.err) == (2, True), ran
    ran = door(*shlex.split(right))
    assert ran.code == 0, ran


@pytest.mark.parametrize("typed", ["--xyzzy", "--quit", "--quality", "--kwargs", "--verbose"])
def test_no_nonsense_is_offered(typed: str, door: Door) -> None:
    ran = door("compute", "x.npy", typed)
    assert ran.code == 2 and f"no such option: {typed}" in ran.err
    assert "--query" not in ran.err and "--verbose?" not in ran.err


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("compute x.npy --csv", "--format csv?"), ("compute x.npy --html a", "--report FILE.html?"),
        ("compute x.npy --temperature 2", "--scale?"), ("mask causal --size 4", "--length?"),
        ("compute x.npy --padding 2", "--mask 'padding(3)'?"),
        ("x.npy", "attncli compute x.npy?"), ("compute sub/x.npy", "did you mean x.npy?"),
        ("compute '{\"query\": [[1, 0]]}'", "| attncli compute -"),
        ("compute -q '[[1, 0]]'", "| attncli compute -"),
        ("multihead h.npy --random-weights --heads 2", "--random-weights has no value"),
        ("compute x.npy --top --causal", "--top has no value: --causal follows"),
    ],
)  # fmt: skip
def test_what_a_newcomer_types_is_understood(typed: str, offered: str, door: Door) -> None:
    ran = door(*shlex.split(typed))
    assert ran.code == 2 and offered in ran.err, ran.err


def test_what_a_command_has_not_is_not_offered(door: Door) -> None:
    assert "--length" not in door("compute", "x.npy", "--size", "4").err


@pytest.mark.parametrize(
    "call", ["compute x.npy", LAYER, "mask causal -l 3", "inspect -q x.npy"], ids=str.split
)
def test_quiet_leaves_out_the_table_and_nothing_else(call: str, door: Door) -> None:
    loud = door(*call.split(), "-o", "loud.npz")
    quiet = door(*call.split(), "-o", "quiet.npz", "--quiet")
    assert (loud.code, quiet.code, quiet.out) == (0, 0, "") and loud.out
    assert quiet.err == loud.err.replace("loud", "quiet")
    for name, array in np.load("loud.npz").items():
        np.testing.assert_array_equal(np.load("quiet.npz")[name], array)


# -- JSON -------------------------------------------------------------------------------------


def test_json_says_what_it_leaves_out_and_how_to_get_it(door: Door, tmp_path: Path) -> None:
    np.save(tmp_path / "big.npy", np.random.default_rng(0).normal(size=(70, 60)))
    for call in (["compute", "big.npy"], ["multihead", "big.npy", "--random-weights", 0,
                                          "--heads", 1]):  # fmt: skip
        found = door(*call, "--json").data
        assert "weights" not in found and "output" not in found
        said = next(w for w in found["warnings"] if "left out" in w)
        assert "more than 4,096 numbers" in said
        names = said.partition("--include ")[2].rstrip(")")
        again = door(*call, "--json", "--include", names).data
        assert np.shape(again["weights"])[-2:] == (70, 70) and np.shape(again["output"]) == (70, 60)
        assert not again["warnings"]
    assert any("attn_mask is left out" in w for w in door(
        "mask", "causal", "-l", 70, "--json").data["warnings"])  # fmt: skip
    assert door("compute", "x.npy", "--json").data["warnings"] == []


def numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for member in value.values():
            yield from numbers(member)
    else:
        yield value


def test_a_number_that_does_not_exist_is_null_and_nan_is_nan(door: Door, tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones((1, 4)))  # one key: no row has a choice
    for call in (["compute", "one.npy"], [*shlex.split(LAYER)[:1], "one.npy", "--random-weights",
                                          0, "--heads", 1]):  # fmt: skip
        heads = door(*call, "--json").data["heads"]
        statistics = [*numbers(heads[0]["statistics"])]
        assert None in statistics and "NaN" not in statistics
        assert heads[0]["statistics"]["entropy"]["median"] is None
        assert all(x is None or x >= 0 for x in statistics if not isinstance(x, float))
    x = np.ones((3, 4))
    x[1, 2] = np.nan
    np.save(tmp_path / "nan.npy", x)
    found = door("compute", "nan.npy", "--json").data["heads"][0]["statistics"]
    assert "NaN" in [*numbers(found)]


def test_whole_numbers_are_numbers_in_multihead(door: Door, tmp_path: Path) -> None:
    eye = [[1, 0], [0, 1]]
    (tmp_path / "w.json").write_text(json.dumps(dict.fromkeys(("wq", "wk", "wv", "wo"), eye)))
    for name in ("int8", "int64", "bool"):
        np.save(tmp_path / "i.npy", np.eye(2, dtype=name))
        ran = door("multihead", "i.npy", "-w", "w.json", "--heads", 1, "--json")
        assert ran.code == 0, ran.out
        truth = door("compute", "i.npy", "--json").data
        np.testing.assert_allclose(ran.data["output"], truth["output"], rtol=1e-12)
    np.savez(tmp_path / "q.npz", **dict.fromkeys(("wq", "wk", "wv", "wo"), np.eye(2, dtype="i1")))
    ran = door("multihead", "i.npy", "-w", "q.npz", "--heads", 1)
    assert (ran.code, "quantised" in ran.err) == (2, True)


# -- steps ------------------------------------------------------------------------------------


def test_steps_work_out_a_row_with_a_choice_and_say_what_they_leave_out(door: Door) -> None:
    ran = door("compute", "x.npy", "--causal", "--steps")
    assert "sum for q1:" in ran.out and "sum for q0:" not in ran.out  # q0 sees one key
    assert "worked out for q1, 1 of 3 queries (--rows)" in ran.out
    ran = door("compute", "x.npy", "--causal", "--steps", "--rows", "0:3")
    assert all(f"sum for q{n}:" in ran.out for n in range(3)) and "worked out for" not in ran.out
    ran = door("compute", "b.npy", "--steps")
    assert "1 of 2 batch elements not shown" in ran.out
    ran = door("compute", "b.npy", "--steps", "--batch", "0,1")
    assert "batch 0" in ran.out and "batch 1" in ran.out and "not shown" not in ran.out


def test_multihead_has_steps_and_shows_its_weights(door: Door) -> None:
    ran = door(*LAYER.split(), "--causal", "--steps")
    assert "7  weights" in ran.out and "sum for q1:" in ran.out and "Projected output" in ran.out
    assert "1 of 2 heads not shown" in ran.out
    assert "Weights · head" not in door(*LAYER.split()).out
    shown = door(*LAYER.split(), "--head", 1, "--json", "--include", "weights").data["weights"]
    ran = door(*LAYER.split(), "--head", 1)
    lines = ran.out.partition("Weights · head 1")[2].splitlines()[1:4]
    found = [[float(x) for x in line.split()[1:]] for line in lines]
    np.testing.assert_allclose(found, np.array(shown)[-1], atol=6e-4)


# -- labels are data --------------------------------------------------------------------------


WINDOWS = (
    [], ["--steps"], ["--top", "2"], ["--heatmap"], ["--format", "csv", "--include", "weights"],
    ["--format", "markdown"], ["--format", "markdown", "--steps"],
    ["--format", "markdown", "--heatmap"], ["--json"], ["-o", "-.json"],
)  # fmt: skip


@pytest.mark.parametrize("options", WINDOWS, ids=" ".join)
def test_labels_are_data_in_every_window(options: list[str], door: Door, tmp_path: Path) -> None:
    bundle = {"x": [[1, 0], [0, 1]], "tokens": [NASTY, "plain"]}
    (tmp_path / "t.json").write_text(json.dumps(bundle))
    ran = door("compute", "t.json", *options)
    assert ran.code == 0
    assert [c for c in CONTROL if c in ran.out + ran.err] == []
    if "markdown" in options:
        fences = [line for line in ran.out.splitlines() if line.startswith("```")]
        assert len(fences) % 2 == 0 and len(set(fences)) <= 1
        code, plain = False, []
        for line in ran.out.splitlines():
            fence = line.startswith("```")
            code ^= fence
            plain += [] if code or fence else [line]
        assert not any(re.search(r"(?<!\\)[<&$`]", line) for line in plain)
        for table, lines in groupby(plain, lambda line: line.startswith("| ")):
            pipes = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
            assert not table or len(pipes) == 1
    if "--json" in options or "-.json" in options:
        label = (ran.data.get("tokens") or ran.data["query_tokens"])[0]
        assert label == NASTY  # escaped, not changed


def test_a_file_s_name_is_data(door: Door) -> None:
    ran = door("compute", "x.npy", "-o", "\x1b[31m\x9b‮.npz")
    assert ran.code == 0 and os.path.exists("\x1b[31m\x9b‮.npz")
    assert [c for c in CONTROL if c in ran.err] == [] and "wrote \\x1b[31m" in ran.err
    ran = door("compute", "\x1b[31m\x9b‮.npy")
    assert ran.code == 2 and [c for c in CONTROL if c in ran.err] == []


# -- messages ---------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_messages_break_at_words_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "query is (4, 64) and key is (5, 32), which do not fit together in any way at all"
    for stream, width in ((Terminal(), 40), (io.StringIO(), 0)):
        monkeypatch.setattr(sys, "stderr", stream)
        monkeypatch.setenv("COLUMNS", "40")
        render.show_error(InputError(words, f"transpose: {words}"))
        render.show_warnings([words])
        lines = stream.getvalue().splitlines()
        assert " ".join(line[9 if "warn" in line else 7 :].strip() for line in lines[:1]) in words
        said = " ".join(" ".join(lines).split())
        assert said == f"error: {words} transpose: {words} warning: {words}"
        assert len(lines) == 3 if not width else max(map(len, lines)) <= width


def test_what_stands_under_a_place_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "30")
    render.show_error(InputError("unknown mask 'causall' in: causall & b", " " * 27 + "^^^^^^^ eh"))
    first, second = sys.stderr.getvalue().splitlines()  # type: ignore[attr-defined]
    assert first.index("causall & b") == second.index("^")


def test_no_warning_of_a_library_reaches_a_person(attncli: Callable[..., Ran]) -> None:
    for options in (["--sink", "1e308"], ["--scale", "1e308"], ["--softcap", "1e-308"]):
        ran = attncli("compute", "-", *options, stdin='{"query": [[1, 0], [1e200, 3]]}')
        assert "RuntimeWarning" not in ran.err and "Traceback" not in ran.err
