"""Pictures of a report for a paper: PNG, SVG or PDF, drawn by matplotlib without a display."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import BytesIO
from typing import TYPE_CHECKING, Any

from attncli.errors import InputError, Unavailable

if TYPE_CHECKING:
    from attncli.reports.blocks import Report

DOTS = 300  # an inch, of what is made of dots
#: Text stays text, nothing depends on the day or the machine, and `$` and `_` are themselves.
STYLE: dict[str, Any] = {
    "text.parse_math": False, "text.usetex": False, "text.color": "#222222",
    "svg.fonttype": "none", "svg.hashsalt": "attncli", "pdf.fonttype": 42, "path.simplify": True,
    "axes.linewidth": 0.5, "axes.edgecolor": "#666666", "axes.labelcolor": "#222222",
    "axes.unicode_minus": True, "xtick.color": "#444444", "ytick.color": "#444444",
}  # fmt: skip
#: What files say of themselves: no date.
METADATA: dict[str, dict[str, str | None]] = {
    ".png": {"Software": "attncli"},
    ".svg": {"Creator": "attncli", "Date": None},
    ".pdf": {"Creator": "attncli", "Producer": None, "CreationDate": None},
}


def demand() -> None:
    """Raise Unavailable unless matplotlib is installed."""
    if find_spec("matplotlib") is None:
        raise _missing("matplotlib is not installed")


def made(report: Report, suffix: str) -> bytes:
    """Return the pictures of a report as a file; ``suffix`` .png, .svg or .pdf says its format.

    The same report makes the same bytes. Raises InputError where there is nothing to draw,
    Unavailable without matplotlib.
    """
    demand()
    pictures = [] if report.pictures is None else list(report.pictures())
    if not pictures:
        raise InputError(
            "--plot: there is nothing to draw: no rows, no keys or no heads", "leave out --plot"
        )
    with _quiet():
        try:
            import matplotlib as mpl

            from attncli.render.plot.page import page_of
            from attncli.render.plot.text import Letters, families
        except ImportError as error:
            raise _missing(f"matplotlib cannot be loaded: {error}") from None
        with mpl.rc_context():
            mpl.rcdefaults()
            style: Any = {**STYLE, "font.family": families()}
            mpl.rcParams.update(style)
            figure = page_of(pictures, Letters(written=suffix == ".svg"))
            out = BytesIO()
            figure.savefig(out, format=suffix[1:], dpi=DOTS, metadata=METADATA[suffix])
    return out.getvalue()


def _missing(what: str) -> Unavailable:
    return Unavailable(
        f"--plot: {what}",
        "pip install 'attncli[plot]'; --heatmap, in the terminal, needs nothing more",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what matplotlib has to say about caches, fonts and glyphs from standard error."""
    import logging
    import warnings

    logger = logging.getLogger("matplotlib")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
