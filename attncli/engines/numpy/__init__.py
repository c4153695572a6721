"""The NumPy engine: tiles, running sums, threads."""


def missing() -> str | None:
    """Return why this engine cannot run: never, NumPy is always there."""
    return None
