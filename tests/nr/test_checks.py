"""The strict walk: what is counted right, against torch's counter, and scales that move or not."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import models
import nr
from nr.network.convolutions import ConvBN
from nr.network.layers import Chain, Classifier, Concat, Network, Residual
from nr.network.wiring import image_shape, wiring
from tests.helpers import (
    build,
    kill,
    logits_of,
    relative_difference,
    same_tensors,
    silence,
    tiny,
    vary,
)


class Swish(nn.Module):
    """A module of a user's own."""

    def forward(self, x):
        return x * torch.sigmoid(x)


class Double(nn.Module):
    """A module of a user's own that is positively homogeneous, with a state of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.tensor(2.0))

    def forward(self, x):
        return self.factor * x


class Saturating(nn.Module):
    def forward(self, x):
        return x.clamp(-100, 100)


def network(*middle: nn.Module, image: int = 3, size: object = 16, width: int = 4) -> Network:
    """Two units with ``middle`` between them."""
    features = Chain(
        ConvBN(image, width, 3),
        nn.ReLU(),
        *middle,
        ConvBN(width, width, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
    )
    return Network(features, Classifier(width, 2), size)


def counted(model: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-adds by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        model.eval()(torch.randn(1, *shape))
    return counter.get_total_flops() // 2


def assert_right(model: Network, shape: tuple[int, int, int] | None = None) -> None:
    """Counts are torch's, before and after, and the survived logits stay."""
    shape = shape or image_shape(model)
    assert nr.count_macs(model, shape[1:]) == counted(model, shape)
    vary(model)
    name = next(layer.name for layer in wiring(model).layers if not layer.fixed)
    kill(model, {name: [0, 2]})
    silence(model)
    images = torch.randn(3, *shape)
    before = logits_of(model, images)
    nr.rejuvenate(model, flops=True, image_size=shape[1:])
    assert nr.count_macs(model, shape[1:]) == counted(model, shape)
    assert relative_difference(logits_of(model, images)[:, :1], before) < 1e-5


@pytest.mark.parametrize(
    "middle",
    [
        [nn.MaxPool2d(3, 2, ceil_mode=True)],
        [nn.MaxPool2d(3, 2, 1)],
        [nn.MaxPool2d(2, stride=1, dilation=3)],
        [nn.MaxPool2d((3, 2), stride=(2, 3), padding=(1, 0))],
        [nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False)],
        [nn.AdaptiveAvgPool2d((5, None))],
        [nn.AdaptiveMaxPool2d(5)],
        [nn.Upsample(scale_factor=2)],
        [nn.Upsample(scale_factor=1.5, mode="bilinear", align_corners=False)],
        [nn.Upsample(size=(9, 7))],
        [nn.ZeroPad2d((1, 2, 3, 0))],
        [nn.ReflectionPad2d(2), nn.ReplicationPad2d(1)],
        [nn.PReLU()],
        [nn.Sequential(nn.MaxPool2d(2), nn.Sequential(ConvBN(4, 4, 1), nn.LeakyReLU(0.1)))],
        [nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.ReLU6(), nn.Tanh(), nn.Mish()],
        [nn.Dropout(0.5), nn.Dropout2d(0.2), nn.Identity()],
        [Swish()],
        [Double()],
        [ConvBN(4, 4, 3, stride=2, padding=0), nn.ReLU()],
        [ConvBN(4, 4, 1, stride=2, padding=1), nn.ReLU()],
        [ConvBN(4, 4, 2), nn.ReLU()],
        [ConvBN(4, 4, (3, 3)), nn.ReLU()],
        [Residual(nn.Sequential(ConvBN(4, 4, 3)), nn.Sequential(ConvBN(4, 4, 1)))],
        [Residual(ConvBN(4, 4, 3))],
        [
            Residual(Chain(ConvBN(4, 6, 3, 2)), Chain(nn.AvgPool2d(2), ConvBN(4, 6, 1))),
            ConvBN(6, 4, 1),
        ],
        [Concat(Chain(ConvBN(4, 2, 3))), ConvBN(6, 4, 1)],
        [Concat(nn.Sequential(nn.MaxPool2d(3, 1, 1))), ConvBN(8, 4, 1)],
        [Concat(ConvBN(4, 4, 1)), ConvBN(8, 8, 3, groups=8), ConvBN(8, 4, 1)],
        [ConvBN(4, 4, (1, 7)), nn.ReLU(), ConvBN(4, 4, (5, 3), stride=(2, 1)), nn.ReLU()],
        [ConvBN(4, 4, 3, dilation=2), nn.ReLU(), ConvBN(4, 4, 1, stride=(1, 2)), nn.ReLU()],
        [ConvBN(4, 6, 3, 2, padding=1, transposed=True, output_padding=1), ConvBN(6, 4, 1)],
        [ConvBN(4, 4, (2, 3), 2, padding=0, transposed=True, groups=4), ConvBN(4, 4, 1)],
    ],
    ids=lambda middle: "-".join(type(module).__name__ for module in middle),
)
def test_counted_right_and_rebuilt_exactly(middle):
    torch.manual_seed(0)
    assert_right(network(*middle))


