"""nr.wiring: the sources and sizes that the one walk reports, for each family."""

import re

import pytest
import torch
from torch import nn

import nr
from models.cifar import densenet, resnet, vgg11_bn
from nr.network.convolutions import ConvBN
from nr.network.graph import ADD
from nr.network.plain import effect
from nr.network.wiring import _Walk, wiring
from tests.helpers import FAMILIES, branches, build, layers, worn
from tests.running import ROOT

# name -> (sources, output H = W, branch); "features." left out everywhere, images of 32
VGG11 = {
    "group1.0": (("image",), 32, None),
    "group2.0": (("group1.0",), 32, None),
    "group3.0": (("group2.0",), 16, None),
    "group3.2": (("group3.0",), 16, None),
    "group4.0": (("group3.2",), 16, None),
    "group4.2": (("group4.0",), 16, None),
    "group5.0": (("group4.2",), 8, None),
    "group5.2": (("group5.0",), 8, None),
}
RESNET14 = {  # two basic blocks a stage; a sum is named by its shortcut, or by the stem
    "stem.0": (("image",), 32, None),
    "stage1.0.branch.0": (("stem.0",), 32, "stage1.0"),
    "stage1.0.branch.2": (("stage1.0.branch.0",), 32, "stage1.0"),
    "stage1.1.branch.0": (("stem.0",), 32, "stage1.1"),
    "stage1.1.branch.2": (("stage1.1.branch.0",), 32, "stage1.1"),
    "stage2.0.branch.0": (("stem.0",), 16, "stage2.0"),
    "stage2.0.branch.2": (("stage2.0.branch.0",), 16, "stage2.0"),
    "stage2.0.shortcut": (("stem.0",), 16, None),
    "stage2.1.branch.0": (("stage2.0.shortcut",), 16, "stage2.1"),
    "stage2.1.branch.2": (("stage2.1.branch.0",), 16, "stage2.1"),
    "stage3.0.branch.0": (("stage2.0.shortcut",), 8, "stage3.0"),
    "stage3.0.branch.2": (("stage3.0.branch.0",), 8, "stage3.0"),
    "stage3.0.shortcut": (("stage2.0.shortcut",), 8, None),
    "stage3.1.branch.0": (("stage3.0.shortcut",), 8, "stage3.1"),
    "stage3.1.branch.2": (("stage3.1.branch.0",), 8, "stage3.1"),
}
BOTTLENECK44 = {  # the ends of the first two stages; the stride is in the 3x3
    "stage1.0.branch.0": (("stem.0",), 32, "stage1.0"),
    "stage1.0.branch.2": (("stage1.0.branch.0",), 32, "stage1.0"),
    "stage1.0.branch.4": (("stage1.0.branch.2",), 32, "stage1.0"),
    "stage1.0.shortcut": (("stem.0",), 32, None),
    "stage1.6.branch.0": (("stage1.0.shortcut",), 32, "stage1.6"),
    "stage2.0.branch.0": (("stage1.0.shortcut",), 32, "stage2.0"),
    "stage2.0.branch.2": (("stage2.0.branch.0",), 16, "stage2.0"),
    "stage2.0.branch.4": (("stage2.0.branch.2",), 16, "stage2.0"),
    "stage2.0.shortcut": (("stage1.0.shortcut",), 16, None),
    "stage2.6.branch.0": (("stage2.0.shortcut",), 16, "stage2.6"),
}
DENSENET10 = {  # one layer a block; a concat keeps the order: what was there, then what is new
    "stem.0": (("image",), 32, None),
    "block1.0.branch.0": (("stem.0",), 32, "block1.0"),
    "block1.0.branch.2": (("block1.0.branch.0",), 32, "block1.0"),
    "transition1.0": (("stem.0", "block1.0.branch.2"), 32, None),
    "block2.0.branch.0": (("transition1.0",), 16, "block2.0"),
    "block2.0.branch.2": (("block2.0.branch.0",), 16, "block2.0"),
    "transition2.0": (("transition1.0", "block2.0.branch.2"), 16, None),
    "block3.0.branch.0": (("transition2.0",), 8, "block3.0"),
    "block3.0.branch.2": (("block3.0.branch.0",), 8, "block3.0"),
}
EXPECTED = {
    "vgg": (vgg11_bn(width_mult=1 / 16), VGG11, ("group5.2",), 8),
    "basic": (resnet(depth=14, width_mult=0.25), RESNET14, ("stage3.0.shortcut",), 15),
    "bottleneck": (resnet(depth=44, width_mult=0.25), BOTTLENECK44, ("stage3.0.shortcut",), 67),
    "dense": (
        densenet(depth=10, growth_rate=2),
        DENSENET10,
        ("transition2.0", "block3.0.branch.2"),
        9,
    ),
}


def short(name: str | None) -> str | None:
    return name and name.removeprefix("features.")


@pytest.mark.parametrize("family", EXPECTED)
def test_sources_sizes_and_branches(family):
    model, rows, head, count = EXPECTED[family]
    plan = wiring(model)
    found, found_head = plan.layers, plan.steps["classifier"].sources
    table = {
        short(layer.name): (tuple(map(short, layer.sources)), layer.size[0], short(layer.branch))
        for layer in found
    }
    assert all(layer.size[0] == layer.size[1] for layer in found)
    assert len(table) == len(found) == count
    assert {name: table[name] for name in rows} == rows
    if count == len(rows):
        assert list(table) == list(rows)
    assert tuple(map(short, found_head)) == head


def test_both_sides_of_every_sum():
    """The branch, and the shortcut or what stands for the identity."""
    steps = wiring(EXPECTED["basic"][0]).steps
    sums = {name: step.inputs for name, step in steps.items() if step.op == ADD}
    sources = {n: [steps[side].sources for side in sides] for n, sides in sums.items()}
    table = {short(n): (short(branch), short(way)) for n, ((branch,), (way,)) in sources.items()}
    assert table == {
        "stage1.0": ("stage1.0.branch.2", "stem.0"),
        "stage1.1": ("stage1.1.branch.2", "stem.0"),
        "stage2.0": ("stage2.0.branch.2", "stage2.0.shortcut"),
        "stage2.1": ("stage2.1.branch.2", "stage2.0.shortcut"),
        "stage3.0": ("stage3.0.branch.2", "stage3.0.shortcut"),
        "stage3.1": ("stage3.1.branch.2", "stage3.0.shortcut"),
    }
    assert ADD not in [step.op for step in wiring(EXPECTED["dense"][0]).steps.values()]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_unit_once_and_by_its_own_name(family):
    model = build(family)
    units = {name: module for name, module in model.named_modules() if isinstance(module, ConvBN)}
    assert {name: layer.unit for name, layer in layers(model).items()} == units


@pytest.mark.parametrize("family", FAMILIES)
def test_sources_come_first_and_have_the_input_width(family):
    widths = {"image": (3,)}
    for layer in wiring(build(family)).layers:
        assert sum(widths[source][0] for source in layer.sources) == layer.unit.in_channels[0]
        widths[layer.name] = layer.unit.out_channels


@pytest.mark.parametrize("size", [8, 9, 15, 32, None])
@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_are_those_of_the_activations(family, size):
    model = build(family).to("meta")
    found = wiring(model, size).layers
    sizes = {}
    for layer in found:
        layer.unit.register_forward_hook(
            lambda _, __, out, name=layer.name: sizes.update({name: tuple(out[0].shape[2:])})
        )
    model(torch.empty(2, 3, size or 32, size or 32, device="meta"))
    assert sizes == {layer.name: layer.size for layer in found}


@pytest.mark.parametrize("family", ["basic", "bottleneck"])
def test_a_dropped_branch_is_not_walked(family):
    model = build(family)
    name, container = list(branches(model).items())[1]
    before = layers(model)
    container.branch = None
    after = layers(model)
    assert list(after) == [n for n in before if not n.startswith(f"{name}.branch")]
    gone = {source for layer in after.values() for source in layer.sources} - after.keys()
    assert gone == {"image"}


def test_the_graph_of_the_page_is_walked_and_rebuilt():
    page = (ROOT / "nr" / "README.md").read_text(encoding="utf-8")
    code = re.search(r"## A graph of units.*?```python\n(.*?)```", page, re.DOTALL)[1]
    names = {}
    exec(compile(code, "page", "exec"), names)
    network = names["network"]
    with torch.no_grad():
        network.features.right.norms[0].weight.zero_()
        network.features.right.norms[0].bias.zero_()
    images = torch.randn(2, 3, 32, 32)
    before = network.eval()(images)
    report = nr.rejuvenate(network, "full")
    assert report.utilization.ratio == (3 * 9 * 16 + 16 * 8) / (3 * 9 * 16 + 16 * 8 * 10)
    assert torch.allclose(network.eval()(images)[:, :1], before, atol=1e-6)


def test_a_rebuild_walks_its_network_once(monkeypatch):
    walks = []

    class Counted(_Walk):
        def __init__(self, model):
            walks.append(model)
            super().__init__(model)

    model = worn("basic")
    monkeypatch.setattr("nr.network.wiring._Walk", Counted)
    assert nr.rejuvenate(model).dropped
    assert walks == [model]


def test_a_size_that_was_found_is_that_of_a_module_with_the_same_attributes():
    pool = nn.MaxPool2d(3, 2)
    assert [effect(pool, (9, 8)).size for _ in range(2)] == [(4, 3)] * 2
    assert effect(nn.MaxPool2d(3, 2, ceil_mode=True), (9, 8)).size == (4, 4)
    pool.return_indices = True
    with pytest.raises(ValueError, match="tuple"):
        effect(pool, (9, 8))
