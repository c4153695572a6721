"""Where results go: formats, files, NDJSON."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from attncli.cli import groups
from attncli.cli.groups import SAVED
from attncli.errors import AttnError, FileError, InputError, nearest

if TYPE_CHECKING:
    from attncli import files
    from attncli.attention.view import Labels
    from attncli.reports.blocks import Report


def refuse_lines(
    records: "files.Records", format: str | None, asked: "Mapping[str, object]"
) -> None:
    """Raise InputError for an option that NDJSON has no place for."""
    wishes = [name for name, wish in asked.items() if wish]
    if format not in (None, "json", groups.LINES):
        wishes.append(f"--format {format}")
    if wishes:
        records.close()
        raise InputError(
            f"{wishes[0]} cannot hold the results of NDJSON, one a line",
            "leave it out: the results are NDJSON on standard output",
        )


def stream_answers(
    records: "files.Records", answer: "Callable[[files.Bundle], Report]", command: str = "compute"
) -> None:
    """Print one line of JSON for each record, in order and as it comes; exit 1 if any failed."""
    from attncli import render

    failed = False
    try:
        for record in records:
            try:
                if isinstance(record, AttnError):
                    raise record
                report = answer(record)
            except AttnError as error:
                failed = True
                render.show_error(error, json=True, command=command, line=records.line)
            else:
                render.show_warnings([f"line {records.line}: {w}" for w in report.warnings])
                render.show(report, "ndjson", line=records.line)
                failed = failed or bool(report.exit_code)
    except BrokenPipeError:
        pass  # nobody reads any more: what happened so far decides
    finally:
        records.close()
    raise typer.Exit(1 if failed else 0)


def save(path: str, suffix: str, report: "Report", labels: "Labels") -> None:
    """Write the arrays asked for; JSON and safetensors carry labels and options along."""
    from attncli import files

    extra: dict[str, Any] = {
        f"{role}_tokens": tokens if len(tokens) > 1 else tokens[0]
        for role in ("query", "key")
        if (tokens := getattr(labels, role)) is not None
    }
    files.write(path, report.arrays, extra={**report.options, **extra}, format=suffix)


def format_of(format: str | None, json: bool) -> str:
    """Return the format that ``--format`` and ``--json`` agree on; InputError when they do not."""
    if json and format not in (None, "json"):
        raise InputError(f"--json and --format {format} contradict each other", "give one of them")
    return "json" if json else format or "table"


def names_of(include: str | None, saved: Sequence[str] = SAVED) -> tuple[str, ...] | None:
    """Split the names of ``--include``; InputError for one that is not among ``saved``."""
    if include is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in include.split(",") if name.strip()))
    for name in names:
        if name not in saved:
            raise InputError(f"--include: nothing is called '{name}'", nearest(name, saved))
    if not names:
        raise InputError("--include names nothing", f"name some of {', '.join(saved)}")
    return names


def target_of(
    output: str, names: Sequence[str], *, json: bool, is_terminal: Callable[[], bool]
) -> tuple[str, str]:
    """Return the path and the suffix that ``--output`` means, before anything is computed.

    Raises FileError where nothing can be written.
    """
    from attncli.files.formats import SEVERAL, WRITABLE

    path = "-" if output == "-" or output in {f"-{s}" for s in WRITABLE} else output
    suffix = os.path.splitext(output)[1].lower()
    if path == "-":
        suffix = output[1:] or (".json" if json else ".npz")
    row = WRITABLE.get(suffix)
    if row is None:
        raise FileError(
            f"{output} ends in '{suffix}'" if suffix else f"{output} has no suffix",
            f"the suffix says the format: {', '.join(WRITABLE)}",
        )
    if not row.many and (len(names) > 1 or "row_statistics" in names):
        raise FileError(
            f"{suffix} takes exactly one array, but --include asks for {', '.join(names)}",
            f"write {SEVERAL}",
        )
    if path == "-":
        if row.binary and is_terminal():
            raise FileError(
                f"{suffix} is binary and standard output is a terminal",
                "redirect it (> FILE), or write text: -o -.json",
            )
        return path, suffix
    try:
        folder = os.path.dirname(os.path.realpath(path))
    except FileNotFoundError:
        raise FileError(
            f"{path} cannot be written: the current folder was deleted", "write to a whole path"
        ) from None
    if os.path.isdir(path):
        raise FileError(f"{path} is a folder", f"name a file: {os.path.join(path, 'out.npz')}")
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
    return path, suffix


def keep_inputs(output: str, sources: Collection[str]) -> None:
    """Raise FileError when ``output`` is one of the files that were read, under any name."""
    if output == "-" or not os.path.isfile(output):
        return
    # a reference may name a tensor as well as its file
    for source in dict.fromkeys(s for r in sources for s in (r, r.rpartition("::")[0]) if s):
        if os.path.exists(source) and os.path.samefile(source, output):
            same = "" if source == output else f" (it is {source})"
            raise FileError(f"-o {output} would overwrite an input{same}", "write to another file")


def say(text: str) -> None:
    """Print a line on standard error, if there is one."""
    if sys.stderr is not None:  # print() would take standard output instead
        print(text, file=sys.stderr)


def say_wrote(path: str, names: Collection[str]) -> None:
    """Say on standard error what was written, after all that stands on standard output."""
    if sys.stdout is not None:
        sys.stdout.flush()
    say(f"wrote {path} ({', '.join(names)})")


def check_view(shown: str, *, top: int | None, heatmap: bool, steps: bool) -> None:
    """Raise InputError for ways to show a result that exclude each other."""
    asked = {"--steps": steps, "--heatmap": heatmap, "--top": top is not None}
    named = [name for name, given in asked.items() if given]
    if steps and len(named) > 1:
        raise InputError(f"--steps and {named[1]} are two ways to show a result", "choose one")
    if named and named[0] != "--top" and shown not in ("table", "markdown"):
        raise InputError(
            f"{named[0]} is for people to look at: {shown} has no place for it",
            f"leave out {named[0]}, or --format {shown}",
        )
