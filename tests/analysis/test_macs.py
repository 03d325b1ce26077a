import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

from lightning_prune import ConfigError, MagnitudePruner
from lightning_prune.analysis.macs import count_macs


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (3, 6)),
        (nn.Linear(6, 4), (2, 5, 6)),
        (nn.Conv1d(4, 6, 3, stride=2), (2, 4, 11)),
        (nn.Conv2d(4, 6, (3, 1), padding=1, groups=2), (2, 4, 7, 5)),
        (nn.Conv2d(4, 4, 3, dilation=2, groups=4), (1, 4, 9, 9)),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (1, 4, 5, 5)),
    ],
    ids=str,
)
def test_dense_counts_are_half_of_what_torch_counts_as_operations(layer: nn.Module, shape: tuple[int, ...]):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.zeros(shape))
    expected = counter.get_total_flops() // 2
    count = count_macs(layer, torch.zeros(shape))
    assert (count.dense, count.effective, count.examples) == (expected, expected, shape[0])


def test_a_zero_weight_saves_one_multiplication_a_place():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(50, 4))
    with torch.no_grad():
        model[0].weight[0, 0, 0] = 0  # 3 weights, 25 places
        model[2].weight[1:] = 0  # 150 weights, one place
    count = count_macs(model, torch.zeros(3, 1, 5, 5))
    rows = [(layer.name, layer.dense, layer.effective) for layer in count.layers]
    assert rows == [("0", 3 * 18 * 25, 3 * 15 * 25), ("2", 3 * 200, 3 * 50)]
    assert (count.dense, count.effective) == (3 * 650, 3 * 425)


@pytest.mark.parametrize("masking", ["hook", "resident"])
def test_masks_count_as_the_zeros_that_they_make(masking: str):
    pruner = MagnitudePruner(nn.Linear(8, 4), {"global_config": {"target_sparsity": 0.75}}, masking=masking)
    model = pruner.prepare()
    pruner.attach_optimizers(torch.optim.SGD(model.parameters(), lr=0.1))
    pruner.step()
    assert count_macs(model, torch.zeros(1, 8)).effective == 8


@pytest.mark.parametrize("fast", [False, True])
def test_attention_counts_its_four_projections(fast: bool):
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    query, memory = torch.zeros(2, 3, 8), torch.zeros(2, 5, 8)
    with torch.no_grad():
        attention.in_proj_weight[8:16] = 0  # the keys' projection
    count = count_macs(attention, (query, memory, memory))
    assert count.dense == 64 * 2 * (3 + 5 + 5 + 3)
    assert count.effective == count.dense - 64 * 2 * 5
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=not fast)
    count = count_macs(layer, query)
    assert count.dense == 2 * 3 * (4 * 64 + 2 * 128)
    assert count.not_counted == ()


def test_attention_with_other_sizes_for_keys_and_values():
    attention = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    tensors = {"query": torch.zeros(3, 1, 8), "key": torch.zeros(5, 1, 4), "value": torch.zeros(5, 1, 6)}
    assert count_macs(attention, tensors).dense == 3 * 64 + 5 * 32 + 5 * 48 + 3 * 64


def test_recurrent_layers_count_each_step():
    lstm = nn.LSTM(3, 4, num_layers=2, bidirectional=True)
    weights = sum(weight.numel() for name, weight in lstm.named_parameters() if name.startswith("weight"))
    assert count_macs(lstm, torch.zeros(7, 2, 3)).dense == 14 * weights
    packed = pack_sequence([torch.zeros(5, 3), torch.zeros(2, 3)])
    assert count_macs(lstm, (packed,)).dense == 7 * weights


def test_what_is_not_counted_is_said():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.used, self.unused = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.own = nn.Parameter(torch.zeros(4, 4))

        def forward(self, tokens):
            return self.used(self.used(self.embedding(tokens))) @ self.own

    count = count_macs(Own(), torch.zeros(2, dtype=torch.long))
    assert [(layer.name, layer.dense) for layer in count.layers] == [("used", 2 * 2 * 16)]
    assert count.not_counted == ("", "unused")


def test_the_model_comes_back_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    count_macs(model, torch.randn(8, 4))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    torch.set_rng_state(state)
    with pytest.raises(RuntimeError):
        count_macs(model, torch.zeros(8, 5))
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert not any(module._forward_hooks for module in model.modules())


def test_example_inputs_come_from_the_model_or_an_error_says_what_to_write():
    model = nn.Linear(4, 2)
    with pytest.raises(ConfigError, match="Linear has no example_input_array. Write count_macs"):
        count_macs(model)
    model.example_input_array = torch.zeros(5, 4)
    assert count_macs(model).examples == 5
