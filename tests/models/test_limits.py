"""What limits the keys of a layer."""

from __future__ import annotations

import numpy as np
import pytest

from attncli.models.limits import buckets


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("count", "longest"), [(32, 128), (8, 20), (64, 1000)])
def test_buckets_are_t5s(bidirectional: bool, count: int, longest: int) -> None:
    pytest.importorskip("transformers")
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = np.arange(-3000, 3001)
    theirs = T5Attention._relative_position_bucket(
        torch.from_numpy(distance), bidirectional, count, longest
    )
    np.testing.assert_array_equal(buckets(distance, count, longest, bidirectional), theirs)
    clipped = buckets(np.clip(distance, -longest, longest), count, longest, bidirectional)
    np.testing.assert_array_equal(clipped, theirs)  # so a table of ±longest holds all
