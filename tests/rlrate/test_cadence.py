"""Every budget is split into intervals that end where it ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rlrate.control import Cadence
from rlrate.errors import ConfigError

budgets = st.integers(1, 10_000_000)


@st.composite
def cadences(draw: st.DrawFn) -> Cadence:
    decisions = draw(st.integers(2, 300))
    return Cadence(decisions, draw(st.integers(1, 50)), draw(st.integers(1, decisions - 1)), draw(st.integers(1, 10)))


@given(cadences(), budgets)
@example(Cadence(2, 1, 1), 1)
@example(Cadence(300, 1, 299), 300)
@example(Cadence(), 10_000_000)
def test_intervals_partition_the_budget(cadence: Cadence, total: int) -> None:
    ends = cadence.boundaries(total)
    assert ends.dtype == np.int64
    assert ends[-1] == total
    assert (np.diff(np.concatenate([[0], ends])) >= 1).all()
    if total >= cadence.decisions * cadence.first:
        assert len(ends) == cadence.decisions
    else:
        assert len(ends) == max(1, total // cadence.first)


@given(budgets)
def test_no_interval_is_too_short_to_see_its_consequences(total: int) -> None:
    cadence = Cadence()
    lengths = np.diff(np.concatenate([[0], cadence.boundaries(total)]))
    assert lengths.min() >= min(total, cadence.first)


@given(st.integers(1000, 10_000_000))
def test_intervals_never_shrink_by_more_than_rounding(total: int) -> None:
    assert np.diff(Cadence().boundaries(total), 2).min() >= -1


@pytest.mark.parametrize(("total", "share"), [(10_000, 0.1), (100_000, 0.06), (1_000_000, 0.04), (10_000_000, 0.03)])
def test_the_ramp_takes_a_few_percent(total: int, share: float) -> None:
    cadence = Cadence()
    assert cadence.boundaries(total)[cadence.ramp - 1] <= share * total


@pytest.mark.parametrize("name", ["decisions", "first", "ramp", "probe"])
@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None])
def test_entries_are_positive_integers(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"cadence\.{name}"):
        Cadence(**{name: value})  # type: ignore[arg-type]


def test_a_ramp_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be smaller"):
        Cadence(decisions=12, ramp=12)
