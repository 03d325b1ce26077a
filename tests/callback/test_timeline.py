"""Epochs as they happen: accumulation that does not divide them, and epochs that grow, shrink or are cut short."""

from __future__ import annotations

import pytest
import torch
from conftest import ResumableLoader, ToyModule, make_loader, make_trainer
from lightning.pytorch.callbacks import Checkpoint, GradientAccumulationScheduler, ModelCheckpoint

from lightning_prune import (
    CheckpointError,
    ConstantSparsityScheduler,
    MagnitudePruner,
    MagnitudePruningCallback,
    PolynomialDecayScheduler,
    TrainingRun,
)
from lightning_prune.callback.timeline import Timeline


class Changing(ToyModule):
    """Its epochs have the given numbers of batches, the last of them again and again."""

    def __init__(self, *lengths: int) -> None:
        super().__init__()
        self.lengths = lengths

    def train_dataloader(self) -> ResumableLoader:
        return ResumableLoader(list(make_loader(self.lengths[min(self.current_epoch, len(self.lengths) - 1)])))


class Updates(Checkpoint):
    """The optimizer steps at whose end a layer is sparser than before; a Checkpoint runs behind the pruning callback."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        sparsity = float((pl_module.fc1.weight == 0).float().mean())
        if sparsity != (self.seen[-1][1] if self.seen else 0.0):
            self.seen.append((trainer.global_step, sparsity))

    @property
    def steps(self) -> list[int]:
        return [step for step, _ in self.seen]


def fit(tmp_path, schedule, *callbacks, lengths=(8,), epochs=6, ckpt_path=None, target=0.75, **arguments):
    updates, config = Updates(), {"global_config": {"scheduler": schedule, "target_sparsity": target}}
    pruning = MagnitudePruningCallback(config, show_plan=False)
    trainer = make_trainer(
        tmp_path,
        callbacks=[*callbacks, pruning, updates],
        max_epochs=epochs,
        **{"reload_dataloaders_every_n_epochs": 1, "enable_checkpointing": True, **arguments},
    )
    model = Changing(*lengths)
    trainer.fit(model, ckpt_path=ckpt_path)
    return updates, pruning, model


@pytest.mark.parametrize(
    ("batches", "accumulation", "expected"), [(9, 8, 8), (9, 2, 20), (7, 7, 4), (3, 8, 4), (8, 1, 32)]
)
def test_four_epochs_are_over_when_lightning_has_made_the_steps_of_four_epochs(
    tmp_path, batches, accumulation, expected
):
    schedule = {"begin_step": "4 epochs"}
    updates, _, _ = fit(tmp_path, schedule, lengths=(batches,), accumulate_grad_batches=accumulation)
    assert updates.steps == [expected]


@pytest.mark.filterwarnings("ignore:.*makes 4 updates")
@pytest.mark.parametrize(
    ("table", "schedule", "expected"),
    [
        ({0: 4, 5: 1}, {"begin_step": 0.4}, [20]),  # 5 epochs of 2 steps, 5 of 8
        ({0: 4}, {"begin_step": "4 epochs"}, [8]),
        ({0: 1, 2: 8}, {"begin_step": 0.5}, [12]),  # 2 of 8 and 8 of 1
        ({2: 4}, {"begin": "1 epoch", "end": "4 epochs", "frequency": "1 epoch"}, [16, 18, 20]),  # at 8: no zeros yet
    ],
)
def test_the_table_of_an_accumulation_scheduler_is_counted_from_the_start(tmp_path, table, schedule, expected):
    updates, pruning, _ = fit(tmp_path, schedule, GradientAccumulationScheduler(table), epochs=10)
    assert updates.steps == expected
    assert pruning.pruner.last_update_step == expected[-1]


@pytest.mark.filterwarnings("ignore:.*makes 4 updates")
def test_epochs_that_grow_are_counted_as_they_happen(tmp_path):
    updates, _, _ = fit(tmp_path, {"begin_step": "3 epochs"}, lengths=(4, 6, 8, 10, 12, 14))
    assert updates.steps == [18]
    schedule = {"begin": "1 epoch", "end": "4 epochs", "frequency": "1 epoch"}
    updates, _, _ = fit(tmp_path, schedule, lengths=(4, 6, 8, 10, 12, 14))
    assert updates.steps == [10, 18, 28]


@pytest.mark.parametrize("lengths", [(4, 6, 8, 10, 12, 14), (14, 12, 10, 8, 6, 4), (2, 9, 1, 7, 3, 8)])
@pytest.mark.parametrize("end", [0.5, 0.9, 1.0, "5 epochs"])
def test_the_target_is_reached_where_it_was_asked_for_whatever_the_epochs_do(tmp_path, lengths, end):
    updates, pruning, model = fit(tmp_path, {"begin": 0.1, "end": end}, lengths=lengths)
    known = {1.0: sum(lengths), "5 epochs": sum(lengths[:5])}  # of other fractions it depends on what is to come
    assert updates.steps[-1] == known.get(end, updates.steps[-1])
    sparsities = [sparsity for _, sparsity in updates.seen]
    assert sparsities == sorted(sparsities)
    assert sparsities[-1] == 0.75
    assert pruning.pruner.is_at_target


def test_an_epoch_that_is_cut_short_moves_what_is_counted_in_epochs(tmp_path, monkeypatch):
    def cut(module, batch, batch_idx):
        return -1 if module.current_epoch == 1 and batch_idx == 3 else None

    monkeypatch.setattr(Changing, "on_train_batch_start", cut, raising=False)
    updates, _, _ = fit(tmp_path, {"begin_step": "2 epochs"})
    assert updates.steps == [12]  # 11 steps were made in two epochs: at the next one it is known
    updates, _, _ = fit(tmp_path, {"begin_step": "3 epochs"})
    assert updates.steps == [19]


@pytest.mark.parametrize("interrupted_at", [3, 11, 14, 25])
@pytest.mark.parametrize("schedule", [{"begin": 0.1, "end": 0.8}, {"begin": "1 epoch", "end": "4 epochs"}])
def test_a_run_with_uneven_epochs_resumes_bit_exactly(tmp_path, schedule, interrupted_at):
    lengths = (4, 7, 7, 10, 3)
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, _, model = fit(tmp_path, schedule, saver, lengths=lengths, epochs=5)
    path = next(tmp_path.glob(f"*step={interrupted_at}.ckpt"))
    resumed, pruning, again = fit(tmp_path / "again", schedule, lengths=lengths, epochs=5, ckpt_path=path)
    assert [step for step in resumed.steps if step > interrupted_at + 1] == [
        step for step in whole.steps if step > interrupted_at + 1
    ]
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert pruning.pruner.is_at_target


def test_a_run_that_is_resumed_for_longer_keeps_its_schedule_though_epochs_are_still_counted(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(tmp_path, {"begin": 0.25, "end": 0.75}, saver, epochs=4)
    path = next(tmp_path.glob("*epoch=1.ckpt"))
    updates, _, _ = fit(tmp_path, {"begin": 0.25, "end": 0.75}, epochs=40, ckpt_path=path)
    assert updates.steps[-1] == 24
    updates, _, _ = fit(tmp_path, {"begin": 0.25, "end": 0.75}, epochs=40, ckpt_path=path, lengths=(8, 8, 4))
    assert updates.steps[-1] == 18  # of 8 + 8 + 4 + 4 steps


def test_a_run_resumed_without_a_state_of_pruning_takes_its_epochs_for_equal(tmp_path):
    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    plain = make_trainer(tmp_path, callbacks=[saver], max_epochs=3, enable_checkpointing=True)
    plain.fit(Changing(8))
    for step in (8, 13, 16):
        path = next(tmp_path.glob(f"*step={step}.ckpt"))
        updates, _, _ = fit(tmp_path, {"begin_step": "3 epochs"}, ckpt_path=path)
        assert updates.steps == [24], step


def test_updates_that_were_made_stay_and_sparsity_does_not_fall_when_a_run_turns_out_longer():
    model = torch.nn.Linear(100, 10)
    pruner = MagnitudePruner(model, {"global_config": {"scheduler": {"begin": 0.0, "end": 1.0, "frequency": 10}}})
    pruner.prepare(inplace=True, run=TrainingRun(50))
    for _ in range(35):
        pruner.step()
    before = pruner.report().sparsity
    pruner.resolve(TrainingRun(200))
    assert pruner.schedules["weight"].update_steps == (0, 10, 20, 30, *range(40, 200, 10), 200)
    seen = []
    for _ in range(165):
        pruner.step()
        seen.append(pruner.report().sparsity)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (before, 0.5)


def test_what_is_overdue_is_made_up_for_at_the_next_step_and_what_is_over_stays():
    written = PolynomialDecayScheduler(begin=0.0, end=1.0, frequency=10)
    long, short = written.resolve(TrainingRun(100)), written.resolve(TrainingRun(30))
    assert short.after(long, 45).update_steps == (0, 10, 20, 30, 40, 46)
    assert long.after(short, 30) is short
    assert long.after(written, 30) is long
    once = ConstantSparsityScheduler("2 epochs")
    late, early = once.resolve(TrainingRun(None, 20)), once.resolve(TrainingRun(None, 10))
    assert early.after(late, 25).begin_step == 26
    assert late.after(early, 25) is early
    assert late.after(early, 15).begin_step == 40


@pytest.mark.parametrize(
    "damage",
    [
        {"epoch_ends": [4, 3]},
        {"epoch_ends": [-1]},
        {"epoch_ends": ["4"]},
        {"epoch_ends": 4},
        {"planned_steps": 1.5},
        {"planned_epochs": True},
    ],
)
def test_a_damaged_timeline_is_refused(damage):
    timeline = Timeline()
    state = timeline.state_dict()
    timeline.load_state_dict(state)
    with pytest.raises(CheckpointError, match="timeline of the run is damaged"):
        timeline.load_state_dict({**state, **damage})
    with pytest.raises(CheckpointError, match="timeline of the run is damaged"):
        timeline.load_state_dict({name: value for name, value in state.items() if name not in damage})
