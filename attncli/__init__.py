"""Compute and inspect attention: weights, outputs and gradient stability.

>>> import attncli
>>> attncli.attend([[1.0, 0.0], [0.0, 1.0]], mask="causal", want=("weights",)).weights[0]
array([1., 0.])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attncli.errors import AttnError as AttnError
    from attncli.layers import multihead as multihead
    from attncli.masks import Mask as Mask
    from attncli.rope import Rope as Rope
    from attncli.run import Result as Result
    from attncli.run import attend as attend
    from attncli.run import statistics as statistics

__version__ = "0.1.0"
__all__ = [
    "AttnError", "Mask", "Result", "Rope", "__version__", "attend", "multihead", "statistics",
]  # fmt: skip

_HOMES = {
    "AttnError": "attncli.errors",
    "Mask": "attncli.masks",
    "Result": "attncli.run",
    "Rope": "attncli.rope",
    "attend": "attncli.run",
    "multihead": "attncli.layers",
    "statistics": "attncli.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'attncli' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
