"""The NumPy engine: tiles, running sums, threads."""
