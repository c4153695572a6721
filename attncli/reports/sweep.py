"""The report of ``inspect --sweep-dim``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attncli.measures.statistic import STATISTICS
from attncli.reports.blocks import Column, Picture, Records, Report, Table, sentences
from attncli.reports.heads import WORDS
from attncli.reports.health import SCHEMA, share_in_words
from attncli.resources import Progress
from attncli.studies.effects import OVERALL
from attncli.studies.widths import SWEPT, SWEPT_VALUES

#: Columns and how telling they are.
SHOWN = {
    "score_variance": 9, "saturated_share": 8, "grad_score_p05": 7, "grad_score_median": 5,
    "grad_score_cv": 4, "vanishing_share": 6,
}  # fmt: skip


def sweep_report(
    swept: Sequence[tuple[int, Mapping[str, float], Mapping[str, float]]], seed: int
) -> Report:
    """Return the table of ``--sweep-dim``: a row a width, without and with the scale."""
    columns: list[Column] = []
    for name, keep in SHOWN.items():
        statistic, quantile = OVERALL[name]
        one = STATISTICS[statistic]
        title = f"{one.heading} {WORDS.get(quantile, quantile)}".strip()
        columns += [Column(title, one.kind, "none", keep), Column("", one.kind, "1/√d", keep)]
    rows = [[one[name] for name in SHOWN for one in (none, auto)] for _, auto, none in swept]
    table = Table("d", columns, rows, [str(width) for width, _, _ in swept])
    lines = []
    if swept:
        width, auto, none = max(swept, key=lambda one: one[0])
        words = {
            (text, name): share_in_words(one[name])
            for text, one in (("none", none), ("auto", auto))
            for name in ("saturated_share", "vanishing_share")
        }
        lines.append(
            f"Unscaled, the variance of q·k grows as d: at d = {width} it is "
            f"{none['score_variance']:.4g}, {words['none', 'saturated_share']} of the rows have "
            f"max weight > 0.99 and {words['none', 'vanishing_share']} pass less than 1/1000 of "
            f"the median row's gradient at 1/√d. Scaled, the variance is "
            f"{auto['score_variance']:.3g}, and these shares are "
            f"{words['auto', 'saturated_share']} and {words['auto', 'vanishing_share']}."
        )

    def pictures(progress: Progress | None = None) -> list[Picture]:
        from attncli.reports.pictures import sweep_pictures

        return sweep_pictures(swept)

    return Report(
        command="inspect",
        headline=[
            "unit-normal Q, K, V and dO", f"{SWEPT} queries × {SWEPT} keys",
            f"values of width {SWEPT_VALUES}", f"seed {seed}", "numpy float64",
        ],
        blocks=[table, sentences(*lines)] if lines else [table],
        pictures=pictures,
        data=lambda: {
            "schema": SCHEMA, "command": "inspect", "seed": seed,
            "shapes": {"queries": SWEPT, "keys": SWEPT, "value_width": SWEPT_VALUES},
            "sweep_dim": [
                {"dim": width, "auto": dict(auto), "none": dict(none)}
                for width, auto, none in swept
            ],
        },
        records=lambda: Records(
            ["dim", "scale", *(swept[0][1] if swept else ())],
            [
                [width, text, *one.values()]
                for width, auto, none in swept
                for text, one in (("auto", auto), ("none", none))
            ],
        ),
    )  # fmt: skip
