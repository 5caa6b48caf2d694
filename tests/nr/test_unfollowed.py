"""The strict walk, what it refuses: each case by name, with the reason and the remedy."""

import copy
import warnings

import pytest
import torch
from torch import nn

import nr
from nr.network.convolutions import ConvBN
from nr.network.layers import Chain, Classifier, Concat, Network, Residual
from tests.helpers import same_tensors
from tests.nr.test_checks import network


class Shuffle(nn.Module):
    def forward(self, x):
        return x.flip(1)


class Branching(Residual):
    def forward(self, x):
        return x


def shared_unit() -> Network:
    unit = ConvBN(4, 4, 3)
    return network(unit, nn.ReLU(), unit)


def shared_weight() -> Network:
    one, two = ConvBN(4, 4, 3), ConvBN(4, 4, 3)
    two.convs[0].weight = one.convs[0].weight
    return network(one, two)


def shared_prelu() -> Network:
    prelu = nn.PReLU()
    return network(prelu, ConvBN(4, 4, 1), prelu)


def changed(change) -> Network:
    """A network whose middle unit is changed by hand."""
    unit = ConvBN(4, 4, 3)
    change(unit)
    return network(unit)


def replace_norm(norm: nn.Module):
    return lambda unit: unit.norms.__setitem__(0, norm)


def replace_conv(conv: nn.Module):
    return lambda unit: unit.convs.__setitem__(0, conv)


def with_auxiliary() -> Network:
    model = network()
    model.auxiliary = nn.Linear(2, 2)
    return model


def two_streams_in_one() -> Network:
    model = network(ConvBN(4, 4, 3))
    model.features[2].build("removed", (2, 2), (2, 2))
    return model


def without_pooling() -> Network:
    return Network(Chain(ConvBN(3, 4, 3)), Classifier(4, 2), 8)


# what -> (network, the module that is named, a word of the reason, a word of the remedy)
REFUSED = {
    "conv": (lambda: network(nn.Conv2d(4, 4, 3)), "features.2", "Conv2d", "nr.ConvBN"),
    "depthwise conv": (
        lambda: network(nn.Conv2d(4, 4, 3, groups=4)),
        "features.2",
        "number",
        "ConvBN",
    ),
    "batch norm": (lambda: network(nn.BatchNorm2d(4)), "features.2", "BatchNorm2d", "nr.ConvBN"),
    "group norm": (lambda: network(nn.GroupNorm(2, 4)), "features.2", "GroupNorm", "nr.ConvBN"),
    "instance norm": (lambda: network(nn.InstanceNorm2d(4)), "features.2", "InstanceNorm", "norm"),
    "layer norm": (lambda: network(nn.LayerNorm([4, 16, 16])), "features.2", "LayerNorm", "norm"),
    "PReLU of C": (lambda: network(nn.PReLU(4)), "features.2", "channels", "one parameter"),
    "linear": (lambda: network(nn.Linear(16, 16)), "features.2", "Linear", "kernel size 1"),
    "conv in Sequential": (
        lambda: network(nn.Sequential(nn.Conv2d(4, 4, 1))),
        "features.2.0",
        "Conv2d",
        "nr.ConvBN",
    ),
    "flatten": (lambda: network(nn.Flatten()), "features.2", "Flatten", "flattens by itself"),
    "channel shuffle": (lambda: network(nn.ChannelShuffle(2)), "features.2", "", ""),
    "pixel shuffle": (lambda: network(nn.PixelShuffle(2)), "features.2", "PixelShuffle", ""),
    "softmax": (lambda: network(nn.Softmax2d()), "features.2", "mixes channels", "by itself"),
    "local response norm": (lambda: network(nn.LocalResponseNorm(2)), "features.2", "mixes", ""),
    "shuffle of one's own": (lambda: network(Shuffle()), "features.2", "Shuffle: it mixes", ""),
    "unpooled indices": (
        lambda: network(nn.MaxPool2d(2, return_indices=True)),
        "features.2",
        "tuple",
        "",
    ),
    "hidden unit": (
        lambda: network(nn.ModuleList([ConvBN(4, 4, 3)])),
        "features.2",
        "hides",
        "nr.Chain",
    ),
    "compiled unit": (
        lambda: network(torch.compile(ConvBN(4, 4, 3))),
        "features.2",
        "hides",
        "nr.Chain",
    ),
    "own forward": (lambda: network(Branching(ConvBN(4, 4, 3))), "features.2", "forward", "nr.Res"),
    "unit twice": (shared_unit, "features.4", "features.2 too", "one of its own"),
    "weight twice": (shared_weight, "features.3", "weight", "one of its own"),
    "PReLU twice": (shared_prelu, "features.4", "parameter", "one of its own"),
    "wrong width": (lambda: network(ConvBN(5, 4, 3)), "features.2", "reads 5", "give 4"),
    "norm without scale": (
        lambda: changed(replace_norm(nn.BatchNorm2d(4, affine=False))),
        "features.2",
        "",
        "affine=True",
    ),
    "norm without statistics": (
        lambda: changed(replace_norm(nn.BatchNorm2d(4, track_running_stats=False))),
        "features.2",
        "statistics",
        "track_running_stats=True",
    ),
    "other norm": (
        lambda: changed(replace_norm(nn.GroupNorm(1, 4))),
        "features.2",
        "GroupNorm",
        "BatchNorm2d",
    ),
    "norm that begins to count": (
        lambda: changed(lambda unit: setattr(unit.norms[0], "momentum", None)),
        "features.2",
        "momentum=None after it was made",
        "nr.ConvBN(..., momentum=None)",
    ),
    "norm of another width": (
        lambda: changed(replace_norm(nn.BatchNorm2d(5))),
        "features.2",
        "4 channels",
        "",
    ),
    "dilated conv": (
        lambda: changed(replace_conv(nn.Conv2d(4, 4, 3, padding=2, dilation=2, bias=False))),
        "features.2",
        "replaced",
        "nr.ConvBN",
    ),
    "conv with bias": (
        lambda: changed(replace_conv(nn.Conv2d(4, 4, 3, padding=1))),
        "features.2",
        "replaced",
        "",
    ),
    "weight norm": (
        lambda: changed(lambda unit: nn.utils.parametrizations.weight_norm(unit.convs[0])),
        "features.2",
        "Parametrized",
        "parametrization",
    ),
    "sum of other widths": (
        lambda: network(Residual(ConvBN(4, 5, 3))),
        "features.2",
        "5",
        "the same",
    ),
    "sum of other sizes": (
        lambda: network(Residual(ConvBN(4, 4, 3, 2))),
        "features.2",
        "8",
        "the same",
    ),
    "sum that ends in a ReLU": (
        lambda: network(Residual(Chain(ConvBN(4, 4, 3), nn.ReLU()))),
        "features.2",
        "end",
        "ConvBN",
    ),
    "sum in a branch": (
        lambda: network(Residual(Chain(Residual(ConvBN(4, 4, 3)), ConvBN(4, 4, 3)))),
        "features.2.branch.0",
        "inside the branch",
        "chain",
    ),
    "concatenation of sizes": (
        lambda: network(Concat(ConvBN(4, 2, 3, 2)), ConvBN(6, 4, 1)),
        "features.2",
        "8",
        "the same",
    ),
    "sum with the image": (
        lambda: Network(
            Chain(Residual(ConvBN(3, 3, 3)), ConvBN(3, 4, 3), nn.AdaptiveAvgPool2d(1)),
            Classifier(4, 2),
            8,
        ),
        "features.0",
        "image",
        "unit before",
    ),
    "no pooling": (without_pooling, "features", "8x8", "AdaptiveAvgPool2d"),
    "no unit": (
        lambda: Network(Chain(nn.AdaptiveAvgPool2d(1)), Classifier(3, 2), 8),
        "features",
        "ConvBN",
        "",
    ),
    "wide classifier": (
        lambda: Network(Chain(ConvBN(3, 4, 3), nn.AdaptiveAvgPool2d(1)), Classifier(5, 2), 8),
        "classifier",
        "reads 5",
        "give 4",
    ),
    "image too small": (lambda: network(nn.MaxPool2d(32)), "features.2", "MaxPool2d", "size"),
    "unit on too small a map": (
        lambda: network(nn.MaxPool2d(8), ConvBN(4, 4, 5, padding=0)),
        "features.3",
        "-2x-2",
        "image",
    ),
    "bad image size": (lambda: network(size=0), "image_size", "0", "pixels"),
    "three sides": (lambda: network(size=(8, 8, 8)), "image_size", "8, 8, 8", "pixels"),
    "streams": (two_streams_in_one, "features.2", "2 streams", ""),
    "list": (
        lambda: Network([ConvBN(3, 4, 3)], Classifier(4, 2), 8),
        "features",
        "list is no module",
        "nr.Chain",
    ),
    "auxiliary": (with_auxiliary, "auxiliary", "nothing else", ""),
    "DataParallel": (lambda: nn.DataParallel(network()), "", "DataParallel", "model.module"),
    "torch.compile": (lambda: torch.compile(network()), "", "OptimizedModule", "model._orig_mod"),
    "plain torch": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), "", "Sequential", "nr.ConvBN"),
}


