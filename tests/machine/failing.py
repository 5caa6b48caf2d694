"""cifar.py with a fault in one process: python -m of torchrun, with the fault's name and a folder.

Leaving the group waits for ever in a process that failed, as NCCL's teardown does.
"""

import errno
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

import cifar
from utils.training import engine
from utils.training.script import exit_status

FLAGS = (
    "-d synthetic --subset 50 -a resnet --depth 8 --width-mult 0.0625 --train-batch 8"
    " --test-batch 8 --epochs 2 --schedule 9 --nr-target 1 --manualSeed 0"
)
RANK = int(os.environ["RANK"])
loss_of = engine.stream_loss


def in_process(rank: int, fault: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let the second loss of this process go through ``fault``."""
    calls = []

    def spoiled(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        loss = loss_of(logits, labels)
        return fault(loss) if rank == RANK and len(calls) == 2 else loss

    engine.stream_loss = spoiled


def out_of_memory(loss: torch.Tensor) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def program_fault(loss: torch.Tensor) -> torch.Tensor:
    raise ZeroDivisionError("a fault of the program")


def killed(loss: torch.Tensor) -> torch.Tensor:
    os.kill(os.getpid(), signal.SIGKILL)
    return loss


def full_disk(handle: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def main(fault: str, folder: str) -> None:
    words = [*FLAGS.split(), "-c", folder]
    if fault == "memory":
        in_process(1, out_of_memory)
    elif fault == "program":
        in_process(1, program_fault)
    elif fault == "killed":
        in_process(1, killed)
    elif fault == "loss":
        in_process(1, lambda loss: loss * math.inf)
    elif fault == "disk" and RANK == 0:
        os.fsync = full_disk
    elif fault == "flags":
        words += ["--resume", str(Path(folder, "nothing.pth.tar"))]
    elif fault == "folders":  # two machines, each with a disk of its own
        words[-1] = str(Path(folder, f"machine{RANK}"))
        words += ["--resume", "auto"]
    if fault != "none":
        dist.destroy_process_group = lambda: time.sleep(1e6)
    sys.exit(exit_status(lambda: cifar.main(words)))


if __name__ == "__main__":
    main(*sys.argv[1:])
