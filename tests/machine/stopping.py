"""What test_agreement checks in two processes: python -m of torchrun, with a folder."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

import nr
from tests.helpers import tiny
from tests.training.test_engine import Batches
from utils.machine import distributed
from utils.machine.failure import Failure
from utils.training import engine
from utils.training.signals import Stopped, StopRequest

STEP = 3  # after which one of the processes has received a signal


class Signalled(StopRequest):
    """Process 1 receives SIGTERM in its third step."""

    steps = 0

    def agreed(self) -> int:
        self.steps += 1
        if self.steps == STEP and dist.get_rank() == 1:
            self.signum = 15
        return super().agreed()


def check_nobody_waits() -> None:
    """Process 0 goes on while process 1 has not asked yet."""
    stop = StopRequest()
    if dist.get_rank() == 0:
        assert stop.agreed() == 0
        Failure.store.set("asked", "")
    else:
        Failure.store.wait(["asked"])
        assert stop.agreed() == 0
    assert stop.agreed_now() == 0


def check_one_step(folder: Path) -> None:
    """Write the signal and the number of finished steps to a file named for the process."""
    network = tiny(classes=10)
    model = distributed.parallel(network, [torch.device("cpu")])
    optimizer = nr.SGD(network, 0.1)
    try:
        engine.train_epoch(model, Batches((4,) * 8), 0, optimizer, False, Signalled())
    except Stopped as stopped:
        (folder / str(dist.get_rank())).write_text(f"{stopped.signum} {len(stopped.sums)}")


def check_after_evaluation() -> None:
    """A signal in the last batch is agreed on at once."""
    stop = StopRequest()
    stop.agreed()
    stop.signum = 2 * dist.get_rank()
    assert stop.agreed_now() == 2


def main(folder: str) -> None:
    distributed.start([0])
    check_nobody_waits()
    check_one_step(Path(folder))
    check_after_evaluation()
    distributed.stop()


if __name__ == "__main__":
    main(sys.argv[1])
