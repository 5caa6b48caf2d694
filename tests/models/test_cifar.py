"""models.cifar: the table of the specification, shapes, refusals and multiply-adds."""

from functools import cache, partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import models
import nr
from models.cifar import ARCHS, densenet, resnet, vgg16_bn, vgg19_bn
from tests.benchmark import settings
from tests.helpers import (
    FAMILIES,
    MODES,
    batch,
    copy_plain,
    layers,
    logits_of,
    prunable,
    random_norms,
    worn,
)

# builder, parameters with 10 and with 100 classes, prunable and all BN, multiply-adds (10)
TABLE = {
    "VGG-19": (vgg19_bn, 20_035_018, 20_081_188, 16, 16, 2_606_437_376),
    "ResNet-164": (partial(resnet, depth=110), 1_704_154, 1_727_284, 108, 166, 247_646_720),
    "DenseNet-100-40": (
        partial(densenet, depth=100, growth_rate=40),
        8_269_050,
        8_371_740,
        99,
        99,
        3_194_031_240,
    ),
}
SMALL = {
    name: partial(builder, **options)
    for name, builder in ARCHS.items()
    for options in [{"width_mult": 0.125} | ({} if name.startswith("vgg") else {"depth": 16})]
}
SMALL["resnet"] = partial(resnet, depth=14, width_mult=0.125)


def on_meta(builder, **options):
    """A network without memory."""
    with torch.device("meta"):
        return builder(**options)


@cache
def is_built(builder, depth: int) -> bool:
    return isinstance(on_meta(builder, depth=depth), nr.Network)


def counted_macs(model: nn.Module, size: int) -> int:
    """Multiply-adds of one image by torch's own counter, which counts each as two flops."""
    image = torch.empty(1, 3, size, size, device=next(model.parameters()).device)
    with FlopCounterMode(display=False) as counter:
        model.eval()(image)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", TABLE)
def test_table_of_the_specification(name):
    builder, params, params100, prunable_count, count, macs = TABLE[name]
    model = on_meta(builder)
    assert nr.count_params(model) == params
    assert nr.count_params(on_meta(builder, num_classes=100)) == params100
    assert len(prunable(model)) == prunable_count
    assert len(layers(model)) == count
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == count
    assert nr.count_macs(model) == nr.count_macs(model, 32) == macs
    assert counted_macs(model, 32) == macs


@pytest.mark.parametrize(
    ("depth", "convolutions"), [(8, 9), (38, 39), (44, 67), (50, 76), (110, 166)]
)
def test_resnet_blocks_by_depth(depth, convolutions):
    """Basic blocks: 6n + 1 and two downsamples; bottlenecks from 44 on: 9n + 1 and three."""
    assert len(layers(on_meta(resnet, depth=depth))) == convolutions


@pytest.mark.parametrize(
    ("arch", "count", "widths"),
    [
        ("vgg11_bn", 8, [64, 128, 256, 256, 512, 512, 512, 512]),
        ("vgg13_bn", 10, [64, 64, 128, 128, 256, 256, 512, 512, 512, 512]),
        ("vgg16_bn", 13, [64, 64, 128, 128, *[256] * 3, *[512] * 6]),
        ("vgg19_bn", 16, [64, 64, 128, 128, *[256] * 4, *[512] * 8]),
    ],
)
def test_vgg_plans(arch, count, widths):
    found = layers(on_meta(ARCHS[arch])).values()
    assert len(found) == count
    assert [layer.unit.out_channels[0] for layer in found] == widths


def test_vgg19_has_two_poolings_where_the_specification_puts_them():
    sizes = [layer.size[0] for layer in layers(on_meta(vgg19_bn)).values()]
    assert sizes == [32] * 4 + [16] * 6 + [8] * 6


def test_densenet_widths():
    """Stem 2k; 1x1 to 4k; 3x3 to k; a transition keeps floor(C/θ)."""
    model = on_meta(densenet, depth=16, growth_rate=3, compression_rate=2.5)
    widths = {name: layer.unit.out_channels[0] for name, layer in layers(model).items()}
    assert widths["features.stem.0"] == 6
    assert widths["features.block1.1.branch.0"] == 12
    assert widths["features.block1.1.branch.2"] == 3
    assert widths["features.transition1.0"] == 4  # floor((6 + 2·3) / 2.5)
    assert widths["features.transition2.0"] == 4  # floor((4 + 2·3) / 2.5)
    assert model.classifier.in_channels == (10,)


