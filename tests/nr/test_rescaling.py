"""nr.rescaling: small scales move up, and the function stays the same."""

import copy
import math

import pytest
import torch
from torch import nn

import nr
from nr.network.convolutions import ConvBN
from nr.network.layers import Chain, Classifier, Network
from tests.copies import copied
from tests.helpers import (
    FAMILIES,
    MODES,
    batch,
    build,
    layers,
    logits_of,
    norms,
    open_cross_blocks,
    prunable,
    rebuilt,
    relative_difference,
    same_tensors,
    tiny,
    vary,
)

TARGET = 0.5


@torch.no_grad()
def scatter(model: nn.Module, seed: int = 5) -> nn.Module:
    """|γ| from 0.001 to 2 with both signs, some exactly 0 and some exactly the target."""
    generator = torch.Generator().manual_seed(seed)
    for norm in norms(model):
        size = norm.weight.shape
        sign = torch.rand(size, generator=generator).sub_(0.3).sign_()
        norm.weight.uniform_(math.log(1e-3), math.log(2), generator=generator).exp_().mul_(sign)
        norm.bias.normal_(0, 0.2, generator=generator).mul_(norm.weight.abs())
        pick = torch.rand(size, generator=generator)
        norm.weight[pick < 0.1] = 0
        norm.weight[pick > 0.9] = TARGET
    return model


@copied
def prepared(family: str, mode: str | None) -> Network:
    """A network with scattered scales; with a mode, after rejuvenation and some training."""
    if mode is None:
        return scatter(vary(build(family)))
    model, _ = rebuilt(family, mode)
    open_cross_blocks(model)
    return scatter(model)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("family", FAMILIES)
def test_function_is_unchanged(family, mode, training):
    model, rescaled = prepared(family, mode), prepared(family, mode)
    nr.rescale(rescaled, TARGET)
    assert not same_tensors(model.state_dict(), rescaled.state_dict())
    images, _ = batch()
    before, after = (logits_of(network, images, training) for network in (model, rescaled))
    assert relative_difference(after, before) < 1e-4


@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("family", FAMILIES)
def test_scales_afterwards(family, mode):
    model, before = prepared(family, mode), layers(prepared(family, mode))
    nr.rescale(model, TARGET)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    for name, layer in layers(model).items():
        for new, old in zip(layer.unit.norms, before[name].unit.norms, strict=True):
            gamma = old.weight
            kept = (gamma == 0) | (gamma.abs() >= TARGET) | torch.tensor(layer.fixed)
            assert torch.equal(new.weight[kept], gamma[kept])
            assert torch.equal(new.bias[kept], old.bias[kept])
            assert torch.equal(new.weight[~kept], TARGET * gamma[~kept].sign())
            torch.testing.assert_close(new.bias[~kept], (old.bias / gamma.abs() * TARGET)[~kept])
            assert torch.equal(new.running_mean, old.running_mean)
            assert torch.equal(new.running_var, old.running_var)
    smallest = [
        norm.weight[norm.weight != 0].abs().min()
        for layer in prunable(model).values()
        for norm in layer.unit.norms
        if norm.weight.any()
    ]
    assert min(smallest) >= TARGET


def chain(*gammas: float) -> Network:
    """1x1 ConvBNs with these scales and one channel each, then a classifier of one class."""
    units = [ConvBN(3 if index == 0 else 1, 1, 1) for index in range(len(gammas))]
    for unit, gamma in zip(units, gammas, strict=True):
        nn.init.constant_(unit.convs[0].weight, 2.0)
        unit.norms[0].weight.data.fill_(gamma)
        unit.norms[0].bias.data.fill_(0.25)
    parts = [module for unit in units for module in (unit, nn.ReLU())]
    model = Network(Chain(*parts, nn.AdaptiveAvgPool2d(1)), Classifier(1, 1), image_size=4)
    nn.init.constant_(model.classifier.linears[0].weight, 3.0)
    nn.init.constant_(model.classifier.linears[0].bias, 7.0)
    return model


@pytest.mark.parametrize(
    ("gamma", "new_gamma", "beta", "factor"),
    [
        (0.125, 0.5, 1.0, 0.25),  # four times up, its reader four times down
        (-0.125, -0.5, 1.0, 0.25),  # β keeps its sign
        (0.5, 0.5, 0.25, 1.0),
        (0.75, 0.75, 0.25, 1.0),
        (-2.0, -2.0, 0.25, 1.0),
        (0.0, 0.0, 0.25, 1.0),
    ],
)
def test_one_channel_by_hand(gamma, new_gamma, beta, factor):
    model = chain(gamma, 1.0)
    nr.rescale(model, 0.5)
    first, _, second, *_ = model.features
    assert (first.norms[0].weight.item(), first.norms[0].bias.item()) == (new_gamma, beta)
    assert first.convs[0].weight.flatten().tolist() == [2.0] * 3  # the image is not scaled
    assert second.convs[0].weight.item() == 2.0 * factor
    assert (second.norms[0].weight.item(), second.norms[0].bias.item()) == (1.0, 0.25)
    assert model.classifier.linears[0].weight.item() == 3.0


