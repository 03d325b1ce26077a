"""Cut dead channels out of a network, and prove that it computes the same."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from lightning_prune.errors import SlimError, did_you_mean, one_line
from lightning_prune.slim.choosing import choose, uses_of
from lightning_prune.slim.cutting import apply_cut, cut_of
from lightning_prune.slim.difference import WholeRun, pins_at
from lightning_prune.slim.flow import Pin
from lightning_prune.slim.graph import Call, Graph, as_call, capture, plain_copy
from lightning_prune.slim.names import standing_names
from lightning_prune.slim.ops import operation_of, values_in
from lightning_prune.slim.proof import Proof, difference, inputs_of, larger_batch, outputs_of
from lightning_prune.slim.result import SlimResult, result_of
from lightning_prune.slim.values import narrowed
from lightning_prune.slim.walk import Walk, walk

__all__ = ["kept_pins", "prove_cut", "slim"]

TOLERANCE = 1e-9
TRIES = 40  # cuts that are tried; after each, what led to the first difference is kept


def slim(model: nn.Module, example_inputs: Any, *, keep: Iterable[str] = ()) -> SlimResult:
    """Cut out every channel that does not matter, and prove that the outputs stay the same.

    A channel goes if its value does not depend on the input (its filter is zero, or the scale behind it), or if nothing
    reads it; with it go the entries of norms, the columns of the layers that read it, and in a sum the same channel of
    every term. What a constant channel added moves into biases. What an operation mixes, or is not known to keep apart,
    stays: at worst less is cut.

    Args:
        model: Any module; not changed. It is captured in eval mode, on the CPU, and without the wrappers that
            ``torch.compile`` puts around it or its parts.
        example_inputs: A tensor, a sequence of positional arguments, or a dict of keyword arguments of one call.
        keep: Names of modules whose output channels all stay.

    Returns:
        The slim network, in the model's dtype and on its device, with what was cut and the proof.

    Raises:
        SlimError: The model cannot be called so or captured, or no cut of it computes the same.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> _ = net[0].weight.data[:4].zero_(), net[0].bias.data[:4].zero_()
        >>> result = slim(net, torch.randn(3, 8))
        >>> result.model[0].out_features, result.model[2].in_features, result.difference <= 1e-9
        (2, 2, True)
    """
    call = as_call(example_inputs).map(lambda tensor: tensor.detach().cpu())
    whole = plain_copy(model)
    exact = plain_copy(model).double()
    graph = capture(whole, call)
    found = walk(graph, whole)
    uses = uses_of(graph.nodes, graph.states, standing_names(whole))
    pins = kept_pins(graph, found, whole, keep)
    proof = prove_cut(graph, found, uses, pins, exact, call)
    slimmed = plain_copy(model)
    apply_cut(slimmed, proof.cut)
    return result_of(model, whole, slimmed, call, found, proof)


def kept_pins(graph: Graph, found: Walk, model: nn.Module, keep: Iterable[str]) -> list[Pin]:
    """Pins for what the modules that the user wants whole give to others."""
    if isinstance(keep, str):
        raise SlimError(f"keep must be a list of names, got {keep!r}. Write keep=[{keep!r}].")
    names = dict(model.named_modules(remove_duplicate=False))
    pins = []
    for name in keep:
        if name not in names:
            raise SlimError(
                f"keep must name modules of {type(model).__name__}, but it has no {name!r}.{did_you_mean(name, names)}"
            )
        results = graph.results_of(name)
        if not results:
            raise SlimError(f"keep must name modules that the forward calls, but it does not call {name!r}.")
        values = values_in([found.values[node] for node in results])
        pins += [Pin(narrowed(value.ids).reshape(-1), "named in keep") for value in values]
    return pins


def prove_cut(graph: Graph, found: Walk, uses: dict[str, int], pins: list[Pin], exact: nn.Module, call: Call) -> Proof:
    """The largest cut that computes the same: where a forward counts on sizes, what leads there stays."""
    inputs = list(inputs_of(call))
    expected = [outputs_of(exact, item) for item in inputs]
    if not any(bool(output.isfinite().any()) for output in expected[0]):
        raise SlimError(
            f"{type(exact).__name__} must answer with numbers to compare, but example_inputs give none that is finite."
        )
    whole: WholeRun | None = None
    for _ in range(TRIES):
        choice = choose(found, uses, pins)
        cut = cut_of(found.flow, choice)
        slimmed = plain_copy(exact)
        apply_cut(slimmed, cut)
        largest, raised = _largest_difference(slimmed, inputs, expected)
        if largest <= TOLERANCE:
            further, checks, raised = _another_batch(exact, slimmed, call)
            if further <= TOLERANCE:
                checks = (f"outputs equal on {len(inputs)} inputs in double precision", *checks)
                return Proof(cut, choice, tuple(pins), max(largest, further), checks)
            largest = further
        whole = whole or WholeRun(graph, found, exact, inputs[1])
        node = whole.first_difference(slimmed, choice, TOLERANCE)
        new = pins_at(graph, node, found, choice) if node is not None else []
        if not new:
            where = "" if node is None else f" They first differ at {operation_of(node, found.values).label}."
            raised_too = "" if raised is None else f" It raised {type(raised).__name__}: {one_line(raised)}."
            raise SlimError(
                f"The slim network must compute the same as {type(exact).__name__}, but its outputs differ by "
                f"{largest:.1e} of the largest one.{where}{raised_too} Nothing was changed."
            ) from raised
        pins = [*pins, *new]
    raise SlimError(
        f"None of {TRIES} cuts of {type(exact).__name__} computes the same: its forward counts on more sizes than were "
        "found. Nothing was changed. Name the modules that must stay whole in keep."
    )


def _largest_difference(
    model: nn.Module, inputs: list[Call], expected: list[list[Tensor]]
) -> tuple[float, Exception | None]:
    largest = 0.0
    for item, outputs in zip(inputs, expected, strict=True):
        try:
            largest = max(largest, difference(outputs_of(model, item), outputs))
        except Exception as error:
            return float("inf"), error
        if largest > TOLERANCE:
            break
    return largest, None


def _another_batch(exact: nn.Module, slimmed: nn.Module, call: Call) -> tuple[float, tuple[str, ...], Exception | None]:
    """The difference on a batch twice as large, where the network takes one."""
    batch = larger_batch(call)
    if batch is None:
        return 0.0, (), None
    try:
        expected = outputs_of(exact, batch)
    except Exception:  # its forward is made for this batch size
        return 0.0, ("another batch size was not tried: the model takes none",), None
    largest, raised = _largest_difference(slimmed, [batch], [expected])
    return largest, ("and on a batch twice as large",), raised
