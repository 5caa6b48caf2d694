"""nr.convert: torch networks as networks of units, and what the new units do when rebuilt."""

import copy
import json
from functools import cache

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

import nr
from nr.method.utilization import live_masks
from nr.network.units import FORMS
from nr.network.wiring import wiring
from tests.helpers import (
    MODES,
    kill,
    kill_random,
    layers,
    logits_of,
    open_cross_blocks,
    prunable,
    random_norms,
    relative_difference,
    same_tensors,
    silence,
    vary,
    wear,
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


@cache
def converted_once(name: str) -> nr.Network:
    return nr.convert(plain(name), SIZE)


def converted(name: str) -> nr.Network:
    model = copy.deepcopy(converted_once(name))
    torch.manual_seed(0)
    return model


@cache
def worn_once(name: str) -> nr.Network:
    model = vary(converted(name))
    kill_random(model, share=0.3)
    silence(model)
    return model


def worn(name: str) -> nr.Network:
    """A converted network at the end of a search, its dead channels silenced."""
    model = copy.deepcopy(worn_once(name))
    torch.manual_seed(0)
    return model


def images() -> torch.Tensor:
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def seeded_logits(model: nn.Module, training: bool) -> torch.Tensor:
    torch.manual_seed(1)  # of the dropout
    dtype = next(model.parameters()).dtype
    return logits_of(copy.deepcopy(model), images().to(dtype), training)


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
    model = worn(name)
    before = logits_of(model, images())
    report = nr.rejuvenate(model, cross=cross)
    assert report.utilization.ratio < 1
    assert relative_difference(logits_of(model, images())[:, :1], before) < 1e-5
    assert nr.utilization(model).total > 0


@pytest.mark.parametrize("multiple", [1, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_groups_stay_whole_and_widths_fit(name, multiple):
    model = worn(name)
    groups = {n: layer.unit.group for n, layer in layers(model).items()}
    nr.rejuvenate(model, round_to=multiple)
    for layer_name, layer in layers(model).items():
        unit = layer.unit
        assert unit.group == groups[layer_name]
        if unit.group and layer.fixed is False:
            assert [i // unit.group[0] for i in unit.in_channels] == [
                o // unit.group[1] for o in unit.out_channels
            ]
        assert all(width % layer.part == 0 for width in unit.out_channels)
        if not layer.fixed:
            assert sum(unit.out_channels) % multiple == 0


@pytest.mark.parametrize("cross", MODES)
@pytest.mark.parametrize("name", NETWORKS)
def test_description_and_file_bring_it_back(name, cross, tmp_path):
    model = worn(name)
    for _ in range(2):
        found = nr.structure(model)
        assert nr.structure(nr.build(json.loads(json.dumps(found)))) == found
        nr.save(model, tmp_path / "network.pth")
        loaded = nr.load(tmp_path / "network.pth")
        assert torch.equal(logits_of(loaded, images()), logits_of(model, images()))
        if model.streams == 1:
            nr.rejuvenate(model, cross=cross)


@pytest.mark.parametrize("cross", ["removed", "full"])
@pytest.mark.parametrize("name", NETWORKS)
def test_merged_logits_are_the_sum(name, cross):
    model = worn(name)
    nr.rejuvenate(model, cross=cross)
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


def test_hidden_layers_are_fixed_and_not_penalised():
    model = converted("vgg")
    hidden = {n: layer for n, layer in layers(model).items() if isinstance(layer.unit, nr.Conv)}
    assert [layer.unit.kernel_size for layer in hidden.values()] == [2, 1]
    assert all(layer.fixed for layer in hidden.values())
    kill_random(model)
    rows = {row.name: row for row in nr.utilization(model).layers}
    assert all(rows[name].live_out == rows[name].out_channels for name in hidden)
    images_ = images()
    model(images_).sum().backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    nr.penalise(model, 0.1)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p.grad, before[n])}
    assert len(changed) == 3 and not any(name.startswith(tuple(hidden)) for name in changed)


def test_depthwise_channels_live_and_die_with_those_they_read():
    model = vary(converted("mobilenet"))
    placed = layers(model)
    name = next(n for n, a in placed.items() if a.unit.group and not a.fixed)
    source = placed[name].sources[0]
    with torch.no_grad():
        placed[source].unit.norms[0].weight[:3] = 0
        placed[name].unit.norms[0].weight[5] = 0
    masks = live_masks(wiring(model))
    assert torch.equal(masks[source][0], masks[name][0])
    assert (~masks[name][0]).nonzero().flatten().tolist() == [0, 1, 2, 5]
    row = next(r for r in nr.utilization(model).layers if r.name == name)
    assert (row.live, row.total) == (9 * row.live_out, 9 * row.out_channels)


def test_a_group_dies_when_all_its_outputs_or_inputs_are_dead():
    model = vary(converted("resnext"))
    placed = layers(model)
    name = next(n for n, a in placed.items() if a.unit.group)
    source, width = placed[name].sources[0], placed[name].unit.group[0]
    with torch.no_grad():
        placed[source].unit.norms[0].weight[: width + 1] = 0  # group 0, and a channel of group 1
        placed[name].unit.norms[0].weight[2 * width : 3 * width] = 0
    masks = live_masks(wiring(model))
    expected = torch.ones(8, width, dtype=torch.bool)
    expected[[0, 2]] = False
    for found in (masks[source][0], masks[name][0]):
        assert torch.equal(found, expected.flatten())


@pytest.mark.parametrize("name", GROUPED)
def test_a_chain_with_groups_never_dies(name):
    model = vary(converted(name))
    for layer in prunable(model).values():
        with torch.no_grad():
            layer.unit.norms[0].weight.zero_()
    silence(model)
    before = logits_of(model, images())
    nr.rejuvenate(model)
    assert relative_difference(logits_of(model, images())[:, :1], before) < 1e-5


def test_groups_have_no_cross_blocks_in_any_mode():
    model = worn("resnext")
    nr.rejuvenate(model, cross="attention")
    for layer in layers(model).values():
        if layer.unit.group:
            assert FORMS[layer.unit.form] == FORMS["removed"]


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


def head(m, x):
    return m.fc(torch.flatten(m.pool(x), 1))


REFUSED = {
    "tuple": (lambda m, x: (head(m, x), 3), "logits of an nn.Linear alone"),
    "softmax": (lambda m, x: head(m, x).softmax(1), "softmax"),
    "inplace": (lambda m, x: head(m, x.relu_() + x), "sum|in place"),
    "both": (lambda m, x: head(m, x * x[:, :1]), "getitem|mul"),
    "twice": (lambda m, x: head(m, m.norm(m.conv(x[:, :3]))), "called more than once"),
    "values": (lambda m, x: head(m, x) if x.sum() > 0 else x, "cannot trace"),
    "dropout": (lambda m, x: head(m, nn.functional.dropout(x)), "nn.Dropout"),
    "alpha": (lambda m, x: head(m, torch.add(m.pool(x), m.pool(x), alpha=2)), "alpha"),
    "half a channel": (lambda m, x: head(m, x[:, :, 1:]), "something else than whole channels"),
    "size": (lambda m, x: m.fc(torch.flatten(x, 1)), "other image_size|image_size"),
    "means": (lambda m, x: head(m, x * x.mean(1, True)), "mean: is no mean over H and W in one"),
    "moved": (lambda m, x: m.fc(x.view(x.shape[0], 2, -1, 6).mean(3)[..., 0]), "mean: is no mean"),
    "named": (lambda m, x: head(m, torch.special.expit(x)), "not known"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_form_in_units_is_named(case):
    end, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        nr.convert(ended(end), 8)


def test_what_nothing_reads_is_left_out_and_what_has_weights_is_named():
    model = ended(lambda m, x: (m.spare_norm(m.spare(m.pool(x))), head(m, m.bn(x)))[1]).eval()
    model.spare, model.spare_norm = nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)
    model.bn = nn.BatchNorm2d(4)
    with pytest.warns(UserWarning, match=r"left out of the network: spare, spare_norm$"):
        network = nr.convert(model, 8)
    x = torch.randn(2, 3, 8, 8)
    assert relative_difference(logits_of(network, x)[:, 0], logits_of(model, x)) < 1e-5
    assert not [name for name, _ in network.named_modules() if "spare" in name or "pool_" in name]


BY_NAME = {
    "convnext_tiny": "LayerNorm",
    "vgg11": "no batch norm",
}


@pytest.mark.parametrize("name", BY_NAME)
def test_torchvisions_other_networks_are_refused_with_the_reason(name):
    with torch.device("meta"):  # no weights, of which they have up to 133 million
        model = torchvision.models.get_model(name)
    with pytest.raises(ValueError, match=BY_NAME[name]):
        nr.convert(model, 64)


def test_networks_of_units_and_wrapped_ones_are_refused():
    model = plain("vgg")
    with pytest.raises(ValueError, match="already"):
        nr.convert(nr.convert(model, SIZE), SIZE)
    with pytest.raises(ValueError, match=r"model\.module"):
        nr.convert(nn.DataParallel(model), SIZE)
    with pytest.raises(ValueError, match="image_size"):
        nr.convert(model, -1)
    with pytest.raises(ValueError, match=r"^'resnet18': is no nn\.Module"):
        nr.convert("resnet18", SIZE)
    with pytest.raises(ValueError, match=r"no nn\.Conv2d"):
        nr.convert(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), SIZE)
    with pytest.raises(ValueError, match="lazy modules without weights yet: run a batch first"):
        nr.convert(nn.Sequential(nn.LazyConv2d(4, 1), nn.Flatten(), nn.Linear(4, 2)), SIZE)


HIDDEN = {
    "a hook": (lambda m: m.register_forward_hook(lambda *_: None), "a forward hook"),
    "a pre-hook": (lambda m: m.register_forward_pre_hook(lambda *_: None), "a forward hook"),
    "pruning": (lambda m: prune.l1_unstructured(m, "weight", 0.5), "a forward hook"),
    "spectral norm": (parametrizations.spectral_norm, "remove_parametrizations first"),
}


@pytest.mark.parametrize("case", HIDDEN)
def test_what_the_graph_does_not_show_is_refused_in_one_line(case):
    change, words = HIDDEN[case]
    model = plain("basic")
    change(model.layer1[0].conv1)
    with pytest.raises(ValueError, match=r"^layer1\.0\.conv1: .*" + words) as caught:
        nr.convert(model, SIZE)
    assert "\n" not in str(caught.value)


def test_the_memory_order_is_kept():
    model = plain("basic").to(memory_format=torch.channels_last)
    convs = [m for m in nr.convert(model, SIZE).modules() if isinstance(m, nn.Conv2d)]
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convs)
    convs = [m for m in converted("basic").modules() if isinstance(m, nn.Conv2d)]
    assert all(m.weight.is_contiguous() for m in convs)


