"""The builds of the compiled engine that run here: none where it is not there."""

from __future__ import annotations

import pytest

from attncli import engines


def _builds() -> list[str]:
    if engines.missing("fused"):
        return []
    from attncli.engines.fused import _kernel

    return list(_kernel.builds())


BUILDS = _builds()
needs_fused = pytest.mark.skipif(not BUILDS, reason=f"fused: {engines.missing('fused')}")
