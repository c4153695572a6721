"""Ctrl-C ends the program without a traceback, at any time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.support.program import environment, running


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_ctrl_c_ends_a_long_computation_and_leaves_the_old_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npy")
    (tmp_path / "out.npy").write_bytes(b"old")
    with running(tmp_path, "compute", "x.npy", "-o", "out.npy", "--dtype", "float64") as process:
        np.save(tmp_path / "big.npy", np.zeros((131072, 64), np.float32))
        (tmp_path / "x.npy").write_bytes((tmp_path / "big.npy").read_bytes())
        threading.Event().wait(1)  # the file is read; give the engine time to start
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
        assert process.stderr
        assert process.stderr.read() == b"interrupted\n"
    assert (tmp_path / "out.npy").read_bytes() == b"old"
    assert not list(tmp_path.glob(".attncli*"))


INTERRUPTED = """
import os, signal, sys

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == {name!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt())
sys.argv = ["attncli", "compute", "x.json"]
from attncli.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize(
    "name", ["typer", "attncli.cli.compute", "numpy", "attncli.reports.compute"]
)
def test_an_interrupt_while_loading_shows_no_traceback(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.json").write_text("[[1, 0]]")
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(name=name)],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_the_handler_is_given_back() -> None:
    import attncli.cli  # noqa: F401

    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
