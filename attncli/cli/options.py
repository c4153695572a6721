"""Kinds of options, and help in groups."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from typing import Any

import typer
from typer.core import TyperCommand

from attncli.errors import InputError, nearest


class Command(TyperCommand):
    """A command whose help lists its options group by group, in plain text."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each ``rich_help_panel``, in the order of the options."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record:
                name = "Arguments" if param.param_type_name == "argument" else "Help"
                panel = getattr(param, "rich_help_panel", None) or name
                groups.setdefault(panel, []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records, col_max=26)


def one_of(*words: str, metavar: str | None = None) -> dict[str, Any]:
    """Return the settings of an option that takes one of ``words``."""

    def check(param: typer.CallbackParam, word: str | None) -> str | None:
        if word is not None and word not in words:
            raise InputError(f"unknown {param.opts[0]} '{word}'", nearest(word, words))
        return word

    return {
        "metavar": metavar or "|".join(words),
        "callback": check,
        "autocompletion": lambda: list(words),
    }


def at_least_one(param: typer.CallbackParam, number: int | None) -> int | None:
    """Let positive integers and None pass, as an option's callback."""
    if number is not None and number < 1:
        raise InputError(f"{param.opts[0]} is {number}", "it must be at least 1")
    return number


def at_least_zero(param: typer.CallbackParam, number: int | None) -> int | None:
    """Let integers from 0 on and None pass, as an option's callback."""
    if number is not None and number < 0:
        raise InputError(f"{param.opts[0]} is {number}", "it must be at least 0")
    return number


def option(*names: str, help: str, panel: str, **settings: Any) -> Any:
    """Return a Typer option in a group of the help, without its default."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **settings)