class OwnConv(nn.Conv2d):
    """A convolution of a user's own."""


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Conv2d(4, 4, 3, padding_mode="circular"), r"3: Conv2d\(.* is no plain nn.Conv2d"),
        (nn.InstanceNorm2d(4), "3: InstanceNorm2d .* is no batch norm"),
        (OwnConv(4, 4, 3), r"3: OwnConv\(.* is no plain nn.Conv2d"),
        (nn.Sequential(nn.Conv2d(4, 4, 3), OwnNorm(4)), r"3\.1: OwnNorm may do more than"),
    ],
)
def test_other_convolutions_and_norms_are_refused_as_what_they_are(module, words):
    stem = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    end = [nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    with pytest.raises(ValueError, match=words):
        nr.convert(nn.Sequential(*stem, module, *end), 8)


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
    try:
        network = nr.convert(model, SIZE)
    except ValueError as error:
        if "cannot trace its forward (avg_pool2d(): argument 'kernel_size'" in str(error):
            pytest.skip("this torch takes no traced size for a kernel")
        raise
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


def test_a_module_that_is_called_twice_is_refused():
    block = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)]
    with pytest.raises(ValueError, match="called more than once"):
        nr.convert(nn.Sequential(block, block, *end), 8)


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


@pytest.mark.parametrize("name", GROUPED)
def test_from_scratch_keeps_whole_groups(name):
    model = worn(name)
    nr.rejuvenate(model, from_scratch=True)
    assert model.streams == 1
    assert nr.build(nr.structure(model)).load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group": [3, 1]}, "whole groups"),
        ({"group": [2]}, "not .input, output. channels"),
        ({"group": "2"}, "list"),
        ({"group": [0, 1]}, "group"),
        ({"form": "full", "in_channels": [4, 4], "out_channels": [4, 4]}, "connects groups"),
    ],
)
def test_descriptions_of_groups_that_do_not_fit_are_refused(change, words):
    end = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    stem = [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()]
    model = nn.Sequential(*stem, nn.Conv2d(4, 4, 3, groups=2), nn.BatchNorm2d(4), *end)
    found = nr.structure(nr.convert(model, 8))
    next(node for node in found["features"]["nodes"] if node["name"] == "3")["op"] |= change
    with pytest.raises(ValueError, match=words):
        nr.build(found)


