"""The tables of documentation are the registry."""

from __future__ import annotations

from attncli.measures.circuits import ALONE
from attncli.measures.evidence import files, told
from attncli.reports.statistics import statistics_markdown


def test_every_statistic_has_a_row_and_a_sentence() -> None:
    attention, alone = statistics_markdown().split("\n\n")
    for table, names in ((attention, told(*files())), (alone, [one.name for one in ALONE])):
        rows = [line.replace("\\|", "").split("|") for line in table.splitlines()[2:]]
        assert [row[1].strip(" `") for row in rows] == list(names)
        for row in rows:
            assert len(row) == 7
            assert row[4].strip() and "``" not in row[4]
