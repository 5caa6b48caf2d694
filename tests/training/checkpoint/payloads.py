"""Small checkpoints, in plain values, and how a refusal of one reads."""

from pathlib import Path

import pytest
import torch

import models
import nr
from tests.helpers import MODES, described, dropped, worn
from utils.training import checkpoint
from utils.training.checkpoint import CheckpointError

SPECS = {  # how models.build makes these networks of helpers.FAMILIES
    "vgg": ("vgg11_bn", {"width_mult": 1 / 16}),
    "basic": ("resnet", {"depth": 14, "width_mult": 0.25}),
    "dense": ("densenet", {"depth": 16, "growth_rate": 4}),
}
SMALL = ("densenet", {"depth": 10, "growth_rate": 2})  # 768 parameters
REBUILDS = ["before", *MODES, "scratch"]
CASES = [(family, how) for family in SPECS for how in REBUILDS]


def payload_of(model, arch: str, options: dict, **changes) -> dict:
    """Everything that utils.training.run puts in a checkpoint, in plain values."""
    return {
        "format": 2,
        "epoch": 3,
        "arch": arch,
        "acc": 12.5,
        "best_acc": 25.0,
        "state_dict": model.state_dict(),
        "optimizer": nr.SGD(model, lr=0.1).state_dict(),
        "network": {"family": "cifar", "arch": arch, "options": options},
        "structure": nr.structure(model),
        "run": {"phase": "search", "seed": 1, "epoch": 3, "rows": [{"Phase": "search"}]},
        "partial": None,
        "args": {"lr": 0.1, "schedule": [150, 225], "resume": None, "nr_flops": False},
        "rng": checkpoint.rng_state(),
        **changes,
    }


def small(seed: int = 0, **changes) -> dict:
    """The payload of a very small network; ``changes`` replace entries."""
    torch.manual_seed(seed)
    arch, options = SMALL
    return payload_of(models.build("cifar", arch, **options), arch, options, **changes)


def rebuilt(family: str, how: str):
    """A network with dead channels and a dead branch, or what rejuvenation made of it."""
    model = worn(family)
    if how != "before":
        nr.rejuvenate(model, **({"from_scratch": True} if how == "scratch" else {"cross": how}))
    return model


def older(model) -> dict:
    """What a file of format 1 says about the shapes of ``model``."""
    found = described(nr.structure(model))
    forms = [node["form"] for node in list(found.values())[1:]]
    return {
        "form": forms[0],
        "widths": {name: node["out_channels"] for name, node in found.items()},
        "dropped": dropped(model),
    }


def small_older(**changes) -> dict:
    """The payload of a very small network in format 1."""
    arch, options = SMALL
    model = models.build("cifar", arch, **options)
    return small(format=1, structure=older(model)) | changes


def refusal(path: Path, read=checkpoint.read) -> str:
    """The message of the error that ``read`` must raise: one line that begins with the file."""
    with pytest.raises(nr.FileError if read is nr.load else CheckpointError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    return message.removeprefix(f"{path}: ")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
