"""The weights that a network computes with, by name."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_prune.plan import normed_names, normed_weight

__all__ = ["tensors_of", "weights_of"]


def weights_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the parameters that a network computes with, each once.

    A parameter that is held apart from its mask is given with the mask applied and under its plain name, a parametrized
    one, or one behind a weight norm, as it is computed. Of a sharded parameter, the shard of this process.

    Example:
        >>> layer = nn.utils.prune.l1_unstructured(nn.Linear(2, 2, bias=False), "weight", 0.5)
        >>> [(name, int((weight == 0).sum())) for name, weight in weights_of(layer)]
        [('weight', 2)]
    """
    seen: set[int] = set()
    for prefix, child in module.named_modules():
        if "parametrizations" in prefix.split("."):
            continue
        if parametrize.is_parametrized(child):
            for key, steps in child.parametrizations.items():
                # computing a spectral norm in train mode would change its state; its original has the same zeros
                is_spectral = type(steps[0]).__name__ == "_SpectralNorm"
                value = steps.original if is_spectral else getattr(child, key)
                yield f"{prefix}.{key}".lstrip("."), value.detach()
        for key, (gain, direction) in normed_names(child).items():
            g, v = child._parameters.get(gain), child._parameters.get(direction)
            if g is not None and v is not None:  # and not masked by another library
                if id(v) not in seen:
                    yield f"{prefix}.{key}".lstrip("."), normed_weight(v, g)
                seen |= {id(g), id(v)}
        for key, parameter in child._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            plain, value = key.removesuffix("_orig"), parameter.detach()
            mask = child._buffers.get(f"{plain}_mask") if key.endswith("_orig") else None
            value = value if mask is None else value * mask
            local = value.to_local() if hasattr(value, "to_local") else value  # of a DTensor
            yield f"{prefix}.{key if mask is None else plain}".lstrip("."), local


def tensors_of(weights: nn.Module | Tensor, min_rank: int = 0) -> list[Tensor]:
    """Give the tensor itself, or the weights of a module that have ``min_rank`` dimensions and more."""
    if isinstance(weights, Tensor):
        return [weights.detach()]
    return [weight for _, weight in weights_of(weights) if weight.ndim >= min_rank]
