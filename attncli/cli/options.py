"""How options are declared in groups, how a command is called, how its help is written.

A ``Group`` owns options; a ``command`` lists its groups in its signature, and a ``mode`` those
that it reads: whatever else was typed, ``Call.run`` refuses.
"""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

import os
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from inspect import Parameter, get_annotations, signature
from typing import Annotated, Any, ClassVar, NamedTuple, Self, dataclass_transform

import typer
from typer.core import TyperCommand

from attncli.errors import InputError, nearest

ARGUMENTS = "Arguments"
STATES = "Hidden states (REF is PATH, PATH::NAME or - for standard input)"
SIZE = "Size"
TENSORS = "Tensors (REF is PATH, PATH::NAME or - for standard input)"
WEIGHTS = "Weights"
MASK = "Mask"
ATTENTION = "Attention"
ROPE = "Rotary positions"
MODEL = "A model and a text"
HEALTH = "Health"
FILE = "Any tensor file"
ENGINE = "Engine"
CHECK = "Check"
SHOW = "What to show"
SAVE = "Output"
HELP = "Help"
#: The sections of every ``--help``, in their order.
PANELS = (
    ARGUMENTS, STATES, SIZE, TENSORS, WEIGHTS, MASK, ATTENTION, ROPE, MODEL, HEALTH, FILE, ENGINE,
    CHECK, SHOW, SAVE, HELP,
)  # fmt: skip

LARGEST = 2**53  # of a whole number
FILES = "merge"  # the option with which words behind the first are more files
COMMAND = "command"  # the argument that is a program to run, and all of what stands behind --
BATCH = """a batch is a file with a list for each element: --tokens @FILE with \
[["the", "cat"], ["a", "dog"]]"""

# -- declaring --------------------------------------------------------------------------------


def option(*names: str, **settings: Any) -> Any:
    """Return a Typer option; a group says its long name and its place in the help.

    ``names`` are short ones, or all when one of them is long.
    """
    return typer.Option(*names, show_default=False, **settings)


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


def at_least(low: int) -> Callable[[typer.CallbackParam, int | None], int | None]:
    """Return an option's callback that lets integers from ``low`` on and None pass.

    They end where float64 counts no more, long before the longest tensor.
    """

    def check(param: typer.CallbackParam, number: int | None) -> int | None:
        if number is not None and not low <= number <= LARGEST:
            most = number > LARGEST
            raise InputError(
                f"{param.opts[0]} is {number}",
                f"it must be at most {LARGEST}" if most else f"it must be at least {low}",
            )
        return number

    return check


def tolerance(param: typer.CallbackParam, number: float | None) -> float | None:
    """Let numbers from 0 on and None pass."""
    if number is not None and not 0 <= number < float("inf"):
        raise InputError(f"{param.opts[0]} is {number:g}", "expected a number, 0 or more")
    return number


at_least_zero, at_least_one = at_least(0), at_least(1)


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Group:
    """Options that belong together, and what the command line says of them.

    ``class Rope(Group, panel="Rotary positions")`` declares one a line:
    ``rope_theta: Annotated[float | None, option(help=…)] = None`` is ``--rope-theta``. A group of
    groups has the options of all, in the order of its bases. What nobody said is the class's own
    attribute, the default.
    """

    members: ClassVar[dict[str, Parameter]] = {}

    def __init_subclass__(cls, panel: str | None = None) -> None:
        members: dict[str, Parameter] = {}
        for base in cls.__bases__:
            members |= base.members  # type: ignore[attr-defined]
        for name, annotation in get_annotations(cls).items():
            info = annotation.__metadata__[0]
            names = tuple(n for n in (info.default, *(info.param_decls or ())) if n is not ...)
            if not any(n.startswith("--") for n in names):
                names = (f"--{name.replace('_', '-')}", *names)
            info.default, info.param_decls, info.rich_help_panel = ..., names, panel
            members[name] = Parameter(
                name, Parameter.KEYWORD_ONLY, default=getattr(cls, name), annotation=annotation
            )
        cls.members = members

    def __init__(self, **said: Any) -> None:
        vars(self).update(said)

    def but(self, **said: Any) -> Self:
        """Return the same with some options said otherwise."""
        return type(self)(**{**vars(self), **said})


def members(function: Callable[..., Any]) -> dict[str, Parameter]:
    """Return the parameters of a signature by name, those of its groups one by one."""
    found: dict[str, Parameter] = {}
    for parameter in signature(function).parameters.values():
        group = _group(parameter)
        found |= group.members if group else {parameter.name: parameter}
    return found


def _group(parameter: Parameter) -> type[Group] | None:
    kind = parameter.annotation
    return kind if isinstance(kind, type) and issubclass(kind, Group) else None


# -- calling ----------------------------------------------------------------------------------


class Mode(NamedTuple):
    """One of the things that a command does; the signature of ``body`` is all that it reads."""

    body: Callable[..., None]
    words: str
    hint: str
    hints: Mapping[str, str]  # of single options, by name

    @property
    def used(self) -> frozenset[str]:
        """The names of the options that have a use here."""
        return frozenset(members(self.body))


def mode(
    words: str, hint: str = "leave it out", **hints: str
) -> Callable[[Callable[..., None]], Mode]:
    """Make a Mode of a function; ``words`` end the sentence '--x has no use in …'.

    Its parameters are groups, options by name, and what ``Call.run`` is given besides. ``hints``
    are those of single options.
    """
    return lambda body: Mode(body, words, hint, hints)


