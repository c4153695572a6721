"""One command in several processes, as torchrun starts them: one of them speaks for all.

All read, pose and compute alike, each its share. Before they compute they agree: where one cannot,
or sees other tensors than process 0, none goes on.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import typer

from attncli.cli import output
from attncli.cli.interrupt import INTERRUPTED
from attncli.errors import AttnError, FileError, InputError, TooLarge, counted, series
from attncli.render import LINES

if TYPE_CHECKING:
    from attncli.attention.problem import Problem
    from attncli.studies.ranks import Ranks

FAILED = "!"
PATIENCE = 3.0  # seconds that process 0 may take to say what is wrong

_ranks: Ranks | None = None
_agreed = False
_stderr: Any = None


def start(device: str) -> Ranks:
    """Join the others, once; all but process 0 are silent from here on."""
    global _ranks, _stderr
    if _ranks is None:
        from attncli.studies.ranks import Ranks

        _ranks = Ranks(device)
        if _ranks.rank:
            _stderr, nowhere = sys.stderr, open(os.devnull, "w")  # noqa: SIM115
            sys.stdout = sys.stderr = nowhere
        if _ranks.ranks > 1:
            sys.stdin = cast(Any, _Divided(_ranks.ranks))
        _demand_one_command(_ranks.texts(shlex.join(sys.argv[1:])))
    return _ranks


def meet(axis: str | None, device: str) -> None:
    """Join the others before anything is read, so that what goes wrong is said once."""
    if axis is not None:
        from attncli.studies.ranks import started

        if started():
            start(device)


def _demand_one_command(typed: list[str]) -> None:
    """Raise InputError unless all do the same: else they would wait for each other for ever."""
    for rank, other in enumerate(typed):
        if other != typed[0]:
            raise InputError(
                f"processes were given different commands: '{typed[0]}', and '{other}' in process "
                f"{rank}",
                "type the same on every machine",
            )


class _Divided:
    """Standard input of several processes: each would get some of it."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    @property
    def buffer(self) -> Any:
        """Raise InputError."""
        raise InputError(
            f"standard input cannot be read by {self.ranks} processes", "give a file that all see"
        )

    def isatty(self) -> bool:
        """Nobody types."""
        return False


def demand(axis: str | None, what: str, *able: str) -> None:
    """Raise InputError for an axis along which ``what`` is not divided."""
    if axis is not None and axis not in able:
        words = series([f"--shard {one}" for one in able], "or")
        raise InputError(f"--shard {axis} has no use in {what}", f"say {words}")


def by_layers(
    axis: str | None, what: str, device: str, page: output.Page | None = None
) -> Ranks | None:
    """Return the exchange of processes that divide the layers of ``what``, None for none.

    ``agreed`` is to be called when each knows what it has before it. Raises InputError for a
    ``page`` that holds more of each layer than its statistics: no process has it of all.
    """
    if axis is None:
        return None
    demand(axis, what, "layers")
    more = {"-o": page and page.target, "--report": page and "report" in page.pictures}
    more["--format ndjson"] = page and page.shown == LINES
    for flag, there in more.items():
        if there:
            raise InputError(
                f"{flag} has no use with --shard layers: no process has all layers",
                "leave one of the two out",
            )
    return start(device)


def agreed(ranks: Ranks | None, what: str, layers: int) -> None:
    """Go on only if all have found as many layers, and there is one for each."""
    if ranks is None:
        return
    if ranks.ranks > layers:
        raise InputError(too_many(ranks.ranks, layers, "layers"), _fewer("layers", layers))
    agree(f"{what}, {counted(layers, 'layer')}")


