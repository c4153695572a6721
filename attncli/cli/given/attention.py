"""From files and flags to a problem: which tensor plays which role, and what labels it.

A flag wins over the file. Nothing here knows a command's options by their spelling but for its
messages, nor computes anything.
"""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from attncli import files
from attncli.attention import language
from attncli.attention.masks import Extent
from attncli.attention.pose import pose
from attncli.attention.problem import Problem, Scale
from attncli.attention.view import Labels
from attncli.cli.given import names as given_names
from attncli.cli.given.names import DTYPES, KNOWN, OPTIONS, without_role
from attncli.errors import FileError, InputError, counted
from attncli.files.bundle import Bundle

if TYPE_CHECKING:
    from attncli.attention.rope import Rope


Array = np.ndarray[Any, np.dtype[Any]]
Tokens = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Flags:
    """What the command line says, None where it says nothing. Tensors are references."""

    query: str | None = None
    key: str | None = None
    value: str | None = None
    past_key: str | None = None
    past_value: str | None = None
    kv_lengths: str | None = None
    layout: str | None = None
    heads: int | None = None
    kv_heads: int | None = None
    tokens: str | None = None
    query_tokens: str | None = None
    key_tokens: str | None = None
    mask: tuple[str, ...] = ()
    attn_mask: str | None = None
    mask_polarity: str | None = None
    scale: str | None = None
    softcap: float | None = None
    sink: str | None = None
    dtype: str | None = None
    softmax_dtype: str | None = None
    rope: str | None = None
    rope_theta: float | None = None
    rope_dim: int | None = None
    rope_scaling: str | None = None
    rope_cos: str | None = None
    rope_sin: str | None = None
    positions: str | None = None


@dataclass(frozen=True)
class Inputs:
    """``arguments`` for ``problem.pose``; ``tokens`` by role; ``sources`` are the files read."""

    arguments: Mapping[str, Any]
    tokens: Mapping[str, Tokens] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def pose(self) -> Problem:
        """Return the problem, or raise InputError for what does not fit together."""
        problem = pose(**self.arguments)
        return replace(problem, warnings=(*self.warnings, *problem.warnings))

    def labels(self, problem: Problem | Extent) -> Labels:
        """Return the labels, which must be as many as the positions they label."""
        roles = {"query": problem.queries, "key": problem.keys}
        found: dict[str, Tokens] = {}
        both = self.tokens.get("tokens")
        if both is not None:
            unlabelled = [role for role in roles if f"{role}_tokens" not in self.tokens]
            if len({roles[role] for role in unlabelled}) > 1:
                raise InputError(
                    "tokens labels queries and keys alike, but there are "
                    f"{counted(problem.queries, 'query', 'queries')} and "
                    f"{counted(problem.keys, 'key')}",
                    "give --query-tokens and --key-tokens",
                )
            found = dict.fromkeys(unlabelled, both)
        for role, length in roles.items():
            name = f"{role}_tokens" if f"{role}_tokens" in self.tokens else "tokens"
            tokens = self.tokens.get(name)
            if tokens is not None:
                _check_tokens(name, tokens, role, length, problem.batch)
                found[role] = tokens
        return Labels(found.get("query"), found.get("key"))


def gather(bundle: Bundle | None, flags: Flags) -> Inputs:
    """Find every tensor and option of an attention problem in ``bundle`` and ``flags``.

    Raises InputError or FileError for what is missing, ambiguous or of the wrong type.
    """
    return Gathering(bundle, flags).inputs()


def upstream(spec: str | None) -> Any:
    """Return the gradient of the output that ``--grad-output`` means: a word or a tensor."""
    if spec is None or (spec.partition(":")[0] in ("ones", "random") and not os.path.exists(spec)):
        return spec or "ones"
    bundle = files.read(spec)
    found = files.find(bundle, "grad_output") if len(bundle.tensors) > 1 else None
    return found[1] if found else files.read_tensor(spec)


def gather_tokens(flags: Flags) -> Inputs:
    """Find the labels among ``flags`` alone."""
    gathering = Gathering(None, flags)
    return Inputs({}, gathering.all_tokens(), sources=tuple(gathering.sources))


