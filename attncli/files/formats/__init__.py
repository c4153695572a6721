"""The formats of tensor files: a row each here, a module of the row's name each beside.

To add a format, write its module and its row. The module has ``read(data, source, path)`` and,
where its row says so, ``write(stream, arrays, extra)``; `Format` tells what they take and give.
Nothing here loads NumPy, so that the command line may ask what there is before it needs it.
"""

# No `from __future__ import annotations` here: NamedTuple would compile each text.

import re
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from attncli.errors import FileError, series

if TYPE_CHECKING:
    from attncli.files.formats.entry import Array, Buffer, Entries

HEAD = 64  # bytes that tell a format
SAFETENSORS_LIMIT = 1 << 40  # of the header; a longer one means that it is something else
TORCH_LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


class Format(NamedTuple):
    """One format; its module is loaded when something is read or written."""

    name: str  #: of its module, and the ``kind`` of its bundles
    words: str  #: what messages call it
    suffixes: tuple[str, ...]
    #: Whether a file is of this format, by its first bytes and its members where it is a zip file.
    tells: Callable[[bytes, Collection[str]], bool]
    binary: bool = True
    writes: bool = True
    many: bool = True  #: tensors in a file, by their names
    options: bool = False  #: labels and options beside the tensors

    def read(
        self, data: "Buffer", source: str, path: str | None = None
    ) -> "tuple[Entries, Mapping[str, Any]]":
        """Return the tensors of a whole file, and its options.

        ``path`` is None where no file is behind the bytes. Raises FileError for damaged ones and
        Unavailable where an optional package is missing.
        """
        found: tuple[Entries, Mapping[str, Any]] = self._module().read(data, source, path)
        return found

    def write(
        self, stream: BinaryIO, arrays: "Mapping[str, Array]", extra: Mapping[str, Any]
    ) -> None:
        """Write native arrays, and ``extra`` where there is a place for options.

        Raises FileError for numbers that the format cannot hold.
        """
        self._module().write(stream, arrays, extra)

    def _module(self) -> Any:
        return import_module(f"{__name__}.{self.name}")


def is_text(head: bytes) -> bool:
    """Whether a file that begins so is JSON: with a bracket, after blanks and a byte order mark."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    return b"\0" not in head and (not start or start[:1] in b"{[")


def is_zip(head: bytes) -> bool:
    """Whether a file that begins so is a zip file: .npz and PyTorch files are."""
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


#: Numbers in a first line, with something between them or a line after them.
_NUMBER = rb"[+-]?(?:\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|nan|inf)"
_CSV = rb"(?i)(?:\xef\xbb\xbf)?\s*" + _NUMBER + rb"(?:[ \t]*[,;\t\n\r]|[ ]+)\s*" + rb"[\d.+\-ni]"
_HTML = rb"(?i)(?:\xef\xbb\xbf)?\s*<(?:script|div|!doctype|html|body|head)\b"
#: The fields of a TensorProto that come first: dims one by one, then a data_type.
_ONNX = rb"(?s)(?:\x08[\x80-\xff]*[\x00-\x7f])*\x10[\x01-\x17][\x22-\x72]"


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < SAFETENSORS_LIMIT


def _is_torch_zip(members: Collection[str]) -> bool:
    return any(name == "data.pkl" or name.endswith("/data.pkl") for name in members)


JSON = Format(
    "json", "JSON, NDJSON", (".json",), lambda head, _: is_text(head), binary=False, options=True
)
#: The first row that tells a file reads it.
FORMATS = (
    Format("npy", ".npy", (".npy",), lambda head, _: head.startswith(b"\x93NUMPY"), many=False),
    Format(
        "npz", ".npz", (".npz",), lambda head, members: is_zip(head) and not _is_torch_zip(members)
    ),
    Format(
        "safetensors", ".safetensors", (".safetensors",), lambda head, _: _is_safetensors(head),
        options=True,
    ),
    JSON,
    Format(
        "torch", "PyTorch files", (".bin", ".pt", ".pth"),
        lambda head, members: head.startswith(TORCH_LEGACY) or _is_torch_zip(members),
        writes=False,
    ),
    Format(
        "csv", "CSV", (".csv", ".tsv"), lambda head, _: bool(re.match(_CSV, head)), binary=False,
        writes=False, many=False,
    ),
    Format(
        "html", "HTML of BertViz", (".html",), lambda head, _: bool(re.match(_HTML, head)),
        binary=False, writes=False,
    ),
    Format(
        "onnx", "ONNX tensors", (".pb",), lambda head, _: bool(re.match(_ONNX, head)), writes=False,
        many=False,
    ),
    Format(
        "gguf", "GGUF", (".gguf",), lambda head, _: head.startswith(b"GGUF"), writes=False,
        options=True,
    ),
)  # fmt: skip

#: What can be written, by its suffix; first what holds several tensors.
WRITABLE: Mapping[str, Format] = {
    suffix: row
    for row in sorted(FORMATS, key=lambda row: not row.many)
    for suffix in row.suffixes
    if row.writes
}
#: The suffixes of what holds several tensors, for messages.
SEVERAL = series([suffix for suffix, row in WRITABLE.items() if row.many], "or")
SUFFIXES = tuple(suffix for row in FORMATS for suffix in row.suffixes)
#: Of weights in a folder: what is JSON there says something about them.
WEIGHTS = tuple(suffix for row in FORMATS if row.binary for suffix in row.suffixes)
READABLE = f"readable are {series([row.words for row in FORMATS])}"
PICKLE_HINT = "a pickle can run code, so it is never loaded; save it as .npz or .safetensors"


class Unread(NamedTuple):
    """Something that is recognised, so that its error can say what to do."""

    words: str
    hint: str
    begins: tuple[bytes, ...]
    suffixes: tuple[str, ...] = ()  #: of weights in a folder

    def error(self, subject: str) -> FileError:
        """Return the error for a file of this kind."""
        return FileError(f"{subject} is {self.words}, which attncli does not read", self.hint)


UNREAD = (
    Unread("gzip-compressed", "unpack it first: gunzip FILE", (b"\x1f\x8b",)),
    Unread("bzip2-compressed", "unpack it first: bunzip2 FILE", (b"BZh",)),
    Unread("xz-compressed", "unpack it first: unxz FILE", (b"\xfd7zXZ",)),
    Unread("zstd-compressed", "unpack it first: unzstd FILE", (b"\x28\xb5\x2f\xfd",)),
    Unread(
        "UTF-16 text", "expected UTF-8: iconv -f UTF-16 -t UTF-8 FILE",
        (b"\xff\xfe", b"\xfe\xff", b"{\0", b"[\0", b"\0{", b"\0["),
    ),
    Unread(
        "a Python pickle", PICKLE_HINT, (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"),
        (".pkl", ".pickle"),
    ),
    Unread(
        "an HDF5 file",
        "save its arrays as .npz; of Keras: "
        "numpy.savez('weights.npz', **{v.path: v.numpy() for v in model.variables})",
        (b"\x89HDF",), (".h5", ".hdf5"),
    ),
    Unread("a Parquet file", READABLE, (b"PAR1",)),
    Unread(
        "a Git LFS pointer, not the data", "fetch it: git lfs pull", (b"version https://git-lfs",)
    ),
)  # fmt: skip
