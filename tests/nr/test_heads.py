"""Networks of several outputs, maps among them: converted, worn down, rebuilt, merged and saved."""

import copy
from collections import OrderedDict, namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import nr
from tests.helpers import random_norms, relative_difference, same_tensors
from tests.nr.whole import (
    EXACT,
    SIZE,
    Networks,
    check_files,
    check_merged,
    check_outputs,
    check_survived,
    close,
    images,
    outputs,
)

CLASSES = 3
Both = namedtuple("Both", ("logits", "aux"))


def conv(i: int, o: int, size: int = 3, **options) -> nn.Sequential:
    options = {"padding": size // 2} | options
    return nn.Sequential(nn.Conv2d(i, o, size, bias=False, **options), nn.BatchNorm2d(o), nn.ReLU())


class Fcn(nn.Module):
    """Maps of two heads, made as large as the image, in a dict."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = conv(3, 12, stride=2), conv(12, 16, stride=2)
        self.classifier = nn.Sequential(conv(16, 8), nn.Dropout(0.1), nn.Conv2d(8, CLASSES, 1))
        self.aux = nn.Sequential(conv(12, 6), nn.Conv2d(6, CLASSES, 3, padding=1, bias=False))

    def forward(self, x):
        size, result = x.shape[-2:], OrderedDict()
        low = self.stem(x)
        for name, head, features in (
            ("out", self.classifier, self.body(low)),
            ("aux", self.aux, low),
        ):
            result[name] = F.interpolate(head(features), size, mode="bilinear", align_corners=False)
        return result


class DeepLab(nn.Module):
    """Atrous branches beside a pooled one, and the sum of two heads, as of lraspp."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = conv(3, 12, stride=2), conv(12, 16, stride=2)
        self.atrous = nn.ModuleList(conv(16, 8, padding=d, dilation=d) for d in (2, 4))
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), conv(16, 8, 1))
        self.project = conv(24, 10, 1)
        self.low, self.high = nn.Conv2d(12, CLASSES, 1), nn.Conv2d(10, CLASSES, 1)

    def forward(self, x):
        low = self.stem(x)
        y = self.body(low)
        pooled = F.interpolate(
            self.pool(y), size=y.shape[-2:], mode="bilinear", align_corners=False
        )
        y = self.project(torch.cat([*(branch(y) for branch in self.atrous), pooled], dim=1))
        y = F.interpolate(self.high(y), size=low.shape[-2:], mode="bilinear", align_corners=False)
        return {"out": y + self.low(low)}


