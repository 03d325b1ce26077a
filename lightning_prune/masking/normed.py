"""Masks of weights behind a weight norm: the mask is that of the weight which the network computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_prune.masking.held import HeldMask
from lightning_prune.masking.products import ones, put_pruned, select_pruned
from lightning_prune.masking.resident import ResidentMask
from lightning_prune.plan import (
    Owner,
    PrunedParameter,
    fill_zero_rows,
    normed_weight,
    prune_normed,
    recompute_weights,
    row_axis,
    split_mask,
)

__all__ = ["NormedMask"]


class NormedMask(HeldMask):
    """The mask of ``w = g * v / |v|``, held by one resident mask of ``v`` and one of ``g``.

    A row of which nothing is kept has ``g = 0``; its ``v`` is kept as it is, and stays so whatever an optimizer does to
    it, since a ``v`` that decays to nothing would be divided by its norm. All other rows have their zeros in ``v``.

    Args:
        planned: What is pruned, the ``v``.
        gain: Where ``g`` hangs.
    """

    def __init__(self, planned: PrunedParameter, gain: Owner) -> None:
        config = replace(planned.config, granularity="per_scalar", block_size=1, n_m_ratio=None)
        self.parameter = planned.parameter
        self._mask = ones(self.parameter, planned.layout.mask_shape(planned.shape))
        self._gain_name = planned.gain_name
        self._owners = planned.owners
        self._direction = _Direction(replace(planned, config=config))
        try:
            self._gain = ResidentMask(
                replace(
                    planned,
                    name=planned.gain_name,
                    owners=(gain,),
                    config=config,
                    shape=tuple(getattr(gain.module, gain.attribute).shape),
                )
            )
        except BaseException:
            self._direction.detach()
            raise

    @property
    def mask(self) -> Tensor:  # type: ignore[override]
        """The mask of the weight, on the device where its parts are now."""
        if self._mask.device != self.parameter.device:
            self._mask = self._mask.to(self.parameter.device)
        return self._mask

    @property
    def got_gradient(self) -> bool:
        """Whether a gradient has come to one of the parts since this was last set to False."""
        return any(part.got_gradient for part in self.parts())

    @got_gradient.setter
    def got_gradient(self, value: bool) -> None:
        for part in self.parts():
            part.got_gradient = value

    @override
    def parts(self) -> tuple[HeldMask, ...]:
        return self._direction, self._gain

    @override
    def dense(self) -> Tensor:
        return normed_weight(self._direction.dense(), self._gain.dense())

    @override
    def settle(self) -> None:
        direction, gain = self._direction, self._gain
        direction.fold()
        gain.fold()
        self._split()
        fill_zero_rows(direction.parameter, gain.parameter, direction.mask)
        direction.keep_rows(gain.mask == 0)
        direction.settle()
        gain.settle()
        self._show()

    @override
    def project(self) -> None:
        for part in self.parts():
            part.project()

    @override
    def project_if_written(self) -> None:
        for part in self.parts():
            part.project_if_written()

    @override
    def release(self) -> None:
        for part in self.parts():
            part.release()

    @override
    def detach(self) -> None:
        for part in self.parts():
            part.detach()
        self._show()

    @override
    def guard_state_dict(self) -> None:
        for part in self.parts():
            part.guard_state_dict()

    @override
    def take_writes(self) -> None:
        for part in self.parts():
            part.take_writes()

    @override
    def pruned_values(self) -> Tensor | None:
        """Values of ``v`` where the mask is 0; in rows of which nothing is kept, in each place, that of ``g``."""
        values, gains = self._direction.pruned_values(), self._gain.pruned_values()
        if values is None and gains is None:
            return None
        dense, rows = (torch.zeros_like(part.parameter.detach()) for part in self.parts())
        put_pruned(dense, self._direction.mask, values)
        put_pruned(rows, self._gain.mask, gains)
        return select_pruned(torch.where(self._gain.mask == 0, rows, dense), self.mask)

    @override
    def restore(self, values: Tensor | None) -> None:
        direction, gain = self._direction, self._gain
        direction.keep_rows(None)
        self._split()
        if values is None:
            direction.restore(None)
            gain.restore(None)
        else:
            dense = torch.zeros_like(self.parameter.detach())
            put_pruned(dense, self.mask, values)
            direction.restore(select_pruned(dense, direction.mask))
            first = tuple(slice(None if size > 1 else 1) for size in gain.parameter.shape)
            row = dense[first] if first else dense.view(-1)[:1].view(())
            gain.restore(select_pruned(row.to(gain.parameter.dtype), gain.mask))
        direction.keep_rows(gain.mask == 0)
        self._show()

    @override
    def restore_dense(self, weight: Tensor) -> None:
        """Take up what another library had pruned of ``v``; it knows nothing of ``g``."""
        direction, gain = self._direction, self._gain
        direction.restore(weight[direction.mask.cpu() == 0])
        gain.restore(gain.pruned_values())

    @override
    def mask_copy(self, name: str, parameters: Mapping[str, nn.Parameter]) -> None:
        direction, gain = parameters.get(name), parameters.get(self._gain_name)
        if direction is not None and gain is not None:
            prune_normed(direction, gain, self.mask)

    @override
    def fingerprint(self) -> int:
        return self._direction.fingerprint() * 31 + self._gain.fingerprint()

    def _split(self) -> None:
        """Give the parts their masks; in place, as the mask itself is changed."""
        masks = split_mask(self.mask, self.parameter, self._gain.parameter)
        for part, mask in zip(self.parts(), masks, strict=True):
            part.mask.copy_(mask)

    def _show(self) -> None:
        for owner in self._owners:
            recompute_weights(owner.module)


class _Direction(ResidentMask):
    """The mask of ``v``, some of whose rows nothing may change."""

    _kept_rows: tuple[int, Tensor, Tensor] | None = None  # an axis, indices along it, and the rows there

    def keep_rows(self, rows: Tensor | None) -> None:
        """Keep some rows as they are now, from here on; None for none.

        Args:
            rows: Bool, of the shape of ``g``.
        """
        self._kept_rows = None
        if rows is None or not bool(rows.any()):
            return
        axis = row_axis(self.parameter, rows)
        places = rows.flatten().nonzero().view(-1)
        weight = self.parameter.detach()
        kept = weight.clone() if axis is None else weight.index_select(axis, places)
        self._kept_rows = 0 if axis is None else axis, places, kept

    @override
    def unfold(self, *, is_zero: bool = False) -> None:
        super().unfold(is_zero=is_zero)
        self._put_rows_back()

    @override
    def project(self) -> None:
        super().project()
        self._put_rows_back()

    def _put_rows_back(self) -> None:
        if self._kept_rows is None or self.is_folded:
            return
        axis, places, kept = self._kept_rows
        weight = self.parameter.detach()
        with torch.no_grad():
            if kept.shape == weight.shape:
                weight.copy_(kept)
            else:
                weight.index_copy_(axis, places.to(weight.device), kept.to(weight))
        self._version = self.parameter._version
