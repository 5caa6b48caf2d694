"""What both scripts do in the same way, and how they end: with an exit status."""

import sys
import traceback
from collections.abc import Callable

from utils.errors import InputError, one_line
from utils.machine import distributed
from utils.machine.allocator import keep_freed_memory
from utils.machine.failure import Failure
from utils.training.run import Run
from utils.training.signals import Stopped

GAVE_UP = 3  # exit status of a search that never reached its target
NO_MEMORY = ("out of memory", "allocate memory")  # in the errors of CUDA, and of torch on a CPU


def exit_status(main: Callable[[], int]) -> int:
    """Run ``main`` and return its status; 1 for bad input, 128 + signal for a stopped run.

    One of several processes that fails does not return: it ends, and the job with it.
    """
    keep_freed_memory()
    sys.stdout.reconfigure(line_buffering=True)  # a log file is up to date line by line
    try:
        status = main()
    except Stopped as stopped:
        print(f"\nStopped by {stopped}; the run is saved: go on with --resume auto")
        status = 128 + stopped.signum
    except Exception as error:
        reason = explained(error)
        if Failure.is_first():
            message = f"{sys.argv[0]}: {reason}" if reason else traceback.format_exc().rstrip()
            print(message, file=sys.stderr)
        Failure.end(1)
        return 1
    distributed.stop()
    return status


def explained(error: Exception) -> str | None:
    """What a user needs to know of ``error`` in one line; None for a fault of the program."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
        return (
            f"out of memory ({one_line(error)[:120]}): a smaller --train-batch needs less,"
            " in an evaluation a smaller --test-batch"
        )
    if Failure.is_of_another(error):
        return f"another process of this job ended: {one_line(error)[:200]}"
    return None


def evaluate(run: Run, test_batches) -> int:
    """Evaluate and print; returns the exit status."""
    figures = run.trainer.evaluate(test_batches, run.stop)
    print(
        f"Valid Loss: {figures.loss:.4f} | Valid Acc.: {figures.top1:.2f}"
        f" | Valid 5 Acc.: {figures.top5:.2f}"
    )
    return 0


def give_up(run: Run, flag: str) -> int:
    """The search never reached its target: say so, naming the flag that would help."""
    distributed.warn(
        f"Gave up the search after {run.state.epoch} epochs: utilization is"
        f" {run.state.utilization:.4f}, the target {run.args.nr_target:g}; a larger {flag}"
        f" gets there sooner. The checkpoint is kept in {run.folder.path}."
    )
    return GAVE_UP


def train(run: Run, train_batches, test_batches) -> int:
    """The train phase, to its end, on a schedule that starts again; returns the exit status."""
    run.rescale_once()
    while run.state.phase_epoch < run.args.epochs:
        run.epoch(train_batches, test_batches)
        run.save()
    print(f"\nBest acc: {run.state.best_acc:.2f}")
    return 0
