"""What both scripts do in the same way, and how they end: with an exit status."""

import sys
from collections.abc import Callable

from utils.errors import InputError
from utils.machine import distributed
from utils.machine.allocator import keep_freed_memory
from utils.training.run import Run
from utils.training.signals import Stopped

GAVE_UP = 3  # exit status of a search that never reached its target


def exit_status(main: Callable[[], int]) -> int:
    """Run ``main`` and return its status; 1 for bad input, 128 + signal for a stopped run."""
    keep_freed_memory()
    sys.stdout.reconfigure(line_buffering=True)  # a log file is up to date line by line
    try:
        return main()
    except InputError as error:
        print(f"{sys.argv[0]}: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"\nStopped by {stopped}; the run is saved: go on with --resume auto")
        return 128 + stopped.signum
    finally:
        distributed.stop()


def evaluate(run: Run, test_batches) -> int:
    """Evaluate and print; returns the exit status."""
    figures = run.trainer.evaluate(test_batches, run.stop)
    print(
        f"Valid Loss: {figures.loss:.4f} | Valid Acc.: {figures.top1:.2f}"
        f" | Valid 5 Acc.: {figures.top5:.2f} | Images: {figures.images}"
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