class Gathering:
    """Finds the tensors and options of one problem; the lists grow as it does."""

    def __init__(self, bundle: Bundle | None, flags: Flags) -> None:
        self.bundle = bundle
        self.flags = flags
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self.taken: set[str] = set()  # tensors of the bundle that something read
        self.sources = [bundle.source] if bundle else []
        self.options: dict[str, Any] = {}
        if bundle:
            self.options = {
                name.lower(): value
                for name, value in bundle.options.items()
                if name.lower() in OPTIONS
                and value is not None
                and (bundle.kind == "json" or name.lower() not in DTYPES)
            }
            if files.is_result(bundle):
                self.options.pop("heads", None)  # in our own results: what each head was like

    def inputs(self) -> Inputs:
        scale, source = self.scale()
        if self.bundle:
            given_names.refuse_slips(self.bundle, [n for n, v in vars(self.flags).items() if v])
        query = self.query()
        arguments = {
            "query": query,
            **{r: self.floats(r) for r in ("key", "value", "past_key", "past_value")},
            "kv_lengths": self.kv_lengths(),
            "mask": self.masks(),
            "scale": scale,
            "scale_source": source,
            "softcap": self.pick("softcap", _number, "a positive number"),
            "sink": self.sink(),
            "heads": self.pick("heads", _count, "a positive integer"),
            "kv_heads": self.pick("kv_heads", _count, "a positive integer"),
            "layout": self.pick("layout", _word, "bhld or blhd") or "bhld",
            **{name: self.pick(name, _word, "a dtype such as float32") for name in DTYPES},
            "rope": self.rope(),
        }
        tokens = self.all_tokens()
        self.warn_of_unread()
        return Inputs(
            arguments,
            tokens,
            tuple(dict.fromkeys(self.notes)),
            tuple(dict.fromkeys(self.sources)),
            tuple(dict.fromkeys(self.warnings)),
        )

    def warn_of_unread(self) -> None:
        """Put what nothing has read, now that all is gathered, among the warnings."""
        if self.bundle:
            self.warnings += given_names.unread(self.bundle, self.taken)

    # -- tensors --

    def tensor(self, role: str, ref: str | None = None) -> tuple[Array, str] | None:
        """The tensor of a role and the kind of its file; ``ref`` wins over the bundle."""
        if ref is None:
            found = files.find(self.bundle, role) if self.bundle else None
            if not (found and self.bundle):
                if self.bundle and role not in ("attn_mask", "kv_lengths", "sink"):  # or options
                    files.demand_numbers(self.bundle, role)
                return None
            self.taken.add(found[0])
            return found[1], self.bundle.kind
        bundle = files.read(ref)
        self.sources.append(bundle.source)
        found = files.find(bundle, role) if len(bundle.tensors) > 1 else None
        return (found[1] if found else files.read_tensor(ref)), bundle.kind

    def floats(self, role: str) -> Array | None:
        found = self.tensor(role, getattr(self.flags, role))
        return self.noted(role, *found) if found else None

    def noted(self, role: str, array: Array, kind: str) -> Array:
        if kind == "json" and array.ndim == 1:
            raise _flat(role, array)
        # JSON has one kind of number; in a binary file an integer was somebody's choice
        if array.dtype.kind == "b" or (array.dtype.kind in "iu" and kind != "json"):
            self.notes.append(f"{role} converted from {array.dtype}")
        return array

    def query(self) -> Array:
        """The query; failing that hidden states, failing that the only tensor there is."""
        found = self.tensor("query", self.flags.query)
        bundle = self.bundle
        if bundle is None:
            if found is None:
                raise InputError("no query", "name it: -q FILE")
            return self.noted("query", *found)
        if self.flags.query is not None and "" in bundle.tensors:
            raise InputError(
                f"{bundle.source} is one unnamed tensor, but --query is given as well",
                f"say what it is: -k {bundle.source}",
            )
        found = found or self.tensor("hidden_states")
        if found is None:
            rest = [name for name in without_role(bundle) if name.lower() not in KNOWN]
            if len(rest) != 1 or files.is_result(bundle):
                raise given_names.no_query(bundle, rest)
            self.taken.add(rest[0])
            found = bundle.tensors[rest[0]], bundle.kind
        return self.noted("query", *found)

    def kv_lengths(self) -> Any:
        text = self.flags.kv_lengths
        numbers = _numbers(text)
        if numbers is not None:
            if not all(n >= 0 and n.is_integer() for n in numbers):
                raise InputError(
                    f"--kv-lengths is '{text}'", "expected numbers of keys, as in 18,13,15"
                )
            return [int(n) for n in numbers]
        if text is None and "kv_lengths" in self.options:
            return self.checked("kv_lengths", _count_or_zero, "an integer or a list of integers")
        found = self.tensor("kv_lengths", text)
        return found[0] if found else None

    def sink(self) -> Any:
        text = self.flags.sink
        numbers = _numbers(text)
        if numbers is not None:
            return numbers[0] if len(numbers) == 1 else np.array(numbers)
        if text is None and "sink" in self.options:
            return self.checked("sink", _number, "a number or one per head")
        found = self.tensor("sink", text)
        return found[0] if found else None

    def rope(self) -> Rope | None:
        """Rotary positions, when a style is named; what belongs to them means nothing alone."""
        style = self.pick("rope", _word, "half or interleaved")
        parts = ("rope_theta", "rope_dim", "rope_scaling", "rope_cos", "rope_sin", "positions")
        if style is None:
            lone = [f"--{n.replace('_', '-')}" for n in parts if getattr(self.flags, n) is not None]
            if self.bundle:
                there = {n.lower() for n in self.bundle.tensors} | {*self.options}
                lone += [f"{self.bundle.source}: '{n}'" for n in parts[:5] if n in there]
            if lone:
                raise InputError(
                    f"{lone[0]} is given without {'--rope' if lone[0][0] == '-' else 'rope'}",
                    "add --rope half (Llama, GPT-NeoX) or --rope interleaved (GPT-J, Meta's files)",
                )
            return None
        from attncli.attention.rope import Rope

        tables = {n: self.tensor(n, getattr(self.flags, n)) for n in parts[3:]}
        cos, sin, positions = (found[0] if found else None for found in tables.values())
        theta = self.pick("rope_theta", _number, "a number such as 10000")
        return Rope(
            style, 10000.0 if theta is None else theta,
            self.pick("rope_dim", _count, "a positive even integer"),
            positions, cos, sin, self.rope_scaling(),
        )  # fmt: skip

    def rope_scaling(self) -> Mapping[str, Any] | None:
        text = self.flags.rope_scaling
        if text is None:
            found: Mapping[str, Any] | None = self.checked(
                "rope_scaling", lambda value: isinstance(value, dict), "an object"
            )
            return found
        import json

        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise InputError(
                f"--rope-scaling is '{text[:60]}'",
                """expected what config.json says: '{"rope_type": "linear", "factor": 2}'""",
            )
        return value

    # -- masks --

    def masks(self) -> list[Any]:
        own = []
        if "mask" in self.options:
            own.append(self.checked("mask", _word, 'a mask expression, such as "causal"'))
        if self.checked("causal", _truth, "true or false"):
            own.append("causal")
        texts = list(self.flags.mask) or own
        for lost in own:
            if not any(_spaceless(lost) in _spaceless(text) for text in texts):
                self.warnings.append(
                    f"-m replaces the file's mask {lost}; to keep both add -m '{lost}'"
                )
        for text in texts:
            self.sources += files_in(text)
        maskers: list[Any] = [language.masker(text) for text in texts]
        polarity = self.pick("mask_polarity", _word, "keep or ignore")
        found = self.tensor("attn_mask", self.flags.attn_mask)
        if found:
            text = self.mask_text(polarity or "keep")
            maskers.append(language.tensor_masker(found[0], polarity or "keep", text=text))
        elif self.flags.mask_polarity:
            raise InputError(
                "--mask-polarity is given, but there is no mask tensor", "add --attn-mask FILE"
            )
        return maskers

    def mask_text(self, polarity: str) -> str | None:
        """How the mask tensor is written as an expression, when it lies in a file."""
        path, _, name = (self.flags.attn_mask or "").partition("::")
        if not path and self.bundle and self.bundle.kind != "json":
            role = files.find(self.bundle, "attn_mask")
            path, name = self.bundle.source, role[0] if role else ""
        if not path or path == "-" or not os.path.exists(path):
            return None
        sign = "~" if polarity == "ignore" else ""
        return f"{sign}file({path!r}, {name!r})" if name else f"{sign}file({path!r})"

    # -- options --

    def pick(self, name: str, valid: Callable[[Any], bool], expected: str) -> Any:
        """The flag of that name, or the file's option, or None."""
        flag = getattr(self.flags, name)
        return self.checked(name, valid, expected) if flag is None else flag

    def checked(self, name: str, valid: Callable[[Any], bool], expected: str) -> Any:
        value = self.options.get(name)
        if value is None:
            value = self.scalar(name, expected)
        if value is None:
            return None
        if not valid(value):
            assert self.bundle
            raise InputError(
                f"{self.bundle.source}: '{name}' is {_shown(value)}", f"expected {expected}"
            )
        return value

    def scalar(self, name: str, expected: str) -> Any:
        """An option that the bundle holds as a tensor, as .npz files do."""
        names = [n for n in self.bundle.tensors if n.lower() == name] if self.bundle else []
        if not (names and self.bundle):
            return None
        array = self.bundle.tensors[names[0]]
        if array.ndim == 0:
            return array.item() if array.dtype.kind in "biu" else float(array)
        if name == "heads":  # what multihead writes of each head
            return None
        raise InputError(
            f"{self.bundle.source}: '{name}' has shape {array.shape}", f"expected {expected}"
        )

    def scale(self) -> tuple[Scale, str]:
        text = self.flags.scale
        if text is None:
            value = self.checked("scale", _scale, 'a number, "auto" or "none"')
            return ("auto", "") if value is None else (value, "from file")
        if text in ("auto", "none"):
            return text, ""  # type: ignore[return-value]
        number = _parsed(text)
        if number is None:
            raise InputError(f"--scale is '{text}'", "expected a number, auto or none")
        return number, "given"

    def all_tokens(self) -> dict[str, Tokens]:
        tokens = {n: self.tokens(n) for n in ("tokens", "query_tokens", "key_tokens")}
        return {name: value for name, value in tokens.items() if value is not None}

    def tokens(self, name: str) -> Tokens | None:
        text = getattr(self.flags, name)
        if text is not None:
            return self.token_file(text[1:]) if text.startswith("@") else (tuple(text.split()),)
        if name in self.options:
            value = self.options[name]
            tokens = _token_lists(value.split() if isinstance(value, str) else value)
            if tokens is None:
                self.checked(name, lambda _: False, "a list of strings, or one for each batch")
            return tokens
        names = [n for n in self.bundle.tensors if n.lower() == name] if self.bundle else []
        return (
            _token_lists(self.bundle.tensors[names[0]].tolist()) if names and self.bundle else None
        )

    def token_file(self, path: str) -> Tokens:
        self.sources.append(path)
        try:
            with open(path, encoding="utf-8") as stream:
                text = stream.read()
        except UnicodeDecodeError:
            raise FileError(f"{path} is no UTF-8 text", "expected tokens, one a line") from None
        except OSError as error:
            raise FileError(f"{path}: {(error.strerror or str(error)).lower()}") from None
        if not text.lstrip().startswith("["):
            return (tuple(text.splitlines()),)
        import json

        try:
            tokens = _token_lists(json.loads(text))
        except (ValueError, RecursionError):
            return (tuple(text.splitlines()),)  # a token such as [CLS] begins like a list
        if tokens is None:
            raise FileError(
                f"{path} is JSON, but no list of tokens", 'expected ["I", "like", "you"]'
            )
        return tokens


