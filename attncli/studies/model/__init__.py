"""The attention of models of transformers: what they call, what they are, what was seen."""