def divided(axis: str | None, device: str, pose: Callable[[], Problem]) -> Problem:
    """Return a problem that is divided among all processes, or whole where none is asked for.

    Raises what ``pose`` raises, and InputError where there are more processes than parts or one
    poses another problem than process 0.
    """
    if axis is None:
        return pose()
    from attncli.attention.shares import AXES, Share
    from attncli.studies.partial import facts

    demand(axis, "one problem", *AXES)
    ranks = start(device)
    problem = pose()
    if not problem.scored:
        raise InputError(
            "attention weights alone are not divided: whole rows of them are looked at",
            "leave --shard out",
        )
    share = Share(axis, ranks.rank, ranks.ranks, ranks)
    parts = {"keys": problem.keys, "heads": problem.heads, "batch": problem.batch}[axis]
    if ranks.ranks > parts:
        raise InputError(too_many(ranks.ranks, parts, axis), _fewer(axis, parts))
    agree("\n".join(facts(problem)))
    return replace(problem, share=share)


def too_many(ranks: int, parts: int, axis: str) -> str:
    """Return the message for more processes than parts."""
    one = {"keys": "key", "heads": "head", "batch": "batch element", "layers": "layer"}[axis]
    return f"{counted(ranks, 'process', 'processes')} but only {counted(parts, one)} to divide"


def _fewer(axis: str, parts: int) -> str:
    other = "" if axis in ("keys", "layers") else ", or divide the keys: --shard keys"
    return f"start at most {parts}: torchrun --nproc-per-node {parts}{other}"


def agree(facts: str) -> None:
    """Go on only if all processes got here and say the same; else all end with the first error."""
    global _agreed
    assert _ranks is not None
    said = _ranks.texts(facts)
    _agreed = True
    for rank, text in enumerate(said):
        if text.startswith(FAILED):
            message, _, hint = text[len(FAILED) :].partition("\n")
            raise InputError(f"process {rank}: {message}", hint or None)
    from attncli.studies.partial import apart

    for rank, text in enumerate(said):
        first = apart(said[0].splitlines(), text.splitlines())
        if first:
            raise InputError(
                f"processes see different problems: {first[0]} in process 0, {first[1]} in "
                f"process {rank}",
                "each must read the same files: give paths that are the same on every machine",
            )


def failed(error: AttnError) -> AttnError | None:
    """Tell the others of an error, and return what this process says of it, None for nothing.

    Where all fail before they have agreed, process 0 speaks; before they have met, and later, each,
    but what may be the error of all it says first: torchrun then ends the others.
    """
    rank = os.environ.get("RANK", "0")
    if _ranks is None and rank == "0":
        return error
    from attncli.studies.ranks import Lost, launched

    if _ranks is None:
        if launched() > 1:
            if _of_all(error):
                time.sleep(PATIENCE)
            error.message = f"process {rank}: {error.message}"
        return error

    if not (_agreed or isinstance(error, Lost)):
        with suppress(AttnError):
            agree(FAILED + str(error))
        return None if _ranks.rank else error
    if _of_all(error) and _ranks.rank:
        time.sleep(PATIENCE)
    who = speaker()
    if not isinstance(error, Lost):  # which says itself who lost whom
        error.message = who + error.message
    return error


def _of_all(error: AttnError) -> bool:
    """Whether the others may fail of the same."""
    return isinstance(error, InputError | FileError) and not isinstance(error, TooLarge)


def first() -> bool:
    """Whether this process has standard output."""
    return not (_ranks and _ranks.rank)


def speaker() -> str:
    """Let this process be heard, and return words that say which it is: none for process 0."""
    sys.stderr = _stderr or sys.stderr
    return f"process {_ranks.rank}: " if _ranks and _ranks.rank else ""


def leave(code: int) -> int:
    """Return the exit code; end at once where there are others, whose threads may still wait.

    torchrun ends all when the first fails: who has said nothing lets process 0 speak.
    """
    if _ranks is None:
        return code
    if code not in (0, INTERRUPTED) and _ranks.rank and sys.stderr is not _stderr:
        time.sleep(PATIENCE)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, AttributeError):
            stream.flush()
    os._exit(code)


def rest() -> None:
    """End all processes but the one that speaks: everything is computed."""
    if _ranks is not None and _ranks.rank:
        raise typer.Exit
