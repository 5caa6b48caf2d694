"""nr.merging: two streams as one plain network, by hand and over all families and forms."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn

import nr
from nr.network.convolutions import ConvBN
from nr.network.layers import Chain, Classifier, Concat, Network, Residual
from tests.copies import copied
from tests.helpers import (
    FAMILIES,
    MODES,
    batch,
    branches,
    described,
    dropped,
    kill,
    kill_random,
    layers,
    logits_of,
    loss_of,
    norms,
    open_cross_blocks,
    prunable,
    rebuilt,
    relative_difference,
    same_tensors,
    silence,
    tiny,
    vary,
    widths,
    worn,
)

TOLERANCE = 1e-5


@copied
def two_streams(family: str, mode: str) -> Network:
    """Rejuvenated, with one dropped branch and no batch norm at its birth."""
    model, _ = rebuilt(family, mode)
    model.classifier.linears[0].bias.data.normal_()
    if mode == "full":
        open_cross_blocks(model)
    return vary(model, seed=7)


@copied
def merged(family: str, mode: str) -> Network:
    """``two_streams`` as one."""
    model = two_streams(family, mode)
    nr.merge(model)
    return model


def summed(model: Network, training: bool) -> torch.Tensor:
    """The sum of the streams' logits: [B, classes]."""
    return logits_of(model, batch(count=16)[0], training).sum(dim=1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_merged_logits_are_the_sum_of_the_streams(family, mode, training):
    model = two_streams(family, mode)
    expected, shapes = summed(model, training), nr.structure(model)
    model = merged(family, mode)
    assert model.streams == 1
    assert relative_difference(summed(model, training), expected) < TOLERANCE
    found = nr.structure(model)
    assert widths(found) == {name: [sum(pair)] for name, pair in widths(shapes).items()}
    assert {node["form"] for node in described(found).values()} == {"plain"}
    assert bool(dropped(model)) == (family != "vgg")


@pytest.mark.parametrize("family", FAMILIES)
def test_running_statistics_move_on_alike(family):
    """After a pass in train mode the merged network still equals the streams in eval mode."""
    model, single = two_streams(family, "removed"), merged(family, "removed")
    images, _ = batch(count=16, seed=9)
    for network in (model, single):
        logits_of(network, images, training=True)
    assert relative_difference(summed(single, False), summed(model, False)) < TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_gradients_are_those_of_the_streams(family):
    """Of the loss on the summed logits, by the classifier's and the first batch norm's."""
    model, single = two_streams(family, "removed"), merged(family, "removed")
    images, labels = batch(count=16)
    for network in (model, single):
        nn.functional.cross_entropy(network.train()(images).sum(dim=1), labels).backward()
    stem, rebuilt = (next(iter(layers(network).values())).unit for network in (model, single))
    expected = torch.cat([norm.weight.grad for norm in stem.norms])
    assert relative_difference(rebuilt.norms[0].weight.grad, expected) < 1e-3
    bias = single.classifier.linears[0].bias.grad * 2
    assert relative_difference(bias, model.classifier.linears[0].bias.grad) < TOLERANCE


def test_the_tiny_network_by_hand():
    """One survived and two rejuvenated channels: diagonal blocks, the stem's rows stacked."""
    model = tiny(width=2)
    for name, unit in {"first": model.features.first, "second": model.features.second}.items():
        unit.build("removed", (3, 3) if name == "first" else (1, 2), (1, 2))
    model.classifier.build((1, 2))
    for value, parameter in enumerate(model.parameters(), start=1):
        parameter.data.fill_(value)
    for value, norm in enumerate(norms(model), start=21):
        norm.running_mean.fill_(value)
        norm.running_var.fill_(2 * value)
    nr.merge(model)
    first, second, head = model.features.first, model.features.second, model.classifier.linears[0]
    assert first.convs[0].weight[..., 0, 0].tolist() == [[1] * 3, [2] * 3, [2] * 3]
    assert first.norms[0].weight.tolist() == [3, 5, 5]
    assert first.norms[0].bias.tolist() == [4, 6, 6]
    assert second.convs[0].weight[..., 1, 2].tolist() == [[7, 0, 0], [0, 8, 8], [0, 8, 8]]
    assert second.norms[0].running_mean.tolist() == [23, 24, 24]
    assert second.norms[0].running_var.tolist() == [46, 48, 48]
    assert head.weight.tolist() == [[13, 15, 15]] * 2
    assert head.bias.tolist() == [28, 28]  # twice 14


def test_the_columns_after_a_concatenation_by_hand():
    """Streams (x_S, b_S) and (x_R, b_R) stand as x_S x_R b_S b_R in the merged concatenation."""
    parts = OrderedDict(
        stem=ConvBN(3, 2, 1),
        block=Concat(Chain(ConvBN(2, 2, 1))),
        last=ConvBN(4, 1, 1),
        pool=nn.AdaptiveAvgPool2d(1),
    )
    model = Network(Chain(parts), Classifier(1, 2), image_size=4)
    kill(vary(model), {"features.stem": 0, "features.block.branch.0": 0})
    nr.rejuvenate(model, "full")
    unit = model.features.last
    assert unit.in_channels == (2, 2)
    unit.convs[0].weight.data.copy_(torch.arange(8.0).reshape(2, 4, 1, 1))
    nr.merge(model)
    assert unit.convs[0].weight[..., 0, 0].tolist() == [[0, 2, 1, 3], [4, 6, 5, 7]]


@pytest.mark.parametrize("mode", ["removed", "full"])
def test_a_residual_sum_over_a_concatenation(mode):
    """The end of its branch is laid out as the concatenation that it is added to."""
    branch = Chain(ConvBN(8, 4, 3), nn.ReLU(), ConvBN(4, 8, 3))
    parts = OrderedDict(
        stem=ConvBN(3, 4, 3),
        block=Concat(Chain(ConvBN(4, 4, 3))),
        sum=Residual(branch),
        last=ConvBN(8, 4, 3),
        pool=nn.AdaptiveAvgPool2d(1),
    )
    model = Network(Chain(parts), Classifier(4, 10), image_size=8)
    for unit in (module for module in model.modules() if isinstance(module, ConvBN)):
        image = unit is model.features.stem
        wide = unit.out_channels[0] == 8
        read = unit.in_channels[0]
        form = "removed" if image else mode
        unit.build(
            form,
            (3, 3) if image else (read // 2, read // 2 + (read // 4)),
            (4, 6) if wide else (2, 3),
        )
    model.classifier.build((2, 3))
    open_cross_blocks(vary(model))
    expected = summed(copy.deepcopy(model), True)
    nr.merge(model)
    assert relative_difference(summed(model, True), expected) < TOLERANCE


def test_branches_that_end_in_other_concatenations_are_refused():
    def concat() -> Chain:
        return Chain(ConvBN(4, 4, 1), Concat(Chain(ConvBN(4, 4, 1))))

    parts = OrderedDict(
        stem=ConvBN(3, 4, 1),
        widen=concat(),
        sum=Residual(Chain(ConvBN(8, 4, 1), *concat())),
        pool=nn.AdaptiveAvgPool2d(1),
    )
    model = Network(Chain(parts), Classifier(8, 2), image_size=4)
    for unit in (module for module in model.modules() if isinstance(module, ConvBN)):
        image, read = unit is model.features.stem, unit.in_channels[0]
        unit.build("removed", (3, 3) if image else (read // 4, read * 3 // 4), (1, 3))
    # The sum's streams are as wide as each other, but its two concatenations are split otherwise.
    model.features.widen[1].branch[0].build("removed", (1, 3), (3, 1))
    model.features.sum.branch[1].build("removed", (1, 3), (3, 1))
    model.features.sum.branch[2].branch[0].build("removed", (3, 1), (1, 3))
    model.features.sum.branch[0].build("removed", (4, 4), (1, 3))
    model.classifier.build((4, 4))
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"features\.sum\.branch\.2: a Concat inside the branch"):
        nr.merge(model)
    assert before.keys() == model.state_dict().keys() and model.streams == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_cross_attention_at_work_is_refused(family):
    model = two_streams(family, "attention")
    name, layer = list(layers(model).items())[-1]
    list(layer.unit.blocks())[1][2].flatten()[-1] = 1e-30
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=rf"{name}: cross weights of the attention mode"):
        nr.merge(model)
    assert same_tensors(before, model.state_dict())
    assert model.streams == 2


@pytest.mark.parametrize("freeze", ["features.stem.0.convs.0", "features.stem.0.norms.1"])
def test_what_is_frozen_in_one_stream_only_is_refused(freeze):
    model = two_streams("basic", "removed")
    model.get_submodule(freeze).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=rf"^{freeze[:-2]}: weight is frozen in one stream and"):
        nr.merge(model)
    assert same_tensors(before, model.state_dict())
    model.features.stem.requires_grad_(False)
    nr.merge(model)
    assert not any(parameter.requires_grad for parameter in model.features.stem.parameters())


@pytest.mark.parametrize("scratch", [False, True])
def test_a_network_of_one_stream_is_merged_already(scratch):
    model = rebuilt("basic", "scratch")[0] if scratch else worn("basic")
    before = copy.deepcopy(model.state_dict())
    nr.merge(model)
    assert same_tensors(before, model.state_dict())


def test_merging_twice_is_merging_once():
    model = merged("dense", "full")
    before = copy.deepcopy(model.state_dict())
    nr.merge(model)
    assert same_tensors(before, model.state_dict())


@copied
def worn_again(family: str, first: str) -> tuple[Network, list[str], torch.Tensor]:
    """Rejuvenated, merged and worn out again; the branches that are gone, and its logits."""
    model = merged(family, first)
    gone = dropped(model)
    kill_random(model, seed=11)
    inside = [name for name in prunable(model) if ".branch." in name]
    kill(model, dict.fromkeys(inside[-1:], slice(None)))  # one more branch
    usage = nr.utilization(model)
    assert usage.live < usage.total
    silence(model)
    return model, gone, logits_of(model, batch()[0])


@pytest.mark.parametrize("second", MODES)
@pytest.mark.parametrize("first", ["removed", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_round_keeps_the_survived_logits(family, first, second):
    """Merged, then worn out and rejuvenated again."""
    model, gone, before = worn_again(family, first)
    report = nr.rejuvenate(model, second)
    after = logits_of(model, batch()[0])
    assert after.shape[1] == 2 and report.expansion > 1
    assert relative_difference(after[:, :1], before) < TOLERANCE
    assert set(dropped(model)) >= {*gone, *report.dropped}
    assert bool(report.dropped) == (family != "vgg")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_network_is_an_ordinary_one(family):
    """Measured whole, penalised in one stream, trained, rescaled."""
    model = merged(family, "removed")
    assert nr.utilization(model).ratio == 1
    optimizer = nr.SGD(model, lr=0.1, sparsity=1e-3)
    loss_of(model.train(), *batch()).backward()
    optimizer.step()
    assert all(parameter.grad is not None for parameter in model.parameters())
    before = summed(model, False)
    nr.rescale(model, 2.0)
    assert relative_difference(summed(model, False), before) < 1e-4
    fresh = nr.build(nr.structure(model))
    fresh.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize("training", [True, False])
def test_mode_precision_and_units_are_kept(training):
    model = two_streams("basic", "full").double().train(training)
    units = {name: layer.unit for name, layer in layers(model).items()}
    nr.merge(model)
    assert {module.training for module in model.modules()} == {training}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert all(layer.unit is units[name] for name, layer in layers(model).items())
    assert any(container.branch is None for container in branches(model).values())
