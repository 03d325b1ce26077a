"""What a result says: numbers that agree with the network, a table, sentences."""

import io

import pytest
import torch
from dead_channels import kill
from rich.console import Console
from torch import nn

from lightning_prune.basics import as_text
from lightning_prune.slim import slim


@pytest.fixture(scope="module")
def result():
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))
    kill(net[0], range(6), 0.5)
    return slim(net, torch.randn(2, 1, 8, 8))


def test_the_numbers_are_those_of_the_two_networks(result):
    first, second = result.layers
    assert (first.name, first.shape, first.slim_shape) == ("0.weight", (8, 1, 3, 3), (2, 1, 3, 3))
    assert (first.channels, first.slim_channels, second.channels, second.slim_channels) == (8, 2, 4, 4)
    assert (first.macs, first.slim_macs) == (2 * 36 * 72, 2 * 36 * 18)
    assert (second.macs, second.slim_macs) == (2 * 4 * 8 * 36, 2 * 4 * 2 * 36)
    assert (first.nbytes, first.slim_nbytes) == (4 * 72, 4 * 18)
    assert (result.macs, result.slim_macs) == (5184 + 2304, 1296 + 576)
    assert result.parameters == 72 + 8 + 8 * 36 * 4 + 4
    assert result.slim_parameters == sum(parameter.numel() for parameter in result.model.parameters())
    assert (result.nbytes, result.slim_nbytes) == (4 * result.parameters, 4 * result.slim_parameters)
    assert result.pinned == {"an output of the model": 4}
    assert result.speedup == result.latency / result.slim_latency
    assert 0 < result.slim_latency < 1


def test_the_proof_is_told(result):
    assert 0 <= result.difference <= 1e-9
    assert result.checks == ("outputs equal on 6 inputs in double precision", "and on a batch twice as large")


def test_numbers_for_a_logger_are_flat(result):
    numbers = result.as_dict("after/")
    assert numbers["after/parameters"] == result.slim_parameters
    assert numbers["after/dense_macs"] == result.macs
    assert all(isinstance(number, float) for number in numbers.values())


def test_the_table_and_the_sentences_tell_the_same(result):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(result)
    text = console.export_text()
    assert "8 -> 2" in text
    assert "25.0%" in text
    assert "pinned: 4 channels by an output of the model" in text
    assert f"{result.parameters:,} parameters before, {result.slim_parameters:,} after" in str(result)
    assert "0.weight" in as_text(result.table())
