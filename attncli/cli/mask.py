"""``attncli mask``: build, see, combine, check, convert and save masks."""

import inspect
import sys
from typing import Annotated, Any

import typer

from attncli.attention import words
from attncli.cli import groups, options
from attncli.cli import output as cli_output
from attncli.errors import InputError

MASK = "Mask"
SIZE = "Size"
DIALECTS = ("sdpa", "mha", "onnx", "hf", "flash")


def length_option(*names: str, metavar: str, help: str) -> Any:
    """Return an option that takes a length."""
    return options.option(
        *names, metavar=metavar, panel=SIZE, callback=options.at_least_zero, help=help
    )


Expressions = Annotated[
    list[str],
    typer.Argument(
        metavar="EXPR...", show_default=False,
        help="Mask expressions, or files with a mask tensor; all must allow.",
    ),
]  # fmt: skip
Length = Annotated[
    int | None, length_option("--length", "-l", metavar="L", help="Queries and keys.")
]
QueryLength = Annotated[int | None, length_option("--query-length", metavar="LQ", help="Queries.")]
KeyLength = Annotated[int | None, length_option("--key-length", metavar="LK", help="Keys.")]
BatchSize = Annotated[
    int | None,
    options.option(
        "--batch-size",
        metavar="B",
        panel=SIZE,
        callback=options.at_least_one,
        help="Batch elements (default: what the mask says).",
    ),
]
HeadCount = Annotated[
    int | None,
    options.option(
        "--heads",
        metavar="H",
        panel=SIZE,
        callback=options.at_least_one,
        help="Heads (default: what the mask says).",
    ),
]
Past = Annotated[
    int | None,
    length_option("--past", metavar="N", help="Keys that a cache holds before the new ones."),
]
KvLengths = Annotated[
    str | None,
    options.option(
        "--kv-lengths", metavar="LIST", panel=SIZE, help="Valid keys of each batch element."
    ),
]
ViewAs = Annotated[
    str | None,
    options.option(
        "--view", **options.one_of("grid", "tokens"), panel=groups.SHOW,
        help="A grid, or the tokens as each query meets them.",
    ),
]  # fmt: skip
Against = Annotated[
    str | None,
    options.option(
        "--against", metavar="EXPR", panel=MASK,
        help="Compare with another mask cell by cell; exit 1 where they differ.",
    ),
]  # fmt: skip
Dialect = Annotated[
    str | None,
    options.option(
        "--for", **options.one_of(*DIALECTS), panel=groups.SAVE,
        help="Say it as another library takes it: tensors (with its polarity and dtype) or "
        "arguments.",
    ),
]  # fmt: skip
Additive = Annotated[
    bool,
    options.option(
        "--additive", panel=groups.SAVE, help="Save float: 0 where kept, -inf where hidden."
    ),
]
Output = Annotated[
    str | None,
    options.option(
        "--output", "-o", metavar="FILE", panel=groups.SAVE,
        help="Save the mask, bool True = keep, as attn_mask (or as --for says).",
    ),
]  # fmt: skip


def mask(
    expressions: Expressions,
    length: Length = None,
    query_length: QueryLength = None,
    key_length: KeyLength = None,
    batch_size: BatchSize = None,
    heads: HeadCount = None,
    past: Past = None,
    kv_lengths: KvLengths = None,
    tokens: groups.Tokens = None,
    query_tokens: groups.QueryTokens = None,
    key_tokens: groups.KeyTokens = None,
    mask_polarity: groups.MaskPolarity = None,
    against: Against = None,
    view: ViewAs = None,
    batch: groups.Batch = None,
    head: groups.Head = None,
    output: Output = None,
    additive: Additive = False,
    dialect: Dialect = None,
    format: groups.Format = None,
    json: groups.Json = False,
    color: groups.Color = None,
    no_color: groups.NoColor = False,
) -> None:
    """Build, see, combine, check, convert and save masks.

    An expression joins masks with & (both allow), | (either) and ~ (not); biases join with +.
    Query i sees key j where the mask allows it; o is the position of query 0 among the keys:

    \b
    {masks}

    With as many queries as keys o is 0. Otherwise say which corner: causal(top_left) is o = 0,
    causal(bottom_right) lets the last query stand at the last key; window(2, 0, top_left) alike.

    \b
    Examples:
      attncli mask causal --tokens '<BOS> I like you'
      attncli mask causal --tokens '<BOS> I like you' --view tokens
      attncli mask 'causal & (window(1024) | prefix(4))' --length 4096
      attncli mask 'causal & padding(3, 2)' --length 4 --for mha -o mask.npz
      attncli mask mask.npy --against 'causal & window(128)'
    """
    shown = cli_output.format_of(format, json)
    target = None
    if output is not None:
        target = cli_output.target_of(
            output, ("attn_mask",), json=shown == "json", is_terminal=sys.stdout.isatty
        )
    if additive and dialect:
        raise InputError(f"--additive and --for {dialect} contradict each other", "give one")

    from attncli import files, render
    from attncli.attention.view import View
    from attncli.cli.given import masks
    from attncli.cli.given import view as given_view
    from attncli.reports import mask as report_mask

    given = masks.gather_mask(
        expressions, against=against, length=length, query_length=query_length,
        key_length=key_length, batch=batch_size, heads=heads, past=past, kv_lengths=kv_lengths,
        tokens=tokens, query_tokens=query_tokens, key_tokens=key_tokens, polarity=mask_polarity,
    )  # fmt: skip
    if target:
        cli_output.keep_inputs(target[0], given.sources)
    extent = given.mask.extent
    chosen = View(
        batch=given_view.selection("--batch", batch, extent.batch),
        head=given_view.selection("--head", head, extent.heads),
    )
    with render.progress("mask") as progress:
        report = report_mask.mask_report(
            given.mask, given.labels, chosen, tokens_view=view == "tokens", dialect=dialect,
            against=given.against, additive=additive, keep=target is not None, progress=progress,
        )  # fmt: skip
    render.show_warnings(report.warnings)
    if target:
        if not report.arrays:
            raise InputError(
                f"{dialect} takes this mask as arguments, there is no tensor to save",
                "leave out -o; the arguments are printed",
            )
        files.write(target[0], report.arrays, format=target[1])
    if target is None or target[0] != "-":
        render.show(report, shown, color="never" if no_color else color or "auto")
    if target and target[0] != "-":
        cli_output.say_wrote(target[0], list(report.arrays))
    raise typer.Exit(report.exit_code)


mask.__doc__ = inspect.cleandoc(mask.__doc__ or "").replace("{masks}", words.help_lines("  "))
