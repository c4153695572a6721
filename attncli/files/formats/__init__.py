"""The formats of tensor files, one module each."""
