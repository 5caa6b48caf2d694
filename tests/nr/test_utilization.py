"""nr.utilization: exact counts by hand, the thresholds, dead branches, and no side effects."""

import copy

import pytest
import torch
from torch import nn

import nr
from models.cifar import densenet, vgg19_bn
from nr.method.utilization import live_masks, relative_scales
from nr.network.wiring import wiring
from tests.helpers import (
    FAMILIES,
    FIRST,
    MODES,
    SECOND,
    batch,
    build,
    ends,
    kill,
    layers,
    loss_of,
    prunable,
    rebuilt,
    same_tensors,
    tiny,
    worn,
)
from utils.training.trainer import scale_histogram

# One dense layer a block, growth 2. Weights: 3x3 3->4: 108; [4->8: 32; 3x3 8->2: 144];
# 6->3: 18; [3->8: 24; 144]; 5->2: 10; [2->8: 16; 144].
DENSENET10_TOTAL = 640


def densenet10():
    torch.manual_seed(0)
    return densenet(depth=10, growth_rate=2)


def masks_of(model: nn.Module) -> dict[str, list[list[bool]]]:
    """Live channels by layer, one list a stream."""
    masks = live_masks(wiring(model))
    return {name: [mask.tolist() for mask in masks[name]] for name in layers(model)}


def set_gamma(model: nn.Module, name: str, values: list[float], stream: int = 0) -> None:
    model.get_submodule(name).norms[stream].weight.data.copy_(torch.tensor(values))


def weights(model: nn.Module, prefix: str = "") -> int:
    """Convolution weights under ``prefix``."""
    return sum(p.numel() for n, p in model.named_parameters() if "convs" in n and prefix in n)


