"""``attncli mask``: build, see, combine, check, convert and save masks."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from inspect import cleandoc
from typing import TYPE_CHECKING

from attncli.attention import words
from attncli.cli import groups, output
from attncli.cli.groups import mask as own
from attncli.cli.options import Call, command, mode
from attncli.errors import InputError

if TYPE_CHECKING:
    from attncli.cli.given.masks import GivenMask
    from attncli.reports.blocks import Report


@command(own.DIFFERING)
def mask(
    call: Call,
    expressions: own.Expressions,
    *,
    described: own.Described,
    view: own.ViewAs,
    pictures: groups.Heatmap,
    part: groups.Elements,
    save: groups.Output,
    additive: own.Additive,
    dialect: own.Dialect,
    drawn: groups.Drawn,
    printed: groups.Printed,
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
    if additive.additive and dialect.dialect:
        raise InputError(
            f"--additive and --for {dialect.dialect} contradict each other", "give one"
        )
    page = output.page_of(printed, groups.Saved(**vars(save)), ("attn_mask",), drawn)
    chosen = draw if dialect.dialect is None else translate
    call.check(chosen)
    if pictures.heatmap and view.view is not None:
        raise InputError(f"--heatmap and --view {view.view} are two ways to draw", "choose one")
    output.check_view(page.shown, pictures)

    from attncli.cli.given import masks

    given = masks.gather_mask(expressions, described)
    output.keep_inputs(page, given.sources)
    from attncli import render

    render.show_warnings(given.warnings)
    call.run(chosen, given=given, page=page)


@mode("a picture of the mask")
def draw(
    given: "GivenMask",
    page: output.Page,
    *,
    expressions: list[str],
    described: own.Described,
    view: str | None,
    pictures: groups.Heatmap,
    part: groups.Elements,
    save: groups.Output,
    additive: bool,
    drawn: groups.Drawn,
    printed: groups.Printed,
) -> None:
    """Print the mask as a grid or as readers meet it, and what it keeps."""
    if additive and not (page.target or page.machine):
        raise InputError(
            f"--additive has no use with --format {page.shown}",
            "add -o FILE to save it, or --json",
        )
    from attncli import render
    from attncli.attention.view import View
    from attncli.cli.given.view import selection
    from attncli.reports.mask import mask_report

    extent = given.mask.extent
    chosen = View(
        batch=selection("--batch", part.batch, extent.batch),
        head=selection("--head", part.head, extent.heads),
        heatmap=pictures.heatmap,
    )
    with render.progress("mask") as progress:
        report = mask_report(
            given.mask, given.labels, chosen, tokens_view=view == "tokens",
            against=given.against, additive=additive, keep=page.target is not None,
            progress=progress,
        )  # fmt: skip
    _finish(report, page, printed)


@mode("the words of another library (--for)", "leave it out, or leave out --for")
def translate(
    given: "GivenMask",
    page: output.Page,
    *,
    expressions: list[str],
    described: own.Described,
    save: groups.Output,
    dialect: str,
    printed: groups.Printed,
) -> None:
    """Print, or save, what a library takes in place of the mask."""
    from attncli import render
    from attncli.attention.view import View
    from attncli.reports.mask import mask_report

    with render.progress("mask") as progress:
        report = mask_report(
            given.mask, given.labels, View(), dialect=dialect, against=given.against,
            keep=page.target is not None, progress=progress,
        )  # fmt: skip
    if page.target and not report.arrays:
        render.show_warnings(report.warnings)
        raise InputError(
            f"{dialect} takes this mask as arguments, there is no tensor to save",
            "leave out -o; the arguments are printed",
        )
    _finish(report, page, printed)


def _finish(report: "Report", page: output.Page, printed: groups.Printed) -> None:
    from attncli import files, render

    render.show_warnings(report.warnings)
    if page.target:
        files.write(
            page.target.path, report.arrays, extra=report.options, format=page.target.suffix
        )
        page = page._replace(target=page.target._replace(names=list(report.arrays)))
    output.finish(report, page, printed)


mask.__doc__ = cleandoc(mask.__doc__ or "").replace("{masks}", words.help_lines("  "))
