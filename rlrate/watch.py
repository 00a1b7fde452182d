"""Watching a torch optimizer: counts its updates and measures the ones that are asked for."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import Optimizer

from rlrate.control import UpdateSampler
from rlrate.control.sampler import Combine

Owner = TypeVar("Owner")


def attach(optimizer: Optimizer, owner: Owner, before: Callable[[Owner], None], after: Callable[[Owner], None]) -> None:
    """Calls ``before(owner)`` and ``after(owner)`` around each update, without keeping ``owner`` alive."""
    reference = weakref.ref(owner)

    def before_step(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        alive = reference()
        if alive is None:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            before(alive)
            return None
        # The gradients come to be inside the closure, which first-order optimizers call before anything else.
        watched = _then(closure, partial(before, alive))
        return (args, {**kwargs, "closure": watched}) if "closure" in kwargs else ((args[0], watched), kwargs)

    def after_step(*_: object) -> None:
        alive = reference()
        if alive is not None:
            after(alive)

    # A compiled step is not to trace what happens here: it would be compiled anew whenever something else happens.
    optimizer.register_step_pre_hook(torch.compiler.disable(before_step))  # type: ignore[no-untyped-call]
    optimizer.register_step_post_hook(torch.compiler.disable(after_step))  # type: ignore[no-untyped-call]


def innermost(optimizer: Any) -> Any:
    """The torch optimizer that makes the updates, from within wrappers such as Accelerate's, which has no hooks."""
    while isinstance(optimizer, Optimizer) and not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer


def _then(closure: Callable[[], Any], follow: Callable[[], None]) -> Callable[[], Any]:
    def watched() -> Any:
        loss = closure()
        with torch.no_grad():
            follow()
        return loss

    return watched


def skipped(optimizer: Optimizer, *, wait: bool) -> bool | Tensor:
    """Whether a fused optimizer leaves the update at hand out, because a GradScaler found infinities.

    Returns:
        True or False; or, when an accelerator would have to be waited for and ``wait`` is false, a tensor that is
        0 for False and 1 for True.
    """
    found = getattr(optimizer, "found_inf", None)
    if found is None:
        return False
    return bool(found) if wait or at_hand(found) else found


def at_hand(tensor: Tensor) -> bool:
    """Whether a tensor can be looked at without waiting."""
    return tensor.device.type == "cpu"


class UpdateWatch:
    """Statistics of an optimizer's gradients and updates, as one run of an :class:`UpdateSampler`."""

    def __init__(self) -> None:
        self._sampler: UpdateSampler | None = None
        self.measuring = False
        self.sharded = False  # whether this process holds a part of each parameter

    @property
    def device(self) -> torch.device:
        """Where the statistics are."""
        return torch.device("cpu") if self._sampler is None else self._sampler.device

    def norms(self, optimizer: Optimizer) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
        """Norm of the gradient and of the weights, both of shape (1,), and the number of weights."""
        parameters, gradients = _tensors(optimizer)
        sampler = self._fitting(parameters, optimizer)
        gradient, weight = sampler.norms(gradients), sampler.norms(parameters)
        if (scale := getattr(optimizer, "grad_scale", None)) is not None:
            gradient = gradient / scale.to(gradient.device)
        size = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        return gradient.cpu().double().numpy(), weight.cpu().double().numpy(), size

    def before(self, optimizer: Optimizer) -> bool:
        """Call before an update that is to be measured; returns whether there was any gradient."""
        parameters, gradients = _tensors(optimizer)
        # Only a GradScaler with a fused optimizer leaves the gradients scaled until the update.
        self._fitting(parameters, optimizer).before(parameters, gradients, scale=getattr(optimizer, "grad_scale", None))
        self.measuring = True
        return any(gradient is not None for gradient in gradients)

    def after(self, optimizer: Optimizer) -> None:
        """Call after every update; costs nothing unless :meth:`before` was called."""
        if self.measuring and self._sampler is not None:
            self.measuring = False
            self._sampler.after(_tensors(optimizer)[0])

    def collect(self, combine: Combine | None = None) -> NDArray[np.float64] | None:
        """The samples since the last call, shape (samples, 7, 1); for ``combine`` see :class:`UpdateSampler`."""
        if self._sampler is None:
            return None
        samples = self._sampler.collect(combine)
        # An update that was left out has a gradient that is not finite, and yet did nothing.
        kept: NDArray[np.float64] = samples[(np.isfinite(samples[:, 0]) | (samples[:, 3] != 0.0))[:, 0]]
        return kept

    def state_dict(self) -> dict[str, Any]:
        """Samples that were not collected yet, as tensors."""
        return {"sampler": None if self._sampler is None else self._sampler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], optimizer: Optimizer) -> None:
        """Continues from what :meth:`state_dict` returned."""
        self.measuring = False
        self._sampler = None
        if state.get("sampler") is not None:
            self._fitting(_tensors(optimizer)[0], optimizer).load_state_dict(state["sampler"])

    def _fitting(self, parameters: list[Tensor], optimizer: Optimizer) -> UpdateSampler:
        """The sampler; a new one when parameters were added, since its coordinates are others."""
        if self._sampler is None or len(self._sampler.strides) != len(parameters):
            first = parameters[0]
            wholes = [p for group in optimizer.param_groups for p in group["params"]]
            self.sharded = any(hasattr(p, "to_local") for p in wholes)
            sizes = [p.numel() for p in wholes] if self.sharded else None
            shapes = [p.shape for p in parameters]
            self._sampler = UpdateSampler(shapes, 1, device=first.device, dtype=first.dtype, sizes=sizes)
        return self._sampler


def _tensors(optimizer: Optimizer) -> tuple[list[Tensor], list[Tensor | None]]:
    """Parameters and gradients of all groups."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [_plain(p) for p in parameters], [None if p.grad is None else _plain(p.grad) for p in parameters]


def _plain(tensor: Tensor) -> Tensor:
    """The tensor as real numbers of a dense layout."""
    local = getattr(tensor, "to_local", None)
    if local is not None:
        tensor = local().detach()
    if tensor.layout != torch.strided:
        tensor = tensor.detach().to_dense()
    return torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor
