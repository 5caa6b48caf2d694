"""SIGINT, SIGTERM and SIGHUP ask for a stop after the batch; a second one stops at once."""

import signal
from contextlib import AbstractContextManager

from torch import Tensor

from utils.machine import distributed, handlers

HANGUP = getattr(signal, "SIGHUP", None)  # of a terminal that is closed; not on Windows
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP else []))


class Stopped(Exception):
    """Raised between two batches after a signal; sums and saved as in DataError."""

    def __init__(self, signum: int, sums: Tensor | None = None):
        super().__init__(signal.Signals(signum).name)
        self.signum, self.sums, self.saved = signum, sums, False


class StopRequest:
    """Remembers the first signal; from then on the system's own action is back in force.

    A hang-up that the user has told the system to ignore (nohup) stays ignored. In other threads
    than the main one Python has no signals.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.question = distributed.Question()
        ignored = HANGUP and signal.getsignal(HANGUP) == signal.SIG_IGN
        self.awaited = [s for s in SIGNALS if s != HANGUP or not ignored]
        if handlers.in_main_thread():
            for signum in self.awaited:
                signal.signal(signum, self._remember)

    def _remember(self, signum: int, frame: object) -> None:
        self.signum = signum
        for other in self.awaited:
            signal.signal(other, signal.SIG_DFL)

    def agreed(self) -> int:
        """The signal that any process had received at the last call, or 0: the same in all.

        For between two batches, where nobody should wait. One process answers for itself at once.
        """
        return self.question.ask(self.signum)

    def agreed_now(self) -> int:
        """The signal that any process has received, or 0: the same answer in all of them."""
        self.question.answer()
        return distributed.largest(self.signum)


def put_back() -> AbstractContextManager[None]:
    """After the block these signals do what they did before it."""
    return handlers.kept(*SIGNALS)
