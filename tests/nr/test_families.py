"""Networks of every family, whole: converted, worn down, rebuilt in every form, and merged.

Small images, random weights, varied norms, a random third of all parts or pairs silenced.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.densenet import DenseNet
from torchvision.models.efficientnet import EfficientNet, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig, MobileNetV3
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.shufflenetv2 import ShuffleNetV2

import nr
from nr.network.wiring import wiring
from tests.copies import copied
from tests.helpers import kill, logits_of, relative_difference, silence, vary, wear
from tests.nr.whole import (
    EXACT,
    SIZE,
    Networks,
    check_files,
    check_merged,
    check_outputs,
    check_survived,
    images,
)

CLASSES = 5


def efficientnet() -> nn.Module:
    setting = [MBConvConfig(1, 3, 1, 32, 16, 1, 0.25, 1), MBConvConfig(4, 5, 2, 16, 24, 2, 0.25, 1)]
    return EfficientNet(setting, dropout=0.1, num_classes=CLASSES, last_channel=32)


def mobilenet_v3() -> nn.Module:
    setting = [
        InvertedResidualConfig(16, 3, 16, 16, True, "RE", 2, 1, 1),
        InvertedResidualConfig(16, 5, 40, 24, True, "HS", 2, 1, 1),
        InvertedResidualConfig(24, 5, 40, 24, False, "HS", 1, 1, 1),
    ]
    return MobileNetV3(setting, last_channel=32, num_classes=CLASSES)


def regnet_y() -> nn.Module:
    params = BlockParams([1, 2], [32, 48], [4, 4], [1.0, 1.0], [2, 2], se_ratio=0.25)
    return RegNet(params, num_classes=CLASSES, stem_width=8)


class Inception(nn.Module):
    """Four branches side by side, windows of 1x7 and 7x1, a branch of a pooling."""

    def __init__(self):
        super().__init__()

        def conv(i: int, o: int, size, **options) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(i, o, size, bias=False, **options), nn.BatchNorm2d(o))

        self.stem = conv(3, 12, 3, stride=2)
        self.one = conv(12, 6, 1)
        self.two = nn.Sequential(
            conv(12, 8, (1, 7), padding=(0, 3)), nn.ReLU(), conv(8, 6, (7, 1), padding=(3, 0))
        )
        self.three = conv(12, 5, 3, dilation=2, padding=2)
        self.pool = nn.Sequential(nn.AvgPool2d(3, 1, 1), conv(12, 4, 1))
        self.last = conv(21, 16, 3, stride=2)
        self.fc = nn.Linear(16, CLASSES)

    def forward(self, x):
        x = F.relu(self.stem(x))
        parts = [F.relu(branch(x)) for branch in (self.one, self.two, self.three, self.pool)]
        x = F.relu(self.last(torch.cat(parts, dim=1)))
        return self.fc(x.mean((2, 3)))


class PreActivation(nn.Module):
    """Batch norm before each convolution, sums of three, a classical gate, a transposed window."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(12, 12, 1, bias=False) for _ in range(2))
        self.squeeze, self.excite = nn.Linear(12, 4), nn.Linear(4, 12)
        self.up = nn.ConvTranspose2d(12, 9, 3, 2, 1, bias=False)
        self.up_norm = nn.BatchNorm2d(9)
        self.scale = nn.Parameter(torch.rand(9, 1, 1) + 0.5)
        self.fc = nn.Linear(9, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        branches = [
            conv(norm(x).relu()) for conv, norm in zip(self.convs, self.norms, strict=False)
        ]
        x = branches[0] + branches[1] + 0.5 * x
        x = self.norms[2](x).relu()
        gate = torch.sigmoid(self.excite(self.squeeze(x.mean((2, 3))).relu()))
        x = x * gate.view(x.shape[0], -1, 1, 1)
        x = self.up_norm(self.up(x)).relu() * self.scale
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def alexnet() -> nn.Module:
    """Without batch norm: a window over a map, hidden linear layers, dropout, poolings."""
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 5, 2, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(12, 18, 3, padding=1), nn.ReLU(), nn.Conv2d(18, 14, 3, padding=1), nn.ReLU()),
        *(nn.MaxPool2d(2, 2), nn.AdaptiveAvgPool2d((2, 2)), nn.Flatten(), nn.Dropout(0.0)),
        *(nn.Linear(56, 24), nn.ReLU(inplace=True), nn.Dropout(0.0), nn.Linear(24, 16), nn.GELU()),
        nn.Linear(16, CLASSES),
    )


