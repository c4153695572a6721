"""Make the pictures of this folder: ``python samples/gallery/make.py [ANOTHER FOLDER]``."""

from __future__ import annotations

import subprocess
import sys
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


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
