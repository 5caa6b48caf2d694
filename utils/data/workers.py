"""Worker processes that decode, crop and resize the images of batches.

A batch is a function of the seed, the epoch and the indices asked for, whichever process makes it.
"""

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing.queues import Queue

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from utils.data.batches import Normaliser
from utils.data.images import Images
from utils.errors import DataError, InputError, one_line
from utils.machine import handlers
from utils.machine.seeding import ORDER, mixed_seed

# Forked workers share the list of files and start at once. The server that Python 3.14 forks from
# would end at a SIGTERM that is meant to stop the run after its batch, and the workers with it.
START_METHOD = "fork" if sys.platform == "linux" else None

# The signal of a child's end; none on Windows.
CHILD_ENDS = [signal.SIGCHLD] if hasattr(signal, "SIGCHLD") else []

# What a system says that refuses the workers something, and what helps.
REMEDIES = {
    "Too many open files": "raise ulimit -n",
    "ancdata": "raise ulimit -n",  # the receiver of an open file has no room for it
    "No usable temporary directory": "raise ulimit -n, set TMPDIR",  # none can be written to
    "AF_UNIX path too long": "set TMPDIR to a shorter path",
    "Resource temporarily unavailable": "raise ulimit -u",
    "can't start new thread": "raise ulimit -u",
    "Cannot allocate memory": "free some memory",
    "No space left on device": "make /dev/shm larger (docker run --shm-size)",
    "out of shared memory": "make /dev/shm larger (docker run --shm-size)",
}


@contextmanager
def one_thread() -> Iterator[None]:
    """Leave the other cores to the workers: threads of torch spin for a while after their work."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


@dataclass(frozen=True)
class Request:
    """What a worker is told: the images of a batch, int64 [B], and the epoch they are for."""

    epoch: int
    index: np.ndarray


class Decoder(Dataset[Tensor | str]):
    """Makes the batches that are asked for, wherever it runs: in this process or a worker."""

    def __init__(self, images: Images, transform: Callable[[Image.Image], Tensor], seed: int):
        self.images, self.transform, self.seed = images, transform, seed

    def __getitem__(self, request: Request) -> Tensor | str:
        """Pixels uint8 [B, 3, s, s]; for a broken image the error's message, without traceback."""
        if len(request.index) == 0:
            size = self.images.image_size
            return torch.empty(0, 3, size, size, dtype=torch.uint8)
        try:
            with torch.random.fork_rng(devices=[]):  # the transforms draw from it
                pixels = [self.decode(request.epoch, index) for index in request.index.tolist()]
        except InputError as error:
            return str(error)
        return default_collate(pixels)

    def decode(self, epoch: int, index: int) -> Tensor:
        """One image, uint8 [3, s, s], of the seed, epoch and index; seeds torch's CPU generator."""
        image = self.images.image(index)
        # From 1: numpy's seeds ignore trailing zeros, and (seed, ORDER, epoch) is the order's.
        torch.default_generator.manual_seed(mixed_seed(self.seed, ORDER, epoch, index + 1))
        return self.transform(image)


def start_worker(number: int) -> None:
    """Leave the stop signals and the screen to the main process, which is told of every error.

    On the screen Pillow would complain about odd EXIF, multiprocessing about what it is refused. A
    signal to all processes of a run must not end the workers before its last batch.
    """
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    # Python's hook, as concurrent.futures uses it; typeshed does not have it.
    Queue._on_queue_feeder_error = send_refusal  # type: ignore[attr-defined]
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # on Linux, not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            threading.Thread(target=exit_with_parent, daemon=True).start()
        except RuntimeError:  # or nothing but SIGKILL would end this process
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            raise


