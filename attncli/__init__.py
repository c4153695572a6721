"""Compute and inspect attention: weights, outputs and gradient stability.

>>> import attncli
>>> attncli.attend([[1.0, 0.0], [0.0, 1.0]], mask="causal", want=("weights",)).weights[0]
array([1., 0.])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attncli.attention.masks import Mask as Mask
    from attncli.attention.rope import Rope as Rope
    from attncli.errors import AttnError as AttnError
    from attncli.studies.attend import Result as Result
    from attncli.studies.attend import attend as attend
    from attncli.studies.attend import statistics as statistics
    from attncli.studies.compare import Comparison as Comparison
    from attncli.studies.compare.face import assert_close as assert_close
    from attncli.studies.compare.face import compare as compare
    from attncli.studies.layer import multihead as multihead
    from attncli.studies.model.capture import capture as capture
    from attncli.studies.model.watch import watch as watch


__version__ = "0.2.0"
__all__ = [
    "AttnError", "Comparison", "Mask", "Result", "Rope", "__version__", "assert_close", "attend",
    "capture", "compare", "multihead", "statistics", "watch",
]  # fmt: skip

_HOMES = {
    "AttnError": "attncli.errors",
    "Comparison": "attncli.studies.compare",
    "Mask": "attncli.attention.masks",
    "Result": "attncli.studies.attend",
    "Rope": "attncli.attention.rope",
    "assert_close": "attncli.studies.compare.face",
    "attend": "attncli.studies.attend",
    "capture": "attncli.studies.model.capture",
    "compare": "attncli.studies.compare.face",
    "multihead": "attncli.studies.layer",
    "statistics": "attncli.studies.attend",
    "watch": "attncli.studies.model.watch",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'attncli' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
