"""nr.convert: what tracing could lose without a word is kept, or refused by name."""

import copy
import random
import types
from operator import attrgetter

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

import nr
from nr.conversion.values import LIKE, Quick
from tests.helpers import kill_random, pooled, relative_difference

NAME = attrgetter("__qualname__")
SIZE = 16  # pixels
CLASSES = 3


class Net(nn.Module):
    """Two units with ``between`` after the first, and a classifier with ``end`` before it."""

    def __init__(self, between=None, end=None, module=None):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.BatchNorm2d(4)
        self.last, self.last_norm = nn.Conv2d(4, 6, 3, padding=1, stride=2), nn.BatchNorm2d(6)
        self.module, self.fc = module, nn.Linear(6, CLASSES)
        self.between, self.end = between or nn.Identity(), end

    def forward(self, x):
        x = self.between(self.norm(self.conv(x)).relu())
        x = self.last_norm(self.last(x)).relu()
        return self.fc(x.mean([2, 3]) if self.end is None else self.end(x).flatten(1))


def net(between=None, end=None) -> nn.Module:
    """In double, with batch norms that are no identities."""
    torch.manual_seed(0)
    model = Net(between, end).double()
    for norm in (model.norm, model.last_norm):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
        nn.init.normal_(norm.running_mean)
    return model


def images(size: int | tuple[int, int] = SIZE) -> torch.Tensor:
    sides = (size, size) if isinstance(size, int) else size
    return torch.randn(4, 3, *sides, generator=torch.Generator().manual_seed(3)).double()


def outputs(model: nn.Module, x: torch.Tensor, training: bool | None = None) -> torch.Tensor:
    """Logits of a copy, in its own modes or in one; the same random numbers each time."""
    model = copy.deepcopy(model)
    if training is not None:
        model.train(training)
    torch.manual_seed(1)
    with torch.no_grad():
        found = model(x)
    return found.flatten(1) if found.ndim == 3 else found


def agree(model: nn.Module, network: nn.Module, x: torch.Tensor, training=None) -> bool:
    found, wanted = (outputs(each, x, training) for each in (network, model))
    return bool(relative_difference(found, wanted) < 1e-12)


def refused(model: nn.Module, words: str) -> str:
    """The one line with which ``model`` is refused, which leaves it as it was."""
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(ValueError, match=words) as caught:
        nr.convert(model, SIZE)
    assert before == {name: vars(module) for name, module in model.named_modules()}
    assert "\n" not in str(caught.value)
    return str(caught.value)


class DropPath(nn.Module):
    """Stochastic depth of one's own."""

    def forward(self, x):
        if not self.training:
            return x
        return x * (torch.rand(len(x), 1, 1, 1, dtype=x.dtype) < 0.5)


class Noise(nn.Module):
    def forward(self, x):
        return x * (1 + torch.randn_like(x)) if self.training else x


class Shuffled(nn.Module):
    """Moves channels in train mode."""

    def forward(self, x):
        return x.flip(1) if self.training else x


class Scaled(nn.Module):
    """With a weight that only one mode reads."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return F.relu(x) if self.training else F.relu6(x)


class Functional(nn.Module):
    """Dropout as a function, in a module with weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return F.dropout(self.conv(x), 0.5, training=self.training)