class Fire(nn.Module):
    """Without batch norm: branches that part and meet, depthwise windows, a sum, a gate."""

    def __init__(self):
        super().__init__()
        self.stem, self.squeeze = nn.Conv2d(3, 12, 3, 2, 1), nn.Conv2d(12, 8, 1)
        self.one, self.three = nn.Conv2d(8, 6, 1), nn.Conv2d(8, 10, 3, padding=1)
        self.deep = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point, self.inner = nn.Conv2d(16, 12, 1), nn.Conv2d(12, 9, 1)
        self.outer, self.gate = nn.Conv2d(9, 12, 1), nn.Conv2d(12, 12, 1)
        self.fc = nn.Linear(12, CLASSES)

    def forward(self, x):
        x = F.relu(self.squeeze(F.max_pool2d(F.relu(self.stem(x)), 2)))
        x = torch.cat([F.relu(self.one(x)), F.sigmoid(self.three(x))], dim=1)
        x = F.relu(self.point(F.relu(self.deep(x))))
        x = x + self.outer(F.relu(self.inner(x)))
        x = x * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))
        return self.fc(x.mean((2, 3)))


FAMILIES = {
    "densenet": lambda: DenseNet(8, (2, 2), 16, num_classes=CLASSES),
    "efficientnet": efficientnet,
    "mobilenet_v3": mobilenet_v3,
    "regnet_y": regnet_y,
    "shufflenet": lambda: ShuffleNetV2([2, 2, 1], [8, 16, 24, 32, 48], num_classes=CLASSES),
    "inception": Inception,
    "pre-activation": PreActivation,
    "alexnet": alexnet,
    "fire": Fire,
}
SCALED = ("alexnet", "fire")  # without batch norm


WHOLE = Networks(FAMILIES, SCALED)


@copied
def preactivation() -> nr.Network:
    """In float, worn down: norms before convolutions."""
    torch.manual_seed(0)
    return wear(nr.convert(PreActivation(), SIZE))


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_and_statistics_are_the_networks(name):
    check_outputs(WHOLE, name)


@pytest.mark.parametrize("cross", ["removed", "attention", "full", "none"])
@pytest.mark.parametrize("name", FAMILIES)
def test_survived_logits_budget_and_gradients(name, cross):
    check_survived(WHOLE, name, cross, modes=(False,), most=1.0)


@pytest.mark.parametrize("cross", ["removed", "full"])
@pytest.mark.parametrize("name", FAMILIES)
def test_merged_logits_are_the_sum(name, cross):
    check_merged(WHOLE, name, cross)


@pytest.mark.parametrize("name", FAMILIES)
def test_files_and_copies_bring_it_back(name, tmp_path):
    # Stochastic depth is a module that a file only names.
    check_files(WHOLE, name, tmp_path, alone=name != "efficientnet")


@pytest.mark.parametrize("name", FAMILIES)
def test_from_scratch_has_the_new_widths(name):
    (first, _), second = WHOLE.rebuilt(name, "full"), WHOLE.worn(name)
    nr.rejuvenate(second, from_scratch=True)
    widths = [
        {layer.name: sum(layer.unit.out_channels) for layer in wiring(network).layers}
        for network in (first, second)
    ]
    assert widths[0] == widths[1] and second.streams == 1
    assert logits_of(second, images()).isfinite().all()


