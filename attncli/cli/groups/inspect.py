"""The options of ``attncli inspect`` alone."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from attncli.cli.groups import Elements, Engine, Problem, Text
from attncli.cli.options import FILE, HEALTH, Group, at_least_zero, one_of, option, said

if TYPE_CHECKING:
    from attncli.measures.policy import Rule

SAVED = ("row_statistics",)


class Changes(Group, panel=HEALTH):
    """What would be otherwise."""

    what_if: Annotated[
        list[str] | None,
        option(
            metavar="CHANGE",
            help="Also with scale=none, softcap=50, sink=0, qk_norm, qk_clip=100 or "
            "dtype=bfloat16; several together with commas; repeatable.",
        ),
    ] = None


class Sweep(Group, panel=HEALTH):
    """Why the 1/√d is there."""

    sweep_dim: Annotated[
        Text,
        option(
            metavar="D,D,…",
            help="Unit-normal Q and K of these widths, with and without 1/√d. Needs no tensors.",
        ),
    ] = None


class Verdicts(Group, panel=HEALTH):
    """What is sick."""

    fail_on: Annotated[
        Text,
        option(**one_of("watch", "critical"), help="Exit with 1 when a head is as bad as that."),
    ] = None
    policy: Annotated[
        Text,
        option(
            metavar="FILE.toml",
            help="Limits of the verdicts that differ: [saturated] watch = 0.6.",
        ),
    ] = None

    def limits(self) -> "Sequence[Rule]":
        """Return the limits of the verdicts."""
        from attncli.measures import policy

        return policy.POLICY if self.policy is None else policy.read_policy(self.policy)


class Seed(Group, panel=HEALTH):
    """Where randomness begins."""

    seed: Annotated[
        int,
        option(
            metavar="N", callback=at_least_zero,
            help="Of the upstream gradient, of samples and of --sweep-dim (default: 0).",
        ),
    ] = 0  # fmt: skip


class AnyFile(Group, panel=FILE):
    """A row a tensor."""

    header: Annotated[
        bool, option("--header", help="Shapes, dtypes and bytes alone: no data read.")
    ] = False
    filter: Annotated[
        list[str] | None, option(metavar="GLOB", help="Tensors of these names; repeatable.")
    ] = None
    sort: Annotated[
        Text,
        option(
            metavar="COLUMN",
            help="Largest first, by bytes, max, std, nan, …; -COLUMN: smallest first.",
        ),
    ] = None

    @property
    def about_any_file(self) -> bool:
        """Whether something was asked that has a meaning for any file."""
        return self.header or self.filter is not None or self.sort is not None


class Health(Changes, Verdicts, Seed):
    """What is asked of attention."""


class Asked(Problem, Health, Engine, Elements):
    """All that one answer depends on."""


class Everything(Problem, Changes, Sweep, Verdicts, Seed, AnyFile, Engine):
    """The options of all modes, in the order of the help."""


DIFFERING = {
    "include": said(
        autocompletion=lambda: list(SAVED),
        help="row_statistics: the statistics of every row, into JSON or -o.",
    )
}
