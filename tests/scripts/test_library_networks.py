"""Networks of torchvision and timm in both scripts: both phases, stopped and resumed, exported.

Small ones of the libraries' own classes: fewer blocks and channels, every operation.
"""

import json
import os
import signal
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision import models as theirs
from torchvision.models.efficientnet import MBConvConfig

import nr
from models import from_timm, from_torchvision, pretrained
from tests.running import assert_same_run, drive, dying, load, try_once
from utils.data import photographs
from utils.data.normalisation import USUAL
from utils.report.__main__ import main as report
from utils.training import engine, trainer

CIFAR = "-d synthetic --subset 50 --train-batch 10 --test-batch 10 --schedule 9"
IMAGENET = (
    "--synthetic --subset 10 --train-batch 4 --test-batch 4 --schedule 9 --image-size 32 -j 0"
)
BOTH = " --epochs 1 --lr 1e-3 --nr-max-epochs 3 --nr-target 0.9 --manualSeed 1"


def densenet(classes: int) -> nn.Module:
    return theirs.DenseNet(4, (2, 2), 8, num_classes=classes)


def efficientnet(classes: int) -> nn.Module:
    settings = [
        MBConvConfig(1, 3, 1, 16, 16, 1, 0.25, 1.0),
        MBConvConfig(4, 5, 2, 16, 16, 2, 0.25, 1),
    ]
    return theirs.EfficientNet(settings, dropout=0.1, num_classes=classes, last_channel=32)


def shufflenet(classes: int) -> nn.Module:
    return theirs.ShuffleNetV2([1, 2, 1], [8, 8, 16, 16, 32], num_classes=classes)


def alexnet(classes: int) -> nn.Module:
    layers = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(8, 16, 3, padding=1)]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(), nn.Linear(64, 16), nn.ReLU()]
    return nn.Sequential(*layers, nn.ReLU(), *head, nn.Linear(16, classes))


def resnet18d(classes: int) -> nn.Module:
    import timm

    small = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "stem_width": 8}
    return timm.create_model("resnet18d", num_classes=classes, **small)


def mobilenetv3(classes: int) -> nn.Module:
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.mobilenetv3 import MobileNetV3

    blocks = decode_arch_def([["ds_r1_k3_s2_e1_c8_se0.25_nre"], ["ir_r1_k5_s2_e4_c8_se0.25"]])
    return MobileNetV3(blocks, num_classes=classes, stem_size=8, num_features=16)


SMALL = {
    "torchvision:densenet121": densenet,
    "torchvision:efficientnet_b0": efficientnet,
    "torchvision:shufflenet_v2_x0_5": shufflenet,
    "torchvision:alexnet": alexnet,
    "timm:resnet18d": resnet18d,
    "timm:mobilenetv3_small_050": mobilenetv3,
}


@pytest.fixture(autouse=True)
def searches_end(monkeypatch):
    """And a network is tried out on no memory once, not at every start of a script."""
    try_once(monkeypatch)
    monkeypatch.setattr(trainer, "train_epoch", trainer.train_epoch)  # put back in the end
    dying(0)()


def made_small(arch: str, monkeypatch) -> None:
    library = arch.partition(":")[0]
    pytest.importorskip(library)
    module = {"timm": from_timm, "torchvision": from_torchvision}[library]
    make: Callable[[int], nn.Module] = SMALL[arch]
    monkeypatch.setattr(module, "make", lambda name, classes: make(classes))


def stopped_in(epoch: int, monkeypatch) -> None:
    """SIGTERM comes with the batches of an epoch, once."""
    train_epoch = trainer.train_epoch

    def train(model: nn.Module, batches: object, number: int, *rest: object):
        if number == epoch:
            monkeypatch.setattr(trainer, "train_epoch", train_epoch)
            os.kill(os.getpid(), signal.SIGTERM)
        return train_epoch(model, batches, number, *rest)

    monkeypatch.setattr(trainer, "train_epoch", train)


@pytest.mark.parametrize("arch", SMALL)
def test_a_run_is_stopped_resumed_reported_and_exported(arch, tmp_path, monkeypatch, capsys):
    made_small(arch, monkeypatch)
    script = "cifar.py" if arch == "torchvision:densenet121" else "imagenet.py"
    flags = f"{IMAGENET if script == 'imagenet.py' else CIFAR}{BOTH} --nr-cross removed -a {arch}"
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    out = drive(flags, straight, script=script).stdout
    assert ("pruned by scales γ" in out) == (arch == "torchvision:alexnet")
    stopped_in(1, monkeypatch)
    drive(flags, stopped, 143, script=script)
    drive(f"{flags} --resume auto", stopped, script=script)
    assert_same_run(straight, stopped)
    assert load(straight / "checkpoint.pth.tar")["arch"] == arch.replace(":", "_")

    assert report([str(straight)]) == 0
    assert f"| {arch} |" in capsys.readouterr().out
    assert report([str(straight), "--export", str(tmp_path / "x.pt"), "--merge"]) == 0


