"""Signals, cadence and action: the part that environment and scheduler share."""

from rlrate.control.action import Action, SpikeGuard
from rlrate.control.cadence import Cadence
from rlrate.control.control import RateControl
from rlrate.control.sampler import UpdateSampler
from rlrate.control.signals import LIMIT, SIGNALS, USUAL, Interval, Signals
from rlrate.control.spec import ControlSpec
from rlrate.control.traits import OptimizerTraits

__all__ = [
    "LIMIT",
    "SIGNALS",
    "USUAL",
    "Action",
    "Cadence",
    "ControlSpec",
    "Interval",
    "OptimizerTraits",
    "RateControl",
    "Signals",
    "SpikeGuard",
    "UpdateSampler",
]
