"""SIGINT and SIGTERM ask for a stop after the batch; a second one stops at once."""

import signal

from torch import Tensor

from utils.machine import distributed

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """Raised between two batches after a signal; exit status 128 + ``signum``.

    ``sums``: the figures [k, 4] of the k finished batches of the training epoch, if in one.
    """

    def __init__(self, signum: int, sums: Tensor | None = None):
        super().__init__(signal.Signals(signum).name)
        self.signum, self.sums = signum, sums


class StopRequest:
    """Remembers the first signal; from then on the system's own action is back in force."""

    def __init__(self):
        self.signum = 0
        self.question = distributed.Question()
        for signum in SIGNALS:
            signal.signal(signum, self._remember)

    def _remember(self, signum: int, frame: object) -> None:
        self.signum = signum
        for other in SIGNALS:
            signal.signal(other, signal.SIG_DFL)

    def agreed(self) -> int:
        """The signal that any process had received at the last call, or 0: the same in all.

        In one process: that it has received. For between two batches, where nobody should wait.
        """
        return self.question.ask(self.signum)

    def agreed_now(self) -> int:
        """The signal that any process has received, or 0: the same answer in all of them."""
        self.question.answer()
        return distributed.largest(self.signum)
