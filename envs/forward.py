"""Loss, gradient and evaluation of stacked networks: vectorised, or one by one where need be."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import TypeAlias, overload

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from rlrate.envs.lowering import Lowering, Stacked
from rlrate.envs.replay import ChangedError, Repeated
from rlrate.envs.replica import Replica
from rlrate.envs.workload import Workload
from rlrate.errors import WorkloadError

__all__ = ["Forward"]

Gradients: TypeAlias = tuple[Tensor, Sequence[Tensor | None]]
Compute: TypeAlias = Callable[[Sequence[Tensor]], list[Tensor | None]]


class Forward:
    """Runs a workload's module with the parameters of many networks.

    Args:
        workload: Module, data and loss.
        dtype: Of floating point data.
        replica: The module to run.
        noise: One generator per network of the population.

    Attributes:
        loop: Whether networks run one by one; None until `probe` has tried.
        activations: Numbers that one network keeps between its forward and backward pass.
    """

    def __init__(
        self,
        workload: Workload,
        dtype: torch.dtype,
        replica: Replica,
        noise: Sequence[torch.Generator],
    ) -> None:
        self.workload = workload
        self.loop: bool | None = None
        self._replica = replica
        self._noise = noise
        self._train = [_cast(values, dtype) for values in workload.train]
        self._heldout = [_cast(values, dtype) for values in workload.heldout]
        self._validation = [_cast(values, dtype) for values in workload.validation or workload.heldout]
        self._classes = all(
            not s[1].is_floating_point() and bool((s[1] >= 0).all()) for s in (workload.train, workload.heldout)
        )
        self.activations = self._count_activations()
        self._repeated = Repeated()

    def gradients(
        self,
        leaves: Sequence[Tensor],
        buffers: Sequence[Tensor],
        index: Tensor,
        noise: Sequence[torch.Generator],
    ) -> Gradients:
        """Losses and their gradients for some networks, each on its minibatch.

        Args:
            leaves: Stacked parameters, (n, *shape), that require gradients.
            buffers: Stacked buffers, changed in place as the module changes them.
            index: (n, batch_size) examples of each network.
            noise: n generators.

        Returns:
            Losses (n,), detached, and gradients like ``leaves``.

        Raises:
            WorkloadError: The module computes something else than some steps ago.
        """
        runs, batch = index.shape
        flat = index.reshape(-1)
        x, y = (values.index_select(0, flat).view(runs, batch, *values.shape[1:]) for values in self._train)
        if self.loop:
            with torch.enable_grad():
                return self._loop(leaves, buffers, x, y, noise)
        count = len(leaves)

        def compute(inputs: Sequence[Tensor]) -> list[Tensor | None]:
            leaves, buffers, (x, y) = inputs[:count], inputs[count:-2], inputs[-2:]
            with torch.enable_grad():
                losses = self._vectorised(leaves, buffers, x, y, noise)
                grads = torch.autograd.grad(losses, leaves, torch.ones_like(losses), allow_unused=True)
            return [losses.detach(), *grads]

        return self._repeat((runs, batch), compute, [*leaves, *buffers, x, y])

    def _repeat(self, key: Hashable, compute: Compute, inputs: Sequence[Tensor]) -> Gradients:
        before = self._replica.state() if self._repeated.records(key) else None
        try:
            losses, *grads = self._repeated(key, compute, inputs)
        except ChangedError as error:
            raise WorkloadError(
                f"{self.workload.name}: the network or its loss depends on more than weights, buffers and the batch: "
                f"{error}; make what changes a buffer of the module (register_buffer)."
            ) from error
        if before is not None and before != self._replica.state():
            self._repeated.possible = False
        assert losses is not None
        return losses, grads

    def evaluate(
        self,
        stacks: Sequence[Tensor],
        buffers: Sequence[Tensor],
        examples: int,
        limit: int | None = None,
        *,
        validation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Held-out loss and accuracy, each (n,), ``examples`` at a time; may change ``buffers``.

        With a ``limit``, the loss of the first examples only, and no accuracy; with ``validation``, of that part of the
        data instead.
        """
        replica = self._replica
        heldout = [values[:limit] for values in (self._validation if validation else self._heldout)]
        runs, total = len(stacks[0]), len(heldout[0])
        classes = self.workload.accuracy and limit is None
        loss, right = stacks[0].new_zeros(runs), stacks[0].new_zeros(runs)
        replica.module.eval()
        try:
            with torch.no_grad():
                for start in range(0, total, examples):
                    x, y = (values[start : start + examples] for values in heldout)
                    mean, correct = self._evaluate_block(replica, [*stacks, *buffers], x, y, classes)
                    loss += mean * (len(x) / total)
                    right += correct
        finally:
            replica.module.train()
            replica.restore()
        return loss, right / total if classes else right.fill_(math.nan)

    def probe(self, leaves: Sequence[Tensor], buffers: Sequence[Tensor], index: Tensor) -> None:
        """Find out whether the module can be vectorised, on one network; changes nothing else."""
        leaves = [leaf[:1].detach().requires_grad_() for leaf in leaves]
        buffers = [value.clone() for value in buffers]
        noise = torch.Generator()
        noise.set_state(self._noise[0].get_state())
        self.loop = False
        with torch.random.fork_rng(devices=[]):
            before = torch.get_rng_state()
            try:
                self.gradients(leaves, buffers, index, [noise])
                problem = (
                    ""
                    if torch.equal(before, torch.get_rng_state())
                    else ("it draws random numbers in a way that is not one of dropout and torch.rand*")
                )
            except Exception as error:  # whatever vmap raises, the loop below is the judge
                problem = str(error).strip().split("\n")[0] or type(error).__name__
            if not problem:
                return
            self.loop = True
            self.gradients(leaves, buffers, index, [noise])  # raises if the module is at fault
        warnings.warn(
            f"{self.workload.name}: the networks of this population run one by one, which is "
            f"slower, as the module cannot be vectorised: {problem}",
            stacklevel=3,
        )

    def _vectorised(
        self,
        leaves: Sequence[Tensor],
        buffers: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
        noise: Sequence[torch.Generator],
    ) -> Tensor:
        replica, loss = self._replica, self.workload.loss
        targets = y if self._classes else None

        with Stacked(len(x)) as stacked:
            values = [stacked.enter(value) for value in (*leaves, *buffers)]
            try:
                replica.put(values)
                with Lowering(noise, targets):
                    value = loss(replica.module(stacked.enter(x)), stacked.enter(y))
                losses = stacked.leave(value)
                replaced = {k: stacked.leave(v) for k, v in replica.replaced(values).items()}
            finally:
                replica.restore()
        for index, new in replaced.items():
            buffers[index].copy_(new.detach())
        return losses

    def _loop(
        self,
        leaves: Sequence[Tensor],
        buffers: Sequence[Tensor],
        x: Tensor,
        y: Tensor,
        noise: Sequence[torch.Generator],
    ) -> Gradients:
        replica = self._replica
        losses, gradients = [], []
        with torch.random.fork_rng(devices=[]):
            for run, generator in enumerate(noise):
                own = [leaf[run].detach().requires_grad_() for leaf in leaves]
                values = [*own, *(value[run] for value in buffers)]
                replica.put(values)
                try:
                    torch.set_rng_state(generator.get_state())
                    loss = self.workload.loss(replica.module(x[run]), y[run])
                    generator.set_state(torch.get_rng_state())
                    for index, value in replica.replaced(values).items():
                        buffers[index][run] = value.detach()
                finally:
                    replica.restore()
                losses.append(loss.detach())
                gradients.append(torch.autograd.grad(loss, own, allow_unused=True))
        stacked = [
            None
            if all(g is None for g in column)
            else torch.stack([torch.zeros_like(leaf[0]) if g is None else g for g in column])
            for leaf, column in zip(leaves, zip(*gradients, strict=True), strict=True)
        ]
        return torch.stack(losses), stacked

    def _evaluate_block(
        self, replica: Replica, values: Sequence[Tensor], x: Tensor, y: Tensor, classes: bool
    ) -> tuple[Tensor, Tensor]:
        """Mean loss and, for ``classes``, number of correct answers of each network on the same examples."""
        loss = self.workload.loss

        def one(values: Sequence[Tensor], y: Tensor) -> tuple[Tensor, Tensor]:
            replica.put(values)
            output = replica.module(x)
            value = loss(output, y)
            right = (output.argmax(1) == y).sum() if classes else torch.zeros_like(value)
            return value, right.to(value.dtype)

        if not self.loop:
            with Stacked(len(values[0])) as stacked:
                inside = [stacked.enter(value) for value in values]
                with Lowering(_SameNoise(len(values[0])), y if self._classes else None):
                    value, right = one(inside, stacked.enter(y.expand(len(values[0]), *y.shape)))
                return stacked.leave(value), stacked.leave(right)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            results = [one([value[run] for value in values], y) for run in range(len(values[0]))]
        losses, rights = zip(*results, strict=True)
        return torch.stack(losses), torch.stack(rights)

    def _count_activations(self) -> int:
        """Numbers saved for the backward pass of one network: those of an ordinary step."""
        seen: dict[int, int] = {}

        def pack(value: Tensor) -> None:
            # Nothing is kept: an operation that saves its own result would hold itself, and all before it, for ever.
            seen[value.data_ptr()] = value.numel()

        replica, batch = self._replica, self.workload.batch_size
        buffers = [value.clone() for value in replica.buffers()]
        x, y = (values[:batch] for values in self._train)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            replica.put([*replica.parameters(), *buffers])
            try:
                with saved_tensors_hooks(pack, lambda value: value):
                    self.workload.loss(replica.module(x), y)
            finally:
                replica.restore()
        return sum(seen.values())


class _SameNoise(Sequence[torch.Generator]):
    """A module that is random even in evaluation sees the same noise every time; few are, so it is made when used."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._made: list[torch.Generator] = []

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> torch.Generator: ...
    @overload
    def __getitem__(self, index: slice) -> list[torch.Generator]: ...
    def __getitem__(self, index: int | slice) -> torch.Generator | list[torch.Generator]:
        if not self._made:
            self._made = [torch.Generator().manual_seed(0) for _ in range(self._size)]
        return self._made[index]


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.to(dtype) if values.is_floating_point() else values
