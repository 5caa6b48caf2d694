"""Interrupted, stopped and finished runs go on, to the same end."""

import dataclasses
import signal

import pytest
import torch

from tests.helpers import same_tensors
from tests.training.run.small_runs import (
    AFTER,
    BATCHES,
    BEFORE,
    CLASSES,
    LAST,
    PLAIN,
    assert_same_end,
    contents,
    go,
    interrupt,
    made,
    resume,
    same,
    state_in,
)
from utils.report.runs import read_run
from utils.training import checkpoint
from utils.training.run import RunState
from utils.training.signals import Stopped


def test_every_field_of_the_state_is_restored(tmp_path):
    one = made(tmp_path)
    one.state = RunState(
        phase="train",
        seed=1,
        epoch=7,
        search_epochs=5,
        sparsity=0.125,
        utilization=0.5,
        acc=12.5,
        best_acc=25.0,
        rescaled=True,
        seconds=3.5,
        rows=[{"Phase": "search", "Params": 7, "Train Loss": 0.1}],
        scales=[[3, 4]],
        live=[{"features.stem.0": 0.5}, {}],
        widths=[["features.stem.0", 4, 4, 5]],
        round=2,
        round_start=3,
        past=[{"live": [], "scales": [], "widths": []}],
        macs=[8, 9],
    )
    fresh = RunState(phase="search", seed=0)
    for field in dataclasses.fields(RunState):
        assert getattr(one.state, field.name) != getattr(fresh, field.name), field.name
    one.trainer.partial = torch.arange(8, dtype=torch.float64).reshape(2, 4)
    one.save(LAST)
    one.folder.writer.wait()
    two = made(tmp_path, "--resume auto --nr-rounds 2")
    assert two.state == one.state
    assert torch.equal(two.trainer.partial, one.trainer.partial)
    assert same_tensors(two.network.state_dict(), one.network.state_dict())


def test_momentum_is_restored_and_the_flags_rule_the_rest(epochs, tmp_path):
    go(tmp_path, "--nr-max-epochs 1")
    one = checkpoint.read(tmp_path / LAST)["optimizer"]
    two = made(tmp_path, "--resume auto --momentum 0.5 --wd 0.25 --lr 0.75").trainer.optimizer
    assert len(one["state"]) > 10
    assert same(one["state"], two.state_dict()["state"])
    group = two.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["lr"]) == (0.5, 0.25, 0.75)


@pytest.mark.parametrize("after", [1, 3, 4, 5, 7, 12, 15, 25])
def test_a_run_interrupted_anywhere_ends_the_same(straight, monkeypatch, tmp_path, after):
    """In the first, a middle and the last batch of training and testing, in both phases."""
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(Stopped):
            go(tmp_path / "a")
    saved = checkpoint.read(tmp_path / "a" / LAST)
    assert saved["epoch"] == (after - 1) // BATCHES
    assert len(saved["partial"]) == min((after - 1) % BATCHES + 1, 3)
    assert saved["run"]["seconds"] > 0
    assert resume(tmp_path / "a") == 0
    assert_same_end(tmp_path / "a", straight())
    assert checkpoint.read(tmp_path / "a" / LAST)["partial"] is None


def test_a_run_interrupted_twice_in_an_epoch_ends_the_same(straight, monkeypatch, tmp_path):
    for work in (go, resume):
        with monkeypatch.context() as patch:
            interrupt(patch, 1, signal.SIGINT)
            with pytest.raises(Stopped):
                work(tmp_path / "a")
    assert len(checkpoint.read(tmp_path / "a" / LAST)["partial"]) == 2
    resume(tmp_path / "a")
    assert_same_end(tmp_path / "a", straight())


