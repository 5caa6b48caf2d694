"""Two phases, their clocks, and searches that give up."""

from importlib import import_module

import pytest

import cifar
import imagenet
import nr
from tests.helpers import form, prunable, widths
from tests.training.run.small_runs import (
    AFTER,
    BEFORE,
    LAST,
    PLAIN,
    PREVIOUS,
    assert_same_end,
    column,
    go,
    names,
    resume,
    state_in,
)
from utils.errors import InputError
from utils.training import checkpoint


def test_two_phases_row_by_row(epochs, tmp_path):
    """λ and the schedule of the search end with it; both clocks of the train phase begin at 0."""
    assert go(tmp_path) == 0
    assert column(tmp_path, "Phase") == ["search"] * 2 + ["train"] * 3
    assert column(tmp_path, "Learning Rate") == [0.1, 0.01, 0.1, 0.01, 0.001]
    assert column(tmp_path, "Sparsity") == [0.001, 0.001, 0, 0, 0]
    usage = column(tmp_path, "Utilization")
    assert usage[0] == 1 and usage[1] < 0.6 < usage[2]
    params = column(tmp_path, "Params")
    assert params[0] == params[1] and len(set(params[2:])) == 1
    assert [row[0] for row in epochs.rows] == [0, 1, 2, 3, 4]
    assert [row[1] for row in epochs.rows] == pytest.approx([0.1, 0.01, 0.1, 0.01, 0.001])
    assert [row[2] for row in epochs.rows] == [0.001, 0.001, 0, 0, 0]


@pytest.mark.parametrize("dead_after", [0, 1, 3])
def test_the_train_phase_has_exactly_epochs_after_a_search_of_any_length(
    epochs, tmp_path, dead_after
):
    epochs.dead_after = dead_after
    go(tmp_path)
    search = dead_after + 1
    assert column(tmp_path, "Phase") == ["search"] * search + ["train"] * 3
    assert column(tmp_path, "Learning Rate")[search:] == [0.1, 0.01, 0.001]
    state = state_in(tmp_path)
    assert (state.epoch, state.search_epochs, state.phase) == (search + 3, search, "train")


def test_the_epochs_on_the_screen_count_from_the_start_of_the_phase(epochs, tmp_path, capsys):
    go(tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if "Epoch:" in line]
    assert lines == [
        "Epoch: [1 | 5] LR: 0.1 (search)",
        "Epoch: [2 | 5] LR: 0.01 (search)",
        "Epoch: [1 | 3] LR: 0.1 (train)",
        "Epoch: [2 | 3] LR: 0.01 (train)",
        "Epoch: [3 | 3] LR: 0.001 (train)",
    ]


@pytest.mark.parametrize("target", ["1", "0.999"])
def test_plain_training_knows_no_search(epochs, tmp_path, target):
    assert go(tmp_path, f"--nr-target {target}") == 0
    assert column(tmp_path, "Phase") == ["train"] * 3
    assert column(tmp_path, "Learning Rate") == [0.1, 0.01, 0.001]
    assert column(tmp_path, "Sparsity") == [0, 0, 0]
    assert [row[2] for row in epochs.rows] == [0, 0, 0]
    assert not any(name.startswith("NR_") for name in names(tmp_path))
    assert nr.load(tmp_path / LAST).streams == 1


def test_start_epoch_is_the_number_of_the_first_epoch(epochs, tmp_path):
    go(tmp_path, f"{PLAIN} --start-epoch 1")
    assert [row[:2] for row in epochs.rows] == [(1, pytest.approx(0.01)), (2, pytest.approx(1e-3))]
    assert state_in(tmp_path).epoch == 3


def test_the_optimizer_of_the_train_phase_is_fresh(epochs, tmp_path):
    go(tmp_path, "--nr-compress-only")
    assert checkpoint.read(tmp_path / BEFORE)["optimizer"]["state"] != {}
    for name in (AFTER, LAST):
        assert checkpoint.read(tmp_path / name)["optimizer"]["state"] == {}


def test_streams_and_structure_after_rejuvenation(epochs, tmp_path):
    go(tmp_path, "--nr-compress-only")
    assert nr.load(tmp_path / BEFORE).streams == 1
    assert nr.load(tmp_path / AFTER).streams == 2
    assert form(checkpoint.read(tmp_path / AFTER)["structure"]) == "removed"
    widths = {name: row for name, *row in state_in(tmp_path).widths}
    before, survived, after = widths["features.stage2.0.branch.0"]
    assert (before, survived) == (16, 8) and after > 8


def test_from_scratch_has_one_stream_of_the_new_widths(epochs, tmp_path):
    go(tmp_path / "nr", "--nr-compress-only")
    go(tmp_path / "fs", "--nr-from-scratch --nr-compress-only")
    rebuilt, fresh = (checkpoint.read(tmp_path / name / AFTER) for name in ("nr", "fs"))
    assert form(fresh["structure"]) == "plain"
    sums = {name: [sum(width)] for name, width in widths(rebuilt["structure"]).items()}
    assert widths(fresh["structure"]) == sums
    assert nr.load(tmp_path / "fs" / AFTER).streams == 1