class Call(NamedTuple):
    """One call of a command: every option's value by name, and the typed ones as typed."""

    values: Mapping[str, Any]
    typed: Mapping[str, str]

    def run(self, mode: Mode, *, hint: str | None = None, **more: Any) -> None:
        """Do what ``mode`` does, or raise InputError for an option that it would not read."""
        self.check(mode, hint)
        mode.body(**self.pack(mode.body, more))

    def check(self, mode: Mode, hint: str | None = None) -> None:
        """Raise InputError for a typed option that has no use in ``mode``."""
        used = mode.used
        for name, flag in self.typed.items():
            if name not in used:
                raise InputError(
                    f"{flag} has no use in {mode.words}", hint or mode.hints.get(name, mode.hint)
                )

    def pack(self, function: Callable[..., Any], more: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of ``function``: ``more``, its groups, its single options."""
        values = {**self.values, **more}
        return {
            name: group(**{n: values[n] for n in group.members})
            if (group := _group(parameter))
            else values[name]
            for name, parameter in signature(function).parameters.items()
        }


def said(**settings: Any) -> dict[str, Any]:
    """Return what a command says differently of an option: its help, metavar, panel …"""
    return {"rich_help_panel" if k == "panel" else k: value for k, value in settings.items()}


def command(
    differing: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function that takes a Call and groups into one that Typer can read.

    ``differing`` holds, by option, what this command says differently of it.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        first, *options = members(function).values()
        shown = [_differing(p, (differing or {}).get(p.name)) for p in options]
        context = first.replace(annotation=typer.Context)

        def door(**values: Any) -> None:
            call = _call(values.pop(first.name), values)
            if "RANK" in os.environ:
                from attncli.studies.ranks import demand_division

                demand_division(call.values)
            function(**call.pack(function, {first.name: call}))

        door.__name__, door.__doc__ = function.__name__, function.__doc__
        door.__module__ = function.__module__
        door.__annotations__ = {p.name: p.annotation for p in (context, *shown)}
        door.__signature__ = signature(function).replace(  # type: ignore[attr-defined]
            parameters=[p.replace(kind=Parameter.KEYWORD_ONLY) for p in (context, *shown)]
        )
        return door

    return decorate


def _differing(parameter: Parameter, settings: Mapping[str, Any] | None) -> Parameter:
    if not settings:
        return parameter
    info = copy(parameter.annotation.__metadata__[0])
    vars(info).update(settings)
    return parameter.replace(annotation=Annotated[parameter.annotation.__origin__, info])


def _call(context: Any, values: Mapping[str, Any]) -> Call:
    flags = {
        param.name: param.make_metavar(context).strip("[]")
        if param.param_type_name == "argument"
        else max(param.opts, key=len)
        for param in context.command.params
    }
    typed = (n for n in context.params if context.get_parameter_source(n).name == "COMMANDLINE")
    return Call(values, {name: flags[name] for name in typed})


# -- building ---------------------------------------------------------------------------------


class Command(TyperCommand):
    """A command whose help lists its options group by group, and that drops none said twice."""

    def get_short_help_str(self, limit: int = 0) -> str:
        """Return its first sentence, whole: a list of commands wraps it."""
        return (self.help or "").split("\n\n")[0].replace("\n", " ")

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Raise InputError for an option of which only the last value would be read."""
        parser: Any = self.make_parser(ctx)
        parsed, _, order = parser.parse_args(list(args))
        for param in [] if any(p.is_eager for p in order) else order:
            once = param.param_type_name == "option" and not (param.multiple or param.is_flag)
            if once and order.count(param) > 1:
                flag = max(param.opts, key=len)
                hint = BATCH if flag.endswith("tokens") else "leave all but one of them out"
                raise InputError(f"{flag} is given more than once", hint)
        if COMMAND in parsed and not parsed.get(FILES):
            found = parsed[COMMAND]  # of some versions of click a mark where there is none
            self._check_rest(ctx, args, found if isinstance(found, tuple) else ())
        return super().parse_args(ctx, args)

    def _check_rest(self, ctx: Any, args: list[str], rest: Sequence[str]) -> None:
        """Raise InputError unless ``rest``, the words of COMMAND, are all behind ``--``."""
        behind = args[args.index("--") + 1 :] if "--" in args else []
        extra = rest[: len(rest) - len(behind)] if len(rest) > len(behind) else ()
        if extra:
            ctx.fail(f"Got unexpected extra argument{'s' * (len(extra) > 1)} ({' '.join(extra)})")
        if "--" in args and (not behind or len(rest) < len(behind)):
            lacks = "before" if behind else "after"
            raise InputError(
                f"there is no {'BUNDLE' if behind else 'COMMAND'} {lacks} --",
                "expected FILE.jsonl -- COMMAND …",
            )

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one section for each panel that has options, in the order of these."""
        sections: dict[str, list[tuple[str, str]]] = {panel: [] for panel in PANELS}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record:
                rest = ARGUMENTS if param.param_type_name == "argument" else HELP
                sections[getattr(param, "rich_help_panel", None) or rest].append(record)
        for panel, records in sections.items():
            if records:
                with formatter.section(panel):
                    formatter.write_dl(records, col_max=26)


def built(door: Callable[..., None]) -> Any:
    """Return the command of click that Typer makes of a ``command``."""
    app = typer.Typer(rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=Command)(door)
    return typer.main.get_command(app)