def exit_with_parent() -> None:
    """End this process at a SIGTERM of the one that started it, not at anyone else's."""
    parent = os.getppid()
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def refusal(workers: int, error: Exception) -> str | None:
    """In one line what the system refused the workers and what helps; None for other errors.

    The last line of a worker's traceback says what it is. torch's advice to change the code is
    left out.
    """
    last = (str(error).splitlines() or [type(error).__name__])[-1]
    reason = last.partition(" Please ")[0].strip(" .")
    helps = [remedy for words, remedy in REMEDIES.items() if words in reason]
    system = isinstance(error, (OSError, EOFError)) or reason.startswith("DataLoader worker")
    if not helps and not system:
        return None
    remedy = f"{helps[0]}, or try" if helps else "try"
    return f"--workers {workers}: {reason}; {remedy} fewer with -j (0: none)"


def end_half_started(error: Exception) -> None:
    """End the workers of a loader whose start failed on the way, which torch itself cannot."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        loader = frame.f_locals.get("self")
        if isinstance(loader, _MultiProcessingDataLoaderIter):
            if not hasattr(loader, "_workers_status"):  # set last
                for worker in getattr(loader, "_workers", []):
                    worker.kill()
                    worker.join()
                loader._shutdown = True
            return


def send_refusal(
    results: "Queue[tuple[int, str]]", error: Exception, result: tuple[int, object]
) -> None:
    """Send why a result cannot be sent in its place, or the main process would wait for ever."""
    workers = getattr(get_worker_info(), "num_workers", 0)
    results.put((result[0], refusal(workers, error) or f"--workers {workers}: {one_line(error)}"))


class Pipeline:
    """Worker processes, which live as long as this, and the device that their batches go to."""

    def __init__(
        self, decoder: Decoder, workers: int, device: torch.device | str, normalise: Normaliser
    ):
        self.device, self.workers, self.normalise = torch.device(device), workers, normalise
        self.labels = decoder.images.labels
        self.requests: list[Request] = []
        # torch's advice on the number of workers, which is the user's choice.
        warnings.filterwarnings("ignore", "This DataLoader will create")
        self.loader: DataLoader[Tensor | str] = DataLoader(
            decoder,
            batch_size=None,  # a request is a whole batch
            sampler=self.requests,
            num_workers=workers,
            multiprocessing_context=START_METHOD if workers else None,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # or it would draw from the global one
        )

    def batches(self, requests: Sequence[Request]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches asked for, in order, on the device: float32 [B, 3, s, s], int64 [B].

        A second series takes the workers from the first. DataError for a broken image, and where
        the system ends a worker or refuses it memory, files or a start.
        """
        self.requests[:] = requests
        for request, pixels in zip(requests, self._decoded(), strict=True):
            if isinstance(pixels, str):
                raise DataError(pixels)
            labels = self.labels[request.index]
            if self.device.type == "cuda":
                labels = labels.pin_memory()
            pixels, labels = (part.to(self.device, non_blocking=True) for part in (pixels, labels))
            with one_thread() if self.workers else nullcontext():
                images = self.normalise(pixels)
            yield images, labels

    def _decoded(self) -> Iterator[Tensor | str]:
        """What Decoder makes of the requests; DataError for what the system refuses workers."""
        try:
            # torch's handler of a child's end raises wherever the main thread is. Without it who
            # waits for the batch of a dead worker notices, within five seconds.
            with handlers.kept(*CHILD_ENDS):
                decoded = iter(self.loader)
            yield from decoded
        except (OSError, EOFError, RuntimeError) as error:
            end_half_started(error)
            if self.workers and (text := self._ended() or refusal(self.workers, error)):
                raise DataError(text) from error
            raise

    def _ended(self) -> str | None:
        """In one line which worker was killed, or None."""
        for worker in getattr(self.loader._iterator, "_workers", ()):
            if (worker.exitcode or 0) < 0:
                name = signal.Signals(-worker.exitcode).name
                return (
                    f"--workers {self.workers}: DataLoader worker (pid {worker.pid}) was ended by"
                    f" {name}, as a system short of memory does; try fewer with -j (0: none)"
                )
        return None
