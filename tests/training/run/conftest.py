"""What surrounds every small run: small data, no pictures, channels that die when a test says."""

from functools import cache
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from matplotlib.figure import Figure

import cifar
import nr
from tests.helpers import kill, prunable
from tests.running import handlers_put_back, save_unrendered
from tests.training.run.small_runs import CLASSES, SIDE, STAGES, go
from utils.data import batches
from utils.data.images import ImageSet
from utils.report import runs
from utils.shown import plots
from utils.shown.meters import Figures
from utils.training import trainer


@pytest.fixture(autouse=True)
def handlers():
    with handlers_put_back():
        yield


@pytest.fixture(autouse=True)
def network(monkeypatch):
    """A ResNet of two stages: what runs do with it takes as long as it has layers."""
    monkeypatch.setattr(import_module("models.cifar.resnet"), "STAGES", STAGES)
    # What is known of networks by their names is not of these.
    monkeypatch.setattr(runs, "counted", cache(runs.counted.__wrapped__))


@pytest.fixture(autouse=True)
def pictures(monkeypatch):
    """No pictures, which take longer than the training; returns how to have them, unrendered."""
    with monkeypatch.context() as patch:
        for name in ("curves", "scales", "utilization", "widths"):
            patch.setattr(plots, name, lambda *_: None)
        monkeypatch.setattr(Figure, "savefig", save_unrendered)
        yield patch.undo


@pytest.fixture(autouse=True)
def data(monkeypatch):
    """24 training and 10 test images, small ones, in the place of the data sets."""
    monkeypatch.setattr(batches, "IMAGE_SIZE", SIDE)
    generator = torch.Generator().manual_seed(0)

    def made(count: int) -> ImageSet:
        images = torch.randint(256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        return ImageSet(images, torch.arange(count) % 10, CLASSES)

    sets = made(24), made(10)
    monkeypatch.setattr(cifar, "load_cifar", lambda *_, **__: sets)
    return sets


@pytest.fixture
def epochs(monkeypatch):
    """What every training epoch was given; ``dead_after``: half of the channels die in it, and
    two of three in each of ``dead_later``.
    """
    seen, train_epoch = SimpleNamespace(dead_after=1, dead_later=(6,), rows=[]), trainer.train_epoch

    def train(model, batches, epoch, optimizer, *rest):
        seen.rows.append((epoch, optimizer.param_groups[0]["lr"], optimizer.sparsity))
        sums = train_epoch(model, batches, epoch, optimizer, *rest)
        if epoch in (seen.dead_after, *seen.dead_later):
            share = 1 / 2 if epoch == seen.dead_after else 2 / 3
            widths = {name: layer.unit.out_channels[0] for name, layer in prunable(model).items()}
            kill(model, {name: slice(int(share * width)) for name, width in widths.items()})
        return sums

    monkeypatch.setattr(trainer, "train_epoch", train)
    return seen


@pytest.fixture(scope="session")
def made_once() -> dict[str, Path]:
    """The folders of ``straight`` by their flags."""
    return {}


@pytest.fixture
def straight(epochs, made_once, tmp_path_factory):
    """Gives the folder of the whole run with these flags; it is not to be written to."""

    def folder(flags: str = "") -> Path:
        if flags not in made_once:
            made_once[flags] = tmp_path_factory.mktemp("straight")
            go(made_once[flags], flags)
            epochs.rows.clear()
        return made_once[flags]

    return folder


@pytest.fixture
def rescalings(monkeypatch):
    """The targets of every call of nr.rescale."""
    targets, rescale = [], nr.rescale

    def counted(model, target):
        targets.append(target)
        rescale(model, target)

    monkeypatch.setattr(nr, "rescale", counted)
    return targets


@pytest.fixture
def accuracies(monkeypatch):
    """Let the evaluations give these top-1 accuracies."""

    def script(*values: float) -> None:
        left = iter(values)
        monkeypatch.setattr(trainer, "evaluate", lambda *_: Figures(1.0, next(left), 100.0, 10))

    return script
