"""One pruned parameter while it is pruned: its mask, where its schedule has come to, and what is saved of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from lightning_prune.errors import ConfigError
from lightning_prune.masking import HeldMask
from lightning_prune.plan import PrunedParameter
from lightning_prune.pruner.report import LayerSparsity
from lightning_prune.pruner.state import ParameterState
from lightning_prune.schedules import PruningScheduler, TrainingRun
from lightning_prune.sharding import Sharding

__all__ = ["Layer"]


@dataclass
class Layer:
    """One pruned parameter while it is pruned."""

    plan: PrunedParameter
    held: HeldMask
    initial_sparsity: float
    schedule: PruningScheduler  # in steps, once the length of the run is known
    sharding: Sharding
    sparsity: float = 0.0  # that its schedule asks for; with scope="global" it may have more or less
    floor: float = 0.0
    measured: LayerSparsity | None = None
    is_behind: bool = False  # an update has left it out, since nothing trains it
    is_continued: bool = False  # its mask is that of another library's checkpoint, and holds until the next update

    @property
    def target_sparsity(self) -> float:
        """Fraction of zeros at the end of the schedule."""
        return self.plan.config.target_sparsity

    @property
    def is_waiting(self) -> bool:
        """Whether it is dense, and stays so until something trains it."""
        return self.is_behind and self.sparsity == 0.0

    def has_ended(self, step: int) -> bool:
        """Whether the last update of its schedule lies before a step."""
        last = self.schedule.last_update_step
        return last is not None and step > last

    def is_late(self, step: int) -> bool:
        """Whether it was left out of the last update of its schedule, but is not frozen any more."""
        return self.is_behind and self.held.parameter.requires_grad and self.has_ended(step)

    def resolved(self, run: TrainingRun, step_count: int) -> PruningScheduler:
        """Give the schedule in steps; where the run is another than it was thought to be, from the next step on."""
        written = self.plan.config.schedule
        if written.is_resolved:
            return self.schedule
        try:
            return written.resolve(run).after(self.schedule, step_count)
        except ConfigError as error:
            raise ConfigError(f"{self.plan.rule}.scheduler.{error}") from error

    def restored(self, saved: ParameterState) -> Layer:
        """The layer as it was saved; its mask is this layer's, and is not changed."""
        return replace(
            self,
            initial_sparsity=saved.initial_sparsity,
            sparsity=saved.sparsity,
            floor=min(saved.sparsity, self.target_sparsity) if saved.is_other_rule else saved.floor,
            schedule=self.schedule if saved.schedule is None else saved.schedule,
            measured=None,
            is_behind=self.is_behind and saved.sparsity == 0.0,
        )

    def restore_dense(self, weight: Tensor) -> None:
        """Put back, behind the mask, what another library had pruned away from the whole weight."""
        self.held.restore_dense(weight[self.sharding.box.within(self.sharding.whole)])
        self.initial_sparsity = self.plan.config.initial_sparsity
        self.floor, self.is_continued = min(self.sparsity, self.target_sparsity), self.sparsity > 0.0

    def follow(self, schedule: PruningScheduler) -> None:
        """Go on by another schedule, below whose sparsity of now it may not fall."""
        if schedule != self.schedule:
            self.floor = max(self.floor, min(self.sparsity, self.target_sparsity))
            self.schedule = schedule
