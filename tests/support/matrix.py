"""How good is the diagnosis? Every fault and every right answer, judged by ``attncli.compare``.

    python -m tests.support.matrix [--seeds N] [--dtype float32 …] [--only REGEX] [--no-honest] [-v]

Exit 1 on a wrong answer: a certain diagnosis that is not right, or a right answer that fails.
"""

from __future__ import annotations

import argparse
import collections
import re
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import attncli
from tests.support.faults import Case, Fault, distance, table

DTYPES = ("float32", "float16", "bfloat16")
#: What may come of a fault. ``vague``: it is said where it shows, not what it is; ``hidden``: it
#: passed in a type in which nothing shows it.
OUTCOMES = ("named", "ambiguous", "located", "hidden", "vague", "unexplained", "missed", "wrong")
#: What is said of any fault when it is said too soon; and what is true, but names nothing.
CLAIMS = r"dropout|low precision"
WHERE = r"only [\w ,–-]+ wrong|[,;.\s]"


class Outcome(NamedTuple):
    """What came of a fault, and what was said."""

    kind: str
    said: tuple[str, ...]
    stage: str | None
    seconds: float


def compared(case: Case) -> Any:
    """The Comparison of a case."""
    more = {} if case.grad_output is None else {"grad_output": case.grad_output}
    return attncli.compare(case.candidates, case.arguments, **more)


def text_of(explanation: Any) -> str:
    """The options of an explanation, and its words."""
    return f"{' '.join(explanation.options)} | {explanation.words}"


def judged(row: Fault, dtype: str, seed: int) -> Outcome:
    """Judge a fault once."""
    case = row.seeded(seed, dtype)
    start = time.perf_counter()
    found = compared(case)
    seconds = time.perf_counter() - start
    passing = [e for e in found.explanations if e.passed]
    right = [row.right(text_of(e)) or repeated(case, e) is True for e in passing]
    broken = [repeated(case, e) is False for e in passing]
    said = tuple(map(text_of, passing))
    if not passing:
        said = (" ".join(found.located), *map(text_of, found.explanations))
        false = [claim for claim in re.findall(CLAIMS, said[0]) if not row.right(claim)]
        right = [row.right(said[0]) and not false]
    kind = kind_of(found.verdict, right, said[0])
    at = row.right.stage is None or re.fullmatch(row.right.stage, found.stage or "")
    if kind == "missed" and dtype in row.hidden:
        kind = "hidden"
    elif kind != "missed" and (not at or any(broken)):
        kind = "wrong"
    return Outcome(kind, said, found.stage, seconds)


def kind_of(verdict: str, right: list[bool], said: str) -> str:
    """Name the outcome: a verdict that is certain and not right is wrong.

    ``right``: of each explanation that passes, or of the one text where none does.
    """
    if verdict == "passed":
        return "missed"
    if verdict == "unexplained":
        return "unexplained"
    if any(right):
        return {"explained": "named", "located": "located"}.get(verdict, "ambiguous")
    vague = verdict == "located" and not re.sub(WHERE, "", said)
    return "vague" if vague else "wrong"


def repeated(case: Case, explanation: Any) -> bool | None:
    """Whether its options, typed, give the candidate; None where words say a part of it."""
    if explanation.words or case.packed or case.grad_output is not None:
        return None
    arguments, rope = case.arguments, dict(case.arguments.get("rope") or {})
    for flag, word in zip(explanation.options[::2], explanation.options[1::2], strict=True):
        name = flag.removeprefix("--").replace("-", "_")
        if name.startswith("rope"):
            rope[{"rope": "style"}.get(name, name.removeprefix("rope_"))] = literal(word)
        elif name not in READ:
            return None
        else:
            arguments[name] = READ[name](word)
    if arguments.get("mask", "") is None:  # in place of what it contradicts
        arguments |= {"attn_mask": None, "key_padding_mask": None}
    arguments["rope"] = None if rope.get("style") in (None, "none") else rope
    given = {name: a for name, a in case.answered.items() if name in ("output", "lse", "weights")}
    with warnings.catch_warnings(action="ignore"):
        found = attncli.attend(**arguments, want=tuple(given))
    answers = {"output": found.output, "lse": found.lse, "weights": found.weights}
    for name, array in given.items():
        size = np.abs(np.nan_to_num(array.astype(np.float64), posinf=0, neginf=0)).max()
        step = float(ml_dtypes.finfo(case.asked.dtype).eps) * size
        near = 4 * (explanation.max_error + step)  # ours is rounded as well
        if distance(answers[name], np.asarray(array, np.float64)) > near:
            return False
    return True


