"""How a method turns a dense recipe into a sparse network: the same for all benchmarks of accuracy.

A way takes a :class:`~benchmarks.recipes.Training` and a sparsity, and gives the network that it leaves. All ways that
prune have one budget, the steps of the dense recipe, except where their names say otherwise.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelPruning
from torch import nn

from benchmarks.common import import_coremltools
from benchmarks.recipes import Task, Training, copied, parameters
from lightning_prune import MagnitudePruner, MagnitudePruningCallback
from lightning_prune.analysis import allocate
from lightning_prune.plan import plan_pruning
from lightning_prune.slim import Slim

FIRST, LAST, UPDATES = 0.1, 0.6, 40  # share of the steps at which masks first change, and are final; number of updates
WINDOW = f"at most {UPDATES} updates from {FIRST:.0%} to {LAST:.0%} of the steps, along a cubic curve"

Way = Callable[[Training, float], nn.Module]


class NotApplicable(Exception):
    """A way cannot be gone for this network; the message says why."""


def updates(steps: int) -> list[int]:
    """The steps at which masks are computed anew, evenly over the window."""
    first, last = max(1, round(FIRST * steps)), round(LAST * steps)
    return sorted({first + (last - first) * k // (UPDATES - 1) for k in range(UPDATES)})


def rule(training: Training, sparsity: float, **structure: Any) -> dict[str, Any]:
    """Prune gradually, in the window that all ways share."""
    return {
        "scheduler": {"update_steps": updates(training.recipe.steps)},
        "target_sparsity": sparsity,
        **structure,
    }


def pruned(training: Training, task: Task, config: object, **settings: Any) -> nn.Module:
    callback = MagnitudePruningCallback(config, show_plan=False, prog_bar=False, log_layers=False, **settings)
    return training.fit(task, [callback])


def dense(training: Training, sparsity: float) -> nn.Module:
    """No pruning."""
    return training.dense().net


def gradual(
    training: Training,
    sparsity: float,
    *,
    scope: str = "layer",
    types: Mapping[str, Mapping[str, Any]] | None = None,
    **structure: Any,
) -> nn.Module:
    """Prune while training; ``types`` gives classes of layers further settings, by the names of the classes."""
    general = rule(training, sparsity, **structure)
    config = {
        "global_config": general,
        "module_type_configs": {name: general | dict(more) for name, more in (types or {}).items()},
    }
    return pruned(training, training.task(), config, scope=scope)


def globally(training: Training, sparsity: float) -> nn.Module:
    """Prune while training, with the weights of all layers ranked together."""
    return gradual(training, sparsity, scope="global")


def straight_through(training: Training, sparsity: float) -> nn.Module:
    """Prune while training, and train on what is pruned by the gradient of the pruned network."""
    return gradual(training, sparsity, pruned_gradient="straight_through")


def sr_ste(training: Training, sparsity: float) -> nn.Module:
    """2:4 chosen anew at every step, with straight-through gradients and their decay (SR-STE)."""
    every_step = {"scheduler": {"begin_step": 1, "frequency": 1}, "n_m_ratio": (2, 4), "target_sparsity": sparsity}
    config = {"global_config": {**every_step, "pruned_gradient": "straight_through", "decay": 2e-4}}
    return pruned(training, training.task(), config)


def erk(training: Training, sparsity: float) -> nn.Module:
    """Prune while training, with a sparsity of its own for each layer: large layers become sparser."""
    task = training.task()
    spread = allocate(task, sparsity, "erdos_renyi_kernel", config={"global_config": rule(training, sparsity)})
    return pruned(training, task, spread.config)


def at_once(training: Training, sparsity: float) -> nn.Module:
    """Prune by a single mask amid the run, where the gradual ways come to their target, and train on."""
    once = {"scheduler": {"begin_step": LAST}, "target_sparsity": sparsity}
    return pruned(training, training.task(), {"global_config": once})


def after_training(training: Training, sparsity: float) -> nn.Module:
    """Prune the trained dense network, and do not train on."""
    net = training.dense().net
    pruner = MagnitudePruner(net, {"global_config": {"scheduler": {"begin_step": 1}, "target_sparsity": sparsity}})
    pruner.prepare(inplace=True)
    pruner.step()
    pruner.finalize(inplace=True)
    return net.eval()


def retrained(training: Training, sparsity: float) -> nn.Module:
    """Prune the trained dense network at once, then the whole recipe again: twice the steps."""
    once = {"scheduler": {"begin_step": 1}, "target_sparsity": sparsity}
    return pruned(training, copied(training.dense()), {"global_config": once})


class _Steps(Callback):
    """Calls a pruner that counts optimizer steps itself."""

    def __init__(self, step: Callable[[], object]) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: object, pl_module: object, outputs: object, batch: object, i: int) -> None:
        self.step()


def by_coremltools(training: Training, sparsity: float) -> nn.Module:
    """Core ML Tools' MagnitudePruner, by the schedule of :func:`gradual`."""
    peer = import_coremltools().optimize.torch.pruning
    task = training.task()
    config = peer.MagnitudePrunerConfig.from_dict({"global_config": rule(training, sparsity)})
    pruner = peer.MagnitudePruner(task.net, config)
    pruner.prepare(inplace=True)
    training.fit(task, [_Steps(pruner.step)])
    pruner.finalize(inplace=True)
    return task.net.eval()


