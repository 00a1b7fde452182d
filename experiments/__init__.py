"""Compare learned and hand-tuned learning rates on paired seeds."""

from rlrate.experiments.compare import Comparison, Row, compare
from rlrate.experiments.engine import run_suite
from rlrate.experiments.schedules import factor_table, schedule_names
from rlrate.experiments.store import load

__all__ = ["Comparison", "Row", "compare", "factor_table", "load", "run_suite", "schedule_names"]