class SqueezeNet(nn.Module):
    """A convolution as the last layer, with a ReLU and a pooling behind it."""

    def __init__(self):
        super().__init__()
        self.stem, self.squeeze = conv(3, 24, stride=2), conv(24, 12, 1)
        self.expand = nn.ModuleList((conv(12, 16, 1), conv(12, 16, 3)))
        self.classifier = nn.Sequential(
            nn.Dropout(0.1), nn.Conv2d(32, CLASSES, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        )

    def forward(self, x):
        x = self.squeeze(self.stem(x))
        x = torch.cat([branch(x) for branch in self.expand], 1)
        return torch.flatten(self.classifier(x), 1)


class GoogLeNet(nn.Module):
    """An auxiliary head in train mode alone, and the image's channels changed one by one."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = conv(3, 12, stride=2), conv(12, 16, stride=2)
        self.aux = nn.Sequential(
            nn.AdaptiveAvgPool2d(4), conv(12, 6, 1), nn.Flatten(), nn.Linear(96, 8), nn.ReLU()
        )
        self.aux_fc, self.fc = nn.Linear(8, CLASSES), nn.Linear(16, CLASSES)

    def forward(self, x):
        channels = (
            torch.unsqueeze(x[:, c], 1) * (0.229 / 0.5) + (mean - 0.5) / 0.5
            for c, mean in enumerate((0.485, 0.456, 0.406))
        )
        x = self.stem(torch.cat([*channels], 1))
        aux = None
        if self.training:
            aux = self.aux_fc(F.dropout(self.aux(x), 0.1, training=self.training))
        x = self.fc(torch.flatten(F.adaptive_avg_pool2d(self.body(x), 1), 1))
        return Both(x, aux) if self.training else x


NETWORKS = {"fcn": Fcn, "deeplab": DeepLab, "squeezenet": SqueezeNet, "googlenet": GoogLeNet}


WHOLE = Networks(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_come_as_the_networks_own(name):
    check_outputs(WHOLE, name)


@pytest.mark.parametrize("cross", ["removed", "attention", "full", "none"])
@pytest.mark.parametrize("name", NETWORKS)
def test_survived_outputs_budget_and_gradients(name, cross):
    check_survived(WHOLE, name, cross, modes=(False, True), most=1.005, published=False)


@pytest.mark.parametrize("cross", ["removed", "full"])
@pytest.mark.parametrize("name", NETWORKS)
def test_merged_outputs_are_the_sum(name, cross):
    if name != "squeezenet":
        check_merged(WHOLE, name, cross)
        return
    network, _ = WHOLE.rebuilt(name, cross)
    state = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match=r"classifier\.2: ReLU of what a classifier gives"):
        nr.merge(network)
    assert same_tensors(state, network.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_files_and_copies_bring_it_back(name, tmp_path):
    check_files(WHOLE, name, tmp_path)


@pytest.mark.parametrize("name", NETWORKS)
def test_multiply_adds_are_those_that_torch_counts(name):
    for network in (WHOLE.worn(name), WHOLE.rebuilt(name, "full")[0]):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.eval()(images(1))
        assert 2 * nr.count_macs(network) == counter.get_total_flops()


@pytest.mark.parametrize("name", NETWORKS)
def test_scales_move_without_changing_any_output(name):
    network = WHOLE.worn(name)
    with torch.no_grad():
        network.features.get_parameter("stem.0.norms.0.weight")[0] = 0.02
    before = outputs(network)
    nr.rescale(network, 0.1)
    assert close(outputs(network), before)


class Reader(Fcn):
    """An output that another layer reads, too."""

    def forward(self, x):
        low = self.stem(x)
        maps = self.aux(low)
        return maps, self.classifier(self.body(torch.cat([low[:, :9], maps], 1)))


def test_an_output_that_a_layer_reads_is_of_features():
    torch.manual_seed(0)
    model = Reader().double()
    random_norms(model)
    network = nr.convert(model, SIZE)
    for training in (False, True):
        model.train(training), network.train(training)
        torch.manual_seed(1)
        wanted = model(images())
        torch.manual_seed(1)
        found = network(images())
        for output, other in zip(found, wanted, strict=True):
            assert relative_difference(output[:, 0], other) < EXACT


def test_what_reads_classes_is_refused():
    graph = (network := WHOLE.converted("fcn")).features
    graph.rewrite([*graph.nodes, nr.Node("both", "cat", ("aux.1", "stem.2"))], {})
    with pytest.raises(ValueError, match="joins features with what a classifier gives"):
        nr.utilization(network)


def test_a_description_of_outputs_that_are_not_there_is_refused():
    found = nr.structure(WHOLE.converted("fcn"))
    for outputs_, words in (("nothing", "is an output, and no node"), (3, "no names of nodes")):
        with pytest.raises(ValueError, match=words):
            nr.build(found | {"features": found["features"] | {"outputs": outputs_}})
    with pytest.raises(ValueError, match="has one, or none"):
        nr.build(
            found | {"features": {n: v for n, v in found["features"].items() if n != "outputs"}}
        )


def test_a_rebuilt_network_exports():
    network = WHOLE.worn("fcn").float().eval()
    nr.rejuvenate(network, "removed")
    x = images().float()
    wanted: dict[str, Tensor] = network(x)
    exported = torch.export.export(network, (x,)).module()(x)
    for name, output in wanted.items():
        assert relative_difference(exported[name], output) < 1e-5
