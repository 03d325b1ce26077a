"""Weights as bit masks and values: written into a captured graph, and found again in the file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from lightning_prune.export.coreai.capture import insert, value_of

__all__ = ["SparseWeight", "sparse_weights", "store_sparse"]


@dataclass(frozen=True)
class SparseWeight:
    """A weight as it is to be written.

    Attributes:
        values: The kept values in row-major order, in the type that they are stored in.
        mask: Bool, ``True`` = keep, in the shape of the weight.
    """

    values: Tensor
    mask: Tensor

    @classmethod
    def of(cls, weight: Tensor, mask: Tensor) -> "SparseWeight":
        """The weight without what the mask prunes."""
        mask = mask.contiguous()
        return cls(weight.detach().contiguous()[mask], mask)

    @property
    def nbytes(self) -> int:
        """Bytes of the values and of the bit mask."""
        return self.values.nbytes + -(-self.mask.numel() // 8)

    @property
    def dense_nbytes(self) -> int:
        """Bytes of all values."""
        return self.mask.numel() * self.values.element_size()


def sparse_weights(model: nn.Module, masks: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, SparseWeight]:
    """The weights that are smaller as bit mask and values, by every name that they have in the model.

    Args:
        model: The model that is captured.
        masks: Keep-masks by parameter name, in the shape of the parameter.
        dtype: What the values are stored in.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    by_identity = {
        id(parameters[name]): SparseWeight.of(parameters[name].to(dtype), mask) for name, mask in masks.items()
    }
    found = {name: by_identity.get(id(parameter)) for name, parameter in parameters.items()}
    return {name: weight for name, weight in found.items() if weight and weight.nbytes < weight.dense_nbytes}


def store_sparse(
    program: torch.export.ExportedProgram, weights: Mapping[str, SparseWeight], inject: Callable[[Any], Any]
) -> set[str]:
    """Let a captured graph make weights of masks and values, which the converter writes as they are.

    It is done to the inputs of the graph, so it is the same for any use of a parameter: in a layer, in a recurrent
    one, by a function, by several layers at once.

    Args:
        program: Is changed.
        weights: By name of the parameter within the program.
        inject: The converter's function that makes of a mask of bytes one of bits.

    Returns:
        The names of those that the program reads.
    """
    written = set()
    placeholders = program.graph.find_nodes(op="placeholder")
    first = next(node for node in program.graph.nodes if node.op != "placeholder")
    by_name = {node.name: node for node in placeholders}
    signature = program.graph_signature
    for spec in list(signature.input_specs):
        node = by_name[spec.arg.name]
        if spec.kind is not InputKind.PARAMETER or spec.target not in weights or not node.users:
            continue
        weight, dense, target = weights[spec.target], value_of(node), f"{spec.target}_mask"
        with program.graph.inserting_after(placeholders[-1]):
            mask = program.graph.placeholder(f"{node.name}_mask")
        placeholders.append(mask)
        mask.meta["val"] = dense.new_empty(dense.shape, dtype=torch.bool)
        node.meta["val"] = dense.new_empty(weight.values.shape)
        made = insert(first, torch.ops.coreai.sparse_to_dense.default, node, mask, value=dense)
        node.replace_all_uses_with(made, delete_user_cb=lambda user, made=made: user is not made)
        program.state_dict[spec.target] = nn.Parameter(weight.values, requires_grad=False)
        program.state_dict[target] = weight.mask
        signature.input_specs.append(InputSpec(InputKind.BUFFER, TensorArgument(mask.name), target, persistent=True))
        written.add(spec.target)
    program.graph_module.recompile()
    inject(program)
    return written
