"""The door: options, help and exit codes. One file a command.

Exit codes: 0 good, 1 a check failed, 2 usage or bad input, 3 not available, 70 a bug in attncli,
130 interrupted.
"""

from __future__ import annotations

from attncli.cli import cycles as cycles, interrupt  # isort: skip  (first: the rest loads long)
import errno
import os
import re
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from attncli import __version__
from attncli.cli import streams
from attncli.cli.options import built
from attncli.errors import AttnError, FileError, Misuse, TooLarge, Unavailable, closest
from attncli.render import LINES

SURE = 0.75  # how alike a name must be: --quiet is not --query
BUG = 70  # EX_SOFTWARE of sysexits.h
#: What is said where ``compute`` is given more than one thing.
SEVERAL_GIVEN = "tensors in several files: -q, -k and -v; a command to be judged: behind --"
UsageError: Any = typer.BadParameter.__base__  # of click, or of the click inside newer typers

#: What other tools call an option, and how it is said here.
OTHERWISE = {
    "--csv": "--format csv", "--markdown": "--format markdown", "--md": "--format markdown",
    "--html": "--report FILE.html", "--png": "--plot FILE.png", "--svg": "--plot FILE.svg",
    "--padding": "--mask 'padding(3)'", "--window": "--mask 'window(2)'",
    "--temperature": "--scale", "--size": "--length", "-n": "--length",
    "--num-heads": "--heads", "--labels": "--tokens", "--words": "--tokens",
}  # fmt: skip
#: Each is a function of a module of that name.
COMMANDS = ("compute", "mask", "multihead", "inspect")


class Commands(TyperGroup):
    """The commands by name; only the one that is called for is loaded and built."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: dict[str, Any] = dict.fromkeys(COMMANDS)  # for "did you mean"

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command, or None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        if self.commands[cmd_name] is None:
            door = getattr(import_module(f"attncli.cli.{cmd_name}"), cmd_name)
            self.commands[cmd_name] = built(door)
        return self.commands[cmd_name]


app = typer.Typer(
    name="attncli",
    cls=Commands,
    rich_markup_mode=None,  # plain help: calm at 80 columns, and no rich to load
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"attncli {__version__}")
        raise typer.Exit


@app.callback()
def attncli(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Compute and inspect attention: weights, outputs and stability, from files or a pipe.

    \b
    Examples:
      attncli compute qkv.npz --causal
      attncli compute --help

    \b
    Walkthroughs lie in the folder samples/ of the source; a wheel has none:
      learning_attention.md      number by number, to a layer with heads
      is_my_kernel_right.md      from one result of a kernel to a test set
      heads_of_my_model.md       from a model and a sentence to every head
      layers_of_a_checkpoint.md  from its headers to a layer, computed
      masks.md                   from causal to what other libraries take
    """


def main() -> int:
    """Run the program on ``sys.argv`` and return its exit code; never a traceback."""
    arguments = sys.argv[1:]
    streams.hold()
    _hide_warnings()
    if "_ATTNCLI_COMPLETE" in os.environ:
        app(prog_name="attncli")
    code = 0
    with interrupt.watched():
        try:
            code = _run(arguments)
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:
            _drop_stdout()  # whoever read us has seen enough
        except SystemExit:  # from typer's own options
            raise
        except BaseException as error:
            if os.environ.get("ATTNCLI_TRACEBACK"):
                import traceback

                _speaker()
                traceback.print_exc()
            code = _fail(error, arguments)
            try:  # what cannot be printed now would fail once more when Python ends
                if sys.stdout is not None:
                    sys.stdout.flush()
            except OSError:
                _drop_stdout()
    others = sys.modules.get("attncli.cli.ranks")
    return others.leave(code) if others else code


def _hide_warnings() -> None:
    """Keep the warnings of libraries from people, unless somebody asked for them."""
    if not (sys.warnoptions or any(action == "error" for action, *_ in warnings.filters)):
        warnings.simplefilter("ignore")


def _run(arguments: Sequence[str]) -> int:
    """Parse and run; click's own ``main`` would swallow closed pipes and interrupts."""
    command = typer.main.get_command(app)
    try:
        if not arguments:
            arguments = ["--help"]
        with command.make_context("attncli", list(arguments)) as context:
            command.invoke(context)
    except typer.Exit as done:
        return done.exit_code
    return 0


