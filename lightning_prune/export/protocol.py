"""What every export has in common: it checks before training, and saves and verifies after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from lightning_prune.export.result import ExportResult

__all__ = ["Export"]


@runtime_checkable
class Export(Protocol):
    """Writes a finished network to a file of a format, reads the file back, and compares it with the network.

    The network itself is never changed. The file is written beside its target, verified there, and moved into place in
    one step: whatever goes wrong, an existing file stays as it was.

    Attributes:
        path: Where the file goes.
        on_error: What a training run does when the export at its end fails: ``"warn"`` or ``"raise"``. :meth:`save`
            always raises.
    """

    # A dataclass that takes any path and keeps a Path fits.
    path: Any
    on_error: Literal["warn", "raise"]

    def check(self, model: nn.Module | None = None) -> None:
        """Find what would make the export fail, before hours of training are spent; writes nothing.

        Args:
            model: The model to be exported. Without it, what depends on it is not checked.

        Raises:
            ConfigError: A value cannot work, with this model or with the installed packages.
            ExportError: A package that the export needs is not installed.
        """

    def save(self, model: nn.Module, *, masks: Mapping[str, Tensor] | None = None) -> ExportResult:
        """Write the file, verify it, and move it into place.

        Args:
            model: A finalized module, on any device, in any floating dtype, in train or eval mode. Not changed.
            masks: Keep-masks of the pruned parameters by name (``"conv1.weight"``), broadcastable to their parameter.
                Default: the zeros of every weight of which at least a sixteenth is zero.

        Raises:
            ExportError: The file could not be made, or is not what it must be; what lay at ``path`` is still there.
        """