@pytest.mark.parametrize("groups", [3, 1.0, 0])
def test_groups_that_do_not_divide_the_channels_are_refused(groups):
    with pytest.raises(ValueError, match="groups"):
        nr.ConvBN(4, 4, 3, groups=groups)


def test_an_unknown_activation_of_a_sum_is_refused():
    with pytest.raises(ValueError, match="activation 'gelu'"):
        nr.Residual(None, activation="gelu")


def test_groups_that_read_the_image_are_refused():
    end = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)]
    with pytest.raises(ValueError, match="groups read the image"):
        nr.convert(nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.BatchNorm2d(3), *end), 8)


class NormAct(nn.BatchNorm2d):
    """A batch norm that activates too, and computes it itself."""

    def __init__(self, width: int, factor: float = 1.0):
        super().__init__(width)
        self.drop, self.act, self.factor = nn.Identity(), nn.SiLU(inplace=True), factor

    def forward(self, x):
        x = nn.functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training
        )
        return self.act(self.factor * self.drop(x))


class Same(nn.Conv2d):
    """A convolution that pads as much as the size of its images needs."""

    def forward(self, x):
        sides = [-size % 2 + 1 for size in (x.shape[3], x.shape[2])]
        x = nn.functional.pad(x, (0, sides[0], 0, sides[1]))
        return nn.functional.conv2d(x, self.weight, self.bias, self.stride)


