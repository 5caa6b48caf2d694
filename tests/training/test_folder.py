"""training.folder without a network: what is found in a folder, and which pictures are drawn.

The rest is in test_run, as the scripts use it.
"""

import json
from dataclasses import replace

import pytest

from utils.errors import InputError
from utils.shown import plots
from utils.training import checkpoint, folder
from utils.training.folder import RunFolder
from utils.training.state import RunState

SEARCH = RunState("search", 1, rows=[{"Phase": "search"}], live=[{}], scales=[[1]])
TRAIN = replace(SEARCH, phase="train", epoch=1, widths=[["stem", 4, 2, 3]])


def payload(epoch: int) -> dict:
    """As much as a checkpoint must have."""
    empty = dict.fromkeys(("arch", "state_dict", "network", "structure", "args", "rng"))
    return empty | {"format": checkpoint.FORMAT, "epoch": epoch, "run": {"seed": 7}}


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
    run.save_last(payload(2), best=True)
    run.save_last(payload(3), best=False)
    names = ("named.pth.tar", checkpoint.BEST, checkpoint.PREVIOUS, checkpoint.LAST)
    assert [run.find(str(tmp_path / n), needed=True)[1]["epoch"] for n in names] == [1, 2, 2, 3]
    assert run.find("auto", needed=True) == (tmp_path / checkpoint.LAST, payload(3))
    assert json.loads((tmp_path / "run.json").read_text())["seed"] == 7


def test_a_damaged_last_checkpoint_is_put_aside_only_when_it_was_looked_for(tmp_path):
    run = RunFolder(tmp_path)
    run.save_last(payload(1), best=False)
    run.save_last(payload(2), best=False)
    last, previous = tmp_path / checkpoint.LAST, tmp_path / checkpoint.PREVIOUS
    last.write_bytes(b"rubbish")
    run.claim(previous, auto=False)
    assert last.read_bytes() == b"rubbish"
    run.claim(previous, auto=True)
    assert last.read_bytes() == previous.read_bytes()
    assert (tmp_path / checkpoint.DAMAGED).read_bytes() == b"rubbish"


@pytest.mark.parametrize(("share", "again"), [(-1, []), (1e9, ["curves"])])
def test_pictures_that_are_there_are_drawn_when_due_or_cheap(
    share, again, drawn, monkeypatch, tmp_path
):
    """Those of the search never again, once this process has drawn them and the search is over."""
    monkeypatch.setattr(folder, "DRAWING_SHARE", share)
    run = RunFolder(tmp_path)
    run.show(SEARCH, due=False)
    assert drawn == ["curves", "utilization", "scales"]
    run.show(TRAIN, due=True)
    run.show(TRAIN, due=False)
    assert drawn == ["curves", "utilization", "scales", "curves", "widths", *again]
