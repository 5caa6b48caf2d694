"""-e: a checkpoint is evaluated, and nothing else."""

import shutil

import pytest

import nr
from tests.training.run.small_runs import AFTER, BEFORE, LAST, PLAIN, contents, go, names, resume
from utils.data import batches
from utils.errors import InputError
from utils.training import engine, lock


def test_an_evaluation_needs_no_folder_of_its_own(tmp_path, monkeypatch):
    """Not even where another run lives in it."""
    go(tmp_path, f"{PLAIN} --epochs 1")
    monkeypatch.setattr(lock, "hold", None)
    before = names(tmp_path)
    assert resume(tmp_path, f"{PLAIN} -e") == 0
    assert names(tmp_path) == before


@pytest.mark.parametrize("name", [BEFORE, AFTER, LAST, "auto"])
def test_evaluation_of_a_checkpoint_changes_no_file(straight, data, tmp_path, capsys, name):
    shutil.copytree(straight(), tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    path = name if name == "auto" else str(tmp_path / name)
    assert resume(tmp_path, "-e", path=path) == 0
    assert contents(tmp_path) == before
    ((images, labels),) = batches.TestBatches(data[1], 10)
    logits = nr.load(tmp_path / (LAST if name == "auto" else name))(images)
    right = (logits.sum(dim=1).argmax(dim=1) == labels).float().mean().item()
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(
        f"Valid Loss: {engine.stream_loss(logits, labels):.4f} | Valid Acc.: {100 * right:.2f} | "
    )


def test_evaluation_makes_no_folder_and_takes_another_seed(tmp_path):
    go(tmp_path / "a", f"{PLAIN} --epochs 1")
    path = tmp_path / "a" / LAST
    assert resume(tmp_path / "none", "-e --manualSeed 9", path=str(path)) == 0
    assert not (tmp_path / "none").exists()


def test_evaluation_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"^-e --resume auto: there is no .*checkpoint\.pth\.tar"):
        resume(tmp_path, "-e")
