"""Change one line of the program at a time, and print which changes no test notices.

The tests that run a changed line are found once, by tracing all of them, and kept in --map; the
quickest come first. Nothing is written into the tree.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.mutants.mutate import Mutant, chosen, mutants
from tests.mutants.running import Changed, in_children, judged, preload, traced

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "attncli"
PATIENCE = 20.0  # seconds that a test may take longer than ten times its time
LEAST = 3  # mutants of a module, however small
TESTS = ("attention", "measures", "engines", "studies")


class Place(NamedTuple):
    """A module of a program, and one of its mutants."""

    path: Path
    source: str
    mutant: Mutant
    program: Path = PROGRAM

    @property
    def name(self) -> str:
        """What --only takes."""
        return f"{self.module}:{self.mutant.start}:{self.mutant.text}"

    @property
    def module(self) -> str:
        """The path of the module within the program."""
        return str(self.path.relative_to(self.program))


def drawn(paths: list[Path], count: int, seed: int) -> list[Place]:
    """Return so many mutants of the modules together, by the length of each."""
    sources = {path: path.read_text() for path in paths}
    lines = {path: text.count("\n") for path, text in sources.items()}
    every = sum(lines.values())
    return [
        Place(path, text, mutant)
        for path, text in sources.items()
        for mutant in chosen(text, max(LEAST, round(count * lines[path] / every)), seed)
    ]


def test_map(folder: Path, files: list[Path], modules: list[Path], jobs: int) -> dict[str, Any]:
    """Return what each test runs; of files that are older there than on the disk, anew."""
    folder.mkdir(parents=True, exist_ok=True)
    kept = {file: folder / f"{'.'.join(file.relative_to(ROOT).parts)}.json" for file in files}
    newest = max(module.stat().st_mtime for module in modules)
    old = [
        file
        for file, there in kept.items()
        if not there.exists() or there.stat().st_mtime < max(file.stat().st_mtime, newest)
    ]
    work = ((file, lambda file=file: traced(file, PROGRAM)) for file in old)
    for file, found in in_children(work, jobs):
        kept[file].write_text(json.dumps(found))
        print(f"{len(found):5} tests of {file.relative_to(ROOT)}", file=sys.stderr, flush=True)
    found = {}
    for file in files:
        found.update(json.loads(kept[file].read_text()))
    return found


def covering(known: dict[str, Any], place: Place) -> dict[str, float]:
    """Return the tests that run a mutant, the quickest first, and the seconds of each."""
    mutant = place.mutant
    found = {}
    for name, test in known.items():
        lines = test["lines"].get(place.module)
        if lines and (not mutant.body or not set(mutant.near).isdisjoint(lines)):
            found[name] = float(test["seconds"])
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def attacked(
    places: list[Place], known: dict[str, Any], files: list[str], seconds: float, jobs: int
) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yield each mutant, and what became of it: a killer, or how many tests did not notice."""

    def work() -> Iterator[Any]:
        for place in places:
            changed = Changed(place.path, place.program.parent, place.mutant.of(place.source))
            limits = {n: PATIENCE + 10 * spent for n, spent in covering(known, place).items()}
            of = files or sorted({name.partition("::")[0] for name in limits})
            if of:
                own = None if files else limits
                yield place, lambda c=changed, o=own, of=of: judged(c, of, o, seconds)

    for place in places:
        if not files and not covering(known, place):
            yield place, {"killer": "", "taken": 0, "late": False}
    for place, found in in_children(work(), jobs):
        yield place, found or {"killer": "it hangs, or dies", "taken": 0, "late": False}


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--module", type=Path, action="append", required=True, help="or a folder")
    parser.add_argument("--mutants", type=int, default=20, help="of all modules together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", type=Path, action="append", help="files or folders")
    parser.add_argument("--only", action="append", help="a mutant, by the name that is printed")
    parser.add_argument("--against", action="append", default=[], help="run all of these tests")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each mutant")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--map", type=Path, default=Path(tempfile.gettempdir(), "attncli-mutants"))
    parser.add_argument("--killed", action="store_true", help="print those, too")
    asked = parser.parse_args()
    os.chdir(ROOT)
    modules = _files(asked.module, "*.py")
    if asked.only:
        every = [Place(p, s, m) for p in modules for s in [p.read_text()] for m in mutants(s)]
        places = [place for place in every if place.name in asked.only]
    else:
        places = drawn(modules, asked.mutants, asked.seed)
    preload()
    known: dict[str, Any] = {}
    if not asked.against:
        tests = _files(asked.tests or [ROOT / "tests" / room for room in TESTS], "test_*.py")
        known = test_map(asked.map, tests, modules, asked.jobs)
    start, counts = time.monotonic(), Counter[tuple[str, bool]]()
    for place, found in attacked(places, known, asked.against, asked.seconds, asked.jobs):
        killed = bool(found["killer"])
        counts[str(place.path.parent.relative_to(ROOT)), killed] += 1
        if not killed or asked.killed:
            _print(place, found)
    for room in sorted({room for room, _ in counts}):
        dead, alive = counts[room, True], counts[room, False]
        print(f"{room:30} {dead + alive:5} mutants, {dead} killed, {alive} survived")
    print(f"{time.monotonic() - start:.0f} s")
    return 1 if any(not killed for _, killed in counts) else 0


def _print(place: Place, found: dict[str, Any]) -> None:
    before, after = place.mutant.lines(place.source)
    end = f"killed by {found['killer']}" if found["killer"] else f"{found['taken']} tests pass"
    late = ", others had no time" if found["late"] else ""
    where = f"{place.module}:{place.mutant.line}"
    print(f"{where} {place.mutant.kind}: {end}{late}\n- {before}\n+ {after}")
    print(f"  --only '{place.name}'\n", flush=True)


def _files(paths: list[Path], pattern: str) -> list[Path]:
    """Return the files of folders and those named themselves."""
    return [
        f
        for p in paths
        for f in (sorted(p.resolve().rglob(pattern)) if p.is_dir() else [p.resolve()])
    ]


if __name__ == "__main__":
    sys.exit(main())
