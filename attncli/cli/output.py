"""Where results go: formats, files, NDJSON."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from attncli.cli.groups import Drawn, Format, Heatmap, Printed, Saved
from attncli.errors import AttnError, FileError, InputError, nearest, series
from attncli.render import LINES
from attncli.reports.words import INCLUDABLE

if TYPE_CHECKING:
    from attncli import files
    from attncli.attention.view import Labels
    from attncli.reports.blocks import Report


NONE: Mapping[str, str] = MappingProxyType({})


class Target(NamedTuple):
    """Where ``--output`` points: a path or ``-``, its suffix, the names to save there."""

    path: str
    suffix: str
    names: Sequence[str]

    @property
    def replaces_report(self) -> bool:
        """Whether standard output carries the file and not the report."""
        return self.path == "-"


class Page(NamedTuple):
    """What the options of the output mean: the format, the arrays asked for, the file."""

    shown: str
    names: Sequence[str] | None = None
    target: Target | None = None
    quiet: bool = False
    pictures: Mapping[str, str] = NONE  # kinds of PICTURES, and files to draw to

    @property
    def machine(self) -> bool:
        """Whether a program reads the report."""
        return self.shown in ("json", LINES)


def page_of(
    printed: Format,
    saved: Saved | None = None,
    known: Sequence[str] = INCLUDABLE,
    drawn: Drawn | None = None,
) -> Page:
    """Return what the options of the output mean, before anything is computed.

    ``known`` are the arrays there are; the first of them is saved unless told. Raises InputError
    or FileError for what cannot be.
    """
    shown, pictures = format_of(printed), pictures_of(drawn)
    if pictures and shown == LINES:
        raise InputError(f"--{next(iter(pictures))} has no use in {IN_LINES}", LINES_HINT)
    if saved is None:
        return Page(shown, pictures=pictures)
    names = names_of(saved.include, known)
    target = target_of(saved.output, names or known[:1], shown)
    if saved.quiet and not pictures and (target is None or target.replaces_report):
        why = "without -o FILE" if target is None else f"with -o {saved.output}"
        raise InputError(f"--quiet has no use {why}", "with -o FILE it leaves out the table")
    return Page(shown, names, target, saved.quiet, pictures)


def pictures_of(drawn: Drawn | None) -> dict[str, str]:
    """Return the files to draw to, by kind, before anything is computed.

    Raises FileError where nothing can be written, Unavailable where nothing can be drawn.
    """
    from attncli.render import PICTURES

    asked = {kind: getattr(drawn, kind, None) for kind in PICTURES}
    found = {kind: path for kind, path in asked.items() if path is not None}
    for kind, path in found.items():
        suffix = os.path.splitext(path)[1].lower()
        if suffix not in PICTURES[kind]:
            what = f"{path} ends in '{suffix}'" if suffix else f"{path} has no suffix"
            hint = f"the suffix says the format: {series(PICTURES[kind], 'or')}"
            raise FileError(f"--{kind}: {what}", hint)
        _demand_writable(path)
    if "plot" in found:
        from attncli.render.plot import demand

        demand()
    return found


def demand_place(page: Page, *tables: str) -> None:
    """Raise InputError when what ``--include`` names would be seen nowhere.

    ``tables`` are the formats besides JSON that have a place for it.
    """
    if page.names and not (page.target or page.machine or page.shown in tables):
        raise InputError(
            f"--include has no use with --format {page.shown}", "add -o FILE to save it, or --json"
        )


IN_LINES = "NDJSON, answered line by line"
LINES_HINT = "leave it out: the results are NDJSON on standard output"


def demand_lines(format: str | None) -> None:
    """Raise InputError for a ``--format`` that cannot hold answers line by line."""
    if format not in (None, "json", LINES):
        raise InputError(f"--format {format} has no use in {IN_LINES}", LINES_HINT)


def stream_answers(
    records: "files.Records",
    answer: "Callable[[files.Bundle], Report]",
    command: str = "compute",
    heard: "Callable[[files.Bundle], None]" = lambda line: None,
) -> None:
    """Print one line of JSON for each record, in order and as it comes; exit 1 if any failed.

    ``heard`` takes each line as it is read, several before the first of them is answered.
    """
    failed = False
    try:
        for some in records.together(heard):
            for line, record in some:
                good = _print_answer(line, record, answer, command)
                failed = failed or not good
    except BrokenPipeError:
        pass  # nobody reads any more: what happened so far decides
    finally:
        records.close()
    raise typer.Exit(1 if failed else 0)


def _print_answer(
    line: int,
    record: "files.Bundle | AttnError",
    answer: "Callable[[files.Bundle], Report]",
    command: str,
) -> bool:
    """Print the answer to a line, or the error in its place; return whether all is well."""
    from attncli import render

    which: dict[str, Any] = {"line": line}
    try:
        if isinstance(record, AttnError):
            raise record
        which |= {"id": record.options["id"]} if "id" in record.options else {}
        report = answer(record)
    except AttnError as error:
        render.show_error(error, json=True, command=command, **which)
        return False
    render.show_warnings([f"line {line}: {w}" for w in report.warnings])
    render.show(report, "ndjson", which=which)
    return not report.exit_code


def save(target: Target, report: "Report", labels: "Labels") -> None:
    """Write the arrays asked for; JSON and safetensors carry labels and options along.

    Where the format has no place for what makes them a whole problem, a warning names it.
    """
    from attncli import files, render
    from attncli.files.formats import WRITABLE
    from attncli.reports.facts import tokens_of
    from attncli.studies.bundle import demand_lists, flags_of

    tokens = tokens_of(labels)
    if target.suffix == ".json" and report.options:
        demand_lists(report.arrays)
    files.write(
        target.path, report.arrays, extra={**report.options, **tokens}, format=target.suffix
    )
    if report.options and not WRITABLE[target.suffix].options:
        lost = ", nor ".join(["no options", *tokens])
        flags = flags_of(report.options)
        render.show_warnings([f"{target.path} holds {lost}: read it with {flags}"])


def conclude(report: "Report", labels: "Labels", page: Page, printed: Printed) -> None:
    """Say what is to be warned about, save what is to be saved, and ``finish``."""
    from attncli import render

    render.show_warnings(report.warnings)
    if page.target:
        save(page.target, report, labels)
    finish(report, page, printed)


def finish(report: "Report", page: Page, printed: Printed) -> None:
    """Print what is to be printed of a report whose arrays are saved, and end with its code.

    Where a file was written, standard output may be closed.
    """
    from attncli import render

    target = page.target
    if page.pictures:
        _draw(report, page.pictures)
    written = target is not None or page.pictures
    carried = target is not None and target.replaces_report
    if not (carried or page.quiet or (written and sys.stdout is None)):
        render.show(report, page.shown, color=printed.when)
    else:
        for line in report.asides:
            say(line)
    if target and not target.replaces_report:
        say_wrote(target.path, target.names)
    for path in page.pictures.values():
        say_wrote(path)
    raise typer.Exit(report.exit_code)


def _draw(report: "Report", kinds: Mapping[str, str]) -> None:
    """Draw a report to files, by kind; what they show is made once."""
    from attncli import render
    from attncli.resources import stages

    with render.progress("pictures") as progress:
        made, *drawn = stages(progress, [2, *[1] * len(kinds)])
        if report.pictures is not None:
            pictures = report.pictures(made)
            report = report._replace(pictures=lambda: pictures)
        for (kind, path), done in zip(kinds.items(), drawn, strict=True):
            render.draw(report, kind, path)
            if done is not None:
                done(1)


def format_of(asked: Format) -> str:
    """Return the format that ``--format`` and ``--json`` agree on; InputError when they do not."""
    if asked.json and asked.format not in (None, "json"):
        raise InputError(
            f"--json and --format {asked.format} contradict each other", "give one of them"
        )
    return "json" if asked.json else asked.format or "table"


def names_of(include: str | None, saved: Sequence[str] = INCLUDABLE) -> tuple[str, ...] | None:
    """Split the names of ``--include``; InputError for one that is not among ``saved``."""
    if include is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in include.split(",") if name.strip()))
    for name in names:
        if name not in saved:
            raise InputError(f"--include: nothing is called '{name}'", nearest(name, saved))
    if not names:
        some = "some of " if len(saved) > 1 else ""
        raise InputError("--include names nothing", f"name {some}{', '.join(saved)}")
    return names


def target_of(output: str | None, names: Sequence[str], shown: str) -> Target | None:
    """Return what ``--output`` means, before anything is computed; None where it is not given.

    ``names`` are the arrays to save, ``shown`` the report's format. Raises FileError where nothing
    can be written.
    """
    if output is None:
        return None
    from attncli.files.formats import SEVERAL, WRITABLE

    suffix = os.path.splitext(output)[1].lower()
    piped = output == "-" or output in {f"-{s}" for s in WRITABLE}
    if piped:
        suffix = output[1:] or (".json" if shown in ("json", LINES) else ".npz")
    row = WRITABLE.get(suffix)
    if row is None:
        hint = f"the suffix says the format: {', '.join(WRITABLE)}"
        if suffix in (".jsonl", ".ndjson"):
            hint += f"\nanswers to NDJSON stand on standard output: > {output}"
        raise FileError(
            f"{output} ends in '{suffix}'" if suffix else f"{output} has no suffix", hint
        )
    if not row.many and (len(names) > 1 or "row_statistics" in names):
        raise FileError(
            f"{suffix} takes exactly one array, but --include asks for {', '.join(names)}",
            f"write {SEVERAL}",
        )
    if not piped:
        _demand_writable(output)
    elif row.binary and sys.stdout is not None and sys.stdout.isatty():
        raise FileError(
            f"{suffix} is binary and standard output is a terminal",
            "redirect it (> FILE), or write text: -o -.json",
        )
    return Target("-" if piped else output, suffix, names)


def _demand_writable(path: str) -> None:
    """Raise FileError unless a file can be written there."""
    try:
        folder = os.path.dirname(os.path.realpath(path))
    except FileNotFoundError:
        raise FileError(
            f"{path} cannot be written: the current folder was deleted", "write to a whole path"
        ) from None
    if os.path.isdir(path):
        suffix = os.path.splitext(path)[1].lower()
        raise FileError(f"{path} is a folder", f"name a file: {os.path.join(path, 'out' + suffix)}")
    if not os.path.isdir(folder):
        link = f"{path} is a link into a folder that is not there: " if os.path.islink(path) else ""
        named = folder if link else os.path.dirname(path)
        raise FileError(
            f"{link}{named}" if link else f"no such folder: {named}",
            f"make it first: mkdir -p {named}",
        )
    there = os.path.exists(path)
    writable = os.access(path if there else folder, os.W_OK)
    if not writable or (os.path.isfile(path) and not os.access(folder, os.W_OK)):
        raise FileError(f"no permission to write {path}", "choose another folder")


def keep_inputs(page: Page, sources: Collection[str]) -> None:
    """Raise FileError when a file to write is one of those that were read, under any name."""
    written = {f"--{kind}": path for kind, path in page.pictures.items()}
    if page.target is not None and not page.target.replaces_report:
        written["-o"] = page.target.path
    for flag, output in written.items():
        if not os.path.isfile(output):
            continue
        # a reference may name a tensor as well as its file
        for source in dict.fromkeys(s for r in sources for s in (r, r.rpartition("::")[0]) if s):
            if os.path.exists(source) and os.path.samefile(source, output):
                same = "" if source == output else f" (it is {source})"
                raise FileError(
                    f"{flag} {output} would overwrite an input{same}", "write to another file"
                )


def say(text: str) -> None:
    """Print a line on standard error, if there is one."""
    if sys.stderr is not None:  # print() would take standard output instead
        from attncli.render.cells import escaped

        print(escaped(text), file=sys.stderr)


def say_wrote(path: str, names: Collection[str] = ()) -> None:
    """Say on standard error what was written, after all that stands on standard output."""
    if sys.stdout is not None:
        sys.stdout.flush()
    say(f"wrote {path}" + (f" ({', '.join(names)})" if names else ""))


def say_waiting(example: str, *references: str | None) -> None:
    """Say on standard error what is expected when it is read from a keyboard."""
    if "-" in references and sys.stdin is not None and sys.stdin.isatty():
        say(f"reading {example} from the keyboard; Ctrl-D ends it")


def check_view(
    shown: str, pictures: Heatmap, *, top: int | None = None, steps: bool = False
) -> None:
    """Raise InputError for ways to show a result that exclude each other."""
    heatmap, scale = pictures.heatmap, getattr(pictures, "scale_by", None)
    if scale is not None and not heatmap:
        raise InputError(f"--scale-by {scale} has no use without --heatmap", "add --heatmap")
    asked = {"--steps": steps, "--heatmap": heatmap, "--top": top is not None}
    named = [name for name, given in asked.items() if given]
    if steps and len(named) > 1:
        raise InputError(f"--steps and {named[1]} are two ways to show a result", "choose one")
    if named and named[0] != "--top" and shown not in ("table", "markdown"):
        raise InputError(
            f"{named[0]} is for people to look at: {shown} has no place for it",
            f"leave out {named[0]}, or --format {shown}",
        )