def test_classifier_by_hand():
    model = chain(1.0, 0.125)
    nr.rescale(model, 0.5)
    linear = model.classifier.linears[0]
    assert (linear.weight.item(), linear.bias.item()) == (0.75, 7.0)


def test_all_four_blocks_are_compensated():
    """γ of S 1/8 (factor 1/4), of R 1/16 (1/8): every weight that reads the stream shrinks."""
    model = tiny()
    model.features.first.norms[0].weight.data[:2] = 0
    nr.rejuvenate(model, cross="full")
    unit = model.features.second
    for _, _, block in unit.blocks():
        block.fill_(1.0)
    for norm, gamma in zip(model.features.first.norms, (0.125, 0.0625), strict=True):
        norm.weight.data.fill_(gamma)
    nr.rescale(model, 0.5)
    found = {(i, o): block.unique().tolist() for i, o, block in unit.blocks()}
    assert found == {(0, 0): [0.25], (0, 1): [0.25], (1, 0): [0.125], (1, 1): [0.125]}


@pytest.mark.parametrize("family", ["basic", "bottleneck"])
def test_fixed_scales_are_left_alone(family):
    model = build(family)
    for norm in norms(model):
        nn.init.constant_(norm.weight, 0.125)
    nr.rescale(model, TARGET)
    for layer in layers(model).values():
        assert (layer.unit.norms[0].weight == (0.125 if layer.fixed else 0.5)).all()


@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_above_the_target_is_unchanged_bit_for_bit(family, mode):
    model = prepared(family, mode)
    for norm in norms(model):
        norm.weight.data[norm.weight.abs() < 0.01] = 0
    before = copy.deepcopy(model.state_dict())
    nr.rescale(model, 0.01)
    assert same_tensors(before, model.state_dict())


def test_rescaling_twice_is_rescaling_once():
    model = prepared("vgg", "attention")
    nr.rescale(model, TARGET)
    before = copy.deepcopy(model.state_dict())
    nr.rescale(model, TARGET)
    assert same_tensors(before, model.state_dict())


@pytest.mark.parametrize("gamma", [1e-10, 1e-20, 1e-30])
def test_vanishing_scale_gives_no_nan(gamma):
    model = vary(tiny())
    norm = model.features.first.norms[0]
    norm.weight.data[0] = gamma
    norm.bias.data[0] = 0.25
    images, _ = batch()
    before = logits_of(model, images)
    nr.rescale(model, TARGET)
    assert relative_difference(logits_of(model, images), before) < 1e-4


@pytest.mark.parametrize("target", [0, 0.0, -0.5, math.nan, math.inf, -math.inf])
def test_senseless_target_is_refused_before_any_work(target):
    model = vary(tiny())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="target"):
        nr.rescale(model, target)
    assert same_tensors(before, model.state_dict())


class Gated(nn.Module):
    """A unit multiplied by a gate that is made of its own mean, as in squeeze-excitation."""

    def __init__(self, gate: nn.Module):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.gate, self.last = gate, nn.Linear(6, 5)

    def forward(self, x):
        x = self.norm(self.conv(x)).relu()
        return self.last((x * self.gate(x.mean((2, 3), keepdim=True))).mean((2, 3)))


@pytest.mark.parametrize("mode", [None, *MODES])
def test_what_a_gate_multiplies_moves_since_its_product_does(mode):
    """g(x)·x: the gate reads x through a weight that takes the factor off again."""
    torch.manual_seed(0)
    gate = nn.Sequential(nn.Conv2d(6, 2, 1), nn.ReLU(), nn.Conv2d(2, 6, 1), nn.Sigmoid())
    model = vary(nr.convert(Gated(gate), 8)).double()
    if mode is not None:
        model.features.get_submodule("conv").norms[0].weight.data[:3] = 0
        nr.rejuvenate(model, cross=mode)
        open_cross_blocks(model)
    scatter(model)
    images = torch.randn(2, 3, 8, 8).double()
    before = logits_of(model, images)
    gammas = [norm.weight.clone() for norm in norms(model)]
    nr.rescale(model, TARGET)
    assert any((new.weight != old).any() for new, old in zip(norms(model), gammas, strict=True))
    assert relative_difference(logits_of(model, images), before) < 1e-12


def test_a_scale_inside_a_gate_stays_refused():
    """Its product is read at the place of the other side, whose factor it would miss."""
    gate = nn.Sequential(nn.Conv2d(6, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    model = nr.convert(Gated(gate), 8)
    with pytest.raises(ValueError, match=r"a product.*the scales of features\.gate\.0"):
        nr.rescale(model, TARGET)
