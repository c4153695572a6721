"""How many cases passed and failed, by their kind and by their dtype, and what failed first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple


class Failure(NamedTuple):
    """A case that failed: its line, its name, and why in words."""

    line: int
    name: str
    words: str


@dataclass
class Count:
    """How the cases of one kind went."""

    passed: int = 0
    failed: int = 0
    first: Failure | None = None

    @property
    def cases(self) -> int:
        """How many there were."""
        return self.passed + self.failed


@dataclass
class Tally:
    """The counts so far; a case without a kind has the kind ``""``.

    ``failures``: all of them, in order. ``differing``: cases whose answers were judged, and are
    wrong. ``unanswered``: cases that expect gradients which their answers do not hold; that is no
    failure.
    """

    failures: list[Failure] = field(default_factory=list)
    kinds: dict[str, Count] = field(default_factory=dict)
    dtypes: dict[str, Count] = field(default_factory=dict)
    differing: int = 0
    unanswered: int = 0

    def add(self, kind: str, dtype: str | None, failure: Failure | None) -> None:
        """Count a case; ``dtype`` is None where it never became a problem."""
        if failure is not None:
            self.failures.append(failure)
        for table, name in ((self.kinds, kind), (self.dtypes, dtype)):
            if name is None:
                continue
            count = table.setdefault(name, Count())
            if failure is None:
                count.passed += 1
            else:
                count.failed += 1
                count.first = count.first or failure

    def total(self) -> Count:
        """Return all kinds as one."""
        counts = [*self.kinds.values()]
        firsts = sorted(count.first for count in counts if count.first)
        return Count(
            sum(c.passed for c in counts), sum(c.failed for c in counts), next(iter(firsts), None)
        )  # fmt: skip

    def patterns(self) -> dict[str, int]:
        """Return the kinds and dtypes of which every case failed, and how many cases they have.

        Where all failed that says nothing more.
        """
        if not self.total().passed:
            return {}
        return {
            name: count.failed
            for table in (self.dtypes, self.kinds)
            for name, count in table.items()
            if name and count.failed > 1 and not count.passed
        }