def _check_tokens(name: str, tokens: Tokens, role: str, length: int, batch: int) -> None:
    if len(tokens) not in (1, batch):
        raise InputError(
            f"{name} has {counted(len(tokens), 'list')} but the batch has {batch}",
            "give one list for each batch element, or one for all",
        )
    for b, some in enumerate(tokens):
        if len(some) != length:
            where = f" for batch element {b}" if len(tokens) > 1 else ""
            raise InputError(
                f"{name} has {counted(len(some), 'token')}{where} "
                f"but the {role} has length {length}",
                "give one token for each position (they are split on blanks)",
            )


def _token_lists(value: Any) -> Tokens | None:
    """A list of tokens, or one for each batch element; token ids are tokens too."""
    if not isinstance(value, list):
        return None
    lists = value if value and all(isinstance(item, list) for item in value) else [value]
    if not all(type(token) in (str, int) for some in lists for token in some):
        return None
    return tuple(tuple(map(str, some)) for some in lists)


def files_in(expression: str) -> list[str]:
    """Return the texts in a mask expression, which may name files."""
    try:
        nodes = ast.walk(ast.parse(expression.strip(), mode="eval"))
        return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []


def _flat(role: str, array: Array) -> InputError:
    """Return what to say to a list of numbers where rows of them are expected."""
    if not len(array):
        return InputError(f"{role} is an empty list", "expected rows of numbers: [[1, 0], [0, 1]]")
    shown = array[:3].tolist()
    more = ", …" if len(array) > 3 else ""
    rows = f"{shown}{more}"
    if role.endswith("value"):
        rows = ", ".join(f"[{x}]" for x in shown) + more
    return InputError(
        f"{role} is a list of {counted(len(array), 'number')}; expected rows",
        f"write [{rows}], one row a {'query' if role == 'query' else 'key'}",
    )


def _spaceless(text: str) -> str:
    return "".join(text.split())


def _numbers(text: str | None) -> list[float] | None:
    """Return the numbers that an option lists, or None when it names something else."""
    try:
        return [float(part) for part in (text or "").replace(",", " ").split()] or None
    except ValueError:
        return None


def _parsed(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _count(value: Any) -> bool:
    return type(value) is int and value > 0


def _count_or_zero(value: Any) -> bool:
    return type(value) is int and value >= 0


def _word(value: Any) -> bool:
    return isinstance(value, str)


def _truth(value: Any) -> bool:
    return isinstance(value, bool)


def _scale(value: Any) -> bool:
    return _number(value) or value in ("auto", "none")


def _shown(value: Any) -> str:
    text = files.dumps(value).decode()
    return text if len(text) <= 40 else text[:39] + "…"
