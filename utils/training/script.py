"""What both scripts do in the same way, and how they end: with an exit status."""

import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import models
from models import converted, pretrained
from utils.data.batches import Testing, Training
from utils.data.normalisation import USUAL
from utils.errors import InputError, one_line
from utils.machine import distributed
from utils.machine.allocator import keep_freed_memory
from utils.machine.failure import Failure
from utils.shown import screen
from utils.training import checkpoint, lock, signals
from utils.training.folder import RunFolder
from utils.training.options import Flags
from utils.training.phases import rescale_once
from utils.training.run import Run
from utils.training.signals import Stopped

GAVE_UP = 3  # exit status of a search that never reached its target
SAVED = "; the run is saved: go on with --resume auto"
NO_MEMORY = ("out of memory", "allocate memory")  # in the errors of CUDA, and of torch on a CPU


def exit_status(main: Callable[[], int]) -> int:
    """Run ``main`` and return its status; 1 for bad input, 128 + signal for a stopped run.

    A screen that is lost changes nothing. Of several processes one that fails does not return: it
    ends, and the job with it.
    """
    keep_freed_memory()
    with signals.put_back(), screen.unbreakable(), lock.let_go():
        try:
            status = main()
        except (Stopped, KeyboardInterrupt) as stopped:  # the latter where there is no run yet
            saved = getattr(stopped, "saved", False)
            print(f"\nStopped by {str(stopped) or 'SIGINT'}{SAVED if saved else ''}")
            status = 128 + getattr(stopped, "signum", signal.SIGINT)
        except Exception as error:
            reason = explained(error)
            if Failure.is_first():
                program = " ".join(sys.argv[:1])
                message = f"{program}: {reason}" if reason else traceback.format_exc().rstrip()
                print(message, file=sys.stderr)
            Failure.end(1)
            return 1
        distributed.stop()
        return status


def explained(error: Exception) -> str | None:
    """What a user needs to know of ``error`` in one line; None for a fault of the program."""
    if isinstance(error, InputError):
        return f"{error}{SAVED if getattr(error, 'saved', False) else ''}"
    if isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY):
        return (
            f"out of memory ({one_line(error)[:120]}): a smaller --train-batch needs less,"
            " in an evaluation a smaller --test-batch"
        )
    if Failure.is_of_another(error):
        return f"another process of this job ended: {one_line(error)[:200]}"
    return None


def open_folder(args: Flags) -> RunFolder:
    """The folder of the run, reserved before any work, which finds what is wrong with it.

    Not for an evaluation, which only reads; of several processes only the main one writes.
    """
    folder = RunFolder(Path(args.checkpoint))
    if distributed.is_main() and not args.evaluate:
        folder.reserve()
    return folder


def begin(run: Run) -> None:
    """Say what is special about the network, and give a fresh run the weights of --pretrained."""
    if converted.split(run.spec["arch"]) and not run.resumed and converted.is_scaled(run.network):
        print(
            f"==> Without batch norm {models.full_name(run.spec['arch'])} is pruned by scales γ = 1"
            " behind its activations; python -m utils.report --export folds them"
        )
    begin_pretrained(run)
    if run.args.pretrained:
        print(f"==> Images are normalised as for the pretrained weights: {run.normalisation}")


def begin_pretrained(run: Run) -> None:
    """Give a fresh run the weights that --pretrained names or downloads, where it is given."""
    if run.resumed:
        if "pretrained" in run.args.given:
            print("==> --pretrained: the checkpoint has its own weights, so it is not applied")
        return
    if not run.args.pretrained:
        return
    file = None if run.args.pretrained is True else run.args.pretrained
    try:
        with distributed.main_first():
            weights = pretrained.read(run.spec["arch"], file)
        whole = pretrained.load(run.network, weights, run.spec["arch"])
    except ValueError as error:
        raise InputError(f"--pretrained: {error}") from error
    source = file or pretrained.source(run.spec["arch"])[0]
    checkpoint.refuse_non_finite(run.network.state_dict(), f"--pretrained {source}")
    print(f"==> Weights of {source}")
    if not whole:
        print("==> --pretrained: its classes are not as many, so the classifier begins afresh")
    made_for = pretrained.normalisation(run.spec["arch"])
    if made_for and made_for != USUAL[run.spec["family"]]:
        run.args.normalisation = [list(values) for values in made_for]


def evaluate(run: Run, test_batches: Testing) -> int:
    """Evaluate and print; returns the exit status."""
    figures = run.trainer.evaluate(test_batches, run.stop)
    print(
        f"Valid Loss: {figures.loss:.4f} | Valid Acc.: {figures.top1:.2f}"
        f" | Valid 5 Acc.: {figures.top5:.2f} | Images: {figures.images}"
    )
    return 0


def give_up(run: Run, remedy: str) -> int:
    """A search never reached its target: say so, and the ``remedy``."""
    run.folder.writer.wait()  # what follows says that the checkpoint is there
    state = run.state
    search = "the search" if state.round == 1 else f"the search of round {state.round}"
    distributed.warn(
        f"Gave up {search} after {state.phase_epoch} epochs: utilization is"
        f" {state.utilization:.4f}, the target {run.args.nr_target:g}; {remedy}."
        f" The checkpoint is kept in {run.folder.path}."
    )
    return GAVE_UP


def train(run: Run, train_batches: Training, test_batches: Testing) -> None:
    """The train phase, to its end, on a schedule that starts again."""
    rescale_once(run)
    while run.state.phase_epoch < run.args.epochs:
        run.epoch(train_batches, test_batches)
        run.save()
    if distributed.is_main():
        run.folder.complete()
    print(f"\nBest acc: {run.state.best_acc:.2f}")
