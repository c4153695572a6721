"""Text files that options name are read to their end, or refused before they are opened."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from attncli.errors import FileError
from attncli.files.texts import read_text
from tests.support.program import Door


@pytest.mark.parametrize("data", [b"a\r\nb\n", b"\xef\xbb\xbfa\nb\n"])
def test_what_editors_write(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    assert read_text(str(tmp_path / "x"), "lines") == "a\nb\n"


def test_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(FileError, match="no UTF-8 text\nexpected lines"):
        read_text(str(tmp_path / "x"), "lines")
    for path, told in ((tmp_path, "a folder"), (tmp_path / "y", "no such file")):
        with pytest.raises(FileError, match=told):
            read_text(str(path), "lines")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("a",))
    writer.start()
    assert read_text(str(tmp_path / "pipe"), "lines") == "a"
    writer.join()


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="no devices here")
@pytest.mark.parametrize(
    "typed",
    [["compute", "x.json", "--tokens", "@/dev/zero"],
     ["inspect", "x.json", "--policy", "/dev/zero"],
     ["multihead", "x.json", "-w", "x.json", "--config", "/dev/zero"]],
)  # fmt: skip
def test_a_device_has_no_end(door: Door, tmp_path: Path, typed: list[str]) -> None:
    (tmp_path / "x.json").write_text(
        '{"query": [[1]], "wq": [[1]], "wk": [[1]], "wv": [[1]], "x": [[1]]}'
    )
    ran = door(*typed)
    assert (ran.code, "/dev/zero is a device" in ran.err) == (2, True), ran.err
