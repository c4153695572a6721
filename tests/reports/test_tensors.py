"""The tensors of any file: rows, totals, order, choice, and what cannot be read."""

from __future__ import annotations

import functools
import io
import json
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from attncli import files
from attncli.errors import FileError, InputError
from attncli.reports.blocks import Report, Table, Text
from attncli.reports.tensors import STATISTICS, tensors_report
from tests.support.reports import as_json, printed

NUMBERS = {
    "wide": np.array([[1e5, -2.0, 0.0], [3e-8, np.nan, np.inf]], np.float32),
    "half": np.array([0.5, 1e-7, -4.0], np.float16),
    "brain": np.array([1e-39, 3.0], ml_dtypes.bfloat16),
    "ids": np.arange(-3, 7),
    "keep": np.array([True, False, True]),
    "none": np.zeros((0, 4), np.float32),
    "one": np.array(2.5),
}


shown = functools.partial(printed, width=100)


def names(report: Report) -> list[str]:
    return [line["name"] for line in as_json(report)["tensors"]]


def table(report: Report) -> Table:
    (found,) = [block for block in report.blocks if isinstance(block, Table)]
    return found


@pytest.fixture
def saved(tmp_path: Path) -> str:
    path = str(tmp_path / "x.safetensors")
    files.write(path, NUMBERS)
    return path


@pytest.fixture
def many(tmp_path: Path) -> files.Bundle:
    path = str(tmp_path / "many.safetensors")
    files.write(path, {f"model.layers.{i}.attn.q_proj.weight": np.full(3, i) for i in range(3000)})
    return files.read(path)


def damaged(path: Path) -> str:
    """A .npz whose member 'b' fails its check sum."""
    np.savez(path, a=np.ones(3), b=np.arange(20000.0), c=np.zeros(2))
    offset = zipfile.ZipFile(path).getinfo("b.npy").header_offset
    raw = bytearray(path.read_bytes())
    raw[offset + 1000] ^= 0xFF
    path.write_bytes(raw)
    return str(path)


def test_a_row_a_tensor(saved: str) -> None:
    report = tensors_report(files.read(saved))
    found = {line.pop("name"): line for line in as_json(report)["tensors"]}
    assert found.keys() == NUMBERS.keys()
    wide = np.array([1e5, -2, 0, 3e-8], np.float32).astype(float)
    assert found["wide"] == {
        "shape": [2, 3], "dtype": "float32", "bytes": 24, "size": 6,
        "min": -2.0, "max": 1e5,
        "mean": pytest.approx(wide.mean()), "std": pytest.approx(wide.std()),
        "zeros": 1, "nan": 1, "inf": 1,
        "float16_overflow": 1, "float16_subnormal": 1, "float16_underflow": 1,
        "bfloat16_overflow": 0, "bfloat16_subnormal": 0, "bfloat16_underflow": 0,
    }  # fmt: skip
    assert (found["half"]["float16_subnormal"], found["half"]["float16_underflow"]) == (1, 0)
    assert (found["brain"]["bfloat16_subnormal"], found["brain"]["dtype"]) == (1, "bfloat16")
    assert (found["ids"]["min"], found["ids"]["max"], found["ids"]["mean"]) == (-3, 6, 1.5)
    assert (found["keep"]["zeros"], found["keep"]["mean"]) == (1, pytest.approx(2 / 3))
    assert (found["one"]["shape"], found["one"]["std"]) == ([], 0.0)
    empty = found["none"]
    assert (empty["size"], empty["nan"], empty["min"], empty["std"]) == (0, 0, None, None)
    assert report.exit_code == 0


def test_totals(saved: str) -> None:
    report = tensors_report(files.read(saved))
    assert as_json(report)["totals"] == {
        "tensors": 7, "parameters": 25, "bytes": 24 + 6 + 4 + 80 + 3 + 8, "unreadable": 0,
        "dtypes": {"float32": 2, "float16": 1, "bfloat16": 1, "int64": 1, "bool": 1, "float64": 1},
    }  # fmt: skip
    assert "7 tensors (safetensors) · 25 parameters · 125 bytes" in shown(report)
    assert "float32 × 2, " in shown(report)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_table_is_calm(saved: str, width: int) -> None:
    text = shown(tensors_report(files.read(saved)), width=width)
    assert max(map(len, text.splitlines())) <= width
    (row,) = [line for line in text.splitlines() if line.startswith("none")]
    assert row.split()[1:3] == ["0×4", "float32"] and "–" in row and "nan" not in row.lower()
    if width == 200:
        assert "overflow" in text and "--format csv" not in text
    else:
        assert "columns: --format csv" in text


def test_what_all_tensors_lack_has_no_column() -> None:
    bundle = files.Bundle("x", "npz", {"a": np.ones(3), "b": np.arange(1.0, 3)})
    titles = [column.title for column in table(tensors_report(bundle)).columns]
    assert titles == ["shape", "dtype", "bytes", "min", "max", "mean", "std"]
    text = shown(tensors_report(bundle))
    assert "no NaN, no inf" in text
    sorted_by = table(tensors_report(bundle, sort="bfloat16_underflow"))
    assert sorted_by.columns[-1].sub == "underflow"  # but what it is sorted by is seen