def literal(word: str) -> Any:
    """A number, or the word."""
    try:
        return int(word) if word.isdecimal() else float(word)
    except ValueError:
        return word


#: How options are read; another one is not tried.
READ = {
    "mask": lambda word: None if word == "none" else word,
    "scale": literal,
    "softcap": lambda word: float(word) or None,
    "sink": lambda word: None if word == "-inf" else np.array(word.split(","), np.float64),
    "kv_lengths": lambda word: [int(n) for n in word.split(",")],
    "mask_polarity": str,
}


def faults(only: str, dtypes: tuple[str, ...], seeds: int, loud: bool) -> collections.Counter[str]:
    """Print a line for each fault, and what was said where it is no use; return the counts."""
    counts: collections.Counter[str] = collections.Counter()
    slowest = (0.0, "")
    print(f"{'fault':58}" + "".join(f"{dtype:>13}" for dtype in dtypes) + "      s")
    for row in (row for row in table() if re.search(only, row.name, re.I)):
        cells, told, spent = [], [], 0.0
        for dtype in dtypes:
            done = [judged(row, dtype, seed) for seed in range(seeds)]
            counts.update(one.kind for one in done)
            counts.update(f"{dtype} {one.kind}" for one in done)
            worst = max(done, key=lambda one: OUTCOMES.index(one.kind))
            cells.append(f"{worst.kind:>13}")
            spent += sum(one.seconds for one in done)
            slowest = max(slowest, (max(one.seconds for one in done), f"{row.name} {dtype}"))
            if loud or worst.kind in ("wrong", "missed", "unexplained", "vague"):
                told += [f"    {dtype} at {worst.stage}: {text}" for text in worst.said[:4]]
        print(f"{row.name:58}{''.join(cells)}{spent:7.2f}", flush=True)
        print("\n".join(told), end="\n" if told else "", flush=True)
    print()
    for kind in OUTCOMES:
        each = "".join(f"{counts[f'{dtype} {kind}']:13}" for dtype in dtypes)
        print(f"{kind:58}{each}")
    print(f"slowest: {slowest[0]:.2f} s, {slowest[1]}\n")
    return counts


def alarms(
    only: str, dtypes: tuple[str, ...], seeds: int, every: int = 1
) -> Iterator[tuple[Any, Any]]:
    """Yield each ``every``-th right answer with its Comparison."""
    from tests.support.honest import honest

    for seed in range(seeds):
        for one in honest(seed, dtypes, every):
            if re.search(only, one.name, re.I):
                yield one, compared(one.case)


def main() -> int:
    """Run both sets, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--dtype", action="append", choices=DTYPES)
    parser.add_argument("--only", default="", help="names of faults or answers, a regex")
    parser.add_argument("--no-honest", action="store_true", help="faults alone")
    parser.add_argument("--no-faults", action="store_true", help="right answers alone")
    parser.add_argument("-v", "--verbose", action="store_true", help="what was said, everywhere")
    given = parser.parse_args()
    dtypes, bad = tuple(given.dtype or DTYPES), 0
    if not given.no_faults:
        counts = faults(given.only, dtypes, given.seeds, given.verbose)
        bad += counts["wrong"] + counts["missed"]
    if not given.no_honest:
        tried, failed, strained = 0, 0, 0
        start = time.perf_counter()
        precisions = tuple(given.dtype or ("float64", *DTYPES))
        for one, found in alarms(given.only, precisions, given.seeds):
            tried += 1
            if found.passed:
                continue
            failed, strained = failed + (not one.strained), strained + one.strained
            mark = " (strained)" if one.strained else ""
            print(f"false alarm{mark}: {one.name}: {found.sentence}", flush=True)
        print(f"{tried} right answers, {failed} false alarms", end="")
        print(f", {strained} of large scores rounded to a half", end="")
        print(f", {time.perf_counter() - start:.0f} s")
        bad += failed
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