def by_model_pruning(training: Training, sparsity: float) -> nn.Module:
    """Lightning's ModelPruning, which prunes at ends of epochs: the cubic curve there, ranked globally, as it advises.

    It prunes a share of what is left, and by default takes weights back to their first values each time, which would
    undo the training so far; that is switched off.
    """
    task = training.task()
    epochs = training.recipe.epochs
    first, last = round(FIRST * epochs), max(1, round(LAST * epochs))

    def target(epoch: int) -> float:
        if epoch < first:
            return 0.0
        return sparsity * (1 - (1 - min(1.0, (epoch + 1 - first) / (last - first))) ** 3)

    def share_of_rest(epoch: int) -> float:
        before = target(epoch - 1)
        return (target(epoch) - before) / (1 - before)

    peer = ModelPruning(
        "l1_unstructured",
        parameters_to_prune=[(owner.module, "weight") for row in _rows(task) for owner in row.owners],
        amount=share_of_rest,
        use_lottery_ticket_hypothesis=False,
    )
    return training.fit(task, [peer])


def _rows(task: Task) -> list[Any]:
    """What our own rule for all layers would prune: the peer gets the same."""
    return list(plan_pruning(task, {"global_config": {"target_sparsity": 0.5}}))


def width_for(recipe: Any, number: float) -> float:
    """Width of the dense network whose parameters are nearest to a number."""
    widths = [step / 400 for step in range(1, 401)]
    counts = {width: parameters(recipe.make(width)) for width in widths}
    best = min(widths, key=lambda width: abs(counts[width] - number))
    if abs(counts[best] - number) > 0.25 * number:
        raise NotApplicable(f"its smallest network of this shape has {counts[best]:,} parameters")
    return best


def small_dense(training: Training, sparsity: float) -> nn.Module:
    """Train a narrower dense network with as many parameters as pruning leaves."""
    task = training.task()
    weights = sum(row.numel for row in _rows(task))
    width = width_for(training.recipe, parameters(task) - sparsity * weights)
    return training.fit(training.task(width))


def narrow(training: Training, sparsity: float, *, times: int = 1) -> nn.Module:
    """Train the network that :func:`coupled` leaves, from scratch: the same share of channels in every layer.

    ``times`` as many epochs as the recipe has.
    """
    training = longer(training, times)
    return training.fit(training.task(1 - sparsity))


def longer(training: Training, times: int) -> Training:
    return replace(training, recipe=replace(training.recipe, epochs=times * training.recipe.epochs))


def coupled(training: Training, sparsity: float, *, times: int = 1) -> nn.Module:
    """Prune channels that can only go together while training, and cut them out at the end."""
    training = longer(training, times)
    return _cut(training, training.task(), rule(training, sparsity))


def coupled_at_once(training: Training, sparsity: float) -> nn.Module:
    """The same channels by a single mask amid the run."""
    return _cut(training, training.task(), {"scheduler": {"begin_step": LAST}, "target_sparsity": sparsity})


def coupled_and_retrained(training: Training, sparsity: float) -> nn.Module:
    """Cut the trained dense network once, then the whole recipe again: twice the steps."""
    once = {"scheduler": {"begin_step": 1}, "target_sparsity": sparsity}
    return _cut(training, copied(training.dense()), once)


def _cut(training: Training, task: Task, settings: dict[str, Any]) -> nn.Module:
    """Train with ``slim``, and give the network that was cut, of which the proof holds."""
    callback = MagnitudePruningCallback(
        {"global_config": settings | {"granularity": "per_channel"}},
        slim=Slim(example_inputs=task.example_input_array),
        show_plan=False,
        prog_bar=False,
    )
    training.fit(task, [callback])
    if callback.slim_result is None:
        raise RuntimeError(f"The channels could not be cut out: {callback.slim_error}") from callback.slim_error
    small = callback.slim_result.model
    return small.net.eval()
