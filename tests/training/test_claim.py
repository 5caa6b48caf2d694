"""training.claim: what a run puts aside in its folder, for each checkpoint that it may go on from.

A run of 2 search and 3 train epochs, as its payloads only.
"""

from pathlib import Path

import pytest
import torch

from utils.training import checkpoint
from utils.training.checkpoint import BEST, LAST, PREVIOUS
from utils.training.claim import claim, precedes

BEFORE, AFTER = "NR_vgg_before_0.5.pth.tar", "NR_vgg_0.5.pth.tar"
SEEN = ["curves.png", "log.txt", "run.json"]


def payload(
    epoch: int, phase: str = "train", seed: int = 1, batches: int = 0, number: int | None = None
) -> dict:
    """The run's checkpoint after ``epoch`` epochs and ``batches`` batches; the best was the 4th.

    ``number``: of its round, which files from before there were rounds do not have.
    """
    rows = [{"Seconds": seed + number / 8} for number in range(epoch)]
    best = [0.0, 0.0, 0.0, 30.0, 50.0, 50.0][epoch]
    run = {"phase": phase, "seed": seed, "rows": rows, "rescaled": False, "best_acc": best}
    run |= {} if number is None else {"round": number}
    empty = dict.fromkeys(("arch", "state_dict", "network", "structure", "args", "rng"))
    partial = torch.zeros(batches, 4) if batches else None
    return empty | {"format": checkpoint.FORMAT, "epoch": epoch, "run": run, "partial": partial}


COMPRESSED = {
    PREVIOUS: payload(2, "search"),
    BEFORE: payload(2, "search"),
    AFTER: payload(2),
    LAST: payload(2),
}
BEGUN = COMPRESSED | {LAST: payload(2, batches=3), PREVIOUS: payload(2)}
FINISHED = COMPRESSED | {PREVIOUS: payload(4), LAST: payload(5), BEST: payload(4)}


