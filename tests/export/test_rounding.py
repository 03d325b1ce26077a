"""How far rounding reaches: it is tried until it explains what was found, and no further."""

import torch
from torch import Tensor, nn

from lightning_prune.export.numbers import rounding_reach
from lightning_prune.export.standalone import Standalone


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x)


def test_rounding_is_tried_no_further_once_it_explains_an_error():
    torch.manual_seed(0)
    model, x = Counting(), torch.ones(1, 4)
    standalone = Standalone(model, x)
    want = standalone(x)[0].detach()

    def tried(enough) -> tuple[Tensor, int]:
        before = model.calls
        reach = rounding_reach(standalone, [x], 0, want, "float16", tries=8, enough=enough)
        return reach, model.calls - before

    whole, calls = tried(None)
    assert calls == 8
    first, calls = tried(lambda reach: bool((reach > 0).all()))
    assert calls == 1
    assert (first > 0).all()
    assert (first <= whole).all()
    again, calls = tried(lambda reach: bool((reach > 1).all()))
    assert calls == 8
    assert torch.equal(again, whole)
