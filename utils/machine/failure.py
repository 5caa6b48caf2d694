"""The end of a job of several processes of which one has failed."""

import multiprocessing
import os
import sys

import torch.distributed as dist


class Failure:
    """What a process that has failed says, and how it ends, so that the others end too.

    ``store``: what the processes of the job share beside their group, which is unusable by then;
    None in a single process.
    """

    store: dist.Store | None = None

    @classmethod
    def is_first(cls) -> bool:
        """Whether this process is the first that has failed, to be asked once; it says why."""
        try:
            return cls.store is None or cls.store.add("failures", 1) == 1
        except RuntimeError:  # the process or launcher that kept the store is gone, too
            return True

    @staticmethod
    def is_of_another(error: Exception) -> bool:
        """Whether ``error`` says that another process went away."""
        return isinstance(error, dist.DistError) or "gloo/transport" in str(error)

    @classmethod
    def end(cls, status: int) -> None:
        """End this process at once, if it is one of several, so that the launcher ends the rest.

        Leaving the group in an orderly way would wait for processes that wait for this one.
        """
        if cls.store is None:
            return
        for worker in multiprocessing.active_children():
            worker.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
