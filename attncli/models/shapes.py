"""Head counts and widths: what the weights' shapes decide, what flags and config.json say."""

from __future__ import annotations

from dataclasses import dataclass, replace

from attncli.errors import InputError


@dataclass(frozen=True)
class Sizes:
    """H query heads, G key/value heads of width D, values Dv; ``notes`` are contradictions."""

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    source: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class RowCounts:
    """How many rows each projection has. ``qkv`` is of a fused weight, ``output`` its inputs H·Dv.

    ``query``, ``key``, ``value`` are None where the weight is fused.
    """

    query: int | None
    key: int | None
    value: int | None
    qkv: int | None
    output: int | None


@dataclass(frozen=True)
class Said:
    """Numbers and where they come from: flags, then the weights' own, then config.json's.

    ``config`` is what to call that: other libraries say it elsewhere.
    """

    flag_heads: int | None = None
    flag_kv_heads: int | None = None
    flag_head_dim: int | None = None
    shape_heads: int | None = None
    shape_head_dim: int | None = None
    config_heads: tuple[str, int] | None = None
    config_kv_heads: tuple[str, int] | None = None
    config_head_dim: tuple[str, int] | None = None
    config: str = "config.json"


def sizes(name: str, rows: RowCounts, said: Said) -> Sizes:
    """Return the sizes, or raise InputError with the flag that settles them."""
    for flag, value in (
        ("--heads", said.flag_heads),
        ("--kv-heads", said.flag_kv_heads),
        ("--head-dim", said.flag_head_dim),
    ):
        if value is not None and value < 1:
            raise InputError(f"{flag} is {value}", "it must be at least 1")
    notes: list[str] = []
    if rows.qkv is not None:
        query = _fused_query_rows(name, rows, said)
    else:
        assert rows.query is not None
        query = rows.query
    heads, source = _heads(name, query, said, notes)
    width = query // heads
    key, value = _key_value_rows(name, rows, query, heads)
    kv_heads = key // width
    if heads % kv_heads or value % kv_heads:
        raise InputError(
            f"{name}: {heads} query heads ({source}) and {kv_heads} key/value heads of width "
            f"{width} do not go together; queries have {query} rows, keys {key}, values {value}",
            "query heads must be a multiple of key/value heads: give another --heads or --head-dim",
        )
    found = Sizes(heads, kv_heads, width, value // kv_heads, source)
    _check_output(name, rows, found)
    if said.flag_kv_heads is not None and said.flag_kv_heads != kv_heads:
        raise InputError(
            f"--kv-heads is {said.flag_kv_heads} but {name} has {kv_heads}: its keys have {key} "
            f"rows of heads {width} wide",
            f"leave --kv-heads out, or give --heads {query * said.flag_kv_heads // key}",
        )
    notes += _contradictions(said, found)
    return replace(found, notes=tuple(dict.fromkeys(notes)))


def _key_value_rows(name: str, rows: RowCounts, query: int, heads: int) -> tuple[int, int]:
    """Return G·D and G·Dv; InputError where heads as wide as the query's do not divide them."""
    width = query // heads
    if rows.qkv is not None:
        rest = rows.qkv - query
        if rest <= 0 or rest % (2 * width):
            raise InputError(
                f"{name}: its fused weight has {rows.qkv} rows, which are not {heads} query heads "
                f"and some pairs of key and value heads, each {width} wide",
                "say how it is divided: --heads, --head-dim, or --arch",
            )
        return rest // 2, rest // 2
    assert rows.key is not None and rows.value is not None
    if rows.key < width or rows.key % width:
        raise InputError(
            f"{name}: its keys have {rows.key} rows, which {heads} query heads of width {width} "
            f"({query} rows) do not divide",
            "heads and key/value heads have one width: give another --heads or --head-dim",
        )
    return rows.key, rows.value


def _check_output(name: str, rows: RowCounts, found: Sizes) -> None:
    if rows.output is None or rows.output == found.heads * found.value_dim:
        return
    gated = rows.output * 2 == found.heads * found.head_dim
    raise InputError(
        f"{name}: its output projection takes {rows.output} inputs but {found.heads} heads give "
        f"{found.heads} × {found.value_dim}",
        "queries are twice as many: gated attention is not supported"
        if gated
        else "give another --heads or --head-dim, or --arch when a fused weight is packed "
        "differently",
    )


def _contradictions(said: Said, found: Sizes) -> list[str]:
    """Return what config.json says otherwise than the weights."""
    return [
        f"{said.config} says {stated[0]} {stated[1]}, the weights {number} {what}: the weights won"
        for what, stated, number in (
            ("heads", said.config_heads, found.heads),
            ("key/value heads", said.config_kv_heads, found.kv_heads),
            ("head width", said.config_head_dim, found.head_dim),
        )
        if stated is not None and stated[1] != number and said.flag_heads is None
    ]


def _fused_query_rows(name: str, rows: RowCounts, said: Said) -> int:
    """Return H·D of a fused weight (H + 2G)·D: as many as the output projection's inputs."""
    assert rows.qkv is not None
    if rows.output is not None:
        return rows.output
    heads = said.flag_heads or said.shape_heads or (said.config_heads or (0, 0))[1]
    width = said.flag_head_dim or said.shape_head_dim or (said.config_head_dim or (0, 0))[1]
    if heads and width:
        return heads * width
    kv_heads = said.flag_kv_heads or (said.config_kv_heads or (0, heads))[1]
    if heads and rows.qkv % (heads + 2 * kv_heads) == 0:
        return rows.qkv // (heads + 2 * kv_heads) * heads
    if rows.qkv % 3:
        raise InputError(
            f"{name}: without an output projection its fused weight of {rows.qkv} rows does not "
            "tell how many are queries",
            "give --heads and --head-dim",
        )
    return rows.qkv // 3


def _heads(name: str, query: int, said: Said, notes: list[str]) -> tuple[int, str]:
    """Return H and where it is from: a flag, a shape that shows it, or config.json."""
    heads, width = said.flag_heads, said.flag_head_dim
    if heads and width and heads * width != query:
        raise InputError(
            f"--heads {heads} × --head-dim {width} is {heads * width}, but the queries of {name} "
            f"have {query} rows",
            f"give one of them: --heads {query // width}" if query % width == 0 else "give one",
        )
    candidates: list[tuple[int, str, str]] = []
    if heads:
        candidates.append((heads, "--heads", ""))
    if width:
        candidates.append((query // width if query % width == 0 else 0, "--head-dim", ""))
    if said.shape_heads:
        candidates.append((said.shape_heads, "the weights", ""))
    if said.shape_head_dim and query % said.shape_head_dim == 0:
        candidates.append((query // said.shape_head_dim, "the weights", ""))
    if said.config_heads:
        candidates.append((said.config_heads[1], said.config, said.config_heads[0]))
    stated = said.config_head_dim
    if stated and query % stated[1] == 0:
        candidates.append((query // stated[1], said.config, stated[0]))
    for number, source, key in candidates:
        if number and query % number == 0:
            return number, source
        if source.startswith("--"):
            raise InputError(
                f"{source} {heads or width} does not divide the {query} query rows of {name}",
                f"it must divide {query}",
            )
        if key:
            notes.append(
                f"{said.config} says {key} {number}, which does not divide {query} query rows"
            )
    raise InputError(
        f"{name}: nothing says how many heads its {query} query rows hold"
        + (f" ({notes[0]})" if notes else ""),
        "give --heads H (and --kv-heads G where there are fewer), --head-dim D, or --config FILE",
    )
