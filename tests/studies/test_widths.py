"""The claim of the article: scores grow with the width unless they are scaled."""

from __future__ import annotations

import pytest

from attncli.studies import widths


def test_variance_grows_with_the_width_unless_scaled() -> None:
    swept = list(widths.sweep_dim([8, 64, 512]))
    assert next(iter(widths.sweep_dim([64]))) == swept[1]
    for width, auto, none in swept:
        assert auto["score_variance"] == pytest.approx(1, abs=0.05)
        assert none["score_variance"] == pytest.approx(width, rel=0.05)
        assert none["score_variance"] / auto["score_variance"] == pytest.approx(width)
        assert auto["saturated_share"] == auto["vanishing_share"] == 0
    shares = [none["saturated_share"] for _, _, none in swept]
    assert shares == sorted(shares) and 0.05 < shares[1] < 0.25 and shares[2] > 0.4
    assert swept[2][2]["vanishing_share"] > 0.15
