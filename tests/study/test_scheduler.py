"""The study's scheduler: order, dependencies, failures, stops and runs that outlive a study."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.forks import SERVER
from tests.study import scheduler
from tests.study.jobs import Job, all_jobs
from tests.study.progress import DONE, READY, TRAINED, WAITING
from tests.study.scheduler import Scheduler, choose, locked, refuse_second, start, take_lock
from tests.study.settings import QUICK
from utils.errors import InputError

JOBS = all_jobs((QUICK,), None)
NAMES = [job.name for job in JOBS]
SLEEP = ["-c", "import time; time.sleep(60)"]
WRITE = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('whole')"


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(scheduler, "POLL", 0.01)


class Made:
    """Runs that are done when their process has written a file; evaluation is not simulated."""

    def __init__(self, runs, jobs: list[Job], cores: int = 1, broken: str = ""):
        self.runs, self.broken, self.said, self.most = runs, broken, [], 0
        self.scheduler = Scheduler(
            jobs, runs, cores, self.state, self.line, lambda *_: None, self.say
        )

    def state(self, job: Job) -> str:
        if (self.runs / job.name / "done").exists():
            return DONE
        needed = self.runs / job.search.name / "done"
        return WAITING if job.arm.needs_search and not needed.exists() else READY

    def line(self, job: Job) -> list[str]:
        if job.name == self.broken:
            return ["-c", "raise SystemExit(1)"]
        return ["-c", WRITE, str(self.runs / job.name / "done")]

    def say(self, text: str) -> None:
        self.said.append(text)
        self.most = max(self.most, len(self.scheduler.running))

    def started(self) -> list[str]:
        return [text.split(":")[0] for text in self.said if text.endswith("started")]


def test_the_first_that_can_start_is_chosen():
    states = dict.fromkeys(NAMES, READY) | {NAMES[0]: DONE, NAMES[1]: WAITING}
    assert choose(JOBS, lambda job: states[job.name], set()).name == NAMES[2]
    assert choose(JOBS, lambda job: states[job.name], {NAMES[2]}).name == NAMES[3]
    states[NAMES[3]] = TRAINED
    assert choose(JOBS, lambda job: states[job.name], {NAMES[2]}).name == NAMES[3]
    assert choose(JOBS, lambda job: DONE, set()) is None


def test_all_runs_in_order_and_a_second_start_does_nothing(tmp_path):
    made = Made(tmp_path, JOBS)
    assert made.scheduler.run() == 0
    assert made.started() == NAMES
    again = Made(tmp_path, JOBS)
    assert again.scheduler.run() == 0
    assert again.started() == []


def test_no_more_runs_at_once_than_cores(tmp_path):
    made = Made(tmp_path, JOBS, cores=2)
    assert made.scheduler.run() == 0
    assert sorted(made.started()) == sorted(NAMES)
    assert made.most <= 2


def test_a_failing_search_stops_only_what_needs_it(tmp_path):
    made = Made(tmp_path, JOBS, broken="quick-search-seed1")
    assert made.scheduler.run() == 1
    needing = {"quick-nr-cr-seed1", "quick-plain-long-seed1"}
    assert set(made.started()) == set(NAMES) - needing
    assert any("quick-search-seed1: FAILED, exit status 1" in text for text in made.said)


def test_a_run_that_ends_well_without_being_whole_is_not_started_for_ever(tmp_path):
    made = Made(tmp_path, JOBS[1:2])
    made.line = made.scheduler.line = lambda job: ["-c", "pass"]
    assert made.scheduler.run() == 1
    assert len(made.started()) == 1


def test_two_processes_never_live_in_one_folder(tmp_path):
    first = start(JOBS[0], tmp_path / "run", READY, SLEEP)
    try:
        assert locked(tmp_path / "run")
        assert start(JOBS[0], tmp_path / "run", READY, SLEEP) is None
    finally:
        first.process.kill()
        first.process.wait(60)
    assert not locked(tmp_path / "run")


def start_and_be_killed(job: Job, folder: Path) -> None:
    start(job, folder, READY, ["-c", "import time; time.sleep(2)"])
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_that_outlives_its_study_is_waited_for(tmp_path):
    """The study is killed; its run goes on, and the next study starts it only after that."""
    job, folder = JOBS[1], tmp_path / JOBS[1].name
    killed = SERVER.Process(target=start_and_be_killed, args=(job, folder))
    killed.start()
    killed.join(120)
    assert killed.exitcode == -signal.SIGKILL
    assert locked(folder)
    made = Made(tmp_path, [job])
    began = time.monotonic()
    assert made.scheduler.run() == 0
    assert "still goes on" in made.said[0]
    assert made.started() == [job.name]
    assert time.monotonic() - began > 0.05 and not locked(folder)


@pytest.mark.parametrize("adopted", [False, True])
def test_a_stop_ends_every_run(adopted, tmp_path):
    job, folder = JOBS[1], tmp_path / JOBS[1].name
    made = Made(tmp_path, [job])
    made.line = made.scheduler.line = lambda job: SLEEP
    earlier = start(job, folder, READY, SLEEP) if adopted else None

    def stop() -> None:
        while not locked(folder):
            time.sleep(0.01)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        if earlier:
            earlier.process.wait(60)  # so that its end is seen

    thread = threading.Thread(target=stop)
    thread.start()
    assert made.scheduler.run() == 128 + signal.SIGTERM
    thread.join(60)
    assert not locked(folder)
    assert made.scheduler.failed == {}


def test_a_second_study_is_refused(tmp_path):
    handle = refuse_second(tmp_path)
    with pytest.raises(InputError, match="another study"):
        refuse_second(tmp_path)
    os.close(handle)
    os.close(take_lock(tmp_path))