def half_live_vgg19():
    model = vgg19_bn()
    for layer in prunable(model).values():
        layer.unit.norms[0].weight.data[layer.unit.out_channels[0] // 2 :] = 0
    return model


def test_half_live_vgg19_of_the_specification():
    model = half_live_vgg19()
    usage = nr.utilization(model)
    assert (usage.live, usage.total) == (5_005_152, 20_018_880)
    assert usage.ratio == pytest.approx(0.250022, abs=5e-7)
    # first layer: 3·32·9 of 3·64·9, times 32·32; a quarter of all the others
    usage = nr.utilization(model, flops=True)
    assert usage.total == 2_606_437_376 - 512 * 10
    assert usage.live == 884_736 + (2_606_432_256 - 1_769_472) // 4


def test_rows_of_the_tiny_network():
    model = tiny()
    kill(model, {FIRST: [1, 2], SECOND: [0]})
    first, second = nr.utilization(model).layers
    assert (first.name, second.name) == (FIRST, SECOND)
    assert (first.live_in, first.in_channels, first.live_out, first.out_channels) == (3, 3, 2, 4)
    assert (first.live, first.total) == (3 * 2 * 9, 3 * 4 * 9)
    assert (second.live_in, second.live_out) == (2, 3)
    assert (second.live, second.total) == (2 * 3 * 9, 4 * 4 * 9)


@pytest.mark.parametrize(
    ("size", "first", "second"), [(None, 64, 16), (8, 64, 16), (16, 256, 64), (9, 81, 16)]
)
def test_flops_count_output_positions(size, first, second):
    model = tiny()
    kill(model, {FIRST: [0, 1]})
    usage = nr.utilization(model, flops=True, image_size=size)
    assert [row.live for row in usage.layers] == [54 * first, 72 * second]
    assert usage.live == 54 * first + 72 * second
    assert usage.total == 108 * first + 144 * second
    assert nr.utilization(model, image_size=size).total == 252


@pytest.mark.parametrize(
    ("gamma", "live"),
    [
        ([1.0, 0.01, 0.0099, -0.5], [True, True, False, True]),  # dead only below 0.01 · 1
        ([-1.0, -0.01, -0.0099, 0.5], [True, True, False, True]),  # the sign does not matter
        ([-2.0, 0.019, 0.021, -0.021], [True, False, True, True]),  # of the layer's largest |γ|
        ([1.0, 0.0, -0.0, 1.0], [True, False, False, True]),
        ([1e-3, 2e-5, 0.0, 0.0], [True, True, False, False]),  # 1e-3 is not below 1e-3
        ([0.0, 9e-4, -9.5e-4, 9e-4], [False, False, True, False]),  # dead, a chain keeps one
        ([0.0, 0.0, 0.0, 0.0], [True, False, False, False]),
    ],
)
def test_dead_channels_of_a_chain(gamma, live):
    model = tiny()
    set_gamma(model, FIRST, gamma)
    assert masks_of(model) == {FIRST: [live], SECOND: [[True] * 4]}
    assert nr.utilization(model).live == (3 * 9 + 4 * 9) * sum(live)


@pytest.mark.parametrize(("gamma", "alive"), [(1e-3, True), (9.9e-4, False), (0.0, False)])
@pytest.mark.parametrize("family", ["basic", "bottleneck", "dense"])
def test_whole_layer_rule_in_a_branch(family, gamma, alive):
    model = build(family)
    name = ends(prunable(model))[0]
    kill(model, {name: slice(None)}, gamma)
    assert all(masks_of(model)[name][0]) == alive
    assert (nr.utilization(model).ratio == 1) == alive


@pytest.mark.parametrize("family", ["basic", "bottleneck"])
def test_fixed_layers_are_never_dead(family):
    model = build(family)
    fixed = [name for name, layer in layers(model).items() if layer.fixed]
    kill(model, dict.fromkeys(fixed, slice(None)))
    usage = nr.utilization(model)
    assert usage.live == usage.total
    kill(model, dict.fromkeys(fixed, 0), gamma=1.0)
    assert nr.utilization(model).live == usage.total


RESIDUAL_ENDS = [
    (family, name) for family in ("basic", "bottleneck") for name in ends(prunable(build(family)))
]


@pytest.mark.parametrize(("family", "name"), RESIDUAL_ENDS)
def test_dead_residual_branch_at_every_position(family, name):
    """Exactly the weights of the branch are lost: the sum stays all live."""
    model = build(family)
    kill(model, {name: slice(None)})
    usage = nr.utilization(model)
    branch = name[: name.index(".branch.") + len(".branch.")]
    assert usage.total == weights(model)
    assert usage.live == weights(model) - weights(model, branch)
    dead = {row.name for row in usage.layers if row.live_out == 0}
    assert dead == {row.name for row in usage.layers if row.name.startswith(branch)}


def dense16_cost(dropped: tuple[int, ...]) -> int:
    """Weights of the small DenseNet (growth 4, stem 8, halving) without some of its 6 layers."""
    cost, full, live = 27 * 8, 8, 8
    for index in range(6):
        if index in (2, 4):
            cost, full, live = cost + live * (full // 2), full // 2, full // 2
        if index not in dropped:
            cost, live = cost + live * 16 + 16 * 4 * 9, live + 4
        full += 4
    return cost


@pytest.mark.parametrize("child", [0, 2])
@pytest.mark.parametrize("index", range(6))
def test_dead_dense_branch_at_every_position(index, child):
    """The layer's own weights are lost, and its share of what reads it."""
    model = build("dense")
    container = f"features.block{index // 2 + 1}.{index % 2}.branch."
    kill(model, {f"{container}{child}": slice(None)})
    usage = nr.utilization(model)
    assert usage.total == dense16_cost(()) == weights(model)
    assert usage.live == dense16_cost((index,))
    dead = [row.name for row in usage.layers if row.live_out == 0]
    assert dead == [container + "0", container + "2"]


def test_densenet10_by_hand():
    model = densenet10()
    assert nr.utilization(model).total == DENSENET10_TOTAL
    kill(model, {"features.block1.0.branch.2": slice(None)})  # -32 -144, 6->3 becomes 4->3: -6
    assert nr.utilization(model).live == DENSENET10_TOTAL - 32 - 144 - 6
    kill(model, {"features.stem.0": [0]})  # stem -27; 4->3 becomes 3->3: -3
    assert nr.utilization(model).live == DENSENET10_TOTAL - 182 - 27 - 3


def test_partly_dead_concat_by_hand():
    model = densenet10()
    kill(model, {"features.block3.0.branch.0": slice(0, 5), "features.transition2.0": [1]})
    # 5->1: -5; 1->3: 16-3 = -13; 3x3 3->2: 144 - 54 = -90
    assert nr.utilization(model).live == DENSENET10_TOTAL - 5 - 13 - 90


@pytest.mark.parametrize(
    ("family", "live"),
    [
        ("vgg", 3 * 9 + 7 * 9),  # one channel a layer, eight layers
        ("dense", 3 * 9 + 1 + 1),  # stem and two transitions of one channel
        ("basic", 27 * 4 + 4 * 8 + 8 * 16),  # the stem and two shortcuts, all fixed
        ("bottleneck", 27 * 4 + 4 * 16 + 16 * 32 + 32 * 64),  # the stem and three shortcuts
    ],
)
def test_all_layers_dead_at_once(family, live):
    model = build(family)
    kill(model, dict.fromkeys(layers(model), slice(None)))
    assert nr.utilization(model).live == live


@pytest.mark.parametrize("name", list(layers(build("vgg"))))
def test_dead_chain_keeps_its_largest_channel(name):
    model = build("vgg")
    kill(model, {name: slice(None)}, gamma=1e-5)
    kill(model, {name: [2]}, gamma=-2e-5)
    (mask,) = masks_of(model)[name]
    assert [index for index, live in enumerate(mask) if live] == [2]


@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("family", FAMILIES)
def test_measuring_has_no_effect(family, mode, monkeypatch):
    model = worn(family) if mode is None else rebuilt(family, mode)[0]
    loss_of(model, *batch()).backward()
    model.eval().features[0].train()
    state = copy.deepcopy(model.state_dict())
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    flags = [(module, module.training) for module in model.modules()]
    attributes = {module: set(vars(module)) for module in model.modules()}
    monkeypatch.setattr(nn.Module, "__call__", lambda *_: pytest.fail("a forward pass"))
    random_state = torch.get_rng_state()
    assert nr.utilization(model) == nr.utilization(model)
    assert nr.utilization(model, flops=True).total > nr.utilization(model).total
    assert torch.equal(torch.get_rng_state(), random_state)
    assert same_tensors(state, model.state_dict())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert [(module, module.training) for module in model.modules()] == flags
    assert {module: set(vars(module)) for module in model.modules()} == attributes


# tiny() with two of four channels live in both layers: live 90 of 252, r = 1.673, so 2 + 1
# channels each. Then one survived channel of the first layer and the rejuvenated one die.
@pytest.mark.parametrize(
    ("mode", "total", "one_dead", "stream_dead"),
    [
        # 27·3 + 9·(2·2 + 1·1); 27·2 + 9·(1·2 + 1); second R dead -> keeps its largest: the same
        ("removed", 81 + 45, 54 + 27, 126),
        # 27·3 + 9·3·3; 27·2 + 9·2·3
        ("attention", 81 + 81, 54 + 54, 162),
        ("full", 81 + 81, 54 + 54, 162),
    ],
)
def test_blocks_are_counted_after_rejuvenation(mode, total, one_dead, stream_dead):
    model = tiny()
    kill(model, {FIRST: [0, 3], SECOND: [1, 2]})
    nr.rejuvenate(model, cross=mode)
    usage = nr.utilization(model)
    assert (usage.live, usage.total) == (total, total)
    assert nr.utilization(model, flops=True).total == 81 * 64 + (total - 81) * 16
    set_gamma(model, SECOND, [0.0], stream=1)  # one channel: a chain never loses its last
    assert nr.utilization(model).live == stream_dead
    set_gamma(model, FIRST, [1.0, 0.0])
    usage = nr.utilization(model)
    assert (usage.live, usage.total) == (one_dead, total)
    assert (usage.layers[1].live_in, usage.layers[1].in_channels) == (2, 3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["basic", "bottleneck", "dense"])
@pytest.mark.parametrize("stream", [0, 1])
def test_a_branch_dies_stream_by_stream(family, stream, mode):
    model, _ = rebuilt(family, mode)
    name = next(name for name in prunable(model) if ".branch." in name)
    model.get_submodule(name).norms[stream].weight.data.zero_()
    masks = masks_of(model)
    container = name[: name.index(".branch.") + len(".branch.")]
    for layer, streams in masks.items():
        if layer.startswith(container):
            assert not any(streams[stream])
            assert all(streams[1 - stream])
        else:
            assert all(streams[0] + streams[1])


def test_relative_scales_are_those_of_prunable_layers_over_their_largest():
    model = tiny(width=2)
    first, second = (layer.unit.norms[0].weight.data for layer in wiring(model).layers)
    first.copy_(torch.tensor([-0.5, 0.25]))
    second.copy_(torch.tensor([0.0, 0.0]))
    assert relative_scales(model).tolist() == [1, 0.5, 0, 0]
    fixed = build("basic")
    stem = fixed.get_submodule("features.stem.0").norms[0]
    assert len(relative_scales(fixed)) == sum(
        len(norm.weight) for layer in prunable(fixed).values() for norm in layer.unit.norms
    )
    nn.init.constant_(stem.weight, 7.0)  # a sum reads it, so it is not among them
    assert relative_scales(fixed).eq(1).all()


def test_the_histogram_of_scales_counts_every_channel_once():
    model = tiny(width=4)
    for layer in wiring(model).layers:
        layer.unit.norms[0].weight.data.copy_(torch.tensor([1, 0.5, 1e-3, 0]))
    # log10: 0, -0.30, -3 and far below -4, in 40 bins of 0.1 from -4 to 0.
    expected = {39: 2, 36: 2, 10: 2, 0: 2}
    histogram = scale_histogram(model)
    assert {i: n for i, n in enumerate(histogram) if n} in (expected, {39: 2, 36: 2, 9: 2, 0: 2})
