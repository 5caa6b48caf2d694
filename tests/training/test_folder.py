"""training.folder without a network: what is found in a folder, and which pictures are drawn.

The rest is in run/test_files, as the scripts use it.
"""

import errno
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from utils.errors import InputError
from utils.shown import plots
from utils.training import checkpoint
from utils.training.folder import RunFolder
from utils.training.state import RunState

SEARCH = RunState("search", 1, rows=[{"Phase": "search"}], live=[{}], scales=[[1]])
TRAIN = replace(SEARCH, phase="train", epoch=1, widths=[["stem", 4, 2, 3]])


def payload(epoch: int) -> dict:
    """As much as a checkpoint must have."""
    empty = dict.fromkeys(("arch", "state_dict", "network", "structure", "args", "rng"))
    return empty | {"format": checkpoint.FORMAT, "epoch": epoch, "run": {"seed": 7}}


def saved(run: RunFolder, epoch: int, best: bool = False) -> None:
    """Save the last checkpoint of a run that has no rows yet, and wait for it."""
    run.save_last(payload(epoch), RunState("search", 7), best=best, due=False)
    run.writer.wait()


def leave_a_run(folder: Path) -> list[str]:
    """A file of every name that runs leave; returns the names."""
    names = [checkpoint.LAST, checkpoint.PREVIOUS, checkpoint.BEST, checkpoint.DAMAGED]
    names += ["NR_vgg19_bn_0.25.pth.tar", "NR_resnet_before_1e-05.pth.tar", "log.txt", "run.json"]
    names += ["NR_resnet_0.5_round2.pth.tar", "curves.png", "scales.png", "utilization.png"]
    for name in [*names, "widths.png"]:
        (folder / name).touch()
    return sorted([*names, "widths.png"])


@pytest.fixture
def drawn(monkeypatch) -> list[str]:
    """The names of the pictures that are drawn, in order."""
    names = []
    for name in ("curves", "utilization", "scales", "widths"):

        def draw(*arguments, name=name):
            names.append(name)
            arguments[-1].touch()

        monkeypatch.setattr(plots, name, draw)
    return names


def test_what_resume_finds(tmp_path, capsys):
    run = RunFolder(tmp_path)
    assert run.find(None, needed=False) is None
    assert capsys.readouterr().out == ""
    assert run.find("auto", needed=False) is None
    assert "Nothing to resume" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"there is no .*checkpoint\.pth\.tar"):
        run.find("auto", needed=True)
    run.save("named.pth.tar", payload(1))
    saved(run, 2, best=True)
    saved(run, 3)
    names = ("named.pth.tar", checkpoint.BEST, checkpoint.PREVIOUS, checkpoint.LAST)
    assert [run.find(str(tmp_path / n), needed=True)[1]["epoch"] for n in names] == [1, 2, 2, 3]
    assert run.find("auto", needed=True) == (tmp_path / checkpoint.LAST, payload(3))
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 7


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(tmp_path):
    """Looked for or named, it must not take the place of the good one at the next save."""
    run = RunFolder(tmp_path)
    saved(run, 1)
    saved(run, 2)
    last, previous = tmp_path / checkpoint.LAST, tmp_path / checkpoint.PREVIOUS
    last.write_bytes(b"rubbish")
    run.claim(previous, payload(1))
    assert last.read_bytes() == previous.read_bytes()
    assert (tmp_path / checkpoint.DAMAGED).read_bytes() == b"rubbish"


def test_a_folder_is_refused_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"^--checkpoint {tmp_path}/file: is a file, and has to"):
        RunFolder(tmp_path / "file").reserve()
    with pytest.raises(InputError, match=f"^--checkpoint {tmp_path}/file/in: Not a directory$"):
        RunFolder(tmp_path / "file" / "in").reserve()
    (tmp_path / ".log.txt.tmp").mkdir()
    with pytest.raises(InputError, match=r"\.log\.txt\.tmp: is a folder where a run has a file$"):
        RunFolder(tmp_path).reserve()
    assert (tmp_path / ".log.txt.tmp").is_dir()


