"""Signals, cadence and action: the part that environment and scheduler share."""

from rlrate.control.action import Action, SpikeGuard
from rlrate.control.cadence import Cadence
from rlrate.control.control import ControlSpec, RateControl
from rlrate.control.sampler import UpdateSampler
from rlrate.control.signals import LIMIT, SIGNALS, Signals

__all__ = [
    "LIMIT",
    "SIGNALS",
    "Action",
    "Cadence",
    "ControlSpec",
    "RateControl",
    "Signals",
    "SpikeGuard",
    "UpdateSampler",
]
