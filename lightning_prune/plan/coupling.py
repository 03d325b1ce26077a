"""A plan in which channels go together: what is coupled with a pruned weight is pruned too, what is pinned is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from lightning_prune.basics import uncompiled_name
from lightning_prune.errors import ConfigError, first_names
from lightning_prune.plan.names import type_key
from lightning_prune.plan.rows import Coupled, Owner, PrunedParameter, PruningPlan, SkippedModule

if TYPE_CHECKING:
    from lightning_prune.slim import CoupledMember, Coupling

__all__ = ["couple_plan"]


def couple_plan(plan: PruningPlan, model: nn.Module, coupling: Coupling) -> PruningPlan:
    """Let rules for channels prune what can only go together.

    Args:
        plan: What the rules say of each weight by itself.
        model: The model.
        coupling: What was found in it.

    Returns:
        The plan in which every rule ``per_channel`` prunes coupled channels: their biases, norms, and what is added to
        them as rows of their own; weights whose channels must stay are left dense, with the reason.

    Raises:
        ConfigError: Two rules ask different things of channels that go together, or nothing that is pruned can go.
    """
    rows = {id(planned.parameter): planned for planned in plan}
    modules = {uncompiled_name(name): module for name, module in model.named_modules(remove_duplicate=False)}
    parameters = {
        uncompiled_name(name): parameter for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    dense = {skipped.name: skipped.reason for skipped in plan.skipped if skipped.cause == "rule"}
    coupled: dict[int, PrunedParameter] = {}
    stuck: dict[str, str] = {}
    for group, found in enumerate(coupling.sets):
        own = [rows[id(parameters[member.name])] for member in found.members if id(parameters[member.name]) in rows]
        if not any(planned.config.structure.empties_channels for planned in own):
            continue
        first = _same_rule(own)
        held = next((member.name for member in found.members if member.name.rpartition(".")[0] in dense), None)
        if held is not None:
            name = held.rpartition(".")[0]
            stuck |= {planned.name: f"its channels go with those of {name}, {dense[name]}" for planned in own}
            continue
        for member in found.members:
            key = id(parameters[member.name])
            known = rows.get(key)
            link = Coupled(group, member.axis, member.classes, found.units)
            coupled[key] = _row(member, modules, first) if known is None else known
            coupled[key] = replace(coupled[key], coupled=link)
    pruned: list[PrunedParameter] = []
    left: list[PrunedParameter] = []
    for planned in plan:
        key = id(planned.parameter)
        if key in coupled:
            pruned.append(coupled.pop(key))
        else:
            (left if planned.config.structure.empties_channels else pruned).append(planned)
    pruned += coupled.values()
    reasons = {planned.name: stuck.get(planned.name) or _why(coupling.pinned.get(planned.name)) for planned in left}
    if not pruned:
        raise ConfigError(
            "With slim, channels are pruned that can be cut out, but none of those that the configuration prunes can: "
            + "; ".join(f"{name}: {reason}" for name, reason in list(reasons.items())[:10])
            + "."
        )
    skipped = [SkippedModule(planned.label, _kind(planned), reasons[planned.name], "pinned") for planned in left]
    weights = sum(planned.numel for planned in left if len(planned.shape) > 1)
    gained = sum(planned.numel for planned in pruned if len(planned.shape) > 1 and id(planned.parameter) not in rows)
    owned = {id(planned.parameter) for planned in pruned}
    dense_rows = tuple(row for row in plan.skipped if row.cause != "reach" or not _all_in(modules[row.name], owned))
    fractions = {
        planned.coupled.group: planned.config.target_sparsity for planned in pruned if planned.coupled is not None
    }
    before, after = coupling.left({}), coupling.left(fractions)
    note = (
        f"Cut out, {len(fractions)} sets of coupled channels leave {after[0]:,} of {before[0]:,} parameters "
        f"({after[0] / before[0]:.1%}) and {after[1] / max(1, before[1]):.1%} of the multiplications."
    )
    rest = plan.dense_weights + weights - gained
    return PruningPlan(tuple(pruned), (*dense_rows, *skipped), rest, (*plan.notes, note))


def _same_rule(rows: list[PrunedParameter]) -> PrunedParameter:
    """The row whose rule holds for all of a set."""
    first = next(planned for planned in rows if planned.config.structure.empties_channels)
    for planned in rows:
        if planned.config != first.config:
            raise ConfigError(
                f"{first.name} and {planned.name} have channels that can only go together, but {first.rule} asks for "
                f"{first.config.target_sparsity:.1%} of {first.structure} and {planned.rule} for "
                f"{planned.config.target_sparsity:.1%} of {planned.structure}. Give both modules the same rule, or "
                "leave both dense with None."
            )
    if first.config.block_size > 1:
        raise ConfigError(
            f"{first.rule}.block_size must be 1 with slim, got {first.config.block_size}: channels that can only go "
            "together are chosen as such. Leave it out."
        )
    return first


def _row(member: CoupledMember, modules: Mapping[str, nn.Module], first: PrunedParameter) -> PrunedParameter:
    """The row of a parameter that no rule names, but whose channels go with those of one that a rule prunes."""
    path, _, attribute = member.name.rpartition(".")
    module = modules[path]
    shape = tuple(getattr(module, attribute).shape)
    return PrunedParameter(member.name, member.name, (Owner(module, attribute),), first.config, first.rule, shape)


def _all_in(module: nn.Module, owned: set[int]) -> bool:
    """Whether all parameters of a module are among some; False of a module without any."""
    own = [id(parameter) for parameter in module.parameters(recurse=False)]
    return bool(own) and owned.issuperset(own)


def _why(reasons: Mapping[str, int] | None) -> str:
    if not reasons:
        return "its channels are not followed to where they are read"
    return f"its channels stay: {first_names(reasons)}"


def _kind(planned: PrunedParameter) -> str:
    return type_key(planned.owners[0].module)