def test_auxiliary_heads_add_to_the_loss():
    """As published: 0.3 of each of GoogLeNet's two, 0.4 of Inception v3's one."""
    labels = torch.tensor([0, 2, 1])
    main, *others = torch.randn(3, 3, 2, 4, generator=torch.Generator().manual_seed(1))
    for heads, share in ((2, 0.3), (1, 0.4)):
        outputs = (main, *others[:heads])
        logits, loss = engine.with_auxiliary(outputs, labels)
        assert logits is main
        parts = [nr.loss(part, labels) for part in outputs]
        torch.testing.assert_close(loss, parts[0] + share * sum(parts[1:]))
    assert engine.with_auxiliary(main, labels)[1] == nr.loss(main, labels)


class Auxiliary(nn.Module):
    """A small network that gives auxiliary logits in train mode, as GoogLeNet does."""

    def __init__(self, classes: int):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 2), nn.BatchNorm2d(8), nn.ReLU())
        self.pool, self.flat = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.aux, self.fc = nn.Linear(8, classes), nn.Linear(8, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        x = self.stem(images)
        logits = self.fc(self.flat(self.pool(self.body(x))))
        return (logits, self.aux(self.flat(self.pool(x)))) if self.training else logits


def test_auxiliary_heads_are_trained_rebuilt_and_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(from_torchvision, "make", lambda name, classes: Auxiliary(classes))
    weights, flags = Auxiliary(9).state_dict(), f"{IMAGENET}{BOTH} -a torchvision:googlenet"
    torch.save({k: v for k, v in weights.items() if not k.startswith("aux.")}, tmp_path / "w")
    monkeypatch.setattr(pretrained, "AUXILIARY", ("aux.",))
    out = drive(f"{flags} --pretrained {tmp_path / 'w'}", tmp_path / "run", script="imagenet.py")
    assert "mean 0.5 0.5 0.5, deviation 0.5 0.5 0.5" in out.stdout
    network = nr.load(tmp_path / "run" / "checkpoint.pth.tar")
    images = torch.zeros(2, 3, 32, 32)
    assert network(images).shape == (2, 2, 2)
    assert [logits.shape for logits in network.train()(images)] == [(2, 2, 2)] * 2


def test_a_resume_and_a_program_know_how_images_were_normalised(tmp_path, monkeypatch, capsys):
    arch = "torchvision:alexnet"
    made_small(arch, monkeypatch)
    half = [[0.5, 0.4, 0.3], [0.2, 0.1, 0.3]]
    monkeypatch.setattr(from_torchvision, "normalisation", lambda _: tuple(map(tuple, half)))
    torch.save(alexnet(5).state_dict(), tmp_path / "w")
    flags, folder = f"{IMAGENET}{BOTH} -a {arch} --nr-target 1", tmp_path / "run"
    pretrained_flags = f"{flags} --pretrained {tmp_path / 'w'}"
    said = (
        "==> Images are normalised as for the pretrained weights: mean 0.5 0.4 0.3, deviation 0.2"
    )
    assert said in drive(pretrained_flags, folder, script="imagenet.py").stdout
    first = normalised_by(monkeypatch)
    out = drive(f"{flags} --epochs 2 --resume auto", folder, script="imagenet.py").stdout
    assert said in out and first == [half] * 2
    assert load(folder / "checkpoint.pth.tar")["args"]["normalisation"] == half
    assert json.loads((folder / "run.json").read_text())["args"]["normalisation"] == half
    assert report([str(folder), "--export", str(tmp_path / "x.pt2")]) == 0
    assert "normalised by mean 0.5 0.4 0.3, deviation 0.2 0.1 0.3" in capsys.readouterr().out
    notes = {"normalisation.json": ""}
    torch.export.load(tmp_path / "x.pt2", extra_files=notes)
    assert json.loads(notes["normalisation.json"]) == dict(zip(("mean", "std"), half, strict=True))


def normalised_by(monkeypatch) -> list:
    """What the images of runs from here on are normalised by, for train and test batches."""
    found, normaliser = [], photographs.Normaliser

    def noted(device, by):
        found.append([list(values) for values in by])
        return normaliser(device, by)

    monkeypatch.setattr(photographs, "Normaliser", noted)
    return found


def test_a_plain_run_is_normalised_as_ever(tmp_path, monkeypatch):
    found = normalised_by(monkeypatch)
    made_small("torchvision:alexnet", monkeypatch)
    flags = f"{IMAGENET}{BOTH} -a torchvision:alexnet --nr-target 1"
    drive(flags, tmp_path, script="imagenet.py")
    assert found == [[list(values) for values in USUAL["imagenet"]]] * 2
    assert "normalisation" not in load(tmp_path / "checkpoint.pth.tar")["args"]
