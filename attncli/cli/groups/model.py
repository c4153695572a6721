"""The options of what a model reads: of inspect and of compute."""

# No `from __future__ import annotations` here: typer would evaluate each text, 4 ms a start.

from typing import Annotated

from attncli.cli.groups import Text
from attncli.cli.options import MODEL, Group, option


class Given(Group, panel=MODEL):
    """What a model reads."""

    text: Annotated[
        list[str] | None,
        option(
            metavar="TEXT|@FILE",
            help="BUNDLE is a folder of transformers: its model reads this, and its attention is "
            "computed here. Repeatable: a batch. Needs attncli[hf]; nothing is downloaded.",
        ),
    ] = None
    ids: Annotated[
        Text, option(metavar="REF", help="Token ids, (L) or (B, L), in place of --text.")
    ] = None

    @property
    def said(self) -> list[str]:
        """The flags that say what a model reads."""
        return [f"--{name}" for name in type(self).members if getattr(self, name) is not None]

    @property
    def anything(self) -> bool:
        """Whether a model is to be run."""
        return bool(self.said)
