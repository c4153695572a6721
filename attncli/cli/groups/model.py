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
        Text,
        option(
            metavar="LIST|REF",
            help="Token ids in place of --text: as in 5,9,2, or a tensor (L) or (B, L).",
        ),
    ] = None

    image: Annotated[
        list[str] | None,
        option(
            metavar="FILE",
            help="An image, or its pixel values (C, H, W) as .npy; with --text where the model "
            "takes both. Repeatable.",
        ),
    ] = None
    audio: Annotated[
        list[str] | None,
        option(
            metavar="FILE",
            help="A recording, WAV at the model's rate, or samples (T) or features (M, T) as .npy; "
            "--text is then what a decoder writes. Repeatable.",
        ),
    ] = None

    @property
    def said(self) -> list[str]:
        """The flags that say what a model reads."""
        return [f"--{name}" for name in type(self).members if getattr(self, name) is not None]

    @property
    def runs_model(self) -> bool:
        """Whether a model is to be run."""
        return bool(self.said)
