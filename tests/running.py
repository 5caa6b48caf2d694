"""Running the scripts, as a user does or in this process, and comparing the runs."""

import contextlib
import importlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import models
from nr.network.wiring import wiring
from tests.forks import ROOT, Fork
from tests.helpers import kill
from tests.made import make_synthetic
from utils.data import synthetic
from utils.shown import plots
from utils.training import trainer
from utils.training.script import exit_status
from utils.training.signals import SIGNALS

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
PICTURES = ("curves", "scales", "utilization", "widths")  # the functions of plots
LIMIT = 600  # seconds for a start of a script: one that hangs fails its test


def command(flags: str, folder: Path, script: str = "cifar.py") -> list[str]:
    """The words of a command line."""
    return [sys.executable, script, *shlex.split(flags), "-c", str(folder)]


def run(flags: str, folder: Path, status: int = 0, **how) -> subprocess.CompletedProcess:
    """Run a script to its end and check its exit status; ``how``: as in ``command``."""
    words = command(flags, folder, **how)
    result = subprocess.run(
        words, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=LIMIT
    )
    return checked(result, status)


def drive(
    flags: str, folder: Path, status: int = 0, script: str = "cifar.py"
) -> subprocess.CompletedProcess:
    """As ``run``, in this process, which saves the start of another one, mostly imports.

    Pictures are not rendered, which takes longer than such a run trains, and laid out once, as
    they are in the end.
    """
    words = [script, *shlex.split(flags), "-c", str(folder)]
    main = importlib.import_module(Path(script).stem).main
    # As real streams are, with a buffer below: the script reconfigures it.
    out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", words))
        stack.enter_context(handlers_put_back())
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(mock.patch.object(Figure, "savefig", save_unrendered))
        stack.enter_context(mock.patch.object(synthetic, "make_synthetic", make_synthetic))
        last = {}
        for name in PICTURES:
            draw = partial(put_off, last, getattr(plots, name))
            stack.enter_context(mock.patch.object(plots, name, draw))
        try:
            code = exit_status(lambda: main(words[1:]))
        except SystemExit as leaving:  # argparse
            code = leaving.code
        for draw in last.values():
            draw()
    texts = [stream.buffer.getvalue().decode() for stream in (out, err)]
    return checked(subprocess.CompletedProcess(words, code, *texts), status)


def save_unrendered(figure: Figure, file: io.BytesIO, **how) -> None:
    """In the place of ``Figure.savefig``."""
    file.write(b"a picture")


def not_drawn(*data_and_path: object) -> None:
    """In the place of a function of ``plots``."""
    data_and_path[-1].write_bytes(b"a picture")


def put_off(last: dict[Path, Callable[[], None]], draw: Callable, *data_and_path: object) -> None:
    """In the place of ``draw``, which ``last`` keeps for the end."""
    not_drawn(*data_and_path)
    last[data_and_path[-1]] = partial(draw, *data_and_path)


def begin_unrendered(then: Callable[[], None] | None = None) -> None:
    """In a process that is for one run: no pictures."""
    for name in PICTURES:
        setattr(plots, name, not_drawn)
    if then:
        then()


def dying(epoch: int, *more: int) -> Callable[[], None]:
    """What makes a search of this process end on every machine, whatever it has learnt.

    Half of the channels die in training epoch ``epoch``, and some in each of ``more``, which are
    given as it is: from 0.
    """
    shares = dict.fromkeys(more, 1 / 8) | {epoch: 1 / 2}
    return partial(_let_die, shares)


def _let_die(shares: dict[int, float]) -> None:
    train_epoch = trainer.train_epoch

    def train(model: nn.Module, batches: object, epoch: int, *rest: object) -> Tensor:
        sums = train_epoch(model, batches, epoch, *rest)
        network = getattr(model, "module", model)
        for layer in wiring(network).prunable if epoch in shares else ():
            kill(network, {layer.name: slice(int(shares[epoch] * len(layer.numbers[0])))})
        return sums

    trainer.train_epoch = train


def try_once(monkeypatch) -> None:
    """Networks without memory, on which flags are tried out, are built once."""
    tried, build = {}, models.build

    def build_once(*names: str, **keywords: object) -> nn.Module:
        if not torch.empty(0).is_meta:
            return build(*names, **keywords)
        key = (*names, *keywords.items())
        if key not in tried:
            tried[key] = build(*names, **keywords)
        return tried[key]

    monkeypatch.setattr(models, "build", build_once)


def checked(result: subprocess.CompletedProcess, status: int) -> subprocess.CompletedProcess:
    assert result.returncode == status, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result


@contextlib.contextmanager
def handlers_put_back() -> Iterator[None]:
    """Every run replaces the signal handlers of its process."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextlib.contextmanager
def watched(
    words: list[str], setup: Callable[[], None] | None = None, **variables: str
) -> Iterator[Fork]:
    """Python with ``words`` beside the test, which reads its lines; killed after LIMIT.

    ``setup``: what its process calls first; ``variables``: of its environment.
    """
    with Fork(words, ENVIRONMENT | variables, setup) as process:
        alarm = threading.Timer(LIMIT, kill_all, [process])
        alarm.start()
        try:
            yield process
        finally:
            alarm.cancel()
            kill_all(process)


def started(
    flags: str,
    folder: Path,
    script: str = "cifar.py",
    setup: Callable[[], None] | None = None,
    **variables: str,
) -> contextlib.AbstractContextManager[Fork]:
    """A script, as ``watched``, that draws no pictures."""
    words = command(flags, folder, script)[1:]
    return watched(words, partial(begin_unrendered, setup), **variables)


def wait_for(moment: str, process: Fork) -> None:
    """Read the lines of a started script up to one that matches ``moment``."""
    assert any(re.search(moment, line) for line in process.stdout), process.stderr.read()


def wait_for_text(path: Path, pattern: str) -> None:
    """Until a file holds ``pattern``."""
    end = time.monotonic() + LIMIT
    while not (path.exists() and re.search(pattern, path.read_text())):
        assert time.monotonic() < end, path
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """The processes that this one has started and that still run."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


def descendants(pid: int) -> list[int]:
    below = children(pid)
    return below + [number for child in below for number in descendants(child)]


def kill_all(process: Fork) -> None:
    """SIGKILL to a started script and all its processes; torchrun gives each its own session."""
    if process.poll() is None:
        for number in [process.pid, *descendants(process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def assert_same_run(first: Path, second: Path) -> None:
    """Equal weights, momentum, log rows (but for the seconds) and best accuracy, bit for bit."""
    a, b = (load(folder / "checkpoint.pth.tar") for folder in (first, second))
    assert a["state_dict"].keys() == b["state_dict"].keys()
    for name, tensor in a["state_dict"].items():
        assert torch.equal(tensor, b["state_dict"][name]), name
    momentum_a, momentum_b = (x["optimizer"]["state"] for x in (a, b))
    assert momentum_a.keys() == momentum_b.keys()
    for index, state in momentum_a.items():
        assert torch.equal(state["momentum_buffer"], momentum_b[index]["momentum_buffer"])
    rows = [[row | {"Seconds": 0} for row in x["run"]["rows"]] for x in (a, b)]
    assert rows[0] == rows[1]
    assert (a["best_acc"], a["epoch"]) == (b["best_acc"], b["epoch"])
