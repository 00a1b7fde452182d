"""One module whose parameters and buffers are swapped for those of the networks it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

__all__ = ["Replica"]

_Slot = tuple[dict[str, Tensor | None], str]


class Replica:
    """A module that runs with parameters and buffers from elsewhere.

    A replica belongs to one thread at a time. Unlike ``torch.func.functional_call`` it does what a
    module's owner would see in an ordinary loop: recurrent layers use the given weights, and
    buffers that the forward pass replaces (rather than changes in place) are handed back.

    Args:
        module: Its trainable parameters and its buffers define the order of the values.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.parameter_names: list[str] = []
        self.buffer_names: list[str] = []
        self._parameters: list[list[_Slot]] = []
        self._buffers: list[list[_Slot]] = []
        seen: dict[int, list[_Slot]] = {}
        # A frozen parameter is a value of its network that training leaves alone: a buffer here.
        for trained in (True, False):
            for prefix, owner in module.named_modules(remove_duplicate=True):
                for table in (owner._parameters, owner._buffers):
                    slots = cast(dict[str, Tensor | None], table)
                    for name, value in slots.items():
                        is_trained = table is owner._parameters and (value is not None and value.requires_grad)
                        if value is None or is_trained != trained:
                            continue
                        if id(value) in seen:
                            seen[id(value)].append((slots, name))
                            continue
                        seen[id(value)] = [(slots, name)]
                        full = f"{prefix}.{name}" if prefix else name
                        (self.parameter_names if trained else self.buffer_names).append(full)
                        (self._parameters if trained else self._buffers).append(seen[id(value)])
        self._own = [cast(Tensor, d[name]) for (d, name), *_ in self._parameters + self._buffers]
        self._recurrent = [m for m in module.modules() if isinstance(m, nn.RNNBase)]

    def parameters(self) -> list[Tensor]:
        """The module's own trainable parameters."""
        return self._own[: len(self._parameters)]

    def buffers(self) -> list[Tensor]:
        """The module's own buffers and frozen parameters."""
        return self._own[len(self._parameters) :]

    def put(self, values: Sequence[Tensor]) -> None:
        """Use ``values``, the trainable parameters and then the buffers, in the module."""
        for slots, value in zip(self._parameters + self._buffers, values, strict=True):
            for table, name in slots:
                table[name] = value
        for layer in self._recurrent:
            # These keep a second list of their weights, which torch refreshes on attribute access.
            weights = [layer._parameters[name] for name in layer._flat_weights_names]
            layer.__dict__["_flat_weights"] = weights

    def replaced(self, values: Sequence[Tensor]) -> dict[int, Tensor]:
        """The buffers, by position, that are no longer the tensors given to `put`."""
        buffers = values[len(self._parameters) :]
        found: dict[int, Tensor] = {}
        for index, (slots, value) in enumerate(zip(self._buffers, buffers, strict=True)):
            table, name = slots[0]
            now = table.get(name)
            if now is not None and now is not value:
                found[index] = now
        return found

    def state(self) -> list[tuple[str, str, object]]:
        """What the module remembers besides parameters and buffers: owner, name and value of each attribute.

        Values are compared as they are where they are numbers or text, and by identity otherwise.
        """
        kept = {"_parameters", "_buffers", "_modules", "training"}
        return [
            (prefix, name, value if isinstance(value, bool | int | float | str) else id(value))
            for prefix, owner in self.module.named_modules()
            for name, value in vars(owner).items()
            if name not in kept and not name.startswith("_flat_weight")  # a recurrent layer's second list of them
        ]

    def restore(self) -> None:
        """Use the module's own values again, so that no other tensor is kept alive."""
        self.put(self._own)
