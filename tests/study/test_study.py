"""The study's command as a user starts it: printed, and whole on made images."""

import json
import time
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, STDOUT
from types import SimpleNamespace

import pytest

from tests.forks import Fork, ForkedPopen
from tests.running import LIMIT, ROOT, begin_unrendered, dying, watched
from tests.study import scheduler
from tests.study.__main__ import main, parse, places_of
from tests.study.scheduler import locked
from tests.study.settings import QUICK
from utils.shown.log import read_log


def fork_runs() -> None:
    """In the study's process: its runs are forked from it, search three epochs, render nothing."""
    popen = partial(ForkedPopen, setup=partial(begin_unrendered, dying(2)))
    scheduler.subprocess = SimpleNamespace(Popen=popen, DEVNULL=DEVNULL, STDOUT=STDOUT)


def started(flags: str) -> AbstractContextManager[Fork]:
    return watched(["-m", "tests.study", *flags.split()], fork_runs)


def study(flags: str) -> str:
    """Run the study's command to its end; what it printed."""
    with started(flags) as process:
        out, errors = process.communicate()
    assert process.returncode == 0, out + errors
    return out


@pytest.fixture
def here(monkeypatch):
    monkeypatch.chdir(Path.cwd())  # main goes to the checkout; this puts it back


@pytest.mark.parametrize(
    "flags, count",
    [
        ("", 33 + 21 + 15),
        ("--pilot a b c", 7 + 7 + 5),
        ("--setting a --pilot b", 33 + 7),
        ("--paper cifar imagenet arms", 18 + 15),
        ("--quick", 8),
    ],
)
def test_every_setting_is_printed(flags, count, tmp_path, capsys, here):
    assert main([*flags.split(), "--print", "--runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if line.startswith("python ")]
    assert len(commands) == count
    assert all(line.startswith(("python ", "# ")) for line in lines)
    assert not list(tmp_path.iterdir())


def test_nothing_outside_of_the_checkout_is_needed():
    places = places_of(parse([]))
    assert places.data is None and places.runs == Path("runs/cifar10")
    assert (places.downloads, places.held_out) == (Path("data"), Path("data/cifar10-heldout"))
    assert places_of(parse(["--data", f"{ROOT}/data/pets/"])).runs == Path("runs/pets")


def test_status_of_nothing(tmp_path, capsys, here):
    assert main(["--quick", "--status", "--runs", str(tmp_path / "runs")]) == 0
    output = capsys.readouterr().out
    assert "quick: 0 of 8 runs done" in output and "Left: unknown" in output


@pytest.mark.slow
def test_quick_study_killed_and_started_again(tmp_path):
    """Killed while a run trains, twice: its run is waited for; in the end all is there, once."""
    runs, target = tmp_path / "runs", tmp_path / "collected"
    flags = f"--quick --cores 1 --runs {runs}"
    for place in ("quick-search-seed1", "quick-nr-cr-seed1"):
        with started(flags) as process:
            deadline = time.monotonic() + LIMIT
            while not (runs / place / "log.txt").exists():
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            process.kill()
    said = study(flags)
    assert "FAILED" not in said
    for seed in QUICK.seeds:
        for arm in QUICK.arms:
            folder = runs / f"quick-{arm}-seed{seed}"
            assert not locked(folder)
            assert json.loads((folder / "evaluation.json").read_text())["images"] == 1000
            rows = read_log(folder / "log.txt")
            if arm in ("plain", "nr-cr"):
                assert sum(row["Phase"] == "train" for row in rows) == QUICK.epochs
        search = len(read_log(runs / f"quick-search-seed{seed}" / "log.txt"))
        assert len(read_log(runs / f"quick-plain-long-seed{seed}" / "log.txt")) == search + 3
    assert not list(runs.glob("*/earlier-*"))
    assert "minus plain-long" in said
    for name in ("quick-errors", "quick-differences", "quick-live"):
        assert (runs / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    study(f"--quick --runs {runs} --collect {target}")
    printed = study(f"--quick --runs {target} --summary")
    assert printed.strip() == (runs / "summary.md").read_text().strip()
