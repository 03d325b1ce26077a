"""Fresh inputs for verification: drawn around the example, or from what was declared, until the model takes them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_prune.export.buffers import kept_buffers
from lightning_prune.export.inputs import ProgramInput
from lightning_prune.export.standalone import Standalone

__all__ = [
    "DRAWS",
    "FAR",
    "Drawn",
    "call",
    "draw_inputs",
    "fitted",
    "fresh_inputs",
    "goes_far",
    "integer_range",
    "largest_values",
]

# Mean (in standard deviations from the example's mean) and scale (in standard deviations) of the fresh inputs.
DRAWS = ((0.0, 1.0), (3.0, 0.5), (-3.0, 2.0), (0.0, 8.0))
# Those that may lie outside of what the network is made for.
FAR = (1, 2, 3)
# Where the range of an input was declared: which part of it.
PARTS = ((0.0, 1.0), (0.75, 1.0), (0.0, 0.25), (0.4, 0.6), (0.0, 1.0))
# Largest values to try of an integer input whose example is all zeros, after those that the model's embeddings take.
TOPS = (99, 9, 1)
# How far from the example an input is drawn again where the model refuses it, as a part of how far it was.
SHARES = (0.25, 0.0625, 0.0)
# So many inputs are drawn again each by itself, to find which of them is refused.
MOST_ALONE = 8


@dataclass(frozen=True)
class Drawn:
    """Inputs that the model takes.

    Attributes:
        inputs: The program's.
        fed: The model's.
        expected: What the model gives.
        shares: Of inputs that were drawn again, by name: how far from the example, as a part of how far they were.
        refusal: What the model said of those that were drawn first.
    """

    inputs: Sequence[Tensor]
    fed: Sequence[Tensor]
    expected: tuple[Tensor, ...]
    shares: Mapping[str, float] = field(default_factory=dict)
    refusal: str = ""


def draw_inputs(
    specs: Sequence[ProgramInput], standalone: Standalone, number: int, variant: int = 0, calls: int = 1
) -> Drawn:
    """Fresh inputs that the model takes; what it refuses is drawn again nearer to the example, at last as it is there.

    A length beyond the sequence, an index beyond a table: what the model refuses says nothing of a package. Integers
    are drawn again first, each by itself, so that the others stay as fresh as they can.

    Args:
        specs: The program's inputs.
        standalone: The model.
        number: Which of the draws of :func:`fresh_inputs`.
        variant: Which of the shapes.
        calls: How often the model is called with them, one call after the other.

    Raises:
        Exception: The model's own, if it refuses even the example's values in that shape.
    """
    first = fresh_inputs(specs, standalone.inputs, number, variant)
    refusal: Exception | None = None
    for moved, share in ((frozenset[int](), 1.0), *retries(standalone)):
        inputs = [
            nearer(spec, value, example, share) if at in moved else value
            for at, (spec, value, example) in enumerate(zip(specs, first, standalone.inputs, strict=True))
        ]
        fed = [spec.to_model(value) for spec, value in zip(specs, inputs, strict=True)]
        try:
            expected = call(standalone, fed, calls=calls)
        except Exception as error:
            refusal = refusal or error
            continue
        shares = {
            specs[at].name: 0.0 if is_example(specs[at], inputs[at], standalone.inputs[at]) else share
            for at in moved
            if specs[at].values != "fixed"
        }
        return Drawn(inputs, fed, expected, shares, "" if refusal is None else first_line(refusal))
    raise refusal or AssertionError


def retries(standalone: Standalone) -> Iterator[tuple[frozenset[int], float]]:
    """Which inputs to draw again, and how near to the example."""
    whole = [at for at, tensor in enumerate(standalone.inputs) if not tensor.is_floating_point()]
    every = frozenset(range(len(standalone.inputs)))
    for share in SHARES:
        alone = [frozenset([at]) for at in whole[:MOST_ALONE]]
        for moved in dict.fromkeys([*alone, frozenset(whole)]):
            if moved and moved != every:
                yield moved, share
    for share in SHARES:
        yield every, share


def nearer(spec: ProgramInput, value: Tensor, example: Tensor, share: float) -> Tensor:
    """An input between the example and what it was; of booleans, some are the example's."""
    base = fitted(spec.to_program(example), tuple(value.shape))
    if value.dtype == torch.bool:
        generator = torch.Generator().manual_seed(0)
        return torch.where(torch.rand(value.shape, generator=generator) < share, value, base)
    step = (value.double() - base.double()) * share
    if not value.is_floating_point() or spec.is_pixel:
        step = step.round()
    return (base.double() + step).to(value.dtype)


def is_example(spec: ProgramInput, value: Tensor, example: Tensor) -> bool:
    """Whether an input has the example's values."""
    return torch.equal(value, fitted(spec.to_program(example), tuple(value.shape)).to(value.dtype))


