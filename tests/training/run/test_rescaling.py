"""--nr-bn-target: once in a round."""

import shutil

import pytest

import nr
from tests.helpers import prunable
from tests.training.run.small_runs import (
    AFTER,
    BEFORE,
    LAST,
    assert_same_end,
    go,
    interrupt,
    resume,
    state_in,
)
from utils.training.signals import Stopped


def test_rescaling_in_the_run_that_rejuvenates(epochs, rescalings, tmp_path):
    go(tmp_path, "--nr-bn-target 0.7")
    assert rescalings == [0.7]
    assert state_in(tmp_path, BEFORE).rescaled is False
    assert state_in(tmp_path, AFTER).rescaled is True
    scales = [
        norm.weight.abs().min().item()
        for layer in prunable(nr.load(tmp_path / AFTER)).values()
        for norm in layer.unit.norms
    ]
    assert min(scales) >= 0.7 - 1e-6


@pytest.mark.parametrize("name", [AFTER, LAST])
def test_rescaling_when_going_on_from_a_checkpoint_that_has_not_had_it(
    straight, rescalings, tmp_path, name
):
    """The README's two steps, which must end as the one step does."""
    shutil.copytree(straight("--nr-compress-only"), tmp_path / "a")
    assert rescalings == []
    resume(tmp_path / "a", "--nr-bn-target 0.7", path=str(tmp_path / "a" / name))
    assert rescalings == [0.7]
    assert state_in(tmp_path / "a").rescaled is True
    assert_same_end(tmp_path / "a", straight("--nr-bn-target 0.7"))


@pytest.mark.parametrize("name", [AFTER, LAST])
def test_a_checkpoint_that_has_had_it_is_not_rescaled_again(epochs, rescalings, tmp_path, name):
    go(tmp_path, "--nr-compress-only --nr-bn-target 0.7")
    resume(tmp_path, "--nr-bn-target 0.7", path=str(tmp_path / name))
    assert rescalings == [0.7]


@pytest.mark.parametrize("after", [1, 4, 5, 7])
def test_an_interrupted_run_is_not_rescaled_again(
    straight, rescalings, monkeypatch, tmp_path, after
):
    shutil.copytree(straight("--nr-compress-only"), tmp_path, dirs_exist_ok=True)
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(Stopped):
            resume(tmp_path, "--nr-bn-target 0.7", path=str(tmp_path / AFTER))
    resume(tmp_path, "--nr-bn-target 0.7")
    assert rescalings == [0.7]


def test_a_train_phase_that_has_begun_is_not_rescaled(epochs, rescalings, tmp_path, capsys):
    go(tmp_path, "--epochs 1")
    resume(tmp_path, "--epochs 2 --nr-bn-target 0.7")
    assert rescalings == []
    assert "--nr-bn-target: the train phase has begun without it" in capsys.readouterr().out
    assert state_in(tmp_path).rescaled is False


def test_not_even_in_its_first_epoch(epochs, rescalings, monkeypatch, tmp_path, capsys):
    go(tmp_path, "--nr-compress-only")
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        with pytest.raises(Stopped):
            resume(tmp_path)
    resume(tmp_path, "--nr-bn-target 0.7")
    assert rescalings == []
    assert "--nr-bn-target: the train phase has begun without it" in capsys.readouterr().out


def test_nothing_is_rescaled_in_the_search(epochs, rescalings, tmp_path):
    assert go(tmp_path, "--nr-bn-target 0.7 --nr-max-epochs 1") == 3
    assert resume(tmp_path, "--nr-bn-target 0.7 --nr-max-epochs 1") == 3
    assert rescalings == []
