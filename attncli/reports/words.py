"""Words that options take: arrays of ``--include``, scales of maps. Nothing is loaded for them."""

from attncli.attention.words import STAGES

#: What --scale-by takes: √ up to the largest of a row or of all, or a log scale.
SCALES = ("row", "matrix", "log")
SMALL = 4096  # numbers of an array that JSON gives without being asked
GRADIENTS = ("grad_query", "grad_key", "grad_value")
INCLUDABLE = (
    "output", STAGES[-1], *STAGES[:-1], "lse", "query", "key", "value", "present_key",
    "present_value", "row_statistics", *GRADIENTS,
)  # fmt: skip