def fitted(example: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The example's values in another shape: repeated where it is larger, cut off where it is smaller."""
    if tuple(example.shape) == shape:
        return example
    if not example.numel():
        return example.new_zeros(shape)
    for dim, size in enumerate(shape):
        example = example.repeat_interleave(-(-size // example.shape[dim]), dim).narrow(dim, 0, size)
    return example


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class Repeated(nn.Module):
    """Calls a module several times with the same inputs; gives the outputs of all calls."""

    def __init__(self, module: nn.Module, calls: int) -> None:
        super().__init__()
        self.module, self.calls = module, calls

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs of the first call, then of the next; a buffer among them is copied before it changes again."""
        return tuple(output.clone() for _ in range(self.calls) for output in self.module(*inputs))


def call(
    standalone: Standalone, inputs: Sequence[Tensor], state: Mapping[str, Tensor] | None = None, calls: int = 1
) -> tuple[Tensor, ...]:
    """The model's outputs, optionally with other parameters and buffers, over several calls; it stays as it was."""
    held = {f"module.{name}": value for name, value in (state or {}).items()}
    repeated = Repeated(standalone, calls).eval()
    with torch.no_grad(), kept_buffers(standalone):
        outputs: tuple[Tensor, ...] = torch.func.functional_call(repeated, held, tuple(inputs))
    return outputs


def largest_values(standalone: Standalone) -> list[int | None]:
    """For each input that is an integer 0 everywhere in the example, a larger value that the model accepts.

    Zeros are what one writes for tokens of which only the number matters; what the network makes of other tokens would
    never be compared.
    """
    rows = (module.num_embeddings for module in standalone.modules() if isinstance(module, nn.Embedding))
    smallest = min(rows, default=1) - 1
    given, result = list(standalone.inputs), list[int | None]()
    for at, example in enumerate(standalone.inputs):
        result.append(None)
        if example.is_floating_point() or example.dtype == torch.bool or not is_one_value(example) or example.max() > 0:
            continue
        for top in (smallest, *TOPS):
            top = min(top, torch.iinfo(example.dtype).max)
            given[at] = torch.full_like(example, top)
            if top > 0 and accepts(standalone, given):
                result[at] = top
                break
        else:
            given[at] = example
    return result


def is_one_value(tensor: Tensor) -> bool:
    """Whether all elements are the same."""
    return tensor.numel() > 0 and bool(tensor.min() == tensor.max())


def accepts(standalone: Standalone, inputs: Sequence[Tensor]) -> bool:
    """Whether the model can be called with these inputs."""
    try:
        call(standalone, inputs)
    except Exception:
        return False
    return True


def integer_range(spec: ProgramInput, example: Tensor) -> tuple[int, int]:
    """The smallest and the largest of the fresh integers."""
    if isinstance(spec.values, tuple):
        return int(spec.values[0]), int(spec.values[1])
    if not example.numel():
        return 0, 0
    bottom, top = int(example.min()), int(example.max())
    if bottom == top and spec.values is None:
        bottom, top = min(bottom, 0), spec.top or top
    return bottom, top


def goes_far(specs: Sequence[ProgramInput], examples: Sequence[Tensor]) -> bool:
    """Whether the draws ``FAR`` are far from the example: whether an input is free to be any number."""
    return any(
        example.is_floating_point() and spec.values is None and not spec.is_pixel
        for spec, example in zip(specs, examples, strict=True)
    )


def fresh_inputs(
    inputs: Sequence[ProgramInput], examples: Sequence[Tensor], draw: int, variant: int = 0
) -> list[Tensor]:
    """Inputs of the program that were not seen when the network was captured, reproducible.

    Args:
        inputs: The program's inputs.
        examples: The example inputs, which set mean, spread and range.
        draw: Which of ``DRAWS``; beyond them, even numbers between the example's smallest and largest value.
        variant: Which of the shapes, for inputs that have several.
    """
    generator = torch.Generator().manual_seed(1 + draw)
    return [
        fresh(spec, example, draw, spec.shapes[variant % len(spec.shapes)], generator)
        for spec, example in zip(inputs, examples, strict=True)
    ]


def fresh(spec: ProgramInput, example: Tensor, draw: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """A fresh input of a shape."""
    example = spec.to_program(example)
    if spec.values == "fixed":
        return fitted(example, shape)
    if example.dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    if spec.is_pixel or not example.is_floating_point():
        bounds = (0.0, 255.0) if spec.is_pixel and spec.values is None else integer_range(spec, example)
        low, high = bounds if spec.values is None else part_of(bounds, draw)
        return torch.randint(int(low), int(high) + 1, shape, generator=generator).to(example.dtype)
    if spec.values is not None or draw >= len(DRAWS):
        bounds = (float(example.min()), float(example.max())) if spec.values is None else spec.values
        low, high = part_of(bounds, draw)
        return torch.rand(shape, generator=generator) * (high - low) + low
    spread = float(example.std()) if example.numel() > 1 and float(example.std()) > 0 else 1.0
    offset, scale = DRAWS[draw]
    return torch.randn(shape, generator=generator) * (scale * spread) + float(example.mean()) + offset * spread


def part_of(bounds: tuple[float, float], draw: int) -> tuple[float, float]:
    """The part of a range from which one draw is taken."""
    low, high = bounds
    begin, end = PARTS[min(draw, len(PARTS) - 1)]
    return low + (high - low) * begin, low + (high - low) * end
