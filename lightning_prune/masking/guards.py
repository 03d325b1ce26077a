"""Guards of state dicts: whatever asks a module for its state gets pruned weights, under their plain names.

Lightning does not call a callback for every file that it writes, and a user's own code calls none at all. So the hooks
are those of the module that holds the weight.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["PlainNames", "ProjectFirst", "drop_guards"]


class PlainNames:
    """Two hooks of one module: ``weight_orig`` and ``weight_mask`` are saved as ``weight``, and loaded from it.

    A state that holds nothing where the weight is pruned leaves what was pruned away as it is. In a copy of the module,
    whose mask no pruner moves any more, the mask makes room for what is loaded.

    Args:
        name: Name of the parameter in the module, without pruning.
    """

    def __init__(self, name: str) -> None:
        self._tensor_name = name
        self._is_copy = False

    def __getstate__(self) -> dict[str, Any]:
        return {"_tensor_name": self._tensor_name, "_is_copy": True}

    def attach(self, module: nn.Module) -> None:
        """Put the hooks on a module; :func:`drop_guards` takes them off."""
        module.register_state_dict_post_hook(self)  # type: ignore[no-untyped-call]
        module.register_load_state_dict_pre_hook(self.load)  # type: ignore[no-untyped-call]

    def __call__(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
        """Of what is saved, put the pruned weight in the place of ``weight_orig``, and leave out ``weight_mask``."""
        original, mask = (f"{prefix}{self._tensor_name}{suffix}" for suffix in ("_orig", "_mask"))
        if original not in state_dict or mask not in state_dict:
            return
        behind: list[tuple[str, Any]] = []
        while not behind or behind[-1][0] != original:
            behind.append(state_dict.popitem())
        entries = dict(reversed(behind))
        dense, keep = entries.pop(original).detach(), entries.pop(mask, None)
        keep = state_dict.pop(mask) if keep is None else keep
        state_dict[prefix + self._tensor_name] = torch.where(keep.to(dense.device) != 0, dense, torch.zeros_like(dense))
        state_dict.update(entries)

    def load(self, module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """Of what is to be loaded, replace the weight by the two entries that the module has for it."""
        value = state_dict.get(prefix + self._tensor_name)
        dense: Tensor = getattr(module, f"{self._tensor_name}_orig")
        mask: Tensor = getattr(module, f"{self._tensor_name}_mask")
        if not isinstance(value, Tensor) or value.shape != dense.shape:
            return  # the module itself says what is missing or does not fit
        del state_dict[prefix + self._tensor_name]
        value, keep = value.to(dense), (mask != 0).expand(dense.shape)
        is_dense = bool(((value != 0) & ~keep).any())
        state_dict[f"{prefix}{self._tensor_name}_orig"] = (
            value if is_dense else torch.where(keep, value, dense.detach())
        )
        state_dict[f"{prefix}{self._tensor_name}_mask"] = torch.ones_like(mask) if is_dense and self._is_copy else mask


class ProjectFirst:
    """Hook of one module: what is pruned is zeroed before it is saved, whatever has written there.

    Args:
        name: Name of the parameter in the module.
        project: A bound method; nothing in a copy of the module, which has no mask.
    """

    def __init__(self, name: str, project: Callable[[], None]) -> None:
        self._tensor_name = name
        self._project: weakref.WeakMethod[Callable[[], None]] | None = weakref.WeakMethod(project)

    def __getstate__(self) -> dict[str, Any]:
        return {"_tensor_name": self._tensor_name, "_project": None}

    def attach(self, module: nn.Module) -> None:
        """Put the hook on a module; :func:`drop_guards` takes it off."""
        module.register_state_dict_pre_hook(self)  # type: ignore[no-untyped-call]

    def __call__(self, module: nn.Module, prefix: str, keep_vars: bool) -> None:
        """Zero what is pruned."""
        project = None if self._project is None else self._project()
        if project is not None:
            project()


def drop_guards(module: nn.Module, name: str | None = None) -> None:
    """Take the guards of one parameter off a module, or of all of them; a copy of a guarded module has them too."""
    for hooks in (module._state_dict_pre_hooks, module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            call = getattr(hook, "hook", hook)  # torch wraps those of loading
            guard = getattr(call, "__self__", call)
            if isinstance(guard, (PlainNames, ProjectFirst)) and name in (None, guard._tensor_name):
                del hooks[key]
