"""The table of section 2 for 224x224 images, and torchvision's ResNets as an oracle."""

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import models
import nr
from nr.network.wiring import wiring
from tests.helpers import copy_plain, random_norms

TABLE = {  # parameters, multiply-adds, prunable and all batch norms
    "vgg16_nr": (37_706_664, 15_369_601_024, 15, 15),
    "resnet18_nr": (11_689_512, 1_814_073_344, 8, 20),
    "resnet34_nr": (21_797_672, 3_663_761_408, 16, 36),
    "resnet50_nr": (25_557_032, 4_089_184_256, 32, 53),
    "resnet101_nr": (44_549_160, 7_801_405_440, 66, 104),
    "densenet121_nr": (7_915_688, 2_834_161_664, 120, 120),
}


def meta(arch: str, **options) -> nn.Module:
    with torch.device("meta"):
        return models.build("imagenet", arch, **options)


@pytest.mark.parametrize("arch", TABLE)
def test_table_of_the_specification(arch):
    model = meta(arch)
    layers = wiring(model).layers
    prunable = sum(not layer.fixed for layer in layers)
    counts = (nr.count_params(model), nr.count_macs(model, 224), prunable, len(layers))
    assert counts == TABLE[arch]


@pytest.mark.parametrize("arch", sorted(models.archs("imagenet")))
def test_multiply_adds_against_torch(arch):
    model = meta(arch, num_classes=10)
    with FlopCounterMode(display=False) as counter:
        logits = model.eval()(torch.empty(1, 3, 224, 224, device="meta"))
    assert logits.shape == (1, 1, 10)
    assert counter.get_total_flops() == 2 * nr.count_macs(model)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_resnets_are_torchvisions(depth):
    torch.manual_seed(depth)
    with torch.device("meta"):  # or weights, up to 58 million, are drawn four times
        source = getattr(torchvision.models, f"resnet{depth}")(num_classes=10)
        target = models.build("imagenet", f"resnet{depth}_nr", num_classes=10)
    for each in (source, target):
        each.to_empty(device="cpu")
    for conv in (m for m in source.modules() if isinstance(m, nn.Conv2d)):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    source.fc.reset_parameters()
    random_norms(source)
    copy_plain(source, target, source.fc)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, logits = source.eval()(images), target.eval()(images)
    torch.testing.assert_close(logits[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_vgg_nr_is_another_name():
    assert models.archs("imagenet")["vgg_nr"] is models.archs("imagenet")["vgg16_nr"]


@pytest.mark.parametrize(
    ("arch", "has"), [("vgg16_nr", 1), ("densenet121_nr", 1), ("resnet18_nr", 0)]
)
def test_dropout_where_the_family_has_it(arch, has):
    assert ("dropout" in models.options("imagenet", arch)) == bool(has)


def test_resnet_152_and_deeper_relatives_have_torchvisions_size():
    with torch.device("meta"):
        source = torchvision.models.resnet152()
    assert nr.count_params(meta("resnet152_nr")) == sum(p.numel() for p in source.parameters())