@pytest.mark.parametrize("suffix", ["safetensors", "npz", "json", "npy", "pt"])
def test_every_format_says_the_same(tmp_path: Path, suffix: str) -> None:
    array = np.random.default_rng(0).standard_normal((5, 4))
    path = str(tmp_path / f"x.{suffix}")
    if suffix == "pt":
        torch = pytest.importorskip("torch")
        torch.save({"a": torch.from_numpy(array)}, path)
    else:
        files.write(path, {"a": array})
    (line,) = as_json(tensors_report(files.read(path)))["tensors"]
    assert (line["shape"], line["dtype"], line["bytes"]) == ([5, 4], "float64", 160)
    assert line["std"] == pytest.approx(array.std(), rel=1e-14)
    assert line["name"] == ("" if suffix == "npy" else "a")
    text = shown(tensors_report(files.read(path)))
    assert ("(array)" if suffix == "npy" else "\na ") in text


def test_shards_and_folders(tmp_path: Path) -> None:
    index = {"weight_map": {}}
    for n in range(3):
        files.write(str(tmp_path / f"{n}.safetensors"), {f"w{n}": np.full(2, n, np.float32)})
        index["weight_map"][f"w{n}"] = f"{n}.safetensors"
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    report = tensors_report(files.read(str(tmp_path)))
    assert names(report) == ["w0", "w1", "w2"]
    assert [line["mean"] for line in as_json(report)["tensors"]] == [0, 1, 2]


def test_several_bundles_name_their_source(tmp_path: Path) -> None:
    bundles = []
    for n in range(2):
        files.write(str(tmp_path / f"{n}.npy"), {"": np.full(2, n)})
        bundles.append(files.read(str(tmp_path / f"{n}.npy")))
    report = tensors_report(bundles)
    lines = as_json(report)["tensors"]
    assert [Path(line["source"]).name for line in lines] == ["0.npy", "1.npy"]
    assert "0.npy::(array)" in shown(report, width=200)
    assert shown(report, "csv").startswith("source,name,shape,")


def test_only_headers(saved: str) -> None:
    report = tensors_report(files.read(saved), header=True)
    (first, *_) = as_json(report)["tensors"]
    assert first.keys() == {"name", "shape", "dtype", "bytes", "size"}
    assert as_json(report)["totals"]["parameters"] == 25
    assert [c.title for c in table(report).columns] == ["shape", "dtype", "bytes"]


@pytest.mark.parametrize("suffix", ["npy", "safetensors"])
def test_headers_of_a_huge_file(tmp_path: Path, suffix: str) -> None:
    """Half a terabyte: whoever reads a part of it does not come back in time."""
    path, count = tmp_path / f"x.{suffix}", 1 << 37
    with open(path, "wb") as stream:
        if suffix == "npy":
            shape = {"descr": "<f4", "fortran_order": False, "shape": (count,)}
            np.lib.format.write_array_header_1_0(stream, shape)
        else:
            text = b'{"x":{"dtype":"F32","shape":[%d],"data_offsets":[0,%d]}}' % (count, 4 * count)
            text += b" " * (-len(text) % 8)
            stream.write(len(text).to_bytes(8, "little") + text)
        try:
            stream.truncate(stream.tell() + 4 * count)
        except OSError:
            pytest.skip("no sparse files of that size here")
    report = tensors_report(files.read(str(path)), header=True)
    assert as_json(report)["totals"]["bytes"] == 4 * count
    assert "512 GiB" in shown(report)


def test_filter(saved: str, many: files.Bundle) -> None:
    bundle = files.read(saved)
    assert sorted(names(tensors_report(bundle, filter="*e*"))) == ["keep", "none", "one", "wide"]
    assert sorted(names(tensors_report(bundle, filter=["one", "i?s"]))) == ["ids", "one"]
    some = tensors_report(many, filter="*.7?.*")
    assert len(names(some)) == 10
    assert "10 of 3000 tensors" in shown(some)


@pytest.mark.parametrize(
    ("pattern", "fragment"),
    [("q_proj", "--filter '*q_proj*'"), ("*zzz*", "they are called 'model.layers")],
)
def test_a_filter_that_nothing_matches(many: files.Bundle, pattern: str, fragment: str) -> None:
    with pytest.raises(InputError, match="no name of 3000 tensors matches") as caught:
        tensors_report(many, filter=pattern)
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("sort", "first", "last"),
    [
        ("max", "wide", "none"), ("-max", "half", "none"), ("name", "brain", "wide"),
        ("-name", "wide", "brain"), ("bytes", "ids", "none"),
        ("-bytes", "none", "ids"), ("size", "ids", "none"),
    ],
)  # fmt: skip
def test_sort(saved: str, sort: str, first: str, last: str) -> None:
    found = names(tensors_report(files.read(saved), sort=sort))
    assert sorted(found) == sorted(NUMBERS)
    assert (found[0], found[-1]) == (first, last)


