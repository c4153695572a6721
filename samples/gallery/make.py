"""Make the pictures of this folder: ``python samples/gallery/make.py [ANOTHER FOLDER]``.

page.png shows the page that --report writes, and is made where a Chromium is found.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SAMPLES = HERE.parent
KERNELS = SAMPLES / "kernels"

#: Pictures by name, and what draws each.
PICTURES = {
    "fruit": ["compute", SAMPLES / "fruit.json"],
    "causal": ["compute", SAMPLES / "causal.json"],
    "mask": ["mask", "causal & window(2)", "--tokens", "<BOS> I like you"],
    "sweep": ["inspect", "--sweep-dim", "8,64,512,1000,4096"],
    "minilm": ["inspect", SAMPLES / "minilm.safetensors", "--batch", "0"],
    "fault": ["compute", KERNELS / "chunk.npz", "--expect", "-"],
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main(folder: Path = HERE) -> None:
    """Draw every picture into the folder."""
    kernel = [sys.executable, KERNELS / "tile_edge.py"]
    with (KERNELS / "chunk.npz").open("rb") as problem:
        answer = subprocess.run(kernel, stdin=problem, stdout=subprocess.PIPE, check=True).stdout
    for name, command in PICTURES.items():
        attncli = [sys.executable, "-m", "attncli", *command, "--plot", folder / f"{name}.png"]
        done = subprocess.run(attncli, input=answer, stdout=subprocess.DEVNULL, check=False)
        if done.returncode != (name == "fault"):
            sys.exit(f"{name}: exit code {done.returncode}")
    if browser := next(filter(None, map(shutil.which, BROWSERS)), None):
        show_page(browser, folder / "page.png")


def show_page(browser: str, picture: Path) -> None:
    """Take a picture of the page on MiniLM."""
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        attncli = [sys.executable, "-m", "attncli", *PICTURES["minilm"], "--report", page]
        subprocess.run(attncli, stdout=subprocess.DEVNULL, check=True)
        headless = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        shot = [f"--screenshot={picture}", "--window-size=1200,1480", f"--user-data-dir={folder}"]
        subprocess.run(
            [browser, *headless, *shot, page.as_uri()], stderr=subprocess.DEVNULL, check=True
        )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
