"""Multiplications with weights: how many a network does, and how many of them are not by zero."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lightning_prune.errors import ConfigError
from lightning_prune.masks import count_zeros

__all__ = ["LayerMACs", "MACCount", "count_macs"]

_Convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_Transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LOOK_UPS = (nn.Embedding, nn.EmbeddingBag)


@dataclass(frozen=True)
class LayerMACs:
    """Multiply-accumulates of one module in one call of the network.

    Attributes:
        name: Name of the module.
        dense: As if no weight were zero.
        effective: Those with a weight that is not zero.
    """

    name: str
    dense: int
    effective: int


@dataclass(frozen=True)
class MACCount:
    """Multiply-accumulates of one call of a network.

    Attributes:
        layers: Each module that multiplies with weights, in the order of their first call.
        not_counted: Modules with weights that are not known here, or that the call did not reach.
        examples: Size of the batch: the first dimension of the first input.
    """

    layers: tuple[LayerMACs, ...]
    not_counted: tuple[str, ...]
    examples: int

    @property
    def dense(self) -> int:
        """Of all layers, as if no weight were zero."""
        return sum(layer.dense for layer in self.layers)

    @property
    def effective(self) -> int:
        """Of all layers, those with a weight that is not zero."""
        return sum(layer.effective for layer in self.layers)


def count_macs(model: nn.Module, example_inputs: Any = None) -> MACCount:
    """Count the multiply-accumulates with weights of one call of a network, by calling it.

    A weight is used once for each place of the output (of the input, for transposed convolutions), and skipped if it is
    zero. Places on padding count as any other; products of activations with each other, as in attention, and biases do
    not. The network is called in eval mode, without gradients, and comes back as it was.

    Args:
        model: Linear, convolution, recurrent and ``nn.MultiheadAttention`` modules in it are counted.
        example_inputs: A tensor, a tuple of positional arguments, or a dict of keyword arguments. Default: the model's
            ``example_input_array``.

    Raises:
        ConfigError: There are no example inputs.

    Example:
        >>> layer = nn.Conv2d(1, 2, 3, bias=False)
        >>> with torch.no_grad():
        ...     _ = layer.weight[0].zero_()
        >>> count = count_macs(layer, torch.zeros(1, 1, 5, 5))
        >>> count.dense, count.effective
        (162, 81)
    """
    inputs = getattr(model, "example_input_array", None) if example_inputs is None else example_inputs
    if inputs is None:
        raise ConfigError(
            f"example_inputs must be known, but {type(model).__name__} has no example_input_array. "
            "Write count_macs(model, torch.zeros(1, 3, 224, 224)) with the shape of one batch."
        )
    args, kwargs = _arguments(model, inputs)
    counts: dict[str, LayerMACs] = {}
    covered: set[str] = set()
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            covered.add(f"{name}.out_proj".lstrip("."))  # its weight is used without a call of the module
        hook = partial(_record, counts, name)
        handles.append(module.register_forward_hook(hook, with_kwargs=True))
    try:
        with _eval_mode(model), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    covered |= set(counts)
    missed = [name for name, module in model.named_modules() if name not in covered and _has_weights(module)]
    batch = next(
        (argument for argument in (*args, *kwargs.values()) if isinstance(argument, Tensor) and argument.ndim), None
    )
    return MACCount(tuple(counts.values()), tuple(missed), 1 if batch is None else batch.shape[0])


def _record(counts: dict[str, LayerMACs], name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    """Add one call of one module."""
    uses = list(_uses(module, (*args, *kwargs.values()), output))
    if not uses:
        return
    dense = sum(weight.numel() * places for weight, places in uses)
    effective = sum((weight.numel() - count_zeros(weight)) * places for weight, places in uses)
    before = counts.get(name, LayerMACs(name, 0, 0))
    counts[name] = LayerMACs(name, before.dense + dense, before.effective + effective)


def _uses(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Iterator[tuple[Tensor, int]]:
    """The weights of a module, and how often one call uses each element of them."""
    if isinstance(module, (nn.Linear, *_Convolution)):
        yield module.weight, output.numel() // module.weight.shape[0]
    elif isinstance(module, _Transposed):
        yield module.weight, inputs[0].numel() // module.weight.shape[0]
    elif isinstance(module, nn.MultiheadAttention):
        query, key, value = inputs[:3]
        if module.in_proj_weight is not None:
            weights = module.in_proj_weight.chunk(3)
        else:
            weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        for weight, tokens in zip(weights, (query, key, value), strict=True):
            yield weight, tokens.numel() // weight.shape[1]
        yield module.out_proj.weight, query.numel() // module.embed_dim
    elif isinstance(module, nn.RNNBase):
        tokens = inputs[0].data if isinstance(inputs[0], PackedSequence) else inputs[0]
        for name, _ in list(module.named_parameters(recurse=False)):
            plain = name.removesuffix("_orig")
            if plain.startswith("weight"):
                yield getattr(module, plain), tokens.numel() // module.input_size


def _has_weights(module: nn.Module) -> bool:
    """Whether a module has parameters of its own that it multiplies with."""
    own = module.parameters(recurse=False)
    return not isinstance(module, _LOOK_UPS) and any(parameter.ndim > 1 for parameter in own)


def _arguments(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call, on the device of the model."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))

    def place(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    if isinstance(inputs, Mapping):
        return (), {name: place(value) for name, value in inputs.items()}
    return tuple(place(value) for value in (inputs if isinstance(inputs, Sequence) else (inputs,))), {}


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; afterwards each module is back in its own, frozen batch norms too."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
