"""What the study takes for done, and how it estimates what is left."""

import json
from pathlib import Path

import pytest

from tests.report.test_report import structure as report_structure
from tests.study import progress as states
from tests.study import summary
from tests.study.__main__ import COMMITTED, evaluated_file
from tests.study.jobs import Job, Places, Shape, all_jobs
from tests.study.progress import Cost, cost, progress, seconds_left
from tests.study.settings import ARMS, GROUPS, QUICK
from utils.shown.log import write_log

SPEC = {
    "family": "cifar",
    "arch": "resnet",
    "options": {"depth": 8, "width_mult": 0.25, "num_classes": 10},
}


def job(arm: str, seed: int = 1) -> Job:
    return Job(QUICK, ARMS[arm], seed)


def rows(search: int, train: int, utilization: float = 0.95) -> list[dict]:
    return [
        {"Phase": "search" if i < search else "train", "Utilization": utilization, "Seconds": 2.0}
        for i in range(search + train)
    ]


def leave(runs, arm: str, *, rejuvenated: bool = False, evaluated: bool = False, **how) -> None:
    """A run folder of seed 1 as a run leaves it."""
    folder = runs / job(arm).name
    folder.mkdir(parents=True, exist_ok=True)
    write_log(folder / "log.txt", rows(**how))
    structure = report_structure("removed" if rejuvenated else "plain")
    args = {"dataset": "synthetic", "subset": 200}
    content = {"network": SPEC, "structure": structure, "args": args}
    (folder / "run.json").write_text(json.dumps(content))
    if evaluated:
        (folder / "evaluation.json").write_text("{}")


def state(runs, arm: str) -> str:
    return progress(job(arm), runs).state


def test_nothing_done(tmp_path):
    assert {arm: state(tmp_path, arm) for arm in QUICK.arms} == {
        "search": states.READY,
        "plain": states.READY,
        "nr-cr": states.WAITING,
        "plain-long": states.WAITING,
    }


def test_a_search_lets_the_others_start(tmp_path):
    leave(tmp_path, "search", search=4, train=0, utilization=0.85)
    assert state(tmp_path, "search") == states.READY  # it has not been rebuilt yet
    assert state(tmp_path, "nr-cr") == states.WAITING
    leave(tmp_path, "search", search=4, train=0, utilization=0.85, rejuvenated=True)
    assert state(tmp_path, "search") == states.TRAINED
    assert state(tmp_path, "nr-cr") == state(tmp_path, "plain-long") == states.READY
    assert progress(job("plain-long"), tmp_path).shaped == Shape(7, (5,), 0.25)
    assert state(tmp_path, "plain") == states.READY
    assert progress(Job(QUICK, ARMS["nr-cr"], 2), tmp_path).state == states.WAITING  # another seed


def test_a_search_that_gave_up_blocks_the_others(tmp_path):
    leave(tmp_path, "search", search=QUICK.max_epochs, train=0)
    assert state(tmp_path, "search") == states.TRAINED
    assert state(tmp_path, "nr-cr") == state(tmp_path, "plain-long") == states.WAITING
    leave(tmp_path, "search", search=QUICK.max_epochs, train=0, evaluated=True)
    assert state(tmp_path, "search") == states.GAVE_UP
    assert state(tmp_path, "nr-cr") == state(tmp_path, "plain-long") == states.BLOCKED


@pytest.mark.parametrize("train, evaluated, expected", [(2, 0, 0), (3, 0, 1), (3, 1, 2)])
def test_a_run_is_done_when_it_is_trained_and_evaluated(train, evaluated, expected, tmp_path):
    leave(tmp_path, "plain", search=0, train=train, evaluated=bool(evaluated))
    assert state(tmp_path, "plain") == (states.READY, states.TRAINED, states.DONE)[expected]


def test_a_search_is_in_the_log_of_those_that_start_from_it(tmp_path):
    leave(tmp_path, "search", search=4, train=0, rejuvenated=True)
    leave(tmp_path, "nr-cr", search=4, train=2, rejuvenated=True)
    assert state(tmp_path, "nr-cr") == states.READY


@pytest.mark.parametrize(
    ("lengths", "utilization", "expected"),
    [
        (((4, 2),), 0.95, states.READY),
        (((4, 3),), 0.95, states.READY),
        (((4, 3), (29, 0)), 0.95, states.READY),
        (((4, 3), (30, 0)), 0.95, states.GAVE_UP),
        (((4, 3), (30, 0)), 0.85, states.READY),
        (((4, 3), (5, 2)), 0.95, states.READY),
        (((4, 3), (5, 3)), 0.95, states.TRAINED),
    ],
)
def test_two_rounds_end_with_the_second(lengths, utilization, expected, tmp_path):
    leave(tmp_path, "search", search=4, train=0, rejuvenated=True)
    leave(tmp_path, "two-rounds", search=0, train=0)
    log = [row for pair in lengths for row in rows(*pair, utilization)]
    write_log(tmp_path / job("two-rounds").name / "log.txt", log)
    assert state(tmp_path, "two-rounds") == expected


