"""What each head adds to a layer, as a share of all: no unit matters."""

from __future__ import annotations

import numpy as np

from attncli.measures.layer import output_share


def test_shares_of_heads_add_up_whatever_the_unit() -> None:
    added = np.random.default_rng(8).random((2, 3, 5))
    real = np.ones((2, 3, 5), bool)
    share = output_share(added, real)
    np.testing.assert_allclose(share.sum(1), 1)
    np.testing.assert_allclose(share, (added / added.sum(1, keepdims=True)).mean(-1))
    for unit in (1e-30, 1e-3, 1e3):
        np.testing.assert_allclose(output_share(added * unit, real), share)


def test_rows_to_which_nobody_adds_have_no_share() -> None:
    added = np.array([[[1.0, 0.0, 2.0], [3.0, 0.0, 2.0]]])
    real = np.array([[[True, True, False]] * 2])
    with np.errstate(invalid="ignore"):  # as formulas are called
        assert output_share(added, real).tolist() == [[0.25, 0.75]]
        assert np.isnan(output_share(added * 0, real)).all()
