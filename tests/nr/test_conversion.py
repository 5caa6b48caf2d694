"""nr.convert: torch networks as networks of units, and what the new units do when rebuilt."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

import nr
from nr.method.rejuvenation import Report
from tests.copies import copied
from tests.helpers import (
    MODES,
    kill,
    kill_random,
    layers,
    logits_of,
    open_cross_blocks,
    pooled,
    prunable,
    random_norms,
    relative_difference,
    same_tensors,
    silence,
    vary,
)

SIZE = 32  # pixels
CLASSES = 10


def plain_vgg() -> nn.Module:
    """As torchvision's: biases before batch norm, a flattened 2x2 map, hidden layers, dropout."""

    def group(i: int, o: int) -> list[nn.Module]:
        return [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(True), nn.MaxPool2d(2)]

    return nn.Sequential(
        *group(3, 8),
        *group(8, 12),
        *group(12, 16),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 4, 24),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(24, 20),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(20, CLASSES),
    )


def hidden_norm() -> nn.Module:
    """A hidden layer over a 4x4 map with a batch norm, which is a prunable unit."""
    stem = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(4)]
    hidden = [nn.Flatten(), nn.Linear(8 * 16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*stem, *hidden, nn.Linear(12, CLASSES))


class Dense(nn.Module):
    """Concatenations, functions in the place of modules, and a mean as the pooling."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.norm = nn.Conv2d(8, 6, 3, padding="same", bias=False), nn.BatchNorm2d(6)
        self.end, self.end_norm = nn.Conv2d(14, 10, 1), nn.BatchNorm2d(10)
        self.fc = nn.Linear(10, CLASSES, bias=False)

    def forward(self, x):
        x = torch.relu(self.stem_norm(self.stem(x)))
        x = nn.functional.max_pool2d(x, 2)
        x = torch.cat([x, self.norm(self.conv(x)).relu()], dim=1)
        x = nn.functional.leaky_relu(self.end_norm(self.end(x)), 0.1)
        return self.fc(x.mean([2, 3]))


def regnet() -> nn.Module:
    params = BlockParams([1, 2], [16, 24], [8, 12], [1.0, 1.0], [2, 2])
    return RegNet(params, num_classes=CLASSES, stem_width=8)


def mobilenet() -> nn.Module:
    setting = [[1, 16, 1, 1], [4, 24, 2, 2], [4, 32, 2, 2]]
    return MobileNetV2(CLASSES, width_mult=0.5, inverted_residual_setting=setting, dropout=0.1)


class Narrow(ResNet):
    """A quarter as wide as torchvision's behind its stem."""

    def __init__(self, block: type, blocks: list[int], **options):
        super().__init__(block, blocks, CLASSES, **options)
        self.fc = nn.Linear(self.inplanes, CLASSES)

    def _make_layer(self, block: type, planes: int, *rest, **options) -> nn.Sequential:
        return super()._make_layer(block, planes // 4, *rest, **options)


NETWORKS = {
    "basic": lambda: Narrow(BasicBlock, [2, 1, 1, 1]),
    "bottleneck": lambda: Narrow(Bottleneck, [2, 1, 1, 1]),
    "resnext": lambda: Narrow(Bottleneck, [2, 1, 1, 1], groups=8, width_per_group=8),
    "vgg": plain_vgg,
    "hidden norm": hidden_norm,
    "dense": Dense,
    "mobilenet": mobilenet,
    "regnet": regnet,
}
GROUPED = ("resnext", "mobilenet", "regnet")


def plain(name: str) -> nn.Module:
    """The torch network with its own weights and varied batch norms."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    random_norms(model)
    return model


@copied
def converted(name: str) -> nr.Network:
    model = nr.convert(plain(name), SIZE)
    torch.manual_seed(0)
    return model


@copied
def worn(name: str) -> nr.Network:
    """A converted network at the end of a search, its dead channels silenced."""
    model = vary(converted(name))
    kill_random(model, share=0.3)
    silence(model)
    torch.manual_seed(0)
    return model


@copied
def rebuilt(name: str, cross: str) -> tuple[nr.Network, Report]:
    model = worn(name)
    return model, nr.rejuvenate(model, cross=cross)


def images() -> torch.Tensor:
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def seeded_logits(model: nn.Module, training: bool) -> torch.Tensor:
    """Whatever a step in train mode counts, it counts in copies."""
    torch.manual_seed(1)  # of the dropout
    own = {name: buffer.clone() for name, buffer in model.named_buffers()}
    dtype = next(model.parameters()).dtype
    return functional_call(model.train(training), own, images().to(dtype))


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_network(name):
    """Of both modes; and a step in train mode leaves equal running statistics."""
    model = plain(name).double()
    network = nr.convert(model, SIZE)
    for training in (False, True):
        found = seeded_logits(network, training)
        assert found.shape == (4, 1, CLASSES) and found.dtype == torch.float64
        assert relative_difference(found[:, 0], seeded_logits(model, training)) < 1e-12
    for each in (model, network):
        torch.manual_seed(1)
        logits_of(each, images().double(), training=True)
    a, b = logits_of(network, images().double())[:, 0], logits_of(model, images().double())
    assert relative_difference(a, b) < 1e-12


@pytest.mark.parametrize("cross", ["removed", "none"])
def test_batch_norms_without_momentum_go_on_counting(cross):
    """The running statistics are means over all batches, from before the conversion on."""
    model = plain("basic").double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    logits_of(model, images().double(), training=True)
    network = nr.convert(model, SIZE)
    for each in (model, network):
        logits_of(each, images().double() + 1, training=True)
    a, b = logits_of(network, images().double()), logits_of(model, images().double())
    assert relative_difference(a[:, 0], b) < 1e-12
    kill_random(network)
    silence(network)
    before = logits_of(network, images().double())
    nr.rejuvenate(network, cross)
    assert relative_difference(logits_of(network, images().double())[:, :1], before) < 1e-12
    counts = [int(n.num_batches_tracked) for n in layers(network)["features.conv1"].unit.norms]
    assert counts == [2, 0][: network.streams]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_stays_as_it_is_and_shares_nothing(name, training):
    model = plain(name).train(training)
    before = copy.deepcopy(model.state_dict())
    network = nr.convert(model, SIZE)
    assert network.training == model.training == training
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.fill_(7)
    assert same_tensors(before, model.state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_macs_are_those_of_the_flop_counter(name):
    model, network = plain(name).eval(), converted(name).eval()
    cross = copy.deepcopy(network)
    kill_random(cross)
    nr.rejuvenate(cross, cross="full")
    for each, counted in ((model, network), (network, network), (cross, cross)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            each(torch.zeros(1, 3, SIZE, SIZE))
        assert nr.count_macs(counted) == counter.get_total_flops() // 2


@pytest.mark.parametrize("cross", [*MODES, "none"])
@pytest.mark.parametrize("name", NETWORKS)
def test_survived_logits_are_kept(name, cross):
    before = logits_of(worn(name), images())
    model, report = rebuilt(name, cross)
    assert report.utilization.ratio < 1
    assert relative_difference(logits_of(model, images())[:, :1], before) < 1e-5
    assert nr.utilization(model).total > 0


@pytest.mark.parametrize("cross", [None, *MODES])
@pytest.mark.parametrize("name", NETWORKS)
def test_description_and_file_bring_it_back(name, cross, tmp_path):
    model = worn(name) if cross is None else rebuilt(name, cross)[0]
    found = nr.structure(model)
    assert nr.structure(nr.build(json.loads(json.dumps(found)))) == found
    nr.save(model, tmp_path / "network.pth")
    loaded = nr.load(tmp_path / "network.pth")
    assert torch.equal(logits_of(loaded, images()), logits_of(model, images()))


@pytest.mark.parametrize("cross", ["removed", "full"])
@pytest.mark.parametrize("name", NETWORKS)
def test_merged_logits_are_the_sum(name, cross):
    model, _ = rebuilt(name, cross)
    open_cross_blocks(model)
    model.double()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    before = [seeded_logits(model, training).sum(1) for training in (False, True)]
    nr.merge(model)
    for training, wanted in enumerate(before):
        assert relative_difference(seeded_logits(model, bool(training))[:, 0], wanted) < 1e-10
    assert nr.utilization(model).total > 0
    nr.rejuvenate(model)


@pytest.mark.parametrize("rejuvenated", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_rescaling_keeps_the_function_or_says_why_not(name, rejuvenated):
    model = worn(name).double()
    if rejuvenated:
        nr.rejuvenate(model, cross="full")
    before = logits_of(model, images().double())
    if name == "mobilenet":
        with pytest.raises(ValueError, match="ReLU6"):
            nr.rescale(model, 0.9)
        return
    nr.rescale(model, 0.9)
    assert relative_difference(logits_of(model, images().double()), before) < 1e-10
    gammas = [n.weight for layer in prunable(model).values() for n in layer.unit.norms]
    assert all(((gamma.abs() >= 0.9 - 1e-6) | (gamma == 0)).all() for gamma in gammas)


class TwoHeads(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.conv, self.norm, self.end = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), end
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

    def forward(self, x):
        return self.end(self, self.norm(self.conv(x)))


def ended(end) -> nn.Module:
    """A small network with this end."""
    return TwoHeads(end)


def test_the_memory_order_is_kept():
    model = plain("basic").to(memory_format=torch.channels_last)
    convs = [m for m in nr.convert(model, SIZE).modules() if isinstance(m, nn.Conv2d)]
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convs)
    convs = [m for m in converted("basic").modules() if isinstance(m, nn.Conv2d)]
    assert all(m.weight.is_contiguous() for m in convs)


POOLED = {
    "sizes": lambda x: nn.functional.avg_pool2d(x, x.size()[2:]).view(x.shape[0], -1),
    "a size": lambda x: nn.functional.avg_pool2d(x, x.size(3)).reshape(x.size(0), x.size(1) * 1),
    "squeezed": lambda x: nn.functional.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze(2),
    "squeezed at once": lambda x: nn.functional.adaptive_avg_pool2d(x, 1).squeeze(),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", POOLED)
def test_sizes_may_be_read_and_pooled_maps_squeezed(case, training):
    torch.manual_seed(0)
    model = ended(lambda m, x: m.fc(POOLED[case](x.relu()))).double()
    network = pooled(model, SIZE)
    found, wanted = (logits_of(each, images().double(), training) for each in (network, model))
    assert relative_difference(found[:, 0], wanted) < 1e-12
    kill_random(network)
    assert nr.rejuvenate(network).expansion > 1
    assert network(images().double()).shape == (4, 2, 2)


@pytest.mark.parametrize("size", [8, (8, 4)])
def test_a_classifier_over_a_whole_map_is_kept(size):
    sides = (size, size) if isinstance(size, int) else size
    stem = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*stem, nn.Linear(4 * sides[0] * sides[1], 2)).double()
    random_norms(model)
    network, x = nr.convert(model, size), torch.randn(4, 3, *sides).double()
    assert relative_difference(logits_of(network, x)[:, 0], logits_of(model, x)) < 1e-12
    kill(network, {"features.0": [1, 2]})
    silence(network)
    before = logits_of(network, x)
    nr.rejuvenate(network)
    assert relative_difference(logits_of(network, x)[:, :1], before) < 1e-12
    nr.rescale(network, 0.9)
    assert relative_difference(logits_of(network, x)[:, :1], before) < 1e-12
    summed = logits_of(network, x).sum(1)
    assert nr.build(nr.structure(network)).load_state_dict(network.state_dict())
    nr.merge(network)
    assert relative_difference(logits_of(network, x)[:, 0], summed) < 1e-12
    with pytest.raises(ValueError, match="the classifier needs"):
        nr.utilization(network, image_size=16)


def test_a_sum_takes_the_side_that_ends_in_a_unit_for_its_branch():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Conv2d(4, 4, 1)  # not the first that is called
            self.stem, self.one, self.two = (nn.Conv2d(i, 4, 1) for i in (3, 4, 4))
            self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))
            self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

        def forward(self, x):
            x = self.norms[0](self.stem(x)).relu()
            deep = self.norms[2](self.two(self.norms[1](self.one(x)).relu())).relu()
            x = deep + self.norms[3](self.last(x))
            return self.fc(self.pool(x).flatten(1))

    model = Sum().double().eval()
    network = nr.convert(model, 8)
    x = images().double()
    assert relative_difference(logits_of(network, x)[:, 0], logits_of(model, x)) < 1e-12
    kill_random(network)
    nr.rejuvenate(network)


def test_images_may_be_rectangular():
    model = plain("mobilenet").eval()
    network = nr.convert(model, (32, 48))
    assert network.image_size == (32, 48)
    x = torch.randn(2, 3, 32, 48)
    assert relative_difference(logits_of(network, x)[:, 0], logits_of(model, x)) < 1e-5
    stem = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()]
    hidden = [nn.Linear(4 * 4 * 6, 5), nn.ReLU(), nn.Linear(5, 2)]
    model, x = nn.Sequential(*stem, *hidden).eval(), torch.randn(2, 3, 4, 6)
    network = nr.convert(model, (4, 6))
    assert relative_difference(logits_of(network, x)[:, 0], logits_of(model, x)) < 1e-5


def test_an_unknown_activation_of_a_sum_is_refused():
    with pytest.raises(ValueError, match="activation 'gelu'"):
        nr.Residual(None, activation="gelu")
