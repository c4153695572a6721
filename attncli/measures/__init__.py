"""Instruments: what running sums, outputs, weights and tensors say."""
