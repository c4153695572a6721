"""Speed against other libraries, side by side.

    python -m tests.benchmarks [P1 P3 …] [--quick] [--cpu]
    python -m tests.benchmarks --readme

Prints a line a figure with its target, met or missed, and writes results.json beside this file, of
which --readme makes the README's table. On a busy machine use --cpu.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

#: The first two slow NumPy down, and are read when it is loaded; an installed program has bytecode.
UNSET = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "PYTHONDONTWRITEBYTECODE")
if __name__ == "__main__" and any(name in os.environ for name in UNSET):
    os.execve(
        sys.executable,
        [sys.executable, "-m", "tests.benchmarks", *sys.argv[1:]],
        {name: value for name, value in os.environ.items() if name not in UNSET},
    )

from threadpoolctl import threadpool_info, threadpool_limits  # noqa: E402

from attncli.engines import AUTO, missing  # noqa: E402
from attncli.engines import fused as fused_engine  # noqa: E402
from tests.benchmarks.commands import p7, p8, p10, p12  # noqa: E402
from tests.benchmarks.dense import PEERS, p1, p2, p3  # noqa: E402
from tests.benchmarks.gpu import p9  # noqa: E402
from tests.benchmarks.gradients import p6  # noqa: E402
from tests.benchmarks.lines import p11  # noqa: E402
from tests.benchmarks.sparse import p4, p5  # noqa: E402
from tests.benchmarks.table import write  # noqa: E402
from tests.benchmarks.timing import Line, Setting, Unmeasured  # noqa: E402

RESULTS = Path(__file__).with_name("results.json")
PARTS = {
    part.__name__.upper(): part for part in (p1, p2, p3, p4, p5, p6, p7, p8, p9, p10, p11, p12)
}
BESIDE = ("numpy", *PEERS)


def surroundings() -> dict[str, Any]:
    """Return what the figures depend on: versions, which engine auto is, which BLAS there is."""
    versions = {}
    for name in BESIDE:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            print(f"not installed, left out: {name}", file=sys.stderr)
    engine = next(name for name in AUTO if not missing(name))
    auto = f"fused ({fused_engine.build()[0]})" if engine == "fused" else engine
    blas = [info for info in threadpool_info() if info["user_api"] == "blas"]
    kernels = sorted({str(info.get("architecture")) for info in blas})
    return {"versions": versions, "auto": auto, "blas": kernels}


def measure(parts: list[str], setting: Setting) -> tuple[list[Line], dict[str, str]]:
    """Measure and print; return the lines, and why a part has none."""
    lines: list[Line] = []
    unmeasured: dict[str, str] = {}
    for part in parts:
        print(f"\n{part}  {(PARTS[part].__doc__ or '').splitlines()[0]}")
        try:
            for line in PARTS[part](setting):
                lines.append(line)
                mark = {True: "met", False: "missed", None: ""}[line.met]
                print(
                    f"  {mark:<7}{line.figure:8.2f}{line.unit:<4} {line.wanted:<9} "
                    f"{line.what}: {line.cell}, against {line.against}  "
                    f"(best {line.best:.2f})  {line.note}",
                    flush=True,
                )
        except Unmeasured as why:
            unmeasured[part] = str(why)
            print(f"  not measured: {why}")
    return lines, unmeasured


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("parts", nargs="*", help=f"any of {' '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer cells, shorter runs")
    parser.add_argument("--cpu", action="store_true", help="CPU time of one thread each")
    parser.add_argument("-o", "--output", default=str(RESULTS), help="where the JSON goes")
    parser.add_argument("--readme", action="store_true", help="write the README's table from it")
    options = parser.parse_args()
    if options.readme:
        if options.parts or options.quick or options.cpu:
            parser.error("--readme measures nothing: give it alone, or with -o FILE")
        try:
            report = json.loads(Path(options.output).read_text())
        except OSError as error:
            parser.error(
                f"{options.output}: {error.strerror}; run python -m tests.benchmarks first"
            )
        write(report)
        return
    unknown = set(options.parts) - PARTS.keys()
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    setting, around = Setting(options.cpu, options.quick), surroundings()
    print(f"auto is {around['auto']}; BLAS kernel {', '.join(around['blas'])}")
    with ExitStack() as stack:
        if setting.cpu:
            stack.enter_context(threadpool_limits(1))
        lines, unmeasured = measure(options.parts or [*PARTS], setting)
    report = {"cpu": setting.cpu, "quick": setting.quick, "threads": setting.threads, **around,
              "unmeasured": unmeasured, "lines": [asdict(line) for line in lines]}  # fmt: skip
    Path(options.output).write_text(json.dumps(report, indent=1))
    judged = [line for line in lines if line.met is not None]
    print(f"\n{sum(line.met is True for line in judged)} of {len(judged)} met; {options.output}")


if __name__ == "__main__":
    main()