@pytest.mark.parametrize("image", [1, 2, 4])
def test_image_channels_come_from_the_stem(image):
    model = network(image=image)
    assert image_shape(model) == (image, 16, 16)
    assert_right(model)
    assert wiring(model).layers[0].unit.in_channels == (image, image)
    nr.rescale(model, 0.5)


@pytest.mark.parametrize("size", [(16, 16), (12, 20), [9, 33]])
def test_images_may_be_rectangles(size):
    model = network(nn.MaxPool2d(3, 2, 1), size=size)
    assert image_shape(model) == (3, *size)
    assert_right(model)
    loaded = nr.build(nr.structure(model))
    assert nr.count_macs(loaded) == nr.count_macs(model)


def test_the_image_size_of_a_call_may_be_a_rectangle():
    assert_right(network(nn.MaxPool2d(2)), (3, 10, 30))
    usage = nr.utilization(network(), flops=True, image_size=(2, 5))
    assert usage.total == 10 * (3 * 4 * 9 + 4 * 4 * 9)


def test_one_pool_and_one_relu_may_be_used_twice():
    pool, relu = nn.MaxPool2d(2), nn.ReLU()
    model = network(pool, ConvBN(4, 4, 3), relu, pool, relu)
    sizes = [layer.size for layer in wiring(model).layers]
    assert sizes == [(16, 16), (8, 8), (4, 4)]
    assert_right(model)


@pytest.mark.parametrize(("arch", "fixed", "count"), [(18, 12, 20), (34, 20, 36), (50, 21, 53)])
def test_what_residuals_read_and_add_is_fixed(arch, fixed, count):
    with torch.device("meta"):
        model = models.build("imagenet", f"resnet{arch}_nr")
    layers = wiring(model).layers
    assert (sum(layer.fixed for layer in layers), len(layers)) == (fixed, count)


def test_a_dropped_branch_leaves_the_stem_fixed():
    model = build("basic")
    before = {layer.name for layer in wiring(model).layers if layer.fixed}
    for container in (model.get_submodule("features.stage1")[0], model.features.stage1[1]):
        container.branch = None
    after = {layer.name for layer in wiring(model).layers if layer.fixed}
    assert "features.stem.0" in after
    assert after == {name for name in before if "stage1" not in name}


CURVED = [
    nn.SiLU(),
    nn.GELU(),
    nn.Hardswish(),
    nn.Tanh(),
    nn.ReLU6(),
    nn.ELU(),
    Swish(),
    Saturating(),
]
CURVED += [nn.Hardtanh(-1, 1), nn.Hardtanh(0, 6), nn.Sigmoid()]


@pytest.mark.parametrize("module", CURVED, ids=lambda module: type(module).__name__)
def test_rescaling_needs_positively_homogeneous_modules(module):
    model = vary(network(module))
    nr.utilization(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"^features\.2 \(\w+\): not positively homogeneous.*ReLU"):
        nr.rescale(model, 0.5)
    assert same_tensors(before, model.state_dict())


@torch.no_grad()
@pytest.mark.parametrize(
    "module",
    [
        nn.LeakyReLU(),
        nn.PReLU(),
        nn.Hardtanh(0, float("inf")),
        nn.Upsample(scale_factor=2),
        Double(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_rescaling_through_other_homogeneous_modules_is_exact(module):
    model = vary(network(module))
    for layer in wiring(model).layers:
        layer.unit.norms[0].weight[1:3] *= 0.01
    images = torch.randn(4, 3, 16, 16)
    before = logits_of(model, images)
    nr.rescale(model, 0.5)
    assert (model.features[0].norms[0].weight.abs() >= 0.5).all()
    assert relative_difference(logits_of(model, images), before) < 1e-4


def test_a_fixed_layer_may_pass_a_curved_module():
    """Its scales do not move."""
    block = Residual(ConvBN(4, 4, 3))
    model = Network(
        Chain(ConvBN(3, 4, 3), nn.SiLU(), block, nn.AdaptiveAvgPool2d(1)), Classifier(4, 2), 8
    )
    nr.rescale(model, 0.5)


@pytest.mark.parametrize("module", [nn.Sigmoid(), nn.Softplus(), nn.Hardsigmoid()], ids=repr)
def test_a_dead_channel_that_would_still_speak_is_refused(module):
    model = vary(network(module))
    kill(model, {"features.0": [0]})
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"^features\.2 \(\w+\): is not 0 at 0.*ReLU"):
        nr.rejuvenate(model)
    assert same_tensors(before, model.state_dict())
    nr.rejuvenate(model, from_scratch=True)


def test_the_walk_draws_no_random_number_and_calls_no_hook():
    model = tiny()
    model.features.append(Double())
    for module in model.modules():
        module.register_forward_hook(lambda *_: pytest.fail("a forward pass"))
    state = torch.get_rng_state()
    nr.utilization(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sum_of_a_concatenation_grows_part_by_part():
    """Each part is rounded by itself: int(4r) + int(2r), in the layer that is added, too."""
    model = network(Concat(ConvBN(4, 2, 3)), Residual(ConvBN(6, 6, 3)), ConvBN(6, 4, 1))
    assert nr.utilization(model).ratio == 1
    assert_right(model)
    found = {layer.name: sum(layer.unit.out_channels) for layer in wiring(model).layers}
    assert found["features.3.branch"] == found["features.0"] + found["features.2.branch"]
