"""Saving beside the training: a copy of what is saved, and a thread that writes it."""

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from utils.files import Plain


class Writer:
    """Writes one thing after another in a thread of its own, while its owner goes on.

    What a write raises is raised in the owner: at the next write, or when it waits.
    """

    def __init__(self) -> None:
        self.thread = futures.ThreadPoolExecutor(1, "writer")
        self.begun: futures.Future[None] | None = None
        if stack := getattr(_mine, "stack", None):
            stack.callback(self.wait)

    def write(self, payload: Plain, work: Callable[[Plain], None]) -> None:
        """Begin ``work`` with a copy of ``payload``, once what was begun before is done.

        So there is one copy at a time. The caller may change the payload's tensors at once.
        """
        self.wait()
        self.begun = self.thread.submit(work, copied(payload))

    def wait(self) -> None:
        """Until what was begun is done; raises what that raised, once."""
        if self.begun is not None:
            futures.wait([self.begun])
            begun, self.begun = self.begun, None
            begun.result()


_mine = threading.local()  # its stack: what is to be waited for in this thread


@contextmanager
def finished() -> Iterator[None]:
    """Wait after the block, however it ends, for what the writers made in it have begun.

    A write that has failed is the block's error, whatever else came after it.
    """
    outer = getattr(_mine, "stack", None)
    try:
        with ExitStack() as _mine.stack:
            yield
    finally:
        _mine.stack = outer


def copied(payload: Plain) -> Plain:
    """A copy of plain values and tensors, these in the memory of the host, waited for once."""
    copy = {key: _copied(value) for key, value in payload.items()}
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return copy


def _copied(value: object) -> object:
    if not isinstance(value, (Tensor, dict, list, tuple)):  # most: the numbers of the structure
        return value
    if isinstance(value, Tensor) and value.device.type == "cpu":
        # By numpy, with one thread: those of torch wait for each other at every tensor, on a busy
        # machine ten times as long.
        return torch.from_numpy(value.detach().numpy().copy(order="K"))
    if isinstance(value, Tensor):
        return value.detach().to("cpu", non_blocking=True)
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    return type(value)(map(_copied, value))
