"""A model under masks: what it holds now, and how its pruned weights are kept zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_prune.errors import LifecycleError
from lightning_prune.pruner import finalizing
from lightning_prune.pruner.layer import Layer
from lightning_prune.pruner.progress import Progress
from lightning_prune.pruner.report import MaskChanges
from lightning_prune.pruner.restoring import require_same_layers
from lightning_prune.schedules import PruningScheduler
from lightning_prune.sharding import is_sharded

__all__ = ["MaskedModel"]


class MaskedModel:
    """What does not move the schedule on: questions about the masks, and keeping pruned weights zero between updates.

    Its own name is not public: these are members of :class:`~lightning_prune.MagnitudePruner`.
    """

    _progress: Progress  # without layers before masks are attached

    @property
    def step_count(self) -> int:
        """Optimizer steps so far."""
        return self._progress.step_count

    @property
    def update_count(self) -> int:
        """Update steps that this object has made."""
        return self._progress.update_count

    @property
    def changes(self) -> MaskChanges | None:
        """What the last computation of masks changed; None before it, and without ``track_changes``."""
        return self._progress.changes

    @property
    def is_prepared(self) -> bool:
        """Whether masks are attached."""
        return bool(self._layers) and not self.is_finalized

    @property
    def is_finalized(self) -> bool:
        """Whether masks were made permanent in place."""
        return self._progress.is_detached

    @property
    def is_sharded(self) -> bool:
        """Whether other processes hold parts of the weights; then all of them must make the same calls."""
        return any(is_sharded(layer.plan.parameter) for layer in self._layers)

    @property
    def untrained(self) -> list[str]:
        """Names of the parameters that the last update of their schedule left out, since nothing trains them."""
        return [layer.plan.name for layer in self._layers if layer.is_behind]

    @property
    def schedules(self) -> dict[str, PruningScheduler]:
        """The schedule of each parameter by its name, in steps once the length of the run is known."""
        return {layer.plan.name: layer.schedule for layer in self._layers}

    @property
    def last_update_step(self) -> int | None:
        """Step after which no mask changes; None if a schedule cannot tell."""
        return self._progress.timeline.last_update_step

    @property
    def is_at_target(self) -> bool:
        """Whether the last update is made; if a schedule cannot tell which is the last, whether it pruned enough."""
        return self._progress.timeline.is_at_target(self.step_count)

    def masks(self) -> dict[str, Tensor]:
        """Bool masks (True = keep) by parameter name; views that follow the updates and broadcast over the weights."""
        return {layer.plan.name: layer.held.mask.view(torch.bool) for layer in self._layers}

    def parameters(self) -> dict[str, nn.Parameter]:
        """The Parameters that are pruned, as an optimizer knows them, by the names that they have without pruning."""
        return {layer.plan.name: layer.held.parameter for layer in self._layers}

    def find_unattached(self) -> list[str]:
        """Find the names of unfrozen resident parameters that no attached optimizer updates; they are kept pruned."""
        return self._progress.training.find_unattached(self._layers)

    def reset_optimizers(self) -> None:
        """Take the dense weights away from an optimizer whose step raised and was caught."""
        self._progress.training.reset()

    def project(self) -> None:
        """Zero pruned weights that something other than an optimizer has written to."""
        for layer in self._layers:
            layer.held.project()

    def project_if_written(self) -> None:
        """The same where PyTorch counted a write since the last call: next to free, but blind to ``.data``."""
        for layer in self._layers:
            layer.held.project_if_written()

    def settle(self) -> None:
        """Make every weight agree with its mask again, after something else wrote to it."""
        for layer in self._layers:
            layer.held.settle()

    def mask_gradients(self, optimizer: Optimizer | None = None) -> None:
        """Zero the gradients of pruned weights; of one optimizer's, or of all of them."""
        self._progress.training.mask_gradients(optimizer)

    def mask_copy(self, model: nn.Module) -> None:
        """Apply the masks to a copy of the model that has the same names, compiled or not, in place."""
        finalizing.mask_copy(self._layers, model)

    def check_replicas(self) -> None:
        """Check that all processes of a data-parallel run hold the same weights, masks and schedules.

        One small collective, which every process must call; of sharded parameters there are no replicas.

        Raises:
            PruningError: Something differs; names the parameter and the ranks. Raised in every process.
        """
        self._need_prepared("check_replicas")
        require_same_layers(self.step_count, self._layers)

    @property
    def _layers(self) -> list[Layer]:
        return self._progress.layers

    def _need_layers(self, name: str) -> None:
        if not self._layers:
            raise LifecycleError(f"{name}() needs a prepared model. Call prepare() first.")

    def _need_prepared(self, name: str) -> None:
        if self.is_finalized:
            raise LifecycleError(f"{name}() needs a prepared model, but it was finalized. Make a new MagnitudePruner.")
        self._need_layers(name)
