"""Which of Lightning's strategies pruning was tested with, and what to take instead of the others."""

from __future__ import annotations

from lightning_prune.errors import ConfigError

__all__ = ["TESTED_STRATEGIES", "check_strategy"]

TESTED_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy", "ModelParallelStrategy")
"""Class names; ``DDPStrategy`` is ``"ddp"``, ``"ddp_spawn"`` and ``"ddp_fork"``."""

_SHARD = "Use ModelParallelStrategy, with fully_shard (FSDP2) in configure_model."
_ADVICE = {
    "FSDPStrategy": f"FSDP1 flattens the weights of a layer into one vector, in which they cannot be ranked. {_SHARD}",
    "DeepSpeedStrategy": (
        'DeepSpeed trains copies of the weights that a mask does not reach. Use strategy="ddp" instead of its stage 1. '
        f"Instead of stages 2 and 3: {_SHARD}"
    ),
    "XLAStrategy": "It was never run on a TPU.",
    "SingleDeviceXLAStrategy": "It was never run on a TPU.",
    "Strategy": f"It was tested with {', '.join(TESTED_STRATEGIES)}.",
}


def check_strategy(strategy: object) -> None:
    """Refuse a strategy that pruning was not tested with; one that derives from a tested strategy counts as that.

    Args:
        strategy: A strategy of either Lightning package; judged by the names of its classes.

    Raises:
        ConfigError: Says what to use instead.

    Example:
        >>> class FSDPStrategy: ...
        >>> check_strategy(FSDPStrategy())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        lightning_prune.errors.ConfigError: Pruning was not tested with FSDPStrategy. FSDP1 flattens ...
    """
    names = [cls.__name__ for cls in type(strategy).__mro__]
    known = next((name for name in names if name in _ADVICE or name in TESTED_STRATEGIES), "Strategy")
    if known not in TESTED_STRATEGIES:
        raise ConfigError(
            f"Pruning was not tested with {names[0]}. {_ADVICE[known]} Pass allow_untested=True to the callback to try "
            "it all the same, and compare the zeros of a checkpoint with callback.report()."
        )