@pytest.mark.parametrize(
    ("growth_rate", "rate", "width"), [(3, 1, 12), (3, 1.5, 8), (3, 5, 2), (3, 7, 1)]
)
def test_transition_keeps_the_floor(growth_rate, rate, width):
    model = on_meta(densenet, depth=16, growth_rate=growth_rate, compression_rate=rate)
    assert model.features.transition1[0].out_channels == (width,)


@pytest.mark.parametrize("classes", [10, 7])
@pytest.mark.parametrize("arch", ARCHS)
def test_shape_of_the_logits(arch, classes):
    model = SMALL[arch](num_classes=classes)
    assert logits_of(model, batch(count=3)[0]).shape == (3, 1, classes)


@pytest.mark.parametrize(
    ("builder", "depth", "nearest"),
    [
        (resnet, 100, ("98", "104")),
        (resnet, 109, ("104", "110")),
        (resnet, 7, ("8", "14")),
        (resnet, 2, ("8", "14")),
        (resnet, 0, ("8", "14")),
        (resnet, -4, ("8", "14")),
        (densenet, 99, ("94", "100")),
        (densenet, 101, ("100", "106")),
        (densenet, 4, ("10", "16")),
        (densenet, -2, ("10", "16")),
    ],
)
def test_wrong_depth_names_the_nearest_right_ones(builder, depth, nearest):
    with pytest.raises(ValueError, match=rf"depth {depth}: .* {nearest[0]} or {nearest[1]}$"):
        builder(depth=depth)
    for right in map(int, nearest):
        assert is_built(builder, right)


@pytest.mark.parametrize(
    ("builder", "width_mult", "widths"),
    [
        (vgg16_bn, 0.5, [32, 32, 64, 64, *[128] * 3, *[256] * 6]),
        (vgg16_bn, 0.4, [26, 26, 51, 51, *[102] * 3, *[205] * 6]),  # 25.6, 51.2, 102.4, 204.8
        (vgg16_bn, 1 / 1024, [1] * 13),
        (partial(resnet, depth=8), 0.5, [8, 8, 8, 16, 16, 16, 32, 32, 32]),
        (partial(densenet, depth=10, growth_rate=8), 0.5, [8, 16, 4, 6, 16, 4, 5, 16, 4]),
    ],
)
def test_width_mult_scales_every_width(builder, width_mult, widths):
    model = on_meta(builder, width_mult=width_mult)
    assert [layer.unit.out_channels[0] for layer in layers(model).values()] == widths


def test_width_mult_defaults_to_one():
    for name in ("VGG-19", "ResNet-164", "DenseNet-100-40"):
        assert nr.count_params(on_meta(TABLE[name][0], width_mult=1.0)) == TABLE[name][1]


@pytest.mark.parametrize("arch", ARCHS)
def test_no_dropout_by_default(arch):
    assert not any(isinstance(m, nn.Dropout) for m in SMALL[arch]().modules())


def test_dropout_of_densenet_is_active_in_training_only():
    torch.manual_seed(0)
    model = densenet(depth=10, growth_rate=4, dropout=0.5)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.5}
    images, _ = batch()
    assert torch.equal(logits_of(model, images), logits_of(model, images))
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = 0.0
    assert not torch.equal(logits_of(model, images, True), logits_of(model, images, True))


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("family", FAMILIES)
def test_macs_are_those_that_torch_counts(family, mode, size):
    model = worn(family)
    if mode is not None:
        nr.rejuvenate(model, cross=mode)
    assert nr.count_macs(model, size) == counted_macs(model, size)
    convolutions = nr.count_macs(model, size) - sum(
        linear.weight.numel() for linear in model.classifier.linears
    )
    assert nr.utilization(model, flops=True, image_size=size).total == convolutions


@pytest.mark.parametrize("arch", ARCHS)
def test_work_grows_with_the_image(arch):
    model = on_meta(SMALL[arch])
    linear = model.classifier.linears[0].weight.numel()
    assert nr.count_macs(model, 64) - linear == 4 * (nr.count_macs(model, 32) - linear)


@pytest.mark.parametrize("name", settings.NETWORKS)
def test_the_same_network_in_plain_torch_has_the_same_logits(name):
    """Which is also what tests.benchmark compares the time of."""
    build, arch, keywords = settings.NETWORKS[name]
    torch.manual_seed(0)
    source, target = build(), models.build("cifar", arch, **keywords)
    random_norms(source)
    copy_plain(source, target, source[-1])
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected, logits = source.eval()(images), target.eval()(images)
    torch.testing.assert_close(logits[:, 0], expected, rtol=1e-4, atol=1e-4)
