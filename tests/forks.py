"""Starts of Python without the seconds of imports: forked from a server that has them behind it."""

import os
import runpy
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import current_process, get_all_start_methods, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import DEVNULL, STDOUT
from typing import IO

import torch
import torch._dynamo

import cifar  # noqa: F401 - before the forks
import imagenet  # noqa: F401

ROOT = Path(__file__).parent.parent
FORKS = "forkserver" in get_all_start_methods()  # not on Windows, where each start is one
SERVER = get_context("forkserver" if FORKS else "spawn")
if FORKS:
    SERVER.set_forkserver_preload(["tests.served"])


class Fork:
    """Python with ``words``, a script or -m and a module, then flags: used as a Popen with pipes.

    ``setup`` is called before the script begins.
    """

    def __init__(
        self,
        words: list[str],
        environment: dict[str, str],
        setup: Callable[[], None] | None = None,
    ):
        pipes = [SERVER.Pipe(duplex=False) for _ in range(2)]
        written = [writer for _, writer in pipes]
        self.process = SERVER.Process(target=begin, args=(words, environment, setup, *written))
        self.process.start()
        for writer in written:
            writer.close()
        self.stdout, self.stderr = (text_of(reader) for reader, _ in pipes)
        self.pid = self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        return self.process.exitcode

    def communicate(self) -> tuple[str, str]:
        """All that it still says, to its end; a reader of each stream, so that neither is full."""
        with ThreadPoolExecutor() as readers:
            texts = tuple(readers.map(lambda stream: stream.read(), (self.stdout, self.stderr)))
        self.wait()
        return texts

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Fork":
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        self.stderr.close()
        self.process.join()


def text_of(reader: Connection) -> IO[str]:
    """A pipe's end as a text file."""
    number = os.dup(reader.fileno())
    reader.close()
    return open(number, encoding="utf-8")


def begin(
    words: list[str],
    environment: dict[str, str],
    setup: Callable[[], None] | None,
    *written: Connection,
) -> None:
    """In the fork: what a start of Python with ``words`` does once it has imported everything."""
    for number, writer in enumerate(written, start=1):
        os.dup2(writer.fileno(), number)
        writer.close()
    execute(words, environment, setup)


def execute(
    words: list[str], environment: dict[str, str], setup: Callable[[], None] | None = None
) -> None:
    """As if Python had been started with these words and in this environment."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    tempfile.tempdir = None  # it is found anew, in this environment
    current_process()._config.pop("tempdir", None)
    torch.set_num_threads(1)
    if setup:
        setup()
    module = words[0] == "-m"
    sys.argv = words[module:]
    if module:
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(words[0], run_name="__main__")


class ForkedPopen:
    """In the place of subprocess.Popen: forks this process, where ``line`` starts its Python."""

    def __init__(
        self,
        line: list[str],
        *,
        cwd: Path,
        env: dict[str, str],
        stdin: int,
        stdout: IO[str],
        stderr: int,
        start_new_session: bool,
        pass_fds: tuple[int, ...],
        setup: Callable[[], None] | None = None,
    ):
        assert (line[0], cwd, stdin, stderr) == (sys.executable, ROOT, DEVNULL, STDOUT)
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            if start_new_session:
                os.setsid()
            with open(os.devnull) as nothing:
                os.dup2(nothing.fileno(), 0)
            for number in (1, 2):
                os.dup2(stdout.fileno(), number)
            inherited = {int(name) for name in os.listdir("/dev/fd")} - {0, 1, 2, *pass_fds}
            for number in inherited:
                with suppress(OSError):  # that of the list itself
                    os.close(number)
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, signal.SIG_DFL)
            execute(line[1:], env, setup)
            status = 0
        except SystemExit as leaving:
            status = leaving.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode
