"""Groups of converted networks: they live, die and grow whole; hidden layers are fixed."""

import pytest
import torch
from torch import nn

import nr
from nr.method.utilization import live_masks
from nr.network.units import FORMS
from nr.network.wiring import wiring
from tests.helpers import (
    kill_random,
    layers,
    logits_of,
    prunable,
    relative_difference,
    silence,
    vary,
)
from tests.nr.test_conversion import GROUPED, NETWORKS, converted, images, worn


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
