"""nr.convert: operations of other people's networks, each in a small one, in all forms."""

import copy
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

import nr
from tests.helpers import random_norms, relative_difference, wear

SIZE = 16  # pixels
CLASSES = 5
EXACT = 1e-12  # of the largest output, in double


class Net(nn.Module):
    """Two units, ``middle`` behind the first, ``end`` behind the second, a classifier."""

    def __init__(self, middle=None, end=None, first=None, **modules):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 12, 3, 2, 1), nn.BatchNorm2d(12)
        self.body, self.body_norm = nn.Conv2d(12, 9, 3, padding=1), nn.BatchNorm2d(9)
        self.fc = nn.Linear(9, CLASSES)
        self.middle, self.end, self.first = middle, end, first
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        x = x if self.first is None else self.first(self, x)
        x = self.stem_norm(self.stem(x)).relu()
        x = x if self.middle is None else self.middle(self, x)
        x = self.body_norm(self.body(x)).relu()
        return self.fc(x.mean((2, 3)) if self.end is None else self.end(self, x))


class Selective(nn.Module):
    """Two branches weighed by a softmax over both, as of sknet."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(12, 12, k, padding=k // 2) for k in (1, 3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(2))
        self.reduce, self.select = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 24, 1, bias=False)

    def forward(self, x):
        parts = [norm(conv(x)).relu() for conv, norm in zip(self.convs, self.norms, strict=True)]
        x = torch.stack(parts, dim=1)  # [B, 2, C, H, W]
        gate = self.select(self.reduce(x.sum(1).mean((2, 3), keepdim=True)).relu())
        gate = torch.softmax(gate.view(x.shape[0], 2, 12, 1, 1), dim=1)
        return torch.sum(x * gate, dim=1)


class Split(nn.Module):
    """Parts of one convolution, weighed by a softmax over them and added, as of resnest."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(12, 24, 3, padding=1, groups=2), nn.BatchNorm2d(24)
        self.one, self.two = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 24, 1)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        b, c, h, w = x.shape
        x = x.reshape((b, 2, c // 2, h, w))
        gate = self.two(self.one(x.sum(dim=1).mean((2, 3), keepdim=True)).relu())
        gate = F.softmax(gate.view(b, 1, 2, -1).transpose(1, 2), dim=1).reshape(b, -1)
        gate = gate.view(b, -1, 1, 1)
        return (x * gate.reshape((b, 2, c // 2, 1, 1))).sum(dim=1)


class Normalised(nn.Module):
    """What is done to the image, by buffers and by tensors that the forward makes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.3]).view(1, 3, 1, 1))
        self.register_buffer("factor", torch.tensor([2.0]))

    def forward(self, x):
        deviation = torch.tensor([0.2, 0.3, 0.25], dtype=x.dtype, device=x.device)
        return self.factor * ((x - self.mean) / deviation[:, None, None]) - 1


def padded(m, x):
    return m.pool(F.pad(x, [0, 1, 1, 0], value=-float("inf")))


NETWORKS = {
    "-inf before a pooling": lambda: Net(padded, pool=nn.MaxPool2d(3, 2)),
    "-inf before a function": lambda: Net(
        lambda m, x: F.max_pool2d(F.pad(x, [0, 1, 1, 0], value=-float("inf")), 3, stride=2)
    ),
    "stack and softmax": lambda: Net(lambda m, x: m.inner(x), inner=Selective()),
    "parts of a convolution": lambda: Net(lambda m, x: m.inner(x), inner=Split()),
    "stack, unbound": lambda: Net(
        lambda m, x: torch.stack([x, m.inner(x)], dim=1).sum(1), inner=nn.Conv2d(12, 12, 1)
    ),
    "chained means": lambda: Net(end=lambda m, x: x.mean(3).mean(2)),
    "kept means": lambda: Net(end=lambda m, x: x.mean(2, True).mean(-1, True).flatten(1)),
    "means of a view": lambda: Net(end=lambda m, x: x.view(x.shape[0], 9, -1).mean(2)),
    "mean of shuffled channels": lambda: Net(
        end=lambda m, x: F.channel_shuffle(x, 3).mean((-1, -2))
    ),
    "one trained factor": lambda: Net(
        lambda m, x: m.factor * x, factor=nn.Parameter(torch.rand(1))
    ),
    "the image, normalised": lambda: Net(first=lambda m, x: m.norms(x), norms=Normalised()),
    "a negative image": lambda: Net(first=lambda m, x: 1 - (-x) / 0.5),
    "number of a buffer": lambda: Net(lambda m, x: x * torch.full((1, 1, 1, 1), 0.5)),
}


def plain(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name]().double()
    random_norms(model)
    return model


def images() -> torch.Tensor:
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3)).double()


def outputs(model: nn.Module, training: bool = False) -> list[torch.Tensor]:
    with torch.no_grad():
        return tree_leaves(model.train(training)(images()))


def summed(network: nn.Module) -> list[torch.Tensor]:
    """The sums over the streams, in eval and in train mode, of copies."""
    found = (outputs(copy.deepcopy(network), training) for training in (False, True))
    return [output.sum(1) for each in found for output in each]


def close(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
    pairs = list(zip(found, wanted, strict=True))
    return all(bool(relative_difference(a, b) < EXACT) for a, b in pairs)


@cache
def converted(name: str) -> nr.Network:
    return nr.convert(plain(name), SIZE)


@pytest.mark.parametrize("name", NETWORKS)
def test_operations_are_converted_worn_down_rebuilt_and_merged(name, tmp_path):
    model, network = plain(name), copy.deepcopy(converted(name))
    assert nr.obstacles(model, SIZE) == []
    for training in (False, True, False):
        assert close([outputs(network, training)[0][:, 0]], outputs(model, training))
    before = outputs(wear(network))
    assert nr.utilization(network).ratio < 1
    torch.manual_seed(0)
    nr.rejuvenate(network, "full")
    survived = outputs(network)
    assert close([survived[0][:, :1]], before)
    nr.save(network, tmp_path / "network.pt")
    assert close(outputs(nr.load(tmp_path / "network.pt").double()), survived)
    network.train()(images()).square().sum().backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None]
    wanted = summed(network)
    nr.merge(network)
    assert close(summed(network), wanted)


class Backbone(nn.Module):
    """Maps of features, each of which the next layer reads, in a list: no classifier at all."""

    def __init__(self):
        super().__init__()
        sizes = ((3, 12), (12, 9), (9, 7))
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, 2, 1) for i, o in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o in sizes)

    def forward(self, x):
        found = []
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(conv(x)).relu()
            found.append(x)
        return [*found, x.mean((2, 3))]


def test_a_backbone_gives_its_features_through_heads_that_begin_as_the_identity():
    torch.manual_seed(0)
    model = Backbone().double()
    random_norms(model)
    network = nr.convert(model, SIZE)
    for training in (False, True):
        found = [output[:, 0] for output in outputs(network, training)]
        assert [len(output.shape) for output in found] == [4, 4, 4, 2]
        assert close(found, outputs(model, training))
    before = outputs(wear(network))
    assert nr.utilization(network).ratio < 1
    nr.rejuvenate(network, "full")
    assert close([output[:, :1] for output in outputs(network)], before)
    wanted = summed(network)
    nr.merge(network)
    assert close(summed(network), wanted)


def test_parts_of_one_convolution_that_are_added_stay_in_their_places():
    """What a sum adds has one number for life; which part it is does not get lost."""
    torch.manual_seed(0)
    model = Net(lambda m, x: x[:, :4] + x[:, 8:] - x[:, 4:8], body=nn.Conv2d(4, 9, 3, padding=1))
    random_norms(model.double())
    network = nr.convert(model, SIZE)
    before = outputs(wear(network))
    nr.rejuvenate(network, "removed")
    assert close([outputs(network)[0][:, :1]], before)
    wanted = summed(network)
    nr.merge(network)
    assert close(summed(network), wanted)
