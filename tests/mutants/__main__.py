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
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.mutants.mutate import Mutant, chosen, mutants
from tests.mutants.running import Changed, Suite, Traced, anew, in_children, judged, preload

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "attncli"
PATIENCE = 20.0  # seconds that a test may take longer than ten times its time
DIED = {"killer": "it hangs, or dies", "taken": 0, "late": False}
LEAST = 3  # mutants of a module, however small
TESTS = ("attention", "measures", "engines", "studies")


Found = dict[str, Any]


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

    def changed(self) -> Changed:
        """The module with the mutant."""
        return Changed(self.path, self.program, self.mutant.of(self.source))


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


def mapped(tests: Suite, folder: Path, jobs: int) -> dict[str, Any]:
    """Return what each test runs, from a folder; of files that are not there as they are, anew."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[str]] = {}
    for name in tests.items:
        files.setdefault(name.partition("::")[0], []).append(name)
    kept = {file: folder / f"{file.replace('/', '.')}.json" for file in files}
    known = {file: _still_true(there, file) for file, there in kept.items()}
    old = [file for file, found in known.items() if found is None]
    work = ((file, lambda file=file: Traced(tests).of(files[file])) for file in old)
    for file, found in in_children(work, jobs):
        known[file] = found or {}
        kept[file].write_text(json.dumps(known[file]))
        print(f"{len(found or ()):5} tests of {file}", file=sys.stderr, flush=True)
    return {name: test for found in known.values() for name, test in (found or {}).items()}


def _still_true(there: Path, file: str) -> dict[str, Any] | None:
    """Return what is kept of a file of tests, None if it or what it runs has changed since."""
    if not there.exists():
        return None
    found: dict[str, Any] = json.loads(there.read_text())
    run = {PROGRAM / module for test in found.values() for module in test["lines"]}
    at = there.stat().st_mtime
    return None if any(p.stat().st_mtime > at for p in (Path(file), *run) if p.exists()) else found


def covering(known: dict[str, Any], place: Place) -> dict[str, float]:
    """Return the tests that run a mutant, the quickest first, and how long each may take."""
    mutant = place.mutant
    found = {}
    for name, test in known.items():
        lines = test["lines"].get(place.module)
        if lines and (not mutant.body or not set(mutant.near).isdisjoint(lines)):
            found[name] = PATIENCE + 10 * test["seconds"]
    return dict(sorted(found.items(), key=lambda pair: pair[1]))


def attacked(
    places: list[Place], tests: Suite, known: dict[str, Any], seconds: float, jobs: int
) -> Iterator[tuple[Place, Found]]:
    """Yield each mutant and what became of it, see ``judged``.

    Of one that runs while the program loads, the limits of the tests that are to load it anew.
    """

    def work(place: Place) -> Found:
        limits = covering(known, place)
        try:
            place.changed().put(tests)
        except ValueError:
            return {"limits": limits}
        return judged(tests, limits, seconds)

    every = ((place, lambda place=place: work(place)) for place in places)
    for place, found in in_children(every, jobs):
        yield place, found or DIED


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--module", type=Path, action="append", required=True, help="or a folder")
    parser.add_argument("--mutants", type=int, default=20, help="of all modules together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", type=Path, action="append", help="files or folders")
    parser.add_argument("--only", action="append", help="a mutant, by the name that is printed")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of a processor, for each mutant"
    )
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--map", type=Path, default=Path(tempfile.gettempdir(), "attncli-mutants"))
    parser.add_argument("--killed", action="store_true", help="print those, too")
    asked = parser.parse_args()
    modules = _files(asked.module, "*.py")
    files = _files(asked.tests or [ROOT / "tests" / room for room in TESTS], "test_*.py")
    os.chdir(ROOT)
    places = drawn(modules, asked.mutants, asked.seed)
    if asked.only:
        every = [Place(p, s, m) for p in modules for s in [p.read_text()] for m in mutants(s)]
        places = [place for place in every if place.name in asked.only]
    preload()
    start, counts = time.monotonic(), Counter[tuple[str, bool]]()

    def noted(results: Iterable[tuple[Place, Found]]) -> list[tuple[int, Found]]:
        """Print results as they come."""
        kept = []
        for place, found in results:
            if "killer" in found and (asked.killed or not found["killer"]):
                _print(place, found)
            kept.append((places.index(place), found))
        return kept

    def loaded(tests: Suite) -> list[tuple[int, Found]]:
        known = mapped(tests, asked.map, asked.jobs)
        return noted(attacked(places, tests, known, asked.seconds, asked.jobs))

    with tempfile.TemporaryDirectory() as folder:
        os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
        host = Suite(PROGRAM, loaded)
        [(_, done)] = in_children([("", lambda: host.collect(map(str, files)))], 1, loud=True)
        if done is None:
            return 2
        late = [
            (
                places[n],
                lambda p=places[n], f=found: anew(
                    p.changed(), p.program, f["limits"], asked.seconds
                ),
            )
            for n, found in done
            if "killer" not in found
        ]
        done += noted((place, found or DIED) for place, found in in_children(late, asked.jobs))
    for n, found in done:
        if "killer" in found:
            counts[str(Path(places[n].module).parent), bool(found["killer"])] += 1
    for room in sorted({room for room, _ in counts}):
        dead, alive = counts[room, True], counts[room, False]
        print(f"{room:20} {dead + alive:5} mutants, {dead} killed, {alive} survived")
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
