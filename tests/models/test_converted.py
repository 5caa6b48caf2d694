"""models.converted: torchvision's networks by their names, as both scripts take them."""

import re
import sys

import pytest
import torch

import cifar
import imagenet
import models
from nr.network.wiring import wiring
from tests.forks import ROOT

ROOMS = ("nr", "models", "utils")


@pytest.mark.parametrize(("family", "classes"), [("cifar", 10), ("imagenet", 1000)])
def test_a_name_is_the_converted_network(family, classes):
    with torch.device("meta"):
        network = models.build(family, "torchvision:resnet18")
    assert network.image_size == models.converted.IMAGE_SIZES[family]
    assert network.classifier.num_classes == classes
    assert {p.device.type for p in network.parameters()} == {"meta"}
    assert len([row for row in wiring(network).layers if not row.fixed]) == 8


def test_the_weights_are_a_function_of_the_seed():
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(models.build("cifar", "torchvision_mobilenet_v2", num_classes=3))
    a, b, c = (wiring(network).layers[0].unit.convs[0].weight for network in made)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert made[0].classifier.num_classes == 3


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("-a torchvision:nothing", "arch torchvision:nothing: torchvision has no network"),
        ("-a torchvision:convnext_tiny", "features.0.1.layer_norm: "),
        ("-a torchvision:resnet18 --width-mult 0.5", "width_mult: torchvision_resnet18 takes no"),
        ("-a torchvision:resnet18 --depth 20", "depth: torchvision_resnet18 takes no"),
        ("-a torchvision_resnet18", "is unknown: network: "),
        ("-a nothing", "'nothing' is unknown: network: "),
        ("-a vgg19bn", "; the nearest is vgg19_bn"),
        ("-a torchvison:resnet18", "; the nearest is torchvision:resnet18"),
        ("-a torchvision_resnet18", "; the nearest is torchvision:resnet18"),
        ("-a torchvision:resnet81", "has no network 'resnet81', the nearest is resnet18"),
        ("-a torchvision:inception_v3", "does not take images of 3 channels and 32x32 pixels"),
    ],
)
def test_what_cannot_be_built_is_a_usage_error(flags, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        cifar.parse(flags.split())
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("script", [cifar, imagenet])
def test_files_are_named_without_a_colon(script):
    data = ["--synthetic"] if script is imagenet else ["-d", "synthetic"]
    args, keywords = script.parse([*data, "-a", "torchvision:resnet18"])
    assert args.arch == "torchvision_resnet18"
    assert args.checkpoint == "checkpoints/synthetic/torchvision_resnet18"
    assert keywords == {}


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_a_library_that_is_not_there_is_named(library, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(SystemExit):
        cifar.parse(["-a", f"{library}:resnet18"])
    (_, line) = capsys.readouterr().err.splitlines()
    assert f"--arch {library}:resnet18: {library} is not installed (" in line
    assert line.endswith(f"): pip install {library}")


def test_timm_is_imported_where_it_is_named_alone():
    """By functions of one file, and by nr not at all."""
    for file in (*ROOT.glob("*.py"), *(f for r in ROOMS for f in (ROOT / r).rglob("*.py"))):
        lines = re.findall(r"^.*import.*\btimm\b.*$", file.read_text(), re.M)
        own = file.name == "from_timm.py"
        assert all(own and line.startswith(" ") for line in lines if "from_timm" not in line), file
