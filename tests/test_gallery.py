"""The pictures of samples/gallery are those that its script makes, and the README shows them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.program import ROOT, environment

GALLERY = ROOT / "samples/gallery"


def test_the_readme_shows_every_picture() -> None:
    shown = re.findall(r'src="samples/gallery/([^"]+)"', (ROOT / "README.md").read_text())
    assert sorted(shown) == sorted(path.name for path in GALLERY.glob("*.png"))


@pytest.mark.slow
def test_the_script_makes_all_of_them(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    done = subprocess.run(
        [sys.executable, GALLERY / "make.py", tmp_path], env=environment(), cwd=tmp_path,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made, kept = ({p.name for p in folder.glob("*.png")} for folder in (tmp_path, GALLERY))
    assert made <= kept and kept - made <= {"page.png"}  # it takes a browser