DEPTHS = {
    "torchvision": lambda: torchvision.ops.StochasticDepth(0.5, "row"),
    "drop block": lambda: torchvision.ops.DropBlock2d(0.3, 3),
    "own": DropPath,
    "noise": Noise,
    "functional dropout": Functional,
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("case", DEPTHS)
def test_what_differs_in_training_is_kept_as_a_module(case, training):
    model = net(DEPTHS[case]().double())
    network = nr.convert(model, SIZE)
    assert agree(model, network, images(), training)
    assert not torch.equal(*(outputs(network, images(), mode) for mode in (False, True)))
    kill_random(network)
    nr.rejuvenate(network)
    assert outputs(network, images(), training).shape == (4, 2 * CLASSES)


def test_plain_modules_that_move_channels_in_training_are_refused():
    assert "between: Shuffled" in refused(net(Shuffled()), "mixes channels")


def test_a_module_with_weights_whose_function_depends_on_the_mode_is_named():
    assert refused(net(Scaled().double()), "depends on self.training").startswith("between: ")


def test_random_numbers_in_the_forward_are_refused_and_none_are_drawn():
    class Random(Scaled):
        def forward(self, x):
            return x * random.random() if self.training else x

    model = net(Random())
    state = random.getstate(), torch.get_rng_state()
    assert "between: draws random numbers" in refused(model, "tracing would fix them")
    assert random.getstate() == state[0] and torch.equal(torch.get_rng_state(), state[1])


def test_a_network_whose_train_method_keeps_parts_in_eval_is_refused():
    class Frozen(nn.Sequential):
        def train(self, mode=True):
            super().train(mode)
            self[1].eval()
            return self

    inner = Frozen(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).double()
    assert refused(net(inner), "train method of its own").startswith("between.1: ")


@pytest.mark.parametrize("training", [False, True])
def test_batch_norms_and_dropouts_keep_their_own_modes(training):
    model = net(nn.Sequential(nn.Dropout(0.5), Functional()).double()).train(training)
    for part in (model.norm, *model.between):
        part.train(not training)
    network = nr.convert(model, SIZE)
    assert network.training == training
    assert agree(model, network, images())
    assert agree(model, network, images(), training)


POOLS = {
    "sizes": lambda x: F.avg_pool2d(x, x.size()[2:]),
    "shape": lambda x: F.avg_pool2d(x, x.shape[-2:]),
    "height and width": lambda x: F.max_pool2d(x, kernel_size=(x.size(2), x.size(3))),
    "unpacked": lambda x: F.avg_pool2d(x, [x.shape[2], x.shape[3]]).contiguous(),
}


@pytest.mark.parametrize("case", POOLS)
def test_a_pooling_over_the_whole_map_takes_any_size(case):
    model = net(end=POOLS[case])
    network = pooled(model, SIZE)
    for size in (SIZE, 9, 33, (20, 31)):
        assert agree(model, network, images(size), False)


BOUND = {
    "one side": lambda x: F.avg_pool2d(x, x.size(3)),
    "made of a size": lambda x: F.adaptive_avg_pool2d(F.interpolate(x, size=x.shape[-1] * 2), 1),
    "a choice": lambda x: F.adaptive_avg_pool2d(x if x.shape[2] > 3 else x.relu(), 1),
    "an assertion": lambda x: _asserted(x),
    "padded": lambda x: F.adaptive_avg_pool2d(F.pad(x, (0, x.shape[3] % 3, 0, 1)), 1),
}


def _asserted(x):
    assert x.shape[2] == x.shape[3]
    return F.adaptive_avg_pool2d(x, 1)


@pytest.mark.parametrize("case", BOUND)
def test_sizes_that_became_constants_bind_the_network_to_its_images(case, tmp_path):
    model = net(end=BOUND[case])
    network = nr.convert(model, SIZE)
    assert agree(model, network, images(), False)
    kill_random(network)
    nr.rejuvenate(network)
    nr.save(network, tmp_path / "network.pth")
    for each in (network, nr.load(tmp_path / "network.pth").double()):
        with pytest.raises(
            ValueError, match="bound to images of 16 x 16 pixels, and these have 24"
        ):
            each(images(24))
        assert each(images()).shape == (4, 2, CLASSES)


def test_the_number_of_images_may_not_be_a_constant():
    refused(
        net(end=lambda x: x.mean([2, 3]) * 1 if len(x) < 3 else x.mean([2, 3])), "number of images"
    )
    refused(net(end=lambda x: F.adaptive_avg_pool2d(x, 1).view(2, 6)), "2 images at a time")


UNDER = {
    "no_grad": (torch.no_grad, "no_grad"),
    "set_grad_enabled": (lambda: torch.set_grad_enabled(False), "set_grad_enabled"),
    "inference": (torch.inference_mode, "inference_mode|no_grad"),
    "autocast": (lambda: torch.autocast("cpu", torch.bfloat16), "autocast"),
    "no autocast": (lambda: torch.autocast("cuda", enabled=False), "autocast"),
}


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("case", UNDER)
def test_what_a_forward_switches_around_itself_is_named(case, outside):
    switch, words = UNDER[case]

    class Switched(nn.Module):
        def forward(self, x):
            with switch():
                return x.relu()

    with torch.set_grad_enabled(not outside):
        line = refused(net(Switched()), f"^between: computes under torch.*({words})")
    assert line.endswith("would be lost")
    assert torch.autocast.__enter__.__module__ == "torch.amp.autocast_mode"


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_is_named(reentrant):
    class Saving(nn.Sequential):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=reentrant)

    line = refused(net(Saving(nn.Conv2d(4, 4, 1).double())), "activation checkpointing")
    assert line.startswith("between")


