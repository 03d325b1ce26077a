"""What ``torch.compile`` puts around modules, and their names."""

from __future__ import annotations

from torch import nn

__all__ = ["is_compiled", "uncompiled_name", "unwrap"]


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile wraps a module, or was called on it in place."""
    return type(module).__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None


def uncompiled_name(name: str) -> str:
    """The name without the wrapper that torch.compile puts around a module."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def unwrap(module: nn.Module) -> nn.Module:
    """The module itself where ``torch.compile`` wrapped it, and so for all its children, which change in place."""
    while isinstance(inner := module._modules.get("_orig_mod"), nn.Module):
        module = inner
    for name, child in module.named_children():
        if (plain := unwrap(child)) is not child:
            setattr(module, name, plain)
    return module
