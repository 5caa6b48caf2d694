"""nr.constants and nr.budget by hand."""

import torch
from torch import nn

import nr
from nr.network.convolutions import Conv, ConvBN
from nr.network.graph import Graph, Node
from nr.network.layers import Classifier, Network
from nr.network.units import Norm
from nr.network.wiring import wiring


def line(*modules: nn.Module, width: int) -> Network:
    """One module after another, a pooling and a classifier."""
    named = dict(zip("abcdefgh", (*modules, nn.AdaptiveAvgPool2d(1)), strict=False))
    before = ["image", *named]
    nodes = [Node(name, None, (before[k],)) for k, name in enumerate(named)]
    return Network(Graph(nodes, named), Classifier(width, 2), 8)


@torch.no_grad()
def test_what_a_dead_pair_says_goes_into_the_bias():
    network = line(Conv(3, 4, 1), Norm(4), nn.ReLU(), Conv(4, 4, 1), width=4)
    norm, reader = network.features.b.norms[0], network.features.d
    norm.weight[1], norm.bias[1] = 0, 3.0
    column, bias = reader.convs[0].weight[:, 1, 0, 0].clone(), reader.norms[0].bias.clone()
    nr.rejuvenate(network, "none")
    assert reader.in_channels == (3,)
    assert torch.allclose(reader.norms[0].bias, bias + 3 * column)


@torch.no_grad()
def test_a_depthwise_network_grows_as_far_as_its_budget_goes():
    """It costs 3·a + 9·a + a·b, of which the first two have one width a: 160 for a = b = 8."""
    network = line(ConvBN(3, 8, 1), ConvBN(8, 8, 3, groups=8), ConvBN(8, 8, 1), width=8)
    for name in "ab":
        getattr(network.features, name).norms[0].weight[4:] = 0
    report = nr.rejuvenate(network, "full")
    a, _, b = (sum(layer.unit.out_channels) for layer in wiring(network).layers)
    assert 12 * a + a * b <= 160 and report.budget == (12 * a + a * b) / 160
    assert 12 * (a + 1) + (a + 1) * b > 160 or 12 * a + a * (b + 1) > 160