class Blur(nn.Module):
    """A fixed window over each channel."""

    def __init__(self, width: int):
        super().__init__()
        window = torch.tensor([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]]) / 16
        self.register_buffer("window", window[None, None].repeat(width, 1, 1, 1), persistent=False)

    def forward(self, x):
        x = nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
        return nn.functional.conv2d(x, self.window, stride=2, groups=x.shape[1])


class OwnLinear(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight, self.bias)


def in_other_forms(end: str) -> nn.Module:
    stem = [Same(3, 8, 3, stride=2), NormAct(8), nn.Conv2d(8, 9, 3, padding=1), NormAct(9)]
    ends = {
        "linear": [nn.Flatten(), OwnLinear(9, CLASSES), nn.Flatten(), nn.Identity()],
        "convolution": [nn.Conv2d(9, CLASSES, 1), nn.Flatten()],
    }
    torch.manual_seed(0)
    model = nn.Sequential(*stem, Blur(9), nn.AdaptiveAvgPool2d(1), *ends[end]).double()
    random_norms(model)
    return model


@pytest.mark.parametrize("end", ["linear", "convolution"])
def test_layers_in_other_forms_are_converted_and_rejuvenated(end, tmp_path):
    images = torch.randn(4, 3, SIZE, SIZE).double()
    model = in_other_forms(end)
    network = nr.convert(model, SIZE)
    for training in (False, True, False):
        found, wanted = (logits_of(each, images, training) for each in (network, model))
        assert relative_difference(found[:, 0], wanted) < 1e-12
    before = logits_of(wear(network), images)
    nr.rejuvenate(network, "full")
    assert relative_difference(logits_of(network, images)[:, :1], before) < 1e-12
    nr.save(network, tmp_path / "network.pt")
    into = nr.convert(in_other_forms(end), SIZE)  # a file only names the fixed filter
    loaded = nr.load(tmp_path / "network.pt", into=into)
    assert torch.equal(logits_of(loaded, images), logits_of(network, images))


def test_a_norm_that_does_more_than_its_modules_is_refused():
    model = in_other_forms("linear")
    model[1].factor = 2.0
    with pytest.raises(ValueError, match=r"1: NormAct may do more than nn\.BatchNorm2d"):
        nr.convert(model, SIZE)