def make(folder: Path, files: dict[str, dict]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        checkpoint.save(folder / name, content)
    for name in SEEN:
        (folder / name).touch()
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def epochs(folder: Path) -> dict[str, int]:
    return {path.name: checkpoint.read(path)["epoch"] for path in folder.glob("*.pth.tar")}


def linked(*folders: Path) -> list[str]:
    """Names of files that have another name as well: to edit one in place would change both."""
    found = [path for folder in folders for path in folder.rglob("*.pth.tar")]
    return [path.name for path in found if path.stat().st_nlink > 1]


@pytest.mark.parametrize(
    ("files", "resumed"),
    [
        (FINISHED, LAST),
        (BEGUN, LAST),
        (COMPRESSED, LAST),
        (COMPRESSED, AFTER),  # the README's second step
        (COMPRESSED | {LAST: payload(2, "search")}, AFTER),  # killed between the two files
        (COMPRESSED | {LAST: payload(2, "search")}, BEFORE),
        (FINISHED | {LAST: payload(4), PREVIOUS: payload(3)}, BEST),  # the best is the last
        (FINISHED | {LAST: payload(3), PREVIOUS: payload(2)}, BEST),  # killed between the two
    ],
)
def test_nothing_is_put_aside_that_the_run_stems_from(tmp_path, files, resumed):
    make(tmp_path, files)
    before = names(tmp_path)
    claim(tmp_path, tmp_path / resumed, files[resumed])
    assert names(tmp_path) == before and not (tmp_path / "earlier-1").exists()
    assert epochs(tmp_path)[LAST] == files[resumed]["epoch"]
    assert not linked(tmp_path)


@pytest.mark.parametrize(
    ("files", "resumed", "kept"),
    [
        (FINISHED, None, []),
        (FINISHED, AFTER, [BEFORE, AFTER]),  # the README's second step, given twice
        (BEGUN, AFTER, [BEFORE, AFTER, PREVIOUS]),
        (FINISHED, BEFORE, [BEFORE]),
        (COMPRESSED, BEFORE, [BEFORE, PREVIOUS]),
        (FINISHED, BEST, [BEFORE, AFTER, BEST, PREVIOUS]),
        (FINISHED, PREVIOUS, [BEFORE, AFTER, BEST, PREVIOUS]),
        (FINISHED | {LAST: payload(5, seed=2)}, BEST, [BEFORE, AFTER, BEST, PREVIOUS]),
    ],
)
def test_what_lies_beyond_is_put_aside(tmp_path, files, resumed, kept, capsys):
    """And the last checkpoint is at once the one that goes on, should the next epoch be killed."""
    make(tmp_path, files)
    before = epochs(tmp_path)
    claim(tmp_path, resumed and tmp_path / resumed, resumed and files[resumed])
    aside = tmp_path / "earlier-1"
    assert names(aside) == sorted([*(files.keys() - {*kept}), *SEEN])
    assert epochs(tmp_path) | {LAST: before[LAST]} | epochs(aside) == before
    assert names(tmp_path) == sorted([*kept, *([LAST] if resumed else [])])
    if resumed:
        assert (tmp_path / LAST).read_bytes() == (tmp_path / resumed).read_bytes()
    assert f"kept in {aside}" in capsys.readouterr().out
    assert not linked(tmp_path)


def test_a_damaged_last_checkpoint_is_kept_where_another_goes_on(tmp_path):
    make(tmp_path, FINISHED)
    (tmp_path / LAST).write_bytes(b"rubbish")
    claim(tmp_path, tmp_path / AFTER, FINISHED[AFTER])
    assert (tmp_path / "earlier-1" / LAST).read_bytes() == b"rubbish"


@pytest.mark.parametrize("there", [{}, COMPRESSED, {LAST: payload(3, seed=2)}])
def test_from_another_folder(tmp_path, there):
    """Its best comes along; what is here and no part of its past is put aside."""
    source, target = make(tmp_path / "a", FINISHED), tmp_path / "b"
    before = epochs(source)
    if there:
        make(target, there)
    target.mkdir(exist_ok=True)
    claim(target, source / LAST, FINISHED[LAST])
    assert epochs(source) == before
    assert (epochs(target)[LAST], epochs(target)[BEST]) == (5, 4)
    other = bool(there) and there[LAST]["run"]["seed"] == 2
    assert (target / "earlier-1").exists() == other
    assert not linked(source, target)


def test_the_best_of_an_earlier_round_comes_along_to_the_search_of_the_next(tmp_path):
    now = payload(5, "search", number=2)
    source, target = make(tmp_path / "a", FINISHED | {LAST: now}), tmp_path / "b"
    target.mkdir()
    claim(target, source / LAST, now)
    assert epochs(target) == {LAST: 5, BEST: 4}


def test_a_best_that_lies_beyond_is_not_brought_along(tmp_path):
    source, target = make(tmp_path / "a", FINISHED), tmp_path / "b"
    target.mkdir()
    checkpoint.save(source / "mine.pth.tar", payload(3))
    claim(target, source / "mine.pth.tar", payload(3))
    assert epochs(target) == {LAST: 3}


def test_a_file_of_the_users_goes_on_and_stays(tmp_path):
    make(tmp_path, FINISHED)
    checkpoint.save(tmp_path / "mine.pth.tar", payload(3))
    claim(tmp_path, tmp_path / "mine.pth.tar", payload(3))
    assert epochs(tmp_path) == {"mine.pth.tar": 3, LAST: 3, BEFORE: 2, AFTER: 2}


@pytest.mark.parametrize(
    ("first", "second", "is_first"),
    [
        (payload(2), payload(3), True),
        (payload(3), payload(2), False),
        (payload(2), payload(2), True),
        (payload(2, seed=2), payload(3), False),
        (payload(2, "search"), payload(2), True),
        (payload(2), payload(2, "search"), False),
        (payload(2, batches=1), payload(2), False),
        (payload(2, batches=1), payload(2, batches=2), True),
        (payload(2, batches=1), payload(3), True),
        (payload(5), payload(5, "search", number=2), True),
        (payload(5, "search", number=2), payload(5), False),
        (payload(5, batches=1), payload(5, "search", number=2, batches=1), True),
    ],
)
def test_what_comes_first(first, second, is_first):
    def state(content: dict) -> dict:
        partial = content["partial"]
        return content["run"] | {"batches": 0 if partial is None else len(partial)}

    assert precedes(state(first), state(second)) is is_first


def test_a_move_that_is_killed_leaves_the_last_checkpoint_to_the_end(tmp_path, monkeypatch):
    make(tmp_path, FINISHED)
    moved = []
    monkeypatch.setattr("shutil.move", lambda path, _: moved.append(path.name))
    claim(tmp_path, None, None)
    assert moved[-1] == LAST
