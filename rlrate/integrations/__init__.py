"""LearnedLR inside frameworks that own the training loop; each module needs the framework of its name.

``rlrate.integrations.huggingface`` (Trainer), ``rlrate.integrations.lightning`` and ``rlrate.integrations.timm``.
Accelerate needs none: pass ``scheduler`` to its ``prepare``.
"""

from __future__ import annotations

from rlrate.errors import RlrateError


class MissingPackageError(RlrateError, ImportError):
    """The framework of an integration is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f'this integration needs {package}, which is not installed: pip install "rlrate[{extra}]"')
        self.name = package