def test_shared_weights_and_scales_are_named():
    model = net(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)).double())
    for change, words in (
        (lambda m: setattr(m[2], "weight", m[0].weight), "between.2.weight: .* between.0.weight"),
        (lambda m: setattr(m[1], "bias", m[0].bias), "between.1.bias: .* between.0.bias"),
        (lambda m: setattr(m[1].weight, "data", m[0].bias.data), "between.1.weight: is shared"),
    ):
        changed = copy.deepcopy(model)
        change(changed.between)
        refused(changed, words)


class Optional(Net):
    def forward(self, x, mask=None, times=2):
        x = self.norm(self.conv(x))
        for _ in range(times):
            x = F.relu(x)
        if mask is not None:
            x = x * mask
        return self.fc(self.last_norm(self.last(x)).mean((-2, -1)))


class Asserting(Net):
    def forward(self, x):
        assert x.ndim == 4 and x.shape[1] == 3, f"{x.shape}"
        assert isinstance(x, torch.Tensor) and x.is_floating_point()
        torch._assert(x.size(1) == 3, "three channels")
        return super().forward(x)


class Looping(Net):
    def forward(self, x):
        for _ in range(x.shape[1] - 1):
            x = x.contiguous()
        return super().forward(x)


def squeezed(x):
    return x * F.adaptive_avg_pool2d(x, 1).sigmoid()


