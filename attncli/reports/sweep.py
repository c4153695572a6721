"""The report of ``inspect --sweep-dim``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from attncli.reports.blocks import Column, Records, Report, Table, sentences
from attncli.reports.health import SCHEMA, _share
from attncli.studies.effects import SWEPT, SWEPT_VALUES

# -- unit-normal tensors ----------------------------------------------------------------------


def sweep_report(
    swept: Sequence[tuple[int, Mapping[str, float], Mapping[str, float]]], seed: int
) -> Report:
    """Return the table of ``--sweep-dim``: a row a width, without and with the scale."""
    pairs = (
        ("score variance", "number", "score_variance", 9),
        ("saturated", "percent", "saturated_share", 8),
        ("‖dS‖ p05", "number", "grad_score_p05", 7),
        ("‖dS‖ median", "number", "grad_score_median", 5),
        ("‖dS‖ CV", "number", "grad_score_cv", 4),
        ("vanishing", "percent", "vanishing_share", 6),
    )
    columns: list[Column] = []
    for title, kind, _, keep in pairs:
        columns += [Column(title, kind, "none", keep), Column("", kind, "1/√d", keep)]  # type: ignore[arg-type]
    rows = [
        [one[name] for _, _, name, _ in pairs for one in (none, auto)] for _, auto, none in swept
    ]
    table = Table("d", columns, rows, [str(width) for width, _, _ in swept])
    lines = []
    if swept:
        width, auto, none = max(swept, key=lambda one: one[0])
        lines.append(
            f"Unscaled, the variance of q·k grows as d: at d = {width} it is "
            f"{none['score_variance']:.4g}, {_share(none['saturated_share'])} of the rows have max "
            f"weight > 0.99 and {_share(none['vanishing_share'])} pass less than 1/1000 of the "
            f"median row's gradient at 1/√d. Scaled, the variance is {auto['score_variance']:.3g}, "
            f"and these shares are {_share(auto['saturated_share'])} and "
            f"{_share(auto['vanishing_share'])}."
        )
    return Report(
        command="inspect",
        headline=[
            "unit-normal Q, K, V and dO", f"{SWEPT} queries × {SWEPT} keys",
            f"values of width {SWEPT_VALUES}", f"seed {seed}", "numpy float64",
        ],
        blocks=[table, sentences(*lines)] if lines else [table],
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
