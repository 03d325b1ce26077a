"""Tables as text, wherever they are printed."""

import pytest
from torch import nn

from lightning_prune import MagnitudePruner, plan_pruning


@pytest.fixture
def in_a_notebook(monkeypatch):
    """Rich believes that it runs in Jupyter, where a console shows what it prints beside the text that is asked for."""
    shown = []
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("rich.jupyter.display", lambda *arguments: shown.append(arguments))
    return shown


def test_in_a_notebook_a_table_is_printed_and_nothing_is_shown_beside_it(in_a_notebook):
    model = nn.Sequential(nn.Linear(8, 4))
    assert "8 of 32 weights in 1 layer" in str(plan_pruning(model, {"global_config": {"target_sparsity": 0.25}}))
    pruner = MagnitudePruner(model, {"global_config": {"target_sparsity": 0.25}})
    pruner.prepare(inplace=True)
    assert "<pre>" in pruner.report()._repr_html_()
    assert in_a_notebook == []
