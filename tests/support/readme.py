"""The console blocks of the README and its tables of statistics, as they are today.

``python -m tests.support.readme`` writes them anew.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from attncli.reports.statistics import statistics_markdown
from tests.support.program import ROOT

README = ROOT / "README.md"
TABLES = re.compile(r"(?<=<!-- statistics -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)
BLOCK = re.compile(r"```console\n\$ ([^\n]*)\n(.*?)```", re.DOTALL)


def run(command: str) -> str:
    """Run a shell line in the project's folder with this environment's attncli, 80 columns wide."""
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", "COLUMNS": "80"}
    done = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, env=env, text=True, timeout=60,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.stdout


def main() -> None:
    """Write the output of every block, and the tables."""
    text = BLOCK.sub(lambda m: f"```console\n$ {m[1]}\n{run(m[1])}```", README.read_text("utf-8"))
    README.write_text(TABLES.sub(lambda _: statistics_markdown(), text), "utf-8")


if __name__ == "__main__":
    main()
