"""The research figure: zero for the reference itself, worse for a worse controller."""

from __future__ import annotations

import numpy as np

from rlrate import Controller
from rlrate.experiments.regret import RegretSet, references, regrets

SMALL = RegretSet(families=("logistic-regression", "noisy-quadratic"), steps=(40, 60), draws=3, runs=2, seed=5)


def test_a_controller_that_does_nothing_is_far_behind_and_a_bold_one_is_closer() -> None:
    reference = references(SMALL)
    assert reference.shape == (3,) and np.isfinite(reference).all()
    idle = regrets(Controller.constant(-1.0), SMALL, reference)
    bold = regrets(Controller.constant(0.6), SMALL, reference)
    assert idle.shape == (3,)
    assert bold.mean() < idle.mean()
    np.testing.assert_array_equal(references(SMALL), reference)
