"""Compare learned and hand-tuned learning rates on paired seeds."""

from rlrate.experiments.compare import Comparison, Row, compare
from rlrate.experiments.schedules import factor_table, schedule_names

__all__ = ["Comparison", "Row", "compare", "factor_table", "schedule_names"]
