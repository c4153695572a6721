"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.errors import AttnError, FileError
from tests.support.files import put, same, sample, use_stdin


@pytest.mark.parametrize("path", ["x", "x.pt", "x.txt", "x.json.gz"])
def test_unknown_suffix(tmp_path: Path, path: str) -> None:
    with pytest.raises(FileError, match=r"\.npz, \.safetensors, \.json, \.npy"):
        files.write(str(tmp_path / path), {"a": np.ones(1)})


def test_npy_takes_one_array(tmp_path: Path) -> None:
    for arrays in ({}, {"a": np.ones(1), "b": np.ones(1)}):
        with pytest.raises(FileError, match="exactly one array"):
            files.write(str(tmp_path / "x.npy"), arrays)
    assert os.listdir(tmp_path) == []


def test_targets_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(FileError, match="is a folder"):
        files.write(str(tmp_path / "folder.npz"), {"a": np.ones(1)})
    with pytest.raises(FileError, match="no such folder"):
        files.write(str(tmp_path / "nowhere" / "x.npz"), {"a": np.ones(1)})
    with pytest.raises(FileError, match="NUL"):
        files.write(str(tmp_path / "a\0.npz"), {"a": np.ones(1)})
    assert os.listdir(tmp_path) == ["folder.npz"]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".npy", ".json"])
@pytest.mark.parametrize("dtype", ["complex128", "object", "U3", "longdouble"])
def test_what_no_format_holds(tmp_path: Path, suffix: str, dtype: str) -> None:
    target = put(tmp_path / f"x{suffix}", "old")
    array = np.ones(2).astype(dtype)
    if (suffix in (".npz", ".npy") and dtype == "complex128") or (
        suffix == ".json" and dtype == "U3"
    ):
        files.write(target, {"a": array})
        assert Path(target).read_bytes() != b"old"
    else:
        with pytest.raises(AttnError, match="hold"):
            files.write(target, {"a": array})
        assert Path(target).read_bytes() == b"old"
    assert os.listdir(tmp_path) == [f"x{suffix}"]


@pytest.mark.parametrize("trouble", [OSError(28, "No space left"), KeyboardInterrupt(), KeyError()])
def test_failure_in_the_middle(tmp_path: Path, trouble: BaseException) -> None:
    target = put(tmp_path / "x.txt", "old")
    wanted = FileError if isinstance(trouble, OSError) else type(trouble)

    def write_half() -> None:
        with files.atomic(target) as stream:
            stream.write(b"half")
            assert len(os.listdir(tmp_path)) == 2
            raise trouble

    with pytest.raises(wanted) as caught:
        write_half()
    if isinstance(trouble, OSError):
        assert "no space left" in str(caught.value)
    assert os.listdir(tmp_path) == ["x.txt"]
    assert Path(target).read_bytes() == b"old"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no space left"), files.atomic("/dev/full") as stream:
        stream.write(b"x")
    assert stat.S_ISCHR(os.stat("/dev/full").st_mode)


@pytest.mark.skipif(os.name == "nt", reason="limits of POSIX")
@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors", ".json"])
def test_a_file_that_may_not_grow(tmp_path: Path, suffix: str) -> None:
    import resource

    target, before = tmp_path / f"x{suffix}", resource.getrlimit(resource.RLIMIT_FSIZE)
    target.write_bytes(b"old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(FileError, match="cannot be written: File too large"):
            files.write(str(target), {"a": np.ones(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [f"x{suffix}"]


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no devices here")
@pytest.mark.parametrize("suffix", [".npz", ".npy", ".safetensors", ".json"])
def test_a_device_takes_each_format(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"x{suffix}").symlink_to("/dev/null")
    files.write(str(tmp_path / f"x{suffix}"), {"a": np.ones(3)})
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_killed_in_the_middle(tmp_path: Path) -> None:
    target = put(tmp_path / "x.txt", "old")
    program = textwrap.dedent("""
        import sys
        from attncli import files
        with files.atomic(sys.argv[1]) as stream:
            stream.write(b"half"); stream.flush()
            print("written", flush=True); sys.stdin.read()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout and process.stdout.readline() == b"written\n"
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert Path(target).read_bytes() == b"old"


def test_modes_and_links(tmp_path: Path) -> None:
    target, link = tmp_path / "x.npy", tmp_path / "link.npy"
    before = os.umask(0o027)
    try:
        files.write(str(target), {"a": np.ones(1)})
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    target.chmod(0o606)
    link.symlink_to(target)
    files.write(str(link), {"a": np.zeros(1)})
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o606
    assert files.read_tensor(str(target)).tolist() == [0.0]


def test_a_file_may_be_replaced_while_it_is_mapped(tmp_path: Path) -> None:
    path = str(tmp_path / "x.npy")
    files.write(path, {"": np.arange(3.0)})
    array = files.read_tensor(path)
    files.write(path, {"": array + 1})
    assert array.tolist() == [0, 1, 2]
    assert files.read_tensor(path).tolist() == [1, 2, 3]


def test_standard_output(capfdbinary: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".json", ".npz", ".npy", ".safetensors"):
        files.write("-", {"a": sample("float64")}, format=suffix)
        use_stdin(monkeypatch, capfdbinary.readouterr().out)
        same(files.read_tensor("-"), sample("float64"))


@pytest.mark.parametrize(
    ("trouble", "wanted"),
    [(BrokenPipeError(), BrokenPipeError), (OSError(28, "No space left"), FileError)],
)
def test_standard_output_that_fails(
    monkeypatch: pytest.MonkeyPatch, trouble: OSError, wanted: type[Exception]
) -> None:
    def write(_: bytes) -> None:
        raise trouble

    stream = SimpleNamespace(write=write, flush=lambda: None)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(buffer=stream, flush=lambda: None))
    with pytest.raises(wanted):
        files.write("-", {"a": np.ones(1)}, format=".json")


def test_binary_is_refused_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    with pytest.raises(FileError, match="terminal"):
        files.write("-", {"a": np.ones(1)}, format=".npz")


def test_a_folder_that_takes_no_files() -> None:
    if not os.path.isdir("/proc/self"):
        pytest.skip("no /proc")
    with pytest.raises(FileError) as caught:
        files.write("/proc/x.npz", {"x": np.ones(2)})
    assert "no such file" not in str(caught.value)