def test_what_is_left_of_two_rounds(tmp_path):
    """The first search is another run's; the second counts 30 epochs until it is over."""
    places = Places(tmp_path, tmp_path, tmp_path)
    leave(tmp_path, "search", search=4, train=0, rejuvenated=True)
    leave(tmp_path, "two-rounds", search=0, train=0)

    def left(*lengths: tuple[int, int]) -> Cost:
        log = [row for pair in lengths for row in rows(*pair)]
        write_log(tmp_path / job("two-rounds").name / "log.txt", log)
        return cost(job("two-rounds"), progress(job("two-rounds"), tmp_path), places)

    search, train = (left((4, 3), epochs).done - left((4, 3)).done for epochs in ((1, 0), (0, 1)))
    assert 0 < train < search
    assert left((4, 1)).left == pytest.approx(30 * search + (2 + 3) * train)
    assert left((4, 3), (10, 0)).left == pytest.approx(20 * search + 3 * train)
    assert left((4, 3), (10, 1)).left == pytest.approx(2 * train)
    assert left((4, 3), (10, 1)).seconds == 2 * 14


def test_what_is_left_of_a_run(tmp_path):
    places = Places(tmp_path, tmp_path, tmp_path)
    leave(tmp_path, "plain", search=0, train=2)
    found = cost(job("plain"), progress(job("plain"), tmp_path), places)
    assert found.done == 2 * found.left and found.seconds == 4
    leave(tmp_path, "plain", search=0, train=3)
    assert cost(job("plain"), progress(job("plain"), tmp_path), places).left == 0
    leave(tmp_path, "search", search=4, train=0, rejuvenated=True)
    leave(tmp_path, "nr-cr", search=4, train=1, rejuvenated=True)
    nr = cost(job("nr-cr"), progress(job("nr-cr"), tmp_path), places)
    assert nr.left == 2 * nr.done < found.done  # its search is another run's; it is smaller
    assert nr.seconds == 2


def test_seconds_left_by_the_speed_of_the_same_network():
    costs = [Cost("slow", 10, 10, 100), Cost("fast", 100, 300, 10), Cost("new", 0, 22, 0)]
    # 10 at 10 s, 300 at 0.1 s, 22 at all's 110 s / 110: 100 + 30 + 22, on two cores.
    assert seconds_left(costs, 2) == pytest.approx(76)
    assert seconds_left([Cost("new", 0, 22, 0)], 2) is None


def test_a_new_machine_starts_with_the_runs_that_were_collected(tmp_path):
    """Those that wait for the weights of a search need it again, and with it its length."""
    source, runs = tmp_path / "collected", tmp_path / "runs"
    jobs, places = [job(arm) for arm in QUICK.arms], Places(runs, None, tmp_path)
    leave(source, "plain", search=0, train=3, evaluated=True)
    leave(source, "search", search=4, train=0, utilization=0.85, rejuvenated=True, evaluated=True)
    leave(source, "plain-long", search=0, train=7, evaluated=True)
    leave(source, "nr-cr", search=4, train=1)
    assert summary.restore(jobs, source, places) == 1
    assert (state(runs, "plain"), state(runs, "search")) == (states.DONE, states.READY)
    leave(source, "nr-cr", search=4, train=3, evaluated=True)
    assert summary.restore(jobs, source, places) == 3
    assert {state(runs, arm) for arm in QUICK.arms} == {states.DONE}
    assert summary.restore(jobs, source, places) == 0


@pytest.mark.parametrize(("data", "expected"), [("x/cifar10-jpeg", 1), ("x/other", 0), (None, 0)])
def test_runs_on_other_data_are_not_done(data, expected, tmp_path):
    """Those of setting a were collected on CIFAR-10 (JPEG), wherever that lay."""
    places = Places(tmp_path, data and Path(data), tmp_path)
    (found,) = (j for j in all_jobs(GROUPS["setting a"], [1]) if j.arm.name == "plain")
    assert summary.restore([found], COMMITTED, places) == expected


@pytest.mark.parametrize(
    ("arm", "rebuilt", "expected"),
    [
        ("search", True, "NR_resnet_before_0.9.pth.tar"),
        ("search", False, "checkpoint.pth.tar"),  # it gave up
        ("nr-cr", True, "checkpoint.pth.tar"),
    ],
)
def test_a_search_is_evaluated_as_it_was_before_it_was_rebuilt(arm, rebuilt, expected, tmp_path):
    if rebuilt:
        (tmp_path / "NR_resnet_before_0.9.pth.tar").touch()
    assert evaluated_file(job(arm), tmp_path) == expected
