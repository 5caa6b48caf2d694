"""nr.scaling: scales where there is no batch norm, and what becomes of them."""

import copy

import pytest
import torch
from torch import nn

import nr
from nr.network.convolutions import Conv
from nr.network.graph import Graph, Node
from nr.network.layers import Classifier, Network
from nr.network.norms import Scale
from nr.network.units import Norm
from nr.network.wiring import wiring
from tests.helpers import logits_of, relative_difference
from tests.nr.test_families import SCALED, WHOLE
from tests.nr.whole import EXACT, images

PLACES = {  # behind the poolings and dropouts that follow; none in the sum, at the gate
    "alexnet": ["2", "4", "10", "13", "15"],
    "fire": ["max_pool2d", "relu_1", "relu_2", "sigmoid", "relu_3", "relu_5"],
}


def scales(network: Network) -> dict[str, Scale]:
    return {n: m for n, m in network.named_modules() if isinstance(m, Scale)}


@pytest.mark.parametrize("name", SCALED)
def test_scales_stand_where_channels_are_free_and_change_no_bit(name):
    network = WHOLE.converted(name)
    found = [layer.name for layer in wiring(network).prunable if isinstance(layer.unit, Norm)]
    assert found == [f"features.{place}_scale" for place in PLACES[name]]
    before = logits_of(network, images())
    nr.merge(network, fold=True)  # by 1
    assert not scales(network) and torch.equal(logits_of(network, images()), before)


@pytest.mark.parametrize("name", SCALED)
def test_without_scales_the_remedy_is_named(name):
    with pytest.raises(ValueError, match=r"has no batch norm .* give scales=True"):
        nr.convert(WHOLE.plain(name), 32)


def test_where_sums_hold_everything_scales_do_not_help():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 2)

        def forward(self, x):
            x = self.a(x).relu()
            return self.fc((x + self.b(x)).mean((2, 3)))

    with pytest.raises(ValueError, match="sums and products hold all"):
        nr.convert(Sum(), 8, scales=True)


def test_scales_are_penalised_and_reborn_as_ones():
    network = WHOLE.worn("fire")
    network.train()(images()).square().sum().backward()
    before = {name: scale.weight.grad.clone() for name, scale in scales(network).items()}
    nr.penalise(network, 0.5)
    for name, scale in scales(network).items():
        assert torch.equal(scale.weight.grad, before[name] + 0.5 * scale.weight.sign())
    nr.rejuvenate(network)
    fresh = [m for name, m in scales(network).items() if name.endswith("norms.1")]
    assert fresh and all((scale.weight == 1).all() for scale in fresh)


@pytest.mark.parametrize("cross", [None, "removed", "full"])
@pytest.mark.parametrize("name", SCALED)
def test_folding_is_exact_and_merging_alone_keeps_the_scales(name, cross):
    network = WHOLE.worn(name)
    if cross:
        nr.rejuvenate(network, cross)
        whole = copy.deepcopy(network)
        nr.merge(whole)
        assert scales(whole) and nr.utilization(whole).ratio == 1  # another round can follow
    before, optimizer = logits_of(network, images()).sum(1), nr.SGD(network, lr=0.1)
    nr.merge(network, fold=True)
    assert not scales(network)
    assert relative_difference(logits_of(network, images())[:, 0], before) < EXACT
    network(images()).sum().backward()
    with pytest.raises(RuntimeError, match="make a new one"):
        optimizer.step()


@torch.no_grad()
@pytest.mark.parametrize("sign", [1, -1])
def test_a_negative_scale_before_a_maximum_stays(sign):
    """max(γ·x) is γ·max(x) for γ >= 0 only."""
    nodes = [Node(n, None, (i,)) for i, n in zip(["image", *"abc"], "abcd", strict=True)]
    modules = {"a": Conv(3, 4, 1), "b": Norm(4, eps=None), "c": nn.MaxPool2d(2)}
    modules["d"] = nn.AdaptiveAvgPool2d(1)
    network = Network(Graph(nodes, modules), Classifier(4, 5), 32).double()
    network.features.b.norms[0].weight.copy_(torch.tensor([0.5, 2, sign, 1]))
    before = logits_of(network, images())
    nr.merge(network, fold=True)
    assert bool(scales(network)) == (sign < 0)
    assert relative_difference(logits_of(network, images()), before) < EXACT
