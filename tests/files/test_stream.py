"""Standard input and NDJSON."""

from __future__ import annotations

import io
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attncli import files
from attncli.errors import AttnError
from tests.support.files import put, refused, same, sample, use_stdin


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".json"])
def test_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str) -> None:
    files.write(str(tmp_path / f"x{suffix}"), {"query": sample("float64")})
    use_stdin(monkeypatch, (tmp_path / f"x{suffix}").read_bytes())
    for ref in ("-", "-" if suffix == ".npy" else "-::query"):
        same(files.read_tensor(ref), sample("float64"))


def test_torch_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    stream = io.BytesIO()
    torch.save({"a": torch.ones(2)}, stream)
    use_stdin(monkeypatch, stream.getvalue())
    same(files.read_tensor("-::a"), np.ones(2, np.float32))


def test_closed_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    refused("-", "closed")


NDJSON = b'\n{"q": [1.5]}\n\n{"q": [1,}\n[2.5]\nnonsense\n{"q": [3.5]}'


def outcomes(found: Any) -> list[Any]:
    assert isinstance(found, files.Records)
    return [
        str(item) if isinstance(item, AttnError) else next(iter(item.tensors.values())).tolist()
        for item in found
    ]


def test_ndjson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "x", NDJSON)
    use_stdin(monkeypatch, NDJSON)
    for found in (
        files.read_many(path),
        files.read_many("-"),
        files.read_lines(io.BytesIO(NDJSON)),
    ):
        first, bad, second, nonsense, third = outcomes(found)
        assert (first, second, third) == ([1.5], [2.5], [3.5])
        assert "line 4 is no valid JSON" in bad
        assert "line 6 is no valid JSON" in nonsense


def test_ndjson_may_begin_with_a_bad_line(tmp_path: Path) -> None:
    path = put(tmp_path / "x", b'{"q": [1, 2\n{"q": [1.5]}\n')
    bad, good = outcomes(files.read_many(path))
    assert "line 1 is no valid JSON" in bad and good == [1.5]


@pytest.mark.parametrize(
    "text",
    ['{"q": [1.5]}', '{"q": [1.5]}\n', '{"q": [1.5]}\n\n  \n', '{\n"q":\n[1.5]\n}\n',
     '{"a": {"b": 1}\n, "q": [1.5]}', '{"q": [1.5]\n}', '{"a":\n{"b": 1},\n"q": [1.5]}'],
)  # fmt: skip
def test_one_json_document_is_not_ndjson(tmp_path: Path, text: str) -> None:
    bundle = files.read_many(put(tmp_path / "x", text))
    assert isinstance(bundle, files.Bundle)
    assert bundle.tensors["q"].tolist() == [1.5]


def test_ndjson_streams() -> None:
    """A result comes out before the next line goes in."""
    program = textwrap.dedent("""
        from attncli import files
        for item in files.read_many("-"):
            print(item.tensors["q"].tolist(), flush=True)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b'{"q": [0.5]}\n')
        for number in range(1, 4):
            process.stdin.write(b'{"q": [%d.5]}\n' % number)
            process.stdin.flush()
            assert process.stdout.readline() == b"[%d.5]\n" % (number - 1)
        process.stdin.close()
        assert process.stdout.read() == b"[3.5]\n"
        assert process.wait() == 0


def test_explicit_lines_need_no_second(tmp_path: Path) -> None:
    path = put(tmp_path / "x.ndjson", '{"q": [1]}\n')
    assert isinstance(files.read_many(path), files.Bundle)
    records = files.read_many(path, lines=True)
    assert isinstance(records, files.Records)
    (only,) = records
    assert isinstance(only, files.Bundle)
    assert only.tensors["q"].tolist() == [1]