@pytest.mark.parametrize("below", ["", "in/it"])
def test_a_link_to_nothing_is_named(tmp_path, below):
    (tmp_path / "link").symlink_to("gone")
    folder = tmp_path / "link" / below
    with pytest.raises(InputError) as error:
        RunFolder(folder).reserve()
    assert str(error.value) == (
        f"--checkpoint {folder}: {tmp_path}/link is a link to gone, which is not there; make that"
        " folder, or name another"
    )


def test_a_folder_that_may_not_be_looked_at_is_refused_in_one_line(tmp_path, monkeypatch):
    def refused(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(InputError, match=r"^--checkpoint /x/y: Permission denied$"):
        RunFolder(Path("/x/y")).reserve()


def test_files_that_are_one_are_made_two_at_the_start(tmp_path):
    """As older versions, and a kill in the middle of saving, have left them."""
    run = RunFolder(tmp_path)
    saved(run, 1)
    paths = [tmp_path / name for name in (checkpoint.LAST, checkpoint.PREVIOUS, checkpoint.BEST)]
    for path in paths[1:]:
        os.link(paths[0], path)
    run.reserve()
    assert [path.stat().st_nlink for path in paths] == [1, 1, 1]
    assert [checkpoint.read(path)["epoch"] for path in paths] == [1, 1, 1]


@pytest.mark.parametrize("call", ["mkdir", "open"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(
    tmp_path, monkeypatch, call, code
):
    """Root may write anywhere, so the answers of the system are made."""
    before = leave_a_run(tmp_path)

    def refused(*_, **__):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch, pytest.raises(InputError) as error:
        patch.setattr(os, call, refused)
        RunFolder(tmp_path / "new" if call == "mkdir" else tmp_path).reserve()
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"--checkpoint {tmp_path}") and line.endswith(os.strerror(code))
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_only_what_runs_leave_is_removed_or_put_aside(tmp_path, monkeypatch):
    """Also with -c . in a folder full of other things."""
    names = leave_a_run(tmp_path)
    (tmp_path / ".log.txt.tmp").touch()
    theirs = ["photo.png", "curves.old.png", "weights.pth.tar", ".cache.tmp", "my log.txt"]
    theirs += ["NR_notes.pth.tar", ".editor.tmp"]
    for name in theirs:
        (tmp_path / name).mkdir() if name == ".editor.tmp" else (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    run = RunFolder(Path("."))
    run.reserve()
    run.claim(None, None)
    found = {path.name for path in tmp_path.iterdir()}
    assert found == {*theirs, ".lock", "earlier-1"}
    assert sorted(path.name for path in (tmp_path / "earlier-1").iterdir()) == names


def test_the_best_is_there_after_a_train_phase(tmp_path):
    run = RunFolder(tmp_path)
    saved(run, 1, best=True)
    saved(run, 2)
    run.complete()
    assert checkpoint.read(tmp_path / checkpoint.BEST)["epoch"] == 1
    (tmp_path / checkpoint.BEST).unlink()
    run.complete()
    assert checkpoint.read(tmp_path / checkpoint.BEST)["epoch"] == 2
    assert (tmp_path / checkpoint.LAST).stat().st_nlink == 1


def test_a_description_without_a_command_line(tmp_path, monkeypatch):
    """As some programs that embed Python have it."""
    monkeypatch.setattr(sys, "argv", [])
    saved(RunFolder(tmp_path), 1)
    assert json.loads((tmp_path / "run.json").read_text())["command"] == "''"


@pytest.mark.parametrize(("share", "again"), [(-1, []), (1e9, ["curves"])])
def test_pictures_that_are_there_are_drawn_when_due_or_cheap(
    share, again, drawn, monkeypatch, tmp_path
):
    """Those of the search never again, once this process has drawn them and the search is over."""
    monkeypatch.setattr("utils.training.folder.DRAWING_SHARE", share)
    run = RunFolder(tmp_path)
    run.show(SEARCH, due=False)
    assert drawn == ["curves", "utilization", "scales"]
    run.show(TRAIN, due=True)
    run.show(TRAIN, due=False)
    assert drawn == ["curves", "utilization", "scales", "curves", "widths", *again]