class Reused(nn.Module):
    """What one half of an activation becomes in place, while others read the whole; a sum, too."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 1) for i, o in ((3, 8), (8, 8), (8, 5), (4, 6), (5, 8))
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (8, 8, 5, 6, 8))
        self.fc, self.relu = nn.Linear(30, CLASSES), nn.ReLU(inplace=True)

    def forward(self, x):
        def unit(k, x):
            return self.norms[k](self.convs[k](x))

        x = unit(0, x)
        y = unit(1, x)
        half = unit(3, self.relu(y[:, :4].clone()))
        total = self.relu(x + unit(4, unit(2, x)))
        return self.fc(torch.cat([x, y, half, total], dim=1).mean((2, 3)))


@pytest.mark.parametrize(("name", "dead"), [("convs.2", slice(None)), ("convs.1", slice(4, 8))])
def test_nothing_changes_in_place_what_others_read(name, dead):
    """After a branch, or half of a map, is gone, what was a copy could be the map itself."""
    torch.manual_seed(0)
    network = vary(nr.convert(Reused().double(), SIZE))
    layer = wiring(network).by_name[f"features.{name}"]
    with torch.no_grad():
        for parameter in layer.unit.norms[0].parameters():
            parameter[dead] = 0
    silence(network)
    before = logits_of(network, images())
    report = nr.rejuvenate(network)
    assert report.utilization.ratio < 1
    assert relative_difference(logits_of(network, images())[:, :1], before) < EXACT
    network.train()(images()).sum().backward()


class Scaled(nn.Module):
    """A branch that a parameter scales before the sum, as of ConvNeXt."""

    def __init__(self):
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.gamma = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.last, self.fc = nn.Conv2d(8, 8, 1), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = F.relu(self.norms[0](self.stem(x)))
        x = x + self.norms[1](self.branch(x)) * self.gamma
        return self.fc(F.relu(self.norms[2](self.last(x))).mean((2, 3)))


@pytest.mark.parametrize("cross", ["removed", "none"])
def test_what_a_scale_in_a_sum_reads_is_held(cross):
    """Its channels stay, so a dead one among those that it scales cannot go."""
    torch.manual_seed(0)
    network = nr.convert(Scaled().double(), SIZE)
    kill(network, {"features.branch": slice(2), "features.last": slice(2)})
    before = logits_of(network, images())
    assert {layer.name for layer in wiring(network).prunable} == {"features.last"}
    nr.rejuvenate(network, cross)
    assert relative_difference(logits_of(network, images())[:, :1], before) < EXACT


class Copied(nn.Module):
    """What a copy of a map, and half of a hidden layer, become in place."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.hidden = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Linear(16, 8)
        self.act, self.fc = nn.Hardswish(inplace=True), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.norm(self.conv(x))
        x = torch.cat([self.act(x.clone()), x], dim=1)
        y = self.hidden(x.mean((2, 3)))
        return self.fc(torch.cat([self.act(y[:, :4]), y[:, 4:]], dim=1))


def test_what_changes_a_copy_or_a_part_in_place_changes_that_alone():
    torch.manual_seed(0)
    model = Copied().double().eval()
    network = nr.convert(model, SIZE)
    assert relative_difference(network(images())[:, 0], model(images())) < EXACT


@pytest.mark.parametrize("cross", [None, "removed"])
def test_rescaling_keeps_what_norms_before_convolutions_read(cross):
    network = WHOLE.rebuilt("densenet", cross)[0] if cross else WHOLE.worn("densenet")
    before = logits_of(network, images())
    nr.rescale(network, 2.0)
    assert relative_difference(logits_of(network, images()), before) < EXACT


@pytest.mark.parametrize(
    ("name", "cross"),
    [
        ("densenet", "attention"),
        ("shufflenet", "removed"),
        ("fire", None),
        ("efficientnet", "removed"),
        ("pre-activation", "full"),
    ],
)
def test_graphs_compile_whole_and_export(name, cross):
    network = WHOLE.rebuilt(name, cross)[0] if cross else WHOLE.worn(name)
    before = logits_of(network, images())
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    program = torch.export.export(network, (images(),)).module()
    for other in (compiled, program, torch.fx.symbolic_trace(network)):
        with torch.no_grad():
            assert relative_difference(other(images()), before) < EXACT
