"""The options of what was computed elsewhere, to be judged: of compute and of multihead."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from typing import Annotated

from attncli.cli.groups import Float, Text
from attncli.cli.options import CHECK, Group, one_of, option, tolerance

#: Which failures are explained: each, the first of its kind, or none.
EXPLAINED = ("all", "first", "none")


class Expected(Group, panel=CHECK):
    """Somebody else's results, to be held against ours."""

    expect: Annotated[
        Text,
        option(
            metavar="REF",
            help="An output to be judged, or a file with an output, weights, lse, scores by name; "
            "exit 1 if it is not right, with what explains it. JSON then holds arrays of ours only "
            "where --include names them.",
        ),
    ] = None
    expect_weights: Annotated[Text, option(metavar="REF", help="Weights to be judged.")] = None
    expect_lse: Annotated[
        Text, option(metavar="REF", help="The lse, log Σ exp of each row, to be judged.")
    ] = None
    expect_scores: Annotated[
        Text, option(metavar="REF", help="Scores, scaled, before softcap and mask, to be judged.")
    ] = None


class ExpectedGradients(Group, panel=CHECK):
    """Somebody else's gradients."""

    expect_grad_query: Annotated[
        Text, option(metavar="REF", help="dQ to be judged; needs --grad-output.")
    ] = None
    expect_grad_key: Annotated[Text, option(metavar="REF", help="dK to be judged.")] = None
    expect_grad_value: Annotated[Text, option(metavar="REF", help="dV to be judged.")] = None


class Tolerance(Group, panel=CHECK):
    """What is allowed, in place of the error budget."""

    rtol: Annotated[
        Float,
        option(
            metavar="R", callback=tolerance,
            help="Allow |error| ≤ A + R·|right| in place of the error budget.",
        ),
    ] = None  # fmt: skip
    atol: Annotated[Float, option(metavar="A", callback=tolerance, help="See --rtol.")] = None


class Explain(Group, panel=CHECK):
    """For which failures a reason is looked for."""

    explain: Annotated[
        Text,
        option(
            **one_of(*EXPLAINED),
            help="Which failures are explained (default: first, the first one of each kind).",
        ),
    ] = None


class Explained:
    """Which failures are still to be explained."""

    def __init__(self, which: str | None) -> None:
        self.which = which or "first"
        self.failed: set[object] = set()

    def wants(self, kind: object) -> bool:
        """Whether a failure of a case of this kind would be explained."""
        return self.which == "all" or (self.which == "first" and kind not in self.failed)

    def saw(self, kind: object, *, failed: bool) -> None:
        """Hear how a case of this kind went."""
        if failed:
            self.failed.add(kind)


class Judging(Tolerance, Explain):
    """How results are judged, wherever they come from."""


def not_of_many(*groups: type[Group], instead: str) -> dict[str, str]:
    """Return what is said of the options of one result where there are many problems."""
    hint = f"one file cannot be the answer to many problems: {instead}"
    return {name: hint for group in groups for name in group.members}
