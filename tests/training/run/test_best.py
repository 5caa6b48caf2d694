"""The best accuracy and its model."""

from tests.training.run.small_runs import BEST, LAST, PLAIN, column, go, resume, state_in
from utils.training import checkpoint


def test_the_best_accuracy_is_that_of_the_train_phase(epochs, accuracies, tmp_path, capsys):
    accuracies(90, 95, 10, 30, 20)
    go(tmp_path)
    assert column(tmp_path, "Valid Acc.") == [90, 95, 10, 30, 20]
    best, last = (checkpoint.read(tmp_path / name) for name in (BEST, LAST))
    assert (best["epoch"], best["acc"], best["best_acc"]) == (4, 30, 30)
    assert (last["epoch"], last["acc"], last["best_acc"]) == (5, 20, 30)
    assert capsys.readouterr().out.splitlines()[-1] == "Best acc: 30.00"


def test_no_best_model_in_the_search_phase(epochs, accuracies, tmp_path):
    accuracies(90, 95)
    go(tmp_path, "--nr-compress-only")
    assert not (tmp_path / BEST).exists()
    assert state_in(tmp_path).best_acc == 0


def test_an_equal_accuracy_does_not_replace_the_best_model(accuracies, tmp_path):
    accuracies(30, 30, 30)
    go(tmp_path, PLAIN)
    assert checkpoint.read(tmp_path / BEST)["epoch"] == 1


def test_an_accuracy_of_zero_is_the_best_of_a_run_that_learns_nothing(accuracies, tmp_path):
    accuracies(0, 0, 0)
    go(tmp_path, PLAIN)
    best = checkpoint.read(tmp_path / BEST)
    assert (best["epoch"], best["best_acc"]) == (1, 0)


def test_the_best_model_comes_along_to_another_folder(accuracies, tmp_path):
    accuracies(30, 20, 25, 28)
    go(tmp_path / "a", f"{PLAIN} --epochs 2")
    resume(tmp_path / "b", f"{PLAIN} --epochs 4", path=str(tmp_path / "a" / LAST))
    assert checkpoint.read(tmp_path / "b" / BEST)["epoch"] == 1
    assert state_in(tmp_path / "b").best_acc == 30


def test_where_the_best_model_is_lost_the_best_that_follows_is_kept(accuracies, tmp_path, capsys):
    accuracies(30, 20, 22, 25, 23)
    go(tmp_path / "a", f"{PLAIN} --epochs 2")
    (tmp_path / "a" / BEST).unlink()
    resume(tmp_path / "b", f"{PLAIN} --epochs 5", path=str(tmp_path / "a" / LAST))
    assert checkpoint.read(tmp_path / "b" / BEST)["epoch"] == 4
    assert capsys.readouterr().out.splitlines()[-1] == "Best acc: 25.00"


def test_a_finished_phase_in_a_new_folder_has_a_best_model(accuracies, tmp_path):
    accuracies(30, 20)
    go(tmp_path / "a", f"{PLAIN} --epochs 2")
    (tmp_path / "a" / BEST).unlink()
    resume(tmp_path / "b", f"{PLAIN} --epochs 2", path=str(tmp_path / "a" / LAST))
    assert checkpoint.read(tmp_path / "b" / BEST)["epoch"] == 2


def test_the_best_model_survives_a_resume(accuracies, tmp_path):
    accuracies(30, 20, 25, 40)
    go(tmp_path, f"{PLAIN} --epochs 2")
    resume(tmp_path, f"{PLAIN} --epochs 3")
    assert checkpoint.read(tmp_path / BEST)["epoch"] == 1
    resume(tmp_path, f"{PLAIN} --epochs 4")
    assert checkpoint.read(tmp_path / BEST)["epoch"] == 4
