"""Runs jobs in processes of their own, as many at once as there are cores.

A run's process holds a lock on its folder for as long as it lives, so that a study that is started
after another was killed finds the runs that still go on, waits for them, and starts none twice.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.running import ROOT
from tests.study.jobs import Job
from tests.study.progress import FINAL, READY, TRAINED
from utils.errors import InputError

LOCK, SCREEN, EVALUATED = ".study.lock", "screen.txt", "evaluation.txt"
POLL = 0.2  # seconds between two looks at the processes


def take_lock(folder: Path) -> int | None:
    """The lock on ``folder``, as an open file, or None while another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def locked(folder: Path) -> bool:
    """Whether a process lives in ``folder``."""
    if not (folder / LOCK).exists():
        return False
    handle = take_lock(folder)
    if handle is not None:
        os.close(handle)
    return handle is None


@dataclass
class Running:
    """A process of ``job``; ``process`` is None for one that an earlier study started."""

    job: Job
    folder: Path
    step: str
    process: subprocess.Popen | None

    def ended(self) -> bool:
        if self.process is None:
            return not locked(self.folder)
        return self.process.poll() is not None

    def terminate(self) -> bool:
        """Ask it to save and stop; False if its number is not known, so that it goes on."""
        pid = self.process.pid if self.process else int((self.folder / LOCK).read_text() or 0)
        with suppress(ProcessLookupError):
            if pid:
                os.kill(pid, signal.SIGTERM)
        return pid != 0


def start(job: Job, folder: Path, step: str, line: list[str]) -> Running | None:
    """Start ``line``, a script and its flags, in ``folder``; None where a process lives there."""
    lock = take_lock(folder)
    if lock is None:
        return None
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    if job.setting.threads is not None:
        environment["OMP_NUM_THREADS"] = str(job.setting.threads)
    os.truncate(lock, 0)
    name, mode = (EVALUATED, "w") if step == TRAINED else (SCREEN, "a")
    try:
        with open(folder / name, mode) as screen:
            process = subprocess.Popen(
                [sys.executable, *line],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # ctrl-C reaches the study alone, which tells its runs
                pass_fds=(lock,),  # the process keeps the lock, whatever becomes of the study
            )
        os.write(lock, str(process.pid).encode())
    finally:
        os.close(lock)
    return Running(job, folder, step, process)


def choose(jobs: Iterable[Job], state: Callable[[Job], str], busy: set[str]) -> Job | None:
    """The first job in which there is something to do; ``busy``: names of those not to start."""
    return next(
        (job for job in jobs if job.name not in busy and state(job) in (READY, TRAINED)), None
    )


class Scheduler:
    """Takes jobs in their order until none is left that can be started.

    ``state``: of a job, read from its folder; ``line``: the command of its next step; ``finish``:
    called when a step has ended with status 0; ``say``: tells the user.
    """

    def __init__(
        self,
        jobs: list[Job],
        runs: Path,
        cores: int,
        state: Callable[[Job], str],
        line: Callable[[Job], list[str]],
        finish: Callable[[Job, str], None],
        say: Callable[[str], None] = print,
    ):
        self.jobs, self.runs, self.cores = jobs, runs, cores
        self.state, self.line, self.finish, self.say = state, line, finish, say
        self.running: list[Running] = []
        self.failed: dict[str, str] = {}  # job name -> why, in this start of the study
        self.signum = 0
        self.final: set[str] = set()

    def run(self) -> int:
        """Run all that can be run. Returns 0, 1 where a run failed, or 128 + a signal."""
        handlers = {s: signal.signal(s, self._stop) for s in (signal.SIGTERM, signal.SIGINT)}
        self.running = [self._adopted(job) for job in self.jobs if locked(self.runs / job.name)]
        try:
            self._fill()
            while self.running and not self.signum:
                time.sleep(POLL)
                if self._reap():
                    self._fill()
        finally:
            self._end()
            for signum, handler in handlers.items():
                signal.signal(signum, handler)
        return 128 + self.signum if self.signum else int(bool(self.failed))

    def _stop(self, signum: int, frame: object) -> None:
        self.signum = signum

    def _adopted(self, job: Job) -> Running:
        self.say(f"{job.name}: still goes on from an earlier start of the study")
        return Running(job, self.runs / job.name, READY, None)

    def _fill(self) -> None:
        """Start jobs while cores are free. What can start only changes when a run ends."""
        while len(self.running) < self.cores and not self.signum:
            busy = {running.job.name for running in self.running} | self.failed.keys() | self.final
            job = choose(self.jobs, self._state, busy)
            if job is None:
                break
            step = self.state(job)
            running = start(job, self.runs / job.name, step, self.line(job))
            self.running.append(running or self._adopted(job))
            self.say(f"{job.name}: {'evaluated' if step == TRAINED else 'started'}")

    def _state(self, job: Job) -> str:
        state = self.state(job)
        if state in FINAL:
            self.final.add(job.name)
        return state

    def _reap(self) -> bool:
        """Judge the runs that have ended; whether there were any."""
        ended = [running for running in self.running if running.ended()]
        for running in ended:
            self.running.remove(running)
            if running.process is not None:
                self._ended(running)
        return bool(ended)

    def _ended(self, running: Running) -> None:
        """Judge a step by its exit status and by what it left."""
        job, status = running.job, running.process.returncode
        before, why = running.step, f"exit status {status}"
        if status == 0:
            try:
                self.finish(job, before)
                why = "it ended, but its log is not whole"
            except InputError as error:
                why = str(error)
        state = self.state(job)
        if state in FINAL or (state == TRAINED and before == READY):
            self.say(f"{job.name}: {state}")
        else:
            name = EVALUATED if before == TRAINED else SCREEN
            self.failed[job.name] = why
            self.say(f"{job.name}: FAILED, {why}: see {running.folder / name}")

    def _end(self) -> None:
        """Ask what still runs to save and stop, and wait for it."""
        stopping = [running for running in self.running if running.terminate()]
        while not all(running.ended() for running in stopping):
            time.sleep(POLL)


def refuse_second(runs: Path) -> int:
    """The lock of the study itself. Raises InputError while another study lives in ``runs``."""
    handle = take_lock(runs)
    if handle is None:
        raise InputError(f"--runs {runs}: another study is at work in this folder")
    return handle
