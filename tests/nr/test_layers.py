"""nr.layers: the forms by hand, initial distributions, dropped branches, value-free forward."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.ao.quantization import default_qconfig, get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, fuse_fx, prepare_fx
from torch.utils._python_dispatch import TorchDispatchMode

import nr
from nr.network.convolutions import Conv, ConvBN, gate
from nr.network.layers import Chain, Classifier, Concat, Network, Residual
from tests.helpers import (
    CLASSES,
    FAMILIES,
    MODES,
    batch,
    beginning,
    build,
    kill,
    layers,
    logits_of,
    loss_of,
    norms,
    open_cross_blocks,
    rebuilt,
    relative_difference,
    vary,
    worn,
)

# One channel a stream, 1x1: W_ss = 2, W_rs (R→S) = 3, W_sr (S→R) = 5, W_rr = 7.
# Survived -> [ss | sr], rejuvenated -> [rs | rr]; full: rows are outputs, columns inputs.
WEIGHTS = {
    "removed": ([[2.0]], [[7.0]]),
    "attention": ([[2.0], [5.0]], [[3.0], [7.0]]),
    "full": ([[2.0, 3.0], [5.0, 7.0]],),
}
BLOCKS = {(0, 0): 2.0, (1, 0): 3.0, (0, 1): 5.0, (1, 1): 7.0}  # (input, output stream) -> weight


def identity_norms(unit: nn.Module) -> None:
    """Eval mode with mean 0, variance 1 and an ε that rounds away: batch norm is γ·x + β."""
    unit.eval()
    for norm in norms(unit):
        norm.eps = 1e-30
        nn.init.ones_(norm.weight)


def two_streams(form: str) -> ConvBN:
    """The one-channel unit with the weights above."""
    unit = ConvBN(1, 1, 1)
    unit.build(form, (1, 1), (1, 1))
    for conv, weight in zip(unit.convs, WEIGHTS[form], strict=True):
        conv.weight.data.copy_(torch.tensor(weight)[:, :, None, None])
    identity_norms(unit)
    return unit


def one_by_one(width: int, weight: float) -> ConvBN:
    """A 1x1 unit that multiplies every channel by ``weight``."""
    unit = ConvBN(width, width, 1)
    unit.convs[0].weight.data.copy_(weight * torch.eye(width)[:, :, None, None])
    identity_norms(unit)
    return unit


def pixel(*values: float) -> torch.Tensor:
    """One image of one pixel with these channels: [1, C, 1, 1]."""
    return torch.tensor(values).reshape(1, -1, 1, 1)


@pytest.mark.parametrize(
    ("form", "survived", "rejuvenated"),
    [
        ("removed", 1.0, -7.0),  # 2·0.5; 7·(-1)
        ("full", -2.0, -4.5),  # 2·0.5 + 3·(-1); 5·0.5 + 7·(-1)
        # a = 1, σ(1) = 0.7310586: 1 - 6σ(1); b = -7, σ(-7) = 0.0009110512: -7 + 5σ(-7)
        ("attention", -3.3863515, -6.9954447),
    ],
)
def test_forms_by_hand(form, survived, rejuvenated):
    out = two_streams(form)((pixel(0.5), pixel(-1.0)))
    assert [stream.item() for stream in out] == pytest.approx([survived, rejuvenated], rel=1e-6)


@pytest.mark.parametrize("form", MODES)
def test_blocks_are_the_labelled_views(form):
    unit = two_streams(form)
    blocks = {(i, o): block.item() for i, o, block in unit.blocks()}
    own = {pair: weight for pair, weight in BLOCKS.items() if pair[0] == pair[1]}
    assert blocks == (own if form == "removed" else BLOCKS)
    for _, _, block in unit.blocks():
        assert not block.requires_grad
        block.fill_(11)
    assert all((conv.weight == 11).all() for conv in unit.convs)


def test_gate_is_own_plus_twice_sigmoid_times_cross():
    # own 0: 2·0.5·3 = 3; own 2: 2 + 2·0.8807971·(-1) = 0.2384058
    out = gate(pixel(0.0, 2.0), pixel(3.0, -1.0))
    assert out.flatten().tolist() == pytest.approx([3.0, 0.2384058], rel=1e-6)


class Inputs(TorchDispatchMode):
    """Keeps what ``operation`` is done to."""

    def __init__(self, operation):
        super().__init__()
        self.operation, self.found = operation, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is self.operation:
            self.found.append(args[0])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_no_batch_norm_is_of_a_slice_on_a_cpu(order):
    """A convolution for both streams gives maps that are cut by channel: slow to go through."""
    for form in MODES:
        unit = ConvBN(1, 1, 3)
        unit.build(form, (2, 3), (5, 7))
        unit.to(memory_format=order)
        streams = tuple(torch.randn(3, c, 6, 6).to(memory_format=order) for c in (2, 3))
        with Inputs(torch.ops.aten.native_batch_norm.default) as seen:
            unit(streams)
        assert [taken.shape[1] for taken in seen.found] == [5, 7]
        assert all(taken.is_contiguous(memory_format=order) for taken in seen.found)


def test_the_gate_takes_no_slice_of_channels_last_maps_on_a_cpu():
    """Values and gradients are those of dense maps."""
    both = torch.randn(3, 12, 6, 6).to(memory_format=torch.channels_last).requires_grad_()
    twin = both.detach().contiguous().requires_grad_()
    with Inputs(torch.ops.aten.sigmoid.default) as seen:
        found = gate(both[:, :5], both[:, 7:])
    (taken,) = seen.found
    assert taken.is_contiguous(memory_format=torch.channels_last)
    expected = twin[:, :5] + 2 * twin[:, :5].sigmoid() * twin[:, 7:]
    downstream = torch.randn(3, 5, 6, 6)
    for out in (found, expected):
        (out * downstream).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(both.grad, twin.grad)


def test_batch_norm_acts_on_each_channel_of_each_stream():
    unit = two_streams("removed")
    for norm, gamma, beta in zip(unit.norms, (4.0, -3.0), (0.25, 0.5), strict=True):
        norm.weight.data.fill_(gamma)
        norm.bias.data.fill_(beta)
    out = unit((pixel(0.5), pixel(-1.0)))
    assert [stream.item() for stream in out] == [4.25, 21.5]  # 4·1 + 0.25; -3·(-7) + 0.5


@pytest.mark.parametrize("form", MODES)
def test_uneven_widths_and_stride(form):
    unit = ConvBN(1, 1, 3, stride=2)
    unit.build(form, (2, 3), (4, 1))
    out = unit((torch.randn(2, 2, 7, 7), torch.randn(2, 3, 7, 7)))
    assert [tuple(stream.shape) for stream in out] == [(2, 4, 4, 4), (2, 1, 4, 4)]


@pytest.mark.parametrize(("form", "weights"), [("removed", 207), ("attention", 405), ("full", 405)])
def test_removed_stores_no_cross_weights(form, weights):
    # 3x3 from 2 + 3 to 4 + 5 channels: 9·(2·4 + 3·5) = 207, 9·5·9 = 405; batch norm 2·9
    unit = ConvBN(1, 1, 3)
    unit.build(form, (2, 3), (4, 5))
    assert sum(conv.weight.numel() for conv in unit.convs) == weights
    assert nr.count_params(unit) == weights + 18
    assert sum(v.numel() for n, v in unit.state_dict().items() if "convs" in n) == weights


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_stem_has_no_cross_blocks(family, mode):
    model, _ = rebuilt(family, mode)
    stem, *others = layers(model).values()
    assert [conv.in_channels for conv in stem.unit.convs] == [3, 3]
    assert [(i, o) for i, o, _ in stem.unit.blocks()] == [(0, 0), (1, 1)]
    assert {layer.unit.form for layer in others} == {mode}


@pytest.mark.parametrize(("kernel_size", "std"), [(3, 0.0416667), (1, 0.125)])  # √(2/(k²·128))
@pytest.mark.parametrize("form", ["plain", *MODES])
def test_convolutions_are_normal_and_cross_blocks_zero(form, kernel_size, std):
    torch.manual_seed(0)
    unit = ConvBN(96, 128, kernel_size)
    if form != "plain":
        unit.build(form, (56, 40), (80, 48))
    for i, o, block in unit.blocks():
        if i == o:
            assert block.std().item() == pytest.approx(std, rel=0.04)
            assert abs(block.mean().item()) < 0.1 * std
            assert block.abs().max() > 3 * std  # normal, not uniform
        else:
            assert not block.any()


@pytest.mark.parametrize(
    ("family", "gamma"), [("vgg", 0.5), ("basic", 1.0), ("bottleneck", 1.0), ("dense", 1.0)]
)
def test_initial_scales(family, gamma):
    for norm in norms(build(family)):
        assert (norm.weight == gamma).all()
        assert not norm.bias.any()
        assert not norm.running_mean.any()
        assert (norm.running_var == 1).all()


def test_rejuvenated_norms_start_at_half():
    unit = ConvBN(2, 2, 1, gamma=1.0)
    unit.build("full", (1, 1), (3, 2))
    assert [norm.weight.tolist() for norm in unit.norms] == [[1.0] * 3, [0.5] * 2]


def test_initial_classifier():
    torch.manual_seed(0)
    classifier = Classifier(500, 100)
    assert classifier.linears[0].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not classifier.linears[0].bias.any()


def test_streams_share_one_classifier_bias():
    classifier = Classifier(1, 2)
    classifier.build((1, 2))
    first, second = classifier.linears
    assert second.bias is None
    first.weight.data.copy_(torch.tensor([[1.0], [2.0]]))
    second.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    first.bias.data.copy_(torch.tensor([10.0, 20.0]))
    logits = classifier((pixel(5.0), pixel(6.0, 7.0)))  # [1, S, classes]
    assert logits.tolist() == [[[15.0, 30.0], [28.0, 48.0]]]


def test_chain_maps_plain_modules_over_the_streams():
    out = Chain(nn.ReLU(), one_by_one(1, 2.0), nn.ReLU())((pixel(-1.0),))
    assert out[0].item() == 0.0
    out = Chain(nn.ReLU(), nn.MaxPool2d(2))(
        (torch.arange(4.0).reshape(1, 1, 2, 2), pixel(0.0) + torch.zeros(1, 1, 2, 2))
    )
    assert [stream.item() for stream in out] == [3.0, 0.0]


@pytest.mark.parametrize(
    ("shortcut", "dropped", "expected"),
    [
        (None, False, [0.0, 8.0]),  # relu(3x + x) of (-1, 2)
        (-2.0, False, [0.0, 2.0]),  # relu(3x - 2x)
        (None, True, [0.0, 2.0]),  # relu(x)
        (-2.0, True, [2.0, 0.0]),  # relu(-2x)
    ],
)
def test_residual_sum_and_dropped_branch(shortcut, dropped, expected):
    block = Residual(
        Chain(one_by_one(2, 3.0)), None if shortcut is None else one_by_one(2, shortcut)
    ).eval()
    if dropped:
        block.branch = None
    x = pixel(-1.0, 2.0)
    (out,) = block((x,))
    assert out.flatten().tolist() == expected
    assert x.flatten().tolist() == [-1.0, 2.0]  # the input is not written to


def test_concat_and_dropped_branch():
    block = Concat(Chain(one_by_one(2, 3.0))).eval()
    (out,) = block((pixel(-1.0, 2.0),))
    assert out.flatten().tolist() == [-1.0, 2.0, -3.0, 6.0]
    block.branch = None
    (out,) = block((pixel(-1.0, 2.0),))
    assert out.flatten().tolist() == [-1.0, 2.0]


def test_both_streams_read_the_image():
    stem = two_streams("removed")
    classifier = Classifier(1, 1)
    classifier.build((1, 1))
    for linear in classifier.linears:
        nn.init.ones_(linear.weight)
    model = Network(Chain(stem, nn.AdaptiveAvgPool2d(1)), classifier, image_size=1).eval()
    assert model.streams == 2
    assert model(torch.full((1, 1, 2, 2), 3.0)).tolist() == [[[6.0], [21.0]]]


@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_and_backward_read_no_value(family, mode):
    """On the meta device there are no values: asking for one raises."""
    model = beginning(family, worn(family))
    if mode is not None:
        nr.rejuvenate(model, cross=mode)
    model = model.to("meta").train()
    images, labels = (tensor.to("meta") for tensor in batch())
    logits = model(images)
    assert logits.shape == (8, 1 if mode is None else 2, CLASSES)
    loss_of(model, images, labels).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_rejuvenated_network_exports_as_one_graph(mode):
    model, _ = rebuilt("vgg", mode)
    images, _ = batch(count=2)
    program = torch.export.export(model.eval(), (images,))
    assert torch.equal(program.module()(images), model(images))


def small(mode: str | None) -> Network:
    """A network with every kind of container, in this form, with open cross blocks."""
    torch.manual_seed(0)
    features = Chain(
        ConvBN(3, 4, 3),
        Residual(Chain(ConvBN(4, 6, 3), nn.ReLU(), ConvBN(6, 4, 1)), ConvBN(4, 4, 1)),
        Concat(Chain(ConvBN(4, 3, 3), nn.ReLU())),
        ConvBN(7, 8, 1, 2),
        Conv(8, 5, 1),
        nn.AdaptiveAvgPool2d(1),
    )
    model = vary(Network(features, Classifier(5, CLASSES), image_size=8))
    if mode is not None:
        kill(model, {"features.3": [0, 1], "features.1.branch.0": [0]})
        nr.rejuvenate(model, cross=mode)
        open_cross_blocks(model)
    return model


@pytest.mark.parametrize("mode", [None, *MODES])
def test_torch_fx_follows_a_network(mode):
    """Traced, fused, prepared for quantization and quantized."""
    model, (images, _) = small(mode), batch()
    expected = logits_of(model, images)
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(images), expected)
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert called >= norms | {f"classifier.linears.{i}" for i in range(model.streams)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves its quantization elsewhere
        assert torch.equal(fuse_fx(copy.deepcopy(model))(images), expected)
        mapping = get_default_qconfig_mapping().set_global(default_qconfig)  # sooner done
        prepared = prepare_fx(copy.deepcopy(model), mapping, (images,))
        assert torch.equal(prepared(images), expected)
        assert 0 < relative_difference(convert_fx(prepared)(images), expected) < 0.3


@pytest.mark.parametrize("mode", [None, *MODES])
def test_the_classifier_calls_its_linear_layers(mode):
    """So hooks, adapters and what replaces them by type are at work there."""
    model, (images, _) = worn("vgg") if mode is None else rebuilt("vgg", mode)[0], batch()
    model.classifier.linears[0].bias.data.normal_()
    expected, called = logits_of(model, images), []
    for linear in model.classifier.linears:
        linear.register_forward_hook(lambda *arguments: called.append(arguments[0]))
    assert torch.equal(logits_of(model, images), expected)
    assert called == [*model.classifier.linears]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    assert not any(type(linear) is nn.Linear for linear in quantized.classifier.linears)
    assert 0 < relative_difference(quantized(images), expected) < 0.05


@pytest.mark.parametrize("streams", [1, 2])
def test_logits_are_those_of_one_bias_for_all_streams(streams):
    classifier = Classifier(3, 4)
    classifier.build((3, 5)[:streams])
    classifier.linears[0].bias.data.normal_()
    x = tuple(torch.randn(2, width, 1, 1) for width in classifier.in_channels)
    weights = [linear.weight for linear in classifier.linears]
    products = [s.flatten(1) @ w.T for s, w in zip(x, weights, strict=True)]
    expected = torch.stack(products, dim=1) + classifier.linears[0].bias
    torch.testing.assert_close(classifier(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert classifier(x).dtype == torch.bfloat16


# The count of batches.