def test_widths_are_rounded_where_the_flag_asks_for_it(epochs, monkeypatch, tmp_path):
    """Survivors of 4, 8 and 16 channels, half of them dead: 4, 4 and 8 in multiples of 4."""
    monkeypatch.setattr(import_module("models.cifar.resnet"), "STAGES", (16, 32, 64))
    go(tmp_path, "--nr-round-to 4 --nr-compress-only")
    widths = {name: row for name, *row in state_in(tmp_path).widths}
    survived = [widths[f"features.stage{stage}.0.branch.0"][1] for stage in (1, 2, 3)]
    assert survived == [4, 4, 8]
    assert all(after % 4 == 0 for *_, after in widths.values())


def test_imagenet_rounds_widths_too(epochs, tmp_path):
    network = "-a resnet18_nr --width-mult 0.125 --synthetic --subset 20 --image-size 32 -j 0"
    search = "--nr-target 0.8 --train-batch 10 --manualSeed 1 --nr-round-to 4 --nr-compress-only"
    assert imagenet.main([*f"{network} {search}".split(), "-c", str(tmp_path)]) == 0
    rows = state_in(tmp_path).widths
    assert len(rows) == 20 and all(after % 4 == 0 for *_, after in rows)


def test_the_search_gives_up_with_status_3_and_one_line(epochs, tmp_path, capsys):
    epochs.dead_after = None
    assert go(tmp_path, "--nr-max-epochs 2") == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "after 2 epochs: utilization is 1.0000, the target 0.6" in line
    assert "--nr-sparsity" in line and str(tmp_path) in line
    assert state_in(tmp_path).phase == "search"
    assert names(tmp_path) == [PREVIOUS, LAST, "log.txt", "run.json"]


def test_the_search_gives_up_after_epochs_by_default():
    assert cifar.parse(["--epochs", "7"])[0].nr_max_epochs == 7


def test_a_search_says_what_its_penalty_does_and_what_helps(epochs, tmp_path, capsys):
    epochs.dead_after = None
    assert go(tmp_path, "--nr-max-epochs 2") == 3
    out, err = capsys.readouterr()
    assert out.count("| Penalty: a scale of 0.5 that nothing holds falls by 0.0033 only") == 1
    (line,) = err.splitlines()
    # Three steps at 0.1 and three at 0.01, of λ 1e-3 and momentum 0.9.
    assert "has fallen by 0.0033 only: a larger --nr-sparsity, a later --schedule or a" in line
    assert resume(tmp_path, "--nr-max-epochs 3 --nr-sparsity 0.04 --schedule 9") == 3
    out, err = capsys.readouterr()
    assert out.count("| Penalty: ") == 1
    warning, line = err.splitlines()
    assert warning.startswith("Warning: the penalty moves a scale by 0.04 a step (lr 0.1, λ 0.04)")
    assert "scales jump over 0 instead of dying: a smaller --nr-sparsity or --lr" in line


def test_a_search_that_gave_up_goes_on_with_more_epochs(epochs, straight, tmp_path):
    assert go(tmp_path / "a", "--nr-max-epochs 1") == 3
    assert resume(tmp_path / "a", "--nr-max-epochs 1") == 3
    assert len(epochs.rows) == 1
    assert resume(tmp_path / "a") == 0
    assert_same_end(tmp_path / "a", straight())


def test_a_target_of_1_never_rejuvenates_a_search_that_gave_up(epochs, tmp_path):
    """Section 5: at 0.999 or more no NR at all."""
    go(tmp_path, "--nr-max-epochs 1")
    with pytest.raises(InputError, match="--nr-target 1"):
        resume(tmp_path, PLAIN)
    assert not list(tmp_path.glob("NR_*"))


def test_a_target_reached_in_the_last_epoch_is_reached(epochs, tmp_path):
    assert go(tmp_path, "--nr-max-epochs 2 --nr-compress-only") == 0
    assert (tmp_path / AFTER).exists()


def test_pruned_only_trains_the_live_channels_alone(tmp_path, epochs):
    """--nr-cross none: one stream of the live widths, trained, resumed and evaluated."""
    assert go(tmp_path, "--nr-cross none") == 0
    payload = checkpoint.read(tmp_path / LAST)
    path = tmp_path / BEFORE
    before = widths(checkpoint.read(path)["structure"])
    after = widths(payload["structure"])
    assert form(payload["structure"]) == "plain"
    half = {name: [before[name][0] - before[name][0] // 2] for name in prunable(nr.load(path))}
    assert half and after == before | half
    assert [row["Phase"] for row in payload["run"]["rows"]].count("train") == 3
    assert resume(tmp_path, "--nr-cross none --epochs 4") == 0
    assert resume(tmp_path, "--nr-cross none -e") == 0