def test_every_column_can_be_sorted_by(saved: str) -> None:
    bundle = files.read(saved)
    for column in ("name", "shape", "dtype", "bytes", "size", *STATISTICS):
        lines = as_json(tensors_report(bundle, sort=column))["tensors"]
        values = [line[column] for line in lines if line[column] is not None]
        assert values == sorted(values, reverse=column not in ("name", "dtype"))
        assert [line[column] is None for line in lines] == sorted(
            line[column] is None for line in lines
        )


def test_an_unknown_column(saved: str) -> None:
    with pytest.raises(InputError, match="unknown column 'stdd'") as caught:
        tensors_report(files.read(saved), sort="-stdd")
    assert "did you mean 'std'?" in str(caught.value)
    with pytest.raises(InputError, match="--sort std needs the data"):
        tensors_report(files.read(saved), sort="std", header=True)
    assert names(tensors_report(files.read(saved), sort="bytes", header=True))[0] == "ids"


def test_thousands_of_tensors(many: files.Bundle) -> None:
    report = tensors_report(many)
    text = shown(report)
    assert len(text.splitlines()) < 45
    assert "3,000 tensors" in text and "…" in text and "32 of 3,000 tensors" in text
    assert "2999" in text  # the last one stands there with its number
    assert len(as_json(report)["tensors"]) == 3000
    assert shown(report, "csv").count("\n") == 3001
    whole = shown(tensors_report(many, full=True))
    assert "model.layers.1500.attn.q_proj.weight" in whole and whole.count("q_proj") == 3000


def test_csv_and_markdown(saved: str) -> None:
    report = tensors_report(files.read(saved))
    head, *rows = shown(report, "csv").splitlines()
    assert head.split(",")[:6] == ["name", "shape", "dtype", "bytes", "size", "min"]
    assert any(row.startswith("wide,2×3,float32,24,6,-2.0,100000.0,") for row in rows)
    assert "| wide | 2×3 |" in shown(report, "markdown")


def test_a_damaged_member(tmp_path: Path) -> None:
    report = tensors_report(files.read(damaged(tmp_path / "x.npz")))
    assert report.exit_code == 2
    a, b, c = as_json(report)["tensors"]
    assert (a["mean"], c["mean"]) == (1, 0)
    assert (b["shape"], b["mean"], b["nan"]) == ([20000], None, None)
    assert "Bad CRC-32" in b["reason"]
    assert "reason" not in a
    (warning,) = report.warnings
    assert warning.startswith("1 of 3 tensors cannot be read: 'b': ")
    (text,) = [block for block in report.blocks if isinstance(block, Text)]
    assert text.lines[0].startswith("b: ")
    assert "no NaN" not in shown(report)  # nobody knows
    assert "Bad CRC" in shown(report, "csv")
    assert as_json(report)["totals"]["unreadable"] == 1


def test_an_unknown_dtype(tmp_path: Path) -> None:
    header = {
        "x": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]},
        "y": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]},
    }
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0\0\1\2")
    report = tensors_report(files.read(str(path)))
    x, y = as_json(report)["tensors"]
    assert (x["dtype"], x["bytes"], x["max"]) == ("F4", 2, None)
    assert "the dtype F4; readable are" in x["reason"]
    assert (y["max"], report.exit_code) == (2, 2)
    assert max(map(len, shown(report, width=80).splitlines())) <= 80
    assert (
        tensors_report(files.read(str(path)), header=True).exit_code == 0
    )  # nothing to complain of


def test_complex_numbers_have_no_statistics(tmp_path: Path) -> None:
    path = str(tmp_path / "x.npz")
    files.write(path, {"a": np.ones(2, np.complex64), "b": np.ones(2)})
    report = tensors_report(files.read(path))
    assert report.exit_code == 0  # the file is in order
    assert "without statistics: 'a': complex numbers" in report.warnings[0]
    assert as_json(report)["tensors"][0]["mean"] is None


def test_a_member_without_a_header(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"no array")
        stream = io.BytesIO()
        np.save(stream, np.ones(2))
        archive.writestr("b.npy", stream.getvalue())
    report = tensors_report(files.read(str(path)), header=True)
    assert report.exit_code == 2
    assert as_json(report)["tensors"][0]["shape"] is None
    assert "unreadable" in shown(report)
    assert as_json(tensors_report(files.read(str(path))))["tensors"][1]["mean"] == 1


def test_warnings_name_the_first(saved: str) -> None:
    (warning,) = tensors_report(files.read(saved)).warnings
    assert warning == (
        "1 of 7 tensors with NaN or infinities: 'wide' has 1 NaN and 1 ±inf of 6; "
        "min, max, mean and std are of the rest"
    )


def test_a_file_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"model_type": "bert"}')
    with pytest.raises(FileError, match=r"x\.json holds no tensor"):
        tensors_report(files.read(str(path)))


def test_progress_goes_from_nothing_to_all(saved: str) -> None:
    shares: list[float] = []
    tensors_report(files.read(saved), progress=shares.append, threads=1)
    assert shares == sorted(shares)
    assert shares[0] > 0 and shares[-1] == pytest.approx(1)