def _fail(error: BaseException, arguments: Sequence[str]) -> int:
    """Say on stderr (or as JSON) what went wrong and return the exit code."""
    if isinstance(error, KeyboardInterrupt | typer.Abort) or interrupt.happened():
        _say("interrupted")
        _drop_stdout()
        return interrupt.INTERRUPTED
    command = next((a for a in arguments if not a.startswith("-")), None)
    known = _usage(error, command) if isinstance(error, UsageError) else _known(error)
    if known is None:
        _say(
            f"{_speaker()}internal error: {type(error).__name__}: {str(error)[:300]}\n"
            "       this is a bug in attncli; run it with ATTNCLI_TRACEBACK=1 to see where"
        )
        _drop_stdout()
        return BUG
    try:
        from attncli import render
        from attncli.cli import ranks

        said = ranks.failed(known)
        if said is None:
            return known.exit_code
        known = said
        json = _wants_json(arguments) and ranks.first()
        render.show_error(known, json=json, command=command)
    except Exception:  # not even the error could be shown
        _say(f"error: {known.message}")
        _drop_stdout()
    return known.exit_code


def _known(error: BaseException) -> AttnError | None:
    """Return what the user can mend, or None for a bug."""
    if isinstance(error, AttnError):
        return error
    if isinstance(error, MemoryError):
        return TooLarge(
            "not enough memory", "compute a part, or leave weights and the like out of --include"
        )
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        where = error.filename or "standard output"
        how = "read or write" if error.filename else "write"
        what = "no space left to write" if full else f"cannot {how}"
        return FileError(f"{what} {where}" + ("" if full else f": {error.strerror or error}"))
    if isinstance(error, ImportError) and not (error.name or "").startswith("attncli"):
        *_, last = str(error).strip().splitlines() or [type(error).__name__]
        return Unavailable(
            f"a library does not load: {last.removeprefix('Original error was: ')[:200]}",
            "give attncli more memory, or install it again",
        )
    return None


def _usage(error: Any, command: str | None) -> Misuse:
    """A usage error in our own words, with the nearest thing that exists."""
    path = error.ctx.command_path if error.ctx else f"attncli {command or ''}".strip()
    names = [n for p in error.ctx.command.params for n in p.opts] if error.ctx else []
    if type(error).__name__ == "NoSuchOption":
        text = f"no such option: {error.option_name}"
        other = OTHERWISE.get(error.option_name, "")
        near = other if other.partition(" ")[0] in names else ""
        near = near or "".join(closest(error.option_name, names, SURE))
    else:
        text, _, near = error.format_message().rstrip(".").partition(". Did you mean ")
        near = near.partition("?")[0]
        file = re.fullmatch("No such command '(.*)'", text)
        if file and os.path.isfile(file[1]):
            near = f"attncli compute {file[1]}"
        lost = re.fullmatch("Invalid value for '(--[^ ']+).*': '(--?[^']+)' is not .*", text)
        if lost and lost[2].partition("=")[0] in names:
            text = f"{lost[1]} has no value: {lost[2]} follows it"
    hint = (f"did you mean {near}? " if near else "") + f"(all options: {path} --help)"
    if command == "compute" and "extra argument" in text:
        hint = SEVERAL_GIVEN
    return Misuse(text[:1].lower() + text[1:], hint)


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether JSON was asked for, by what was typed: the error may be that it cannot be parsed."""
    machine = ("json", LINES)
    pairs = zip(arguments, (*arguments[1:], ""), strict=True)
    return any(
        a in ("--json", *(f"--format={name}" for name in machine))
        or (a == "--format" and b in machine)
        for a, b in pairs
    )


def _speaker() -> str:
    """Let a process of several speak, and return who it is; nothing where it is the only one."""
    others = sys.modules.get("attncli.cli.ranks")
    return others.speaker() if others else ""


def _say(text: str) -> None:
    with suppress(OSError):  # nobody may listen
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)


def _drop_stdout() -> None:
    """Throw away what is left to print, so that Python does not trip over it when it ends."""
    with suppress(OSError, AttributeError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


interrupt.loaded()
