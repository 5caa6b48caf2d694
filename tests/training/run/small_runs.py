"""cifar.main in this process on 24 random images, and what such a run leaves.

Channels do not die in a few batches, so a test says after which epoch half of them do. An epoch
is 3 training and 2 test batches.
"""

import os
import signal
from pathlib import Path

import torch

import cifar
from utils.shown.log import read_log
from utils.training import checkpoint, engine, lock, script
from utils.training.run import Run, RunState

NETWORK = "-a resnet --depth 8 --width-mult 0.25"  # half of its prunable channels dead: 0.526
SEARCH = f"{NETWORK} --nr-target 0.6 --nr-sparsity 0.001 --nr-max-epochs 5 --schedule 1 2"
FLAGS = f"{SEARCH} --epochs 3 --train-batch 8 --test-batch 5 --manualSeed 1 -j 0"
PLAIN = "--nr-target 1"
LAST, PREVIOUS, BEST = "checkpoint.pth.tar", "checkpoint.prev.pth.tar", "model_best.pth.tar"
BEFORE, AFTER = "NR_resnet_before_0.6.pth.tar", "NR_resnet_0.6.pth.tar"
CLASSES = tuple("abcdefghij")
SIDE = 8  # pixels
STAGES = (16, 64)  # channels of the ResNet at full width
BATCHES = 5  # of an epoch: 3 to train on and 2 to test on


def go(folder: Path, flags: str = "") -> int:
    return cifar.main([*FLAGS.split(), "-c", str(folder), *flags.split()])


def resume(folder: Path, flags: str = "", path: str = "auto") -> int:
    return go(folder, f"--resume {path} {flags}")


def made(folder: Path, flags: str = "") -> Run:
    """The Run that the script would work with."""
    args, keywords = cifar.parse([*FLAGS.split(), "-c", str(folder), *flags.split()])
    spec = {"family": "cifar", "arch": args.arch, "options": keywords | {"num_classes": 10}}
    where = script.open_folder(args)
    return Run(args, spec, [torch.device("cpu")], where, args.nr_sparsity, CLASSES)


def interrupt(monkeypatch, after: int, signum: int = signal.SIGTERM) -> None:
    """Let a signal come in the batch that is number ``after`` from now on."""
    done, batch_sums = 0, engine.batch_sums

    def counted(*arguments):
        nonlocal done
        done += 1
        if done == after:
            os.kill(os.getpid(), signum)
        return batch_sums(*arguments)

    monkeypatch.setattr(engine, "batch_sums", counted)


def column(folder: Path, name: str) -> list:
    return [row[name] for row in read_log(folder / "log.txt")]


def state_in(folder: Path, name: str = LAST) -> RunState:
    return RunState(**checkpoint.read(folder / name)["run"])


def names(folder: Path) -> list[str]:
    """All but the lock: a run that has raised lives as long as its error does."""
    return sorted(path.name for path in folder.iterdir() if path.name != lock.NAME)


def contents(folder: Path) -> dict[str, bytes]:
    """As ``names``, without folders."""
    paths = [folder / name for name in names(folder)]
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def without_times(payload: dict) -> dict:
    """The state of a run without the seconds it took."""
    rows = [{k: v for k, v in row.items() if k != "Seconds"} for row in payload["run"]["rows"]]
    return payload["run"] | {"rows": rows, "seconds": None}


def same(value: object, other: object) -> bool:
    """Equal, bit for bit, tensors anywhere in them included."""
    if isinstance(value, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(value, other)
    if isinstance(value, dict):
        return value.keys() == other.keys() and all(same(v, other[k]) for k, v in value.items())
    if isinstance(value, list | tuple):
        return len(value) == len(other) and all(map(same, value, other))
    return value == other


def assert_same_end(folder: Path, other: Path) -> None:
    """Two runs stand at the same point: state, weights, momentum and random streams."""
    one, two = checkpoint.read(folder / LAST), checkpoint.read(other / LAST)
    assert without_times(one) == without_times(two)
    for key in ("state_dict", "optimizer", "structure", "rng", "partial"):
        assert same(one[key], two[key]), key


TWO = "--nr-rounds 2"
BEFORE2, AFTER2 = "NR_resnet_before_0.6_round2.pth.tar", "NR_resnet_0.6_round2.pth.tar"