TAKEN = {
    "a factor": lambda: Net(lambda x: 0.2 * x),
    "gates": lambda: Net(squeezed),
    "own activation": lambda: Net(lambda x: x * x.tanh()),
    "optional arguments": Optional,
    "assertions": Asserting,
    "loops": Looping,
    "zero padding": lambda: Net(lambda x: F.pad(x, (1, 2, 0, 1)).contiguous()),
    "reflected padding": lambda: Net(lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect")),
    "own swish": lambda: Net(lambda x: x * torch.sigmoid(x)),
    "own swish, method": lambda: Net(lambda x: x.sigmoid().mul(x)),
    "own mish": lambda: Net(F.mish),
    "upsampling": lambda: Net(lambda x: F.interpolate(x, scale_factor=2)),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_is_exact_is_taken_at_every_size(case):
    model = TAKEN[case]().double()
    network = nr.convert(model, SIZE)
    for training in (False, True):
        assert agree(model, network, images(), training)
        assert agree(model, network, images(24), training)


class Two(Net):
    def forward(self, x, y):
        return super().forward(x + y)


REASONS = {
    "frozen": (
        lambda: Net(torchvision.ops.FrozenBatchNorm2d(4)),
        "between: FrozenBatchNorm2d has no",
    ),
    "two inputs": (Two, "Two: .*missing 1 required positional argument: 'y'"),
    "a weight": (lambda: Net(nn.PReLU(4)), "between: PReLU: .*number of channels"),
    "ones around": (lambda: Net(lambda x: F.pad(x, (1, 1, 1, 1), value=1.0)), "only zeros"),
    "values": (lambda: Net(lambda x: x if x.sum() > 0 else -x), "asks for the values"),
    "an assertion": (
        lambda: Net(lambda x: _asserted(x[:, :, 1:])),
        "does not take images of 3 channels",
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_refusals_give_the_true_reason(case):
    make, words = REASONS[case]
    line = refused(make(), words)
    assert "another image_size" not in line


def test_a_forward_on_the_instance_counts_and_not_that_of_the_class():
    model = net()
    model.forward = types.MethodType(lambda self, x: Net.forward(self, 2 * x), model)
    assert agree(model, nr.convert(model, SIZE), images())
    model.forward = lambda x: Net.forward(model, x)
    refused(model, "Conv2d that is no part of it")
    model = net()
    model.conv.forward = lambda x: x
    refused(model, "^conv: has a forward put on the instance")


def test_a_forward_that_changes_a_buffer_is_named():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count = self.count + 1
            return x

    refused(net(Counting()), "between.count: is changed by the forward itself")


class Cached(nn.Module):
    """Sets an attribute that changes nothing."""

    def forward(self, x):
        self.size, self.last = x.shape, x
        self.calls = getattr(self, "calls", 0) + 1
        return x


class Counted(Cached):
    def forward(self, x):
        x = super().forward(x)
        return F.relu(x) if self.calls > 1 else x


def test_a_forward_that_does_something_else_the_next_time_is_named():
    refused(net(Counted()), "between: sets calls in its forward")
    model = net(Cached())
    assert agree(model, nr.convert(model, SIZE), images(), False)
    assert not hasattr(model.between, "calls")


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("function", sorted(LIKE, key=NAME), ids=NAME)
def test_what_is_given_at_once_is_like_what_torch_gives(function, trained):
    images = torch.empty(2, 6, 4, 4, dtype=torch.double, device="meta", requires_grad=trained)
    rest = [images.new_empty(6) for _ in range(4)] if function is F.batch_norm else []
    inputs = (
        images,
        images.to(memory_format=torch.channels_last),
        images[:, :, 1:],
        images[..., 0],
    )
    for x in inputs:
        with Quick():
            found = function(x, *rest)
        wanted = function(x, *rest)
        for name in ("shape", "dtype", "requires_grad", "device"):
            assert getattr(found, name) == getattr(wanted, name)
        assert found.stride() == wanted.stride()


@pytest.mark.parametrize("width", [1, 3, 5])
def test_a_batch_norm_of_another_width_is_named(width):
    words = rf"does not take .* \(between: running_mean should contain 4 elements not {width}\)"
    refused(net(nn.BatchNorm2d(width).double()), words)


class Doubled(torch.autograd.Function):
    """A gradient of one's own."""

    @staticmethod
    def forward(ctx, x):
        return x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


def test_autograd_functions_are_named_and_work_afterwards():
    refused(net(lambda x: Doubled.apply(x)), "Net: calls Doubled, an autograd function")
    x = torch.ones(1, requires_grad=True)
    Doubled.apply(x).backward()
    assert x.grad == 2


ASKING = {
    "item": lambda x: x * x.mean().item(),
    "torch._assert": lambda x: (torch._assert((x > -9).all(), "finite"), x)[1],
    "mask": lambda x: x[x > 0],
}


@pytest.mark.parametrize("case", ASKING)
def test_values_that_are_asked_for_are_no_matter_of_the_image_size(case):
    refused(net(ASKING[case]), "Net: asks for the values of an activation")


def test_constants_of_the_forward_are_no_matter_of_the_image_size():
    line = refused(
        net(lambda x: x + torch.ones(4, 1, 1)), "_tensor_constant0 is computed with outside"
    )
    assert "image_size" not in line


def test_nothing_is_left_on_a_network_that_is_refused():
    with torch.device("meta"):
        model = torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    before = [sorted(vars(m)) for m in model.modules()]
    with pytest.raises(ValueError, match=r"^bn1: FrozenBatchNorm2d has no scale that is trained"):
        nr.convert(model, 64)
    assert before == [sorted(vars(m)) for m in model.modules()]
