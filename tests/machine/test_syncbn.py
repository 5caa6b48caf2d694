"""machine.syncbn: one batch norm over the images of several processes."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from nr.network.norms import BatchNorm
from tests.helpers import batch, logits_of, relative_difference, worn
from tests.machine import groups
from utils.machine import distributed
from utils.machine.syncbn import Normalise, WholeBatchNorm2d, synchronise_batch_norm


@pytest.mark.slow
def test_two_processes_with_unequal_shares_equal_one():
    """Forward, gradients, running statistics, a training, and its collectives counted."""
    groups.succeed("tests.machine.whole_batch")


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_gradient_by_hand_is_the_derivative(group, order):
    distributed.start([0])
    torch.manual_seed(0)
    x = (torch.randn(3, 4, 3, 2, dtype=torch.double) * 2 + 5).to(memory_format=order)
    gamma, beta = torch.rand(2, 4, dtype=torch.double)
    inputs = [tensor.requires_grad_() for tensor in (x, gamma, beta)]
    assert torch.autograd.gradcheck(lambda *given: Normalise.apply(*given, 1e-5)[0], inputs)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_class_for_every_device(monkeypatch, group, device):
    """nn.SyncBatchNorm, for GPUs only, made the host wait three times a layer and pass."""
    distributed.start([0])
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(BatchNorm(4)))
    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", lambda network, *_, **__: network)
    distributed.parallel(network, [torch.device(device)])
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert [type(norm) for norm in norms] == [WholeBatchNorm2d] * 2


def test_a_network_with_one_batch_norm_over_all_processes_trains(group):
    distributed.start([0])
    twin, network = worn("basic"), worn("basic")
    synchronise_batch_norm(network)
    images = batch()[0]
    found, expected = (logits_of(model, images, training=True) for model in (network, twin))
    assert relative_difference(found, expected) < 1e-4
    assert network.state_dict().keys() == twin.state_dict().keys()
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", [BatchNorm, nn.BatchNorm2d])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_and_counts_are_torchs(group, cls, momentum):
    """momentum=None: the means over all batches."""
    distributed.start([0])
    plain, norm = (made(4, momentum=momentum) for made in (nn.BatchNorm2d, cls))
    network = nn.Sequential(norm)
    synchronise_batch_norm(network)
    for number in range(3):
        x = torch.randn(8, 4, 3, 3) + number
        network(x), plain(x)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name.removeprefix("0.")])
    assert len(network.state_dict()) == 4 + (cls is nn.BatchNorm2d or momentum is None)


class Operations(TorchDispatchMode):
    """The names of the operations that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("momentum", [0.1, None])
def test_nothing_asks_the_device_for_a_value(group, momentum):
    """Neither a number for the host, nor a shape that depends on a mask."""
    distributed.start([0])
    norm = nn.Sequential(nn.BatchNorm2d(4, momentum=momentum))
    synchronise_batch_norm(norm)
    x = torch.randn(2, 4, 3, 3, requires_grad=True)
    with Operations() as operations:
        norm(x).sum().backward()
    assert {"aten::batch_norm_update_stats", "aten::native_batch_norm_backward"} < operations.names
    waiting = ("aten::_local_scalar_dense", "aten::nonzero", "aten::index", "aten::masked_select")
    assert not operations.names.intersection(waiting)


def test_in_eval_mode_it_is_torchs(group):
    distributed.start([0])
    norm = nn.BatchNorm2d(4)
    norm(torch.randn(8, 4, 5, 5))
    whole = nn.Sequential(copy.deepcopy(norm))
    synchronise_batch_norm(whole)
    images = torch.randn(1, 4, 1, 1)
    assert torch.equal(whole.eval()(images), norm.eval()(images))


def test_it_compiles_without_a_break(group):
    distributed.start([0])
    torch.manual_seed(0)
    norm = nn.Sequential(nn.BatchNorm2d(4))
    synchronise_batch_norm(norm)
    x = torch.randn(4, 4, 5, 5, requires_grad=True)
    expected = norm(x)
    expected.square().sum().backward()
    gradient, x.grad = x.grad, None
    y = torch.compile(norm, backend="aot_eager", fullgraph=True)(x)
    y.square().sum().backward()
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(x.grad, gradient)
