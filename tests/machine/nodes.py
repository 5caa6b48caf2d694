"""Nodes of a job: torchrun's agents, each with its own words, without the seconds of imports.

The server of `forks` forks the agents, which fork their processes.
"""

import importlib
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import elastic_launch

from tests.forks import SERVER
from tests.running import LIMIT, begin_unrendered, children
from utils.data import photographs
from utils.training import engine
from utils.training.script import exit_status

# A node that says nothing for 5 seconds is given up; torchrun's own 15 take the tests longer.
LAUNCHER = (
    "--start-method=fork --rdzv-backend=c10d --rdzv-id=job --local-addr=127.0.0.1"
    " --monitor-interval=0.1 --rdzv-conf=keep_alive_interval=1,keep_alive_max_attempt=5"
)
# Without it, as utils/machine/README.md says, a node that is started again never joins.
OF_SEVERAL = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
Setup = Callable[[], None]  # what a process does before it runs the script


def nothing() -> None: ...


class Job:
    """A job of ``script`` on ``nodes`` nodes, all on this machine, of ``processes`` in sum.

    The first node keeps the list of them, as torchrun's --rdzv-endpoint says. What the nodes say
    is in files of ``folder``. ``script``: a file of this checkout, or the name of a module.
    """

    def __init__(
        self, folder: Path, script: str, nodes: int = 2, restarts: int = 0, processes: int = 2
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.script = folder, script
        self.environment = {"OMP_NUM_THREADS": "1"} | (OF_SEVERAL if nodes > 1 else {})
        self.launcher = (
            f"{LAUNCHER} --nnodes={nodes} --nproc_per_node={processes // nodes}"
            f" --max-restarts={restarts} --rdzv-endpoint=127.0.0.1:{self.port}"
        )

    def start(self, number: int, flags: str, setup: Setup = nothing) -> BaseProcess:
        """Node ``number``, whose processes call ``setup`` first."""
        words = [*self.launcher.split(), self.script, *shlex.split(flags)]
        how = words, self.environment, self.screen(number), setup
        node = SERVER.Process(target=agent, args=how)
        node.start()
        if number == 0:
            self.wait_for_port(node)
        return node

    def wait_for_port(self, node: BaseProcess) -> None:
        """Until the first node listens: whoever comes first keeps the list."""
        while node.is_alive():
            with (
                suppress(ConnectionRefusedError),
                socket.create_connection(("127.0.0.1", self.port)),
            ):
                return
            time.sleep(0.02)

    def run(self, *flags: str, setup: Setup = nothing) -> list[int]:
        """All nodes, each with these flags, to their end: their exit statuses."""
        return ended(*[self.start(number, words, setup) for number, words in enumerate(flags)])

    def screen(self, number: int) -> list[Path]:
        """The files of a node's output and of its errors."""
        return [self.folder / f"screen{number}", self.folder / f"screen{number}-errors"]

    def said(self) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob("screen*")))


def torchrun(
    script: str, flags: str, processes: int = 2, restarts: int = 0, setup: Setup = nothing
) -> subprocess.CompletedProcess:
    """``script`` with ``flags`` in so many processes of one node, to their end."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(Path(folder), script, 1, restarts, processes)
        (status,) = job.run(flags, setup=setup)
        texts = [path.read_text() for path in job.screen(0)]
    return subprocess.CompletedProcess([script, flags], status, *texts)


def ended(*nodes: BaseProcess) -> list[int]:
    """The exit statuses of nodes, waited for; what hangs is killed."""
    end = time.monotonic() + LIMIT
    for node in nodes:
        node.join(max(0, end - time.monotonic()))
        kill(node)
    return [node.exitcode for node in nodes]


def kill(node: BaseProcess) -> None:
    """SIGKILL to a node that still runs, launcher and processes."""
    if node.is_alive():
        for number in [node.pid, *children(node.pid)]:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        node.join()


def agent(words: list[str], environment: dict, screen: list[Path], setup: Setup) -> None:
    """torchrun with these words; what it and its processes say goes to the files ``screen``."""
    os.environ |= environment
    for stream, path in enumerate(screen, start=1):
        with open(path, "a") as file:
            os.dup2(file.fileno(), stream)
    given = run.parse_args(words)
    config, _, _ = run.config_from_args(given)
    try:
        elastic_launch(config, process)(setup, given.training_script, *given.training_script_args)
    except ChildFailedError:
        sys.exit(1)


def process(setup: Setup, script: str, *words: str) -> None:
    """The script in one of torchrun's processes; pictures are not rendered."""
    torch.set_num_threads(1)
    begin_unrendered(setup)
    if script.endswith(".py"):
        main = importlib.import_module(Path(script).stem).main
        sys.exit(exit_status(lambda: main(list(words))))
    sys.argv = [script, *words]
    try:
        runpy.run_module(script, run_name="__main__", alter_sys=True)
    except Exception as error:  # which torchrun would keep in a file
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)


# What a process may do first.


def in_batch(at: int, event: Callable[[], None]) -> None:
    """``event`` happens in batch ``at`` of this process."""
    loss_of, batches = engine.stream_loss, iter(range(1, sys.maxsize))

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        if next(batches) == at:
            event()
        return loss_of(logits, labels)

    engine.stream_loss = loss


def stopped(at: int) -> None:
    """The launcher of this node gets SIGTERM in batch ``at``."""
    in_batch(at, lambda: os.kill(os.getppid(), signal.SIGTERM))


def lost_once(at: int, mark: Path) -> None:
    """This node, launcher and process, is lost in batch ``at``, unless ``mark`` is there."""

    def lose() -> None:
        if not mark.exists():
            mark.touch()
            for number in (os.getppid(), os.getpid()):
                os.kill(number, signal.SIGKILL)

    in_batch(at, lose)


def killed_once(at: int, mark: Path) -> None:
    """The last process is killed in batch ``at``, unless ``mark`` is there."""

    def kill() -> None:
        if os.environ["RANK"] == "1" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    in_batch(at, kill)


def opened_written(folder: Path) -> None:
    """Each image that a process opens is written to a file of that process's rank."""
    open_image = photographs.open_image

    def opened(file: str):
        with open(folder / os.environ["RANK"], "a") as names:
            names.write(f"{file}\n")
        return open_image(file)

    photographs.open_image = opened