def test_dropout_goes_on_where_it_was(monkeypatch, tmp_path):
    """The masks come from torch's generator, in the middle of its stream."""
    flags = f"{PLAIN} -a densenet --depth 10 --growthRate 2 --width-mult 1 --drop 0.5"
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        with pytest.raises(Stopped):
            go(tmp_path / "a", flags)
    torch.manual_seed(123)
    resume(tmp_path / "a", flags)
    go(tmp_path / "b", flags)
    assert_same_end(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("name", [BEFORE, AFTER])
def test_both_files_of_rejuvenation_lead_to_the_same_end(straight, tmp_path, name):
    resume(tmp_path / "b", path=str(straight() / name))
    assert_same_end(straight(), tmp_path / "b")


def test_a_finished_run_has_nothing_left_to_do(tmp_path, epochs):
    go(tmp_path, PLAIN)
    before = contents(tmp_path)
    assert resume(tmp_path, PLAIN) == 0
    assert len(epochs.rows) == 3
    assert contents(tmp_path) == before


def test_auto_without_a_checkpoint_is_a_fresh_run(tmp_path, capsys):
    assert resume(tmp_path, f"{PLAIN} --epochs 1") == 0
    assert f"==> Nothing to resume in {tmp_path}: a fresh run" in capsys.readouterr().out


def test_a_checkpoint_without_class_names_goes_on_and_gets_them(tmp_path):
    go(tmp_path, f"{PLAIN} --epochs 1")
    payload = checkpoint.read(tmp_path / LAST)
    del payload["classes"]
    checkpoint.save(tmp_path / LAST, payload)
    assert resume(tmp_path, f"{PLAIN} -e") == 0
    assert resume(tmp_path, f"{PLAIN} --epochs 2") == 0
    assert checkpoint.read(tmp_path / LAST)["classes"] == list(CLASSES)


def test_a_checkpoint_without_known_data_goes_on_and_gets_them(tmp_path):
    go(tmp_path, f"{PLAIN} --epochs 1")
    payload = checkpoint.read(tmp_path / LAST)
    known = payload.pop("data")
    checkpoint.save(tmp_path / LAST, payload)
    assert resume(tmp_path, f"{PLAIN} --epochs 2") == 0
    assert checkpoint.read(tmp_path / LAST)["data"] == known


@pytest.mark.parametrize(
    ("flags", "arm"),
    [
        ("--nr-cross none", "pruned only"),
        ("--nr-cross full", "NR, full"),
        ("--nr-from-scratch", "NR-FS"),
        ("--nr-flops", "NR-CR, by FLOPs"),
        ("--nr-round-to 4", "NR-CR, multiples of 4"),
        ("--nr-bn-target 0.7", "NR-CR + NR-BR 0.7"),
    ],
)
def test_a_resume_is_named_by_what_has_been_done_to_its_network(epochs, tmp_path, flags, arm):
    go(tmp_path / "p", f"{flags} --nr-compress-only")
    assert resume(tmp_path / "q", "--epochs 1", path=str(tmp_path / "p" / AFTER)) == 0
    assert read_run(tmp_path / "q").arm == arm
    assert resume(tmp_path / "q", "--epochs 2") == 0
    assert read_run(tmp_path / "q").arm == arm
    assert resume(tmp_path / "q", f"{flags} --epochs 2") == 0  # as it was


@pytest.mark.parametrize("damage", [b"", b"rubbish"])
def test_auto_goes_on_from_the_previous_one_when_the_last_is_damaged(damage, tmp_path, capsys):
    go(tmp_path / "straight", f"{PLAIN} --epochs 3")
    go(tmp_path, f"{PLAIN} --epochs 2")
    (tmp_path / LAST).write_bytes(damage)
    assert resume(tmp_path, f"{PLAIN} --epochs 3") == 0
    assert "Warning" in capsys.readouterr().err
    assert (tmp_path / "checkpoint.damaged.pth.tar").read_bytes() == damage
    one, two = (checkpoint.read(folder / LAST) for folder in (tmp_path, tmp_path / "straight"))
    assert same_tensors(one["state_dict"], two["state_dict"])


def test_auto_goes_on_from_the_previous_one_when_the_last_is_gone(tmp_path):
    go(tmp_path, f"{PLAIN} --epochs 2")
    (tmp_path / LAST).unlink()
    assert resume(tmp_path, f"{PLAIN} --epochs 2") == 0
    assert state_in(tmp_path).epoch == 2
