"""The PyTorch engine: SDPA where it can say the problem, tiles where not."""