CALLS = {
    "utilization": nr.utilization,
    "rejuvenate": nr.rejuvenate,
    "rescale": lambda model: nr.rescale(model, 0.5),
    "structure": nr.structure,
    "count_macs": nr.count_macs,
    "SGD": lambda model: nr.SGD(model, lr=0.1),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_followed_is_refused_by_name(what):
    make, name, reason, remedy = REFUSED[what]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make()
        for call in CALLS.values():
            before = copy.deepcopy(model.state_dict())
            with pytest.raises(ValueError) as error:
                call(model)
            message = str(error.value)
            assert message.startswith(f"{name}: " if name else "") and len(message) < 400
            assert reason in message and remedy in message, message
            assert len(message.splitlines()) == 1
            assert same_tensors(before, model.state_dict())


def test_a_torchvision_network_is_told_what_is_needed():
    torchvision = pytest.importorskip("torchvision")
    with pytest.raises(ValueError, match=r"ResNet is no nr\.Network: build it from nr\.ConvBN"):
        nr.utilization(torchvision.models.resnet18())


@pytest.mark.parametrize("window", [(1, 0), (3, 3, 3), "3", 2.0, 0, True, None], ids=repr)
def test_what_is_no_window_is_refused(window):
    with pytest.raises(ValueError, match=r"ConvBN: kernel_size .* square"):
        ConvBN(3, 4, window)


@pytest.mark.parametrize("width", [0, -2, 8.0, "8", None])
def test_widths_that_are_no_numbers_are_refused(width):
    for make in (lambda: ConvBN(3, width, 3), lambda: ConvBN(width, 3, 3)):
        with pytest.raises(ValueError, match=r"^ConvBN: .* channels: ints from 1 on"):
            make()
    for pair in ((width, 2), (2, width)):
        with pytest.raises(ValueError, match=r"^Classifier: .*: ints from 1 on"):
            Classifier(*pair)
