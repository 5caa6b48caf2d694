"""What test_syncbn checks in two processes with 5 and 3 images: python -m of torchrun.

The reference is torch's own batch norm over the 8 images in one process.
"""

import copy
import sys
from collections.abc import Iterator
from itertools import product

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import nr
from nr.network.layers import Network
from tests.helpers import batch, loss_of, relative_difference, tiny, vary
from tests.training.test_engine import Stop
from utils.data.batches import Share, train_shares
from utils.machine import distributed
from utils.training.engine import train_epoch

SHARES = (5, 3)  # images of each process
CPU = torch.device("cpu")
LR = 0.05
TOLERANCE = 1e-5


def share(images: Tensor) -> Tensor:
    """This process's stretch of the 8 images."""
    return images.split(SHARES)[dist.get_rank()]


def whole(part: Tensor) -> Tensor:
    """The parts of all processes, one after the other."""
    return torch.cat(distributed.gathered(part.detach()))


def norms(
    channels: int, dtype: torch.dtype = torch.float32, momentum: float | None = 0.1
) -> tuple[nn.Module, nn.Module]:
    """One batch norm over all processes, and a copy as torch has it."""
    plain = nn.BatchNorm2d(channels, dtype=dtype, momentum=momentum)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.copy_(torch.rand(channels, generator=generator) + 0.5)
    wrapped = distributed.parallel(nn.Sequential(copy.deepcopy(plain)), [CPU])
    return wrapped.module[0], plain


def check_equal_to_one_process(
    order: torch.memory_format, dtype: torch.dtype, momentum: float | None
) -> None:
    norm, plain = norms(6, dtype, momentum)
    generator = torch.Generator().manual_seed(2)
    for _ in range(2):  # two steps, for the running statistics
        images = torch.randn(8, 6, 5, 4, generator=generator, dtype=dtype) * 3 + 7
        downstream = torch.randn(8, 6, 5, 4, generator=generator, dtype=dtype)
        own = share(images).to(memory_format=order).requires_grad_()
        images.requires_grad_()
        y, expected = norm(own), plain(images)
        y.backward(share(downstream).to(memory_format=order))
        expected.backward(downstream)
        assert y.is_contiguous(memory_format=order) and y.dtype == dtype
        pairs = [(whole(y), expected.detach()), (whole(own.grad), images.grad)]
        for name in ("weight", "bias"):
            summed = distributed.total(getattr(norm, name).grad)
            pairs.append((summed, getattr(plain, name).grad))
        pairs += [(norm.running_mean, plain.running_mean), (norm.running_var, plain.running_var)]
        tolerance = TOLERANCE if dtype == torch.float32 else 1e-12
        for found, right in pairs:
            assert relative_difference(found, right) < tolerance
        norm.zero_grad()
        plain.zero_grad()
    norm.eval(), plain.eval()
    assert torch.equal(norm(share(images)), norm(images).split(SHARES)[dist.get_rank()])
    assert relative_difference(norm(images).detach(), plain(images).detach()) < tolerance


def check_far_from_zero() -> None:
    """A mean of 1000 standard deviations: E[x²] − E[x]² in float32 would be wrong by 6 %."""
    norm, _ = norms(2)
    images = torch.randn(8, 2, 9, 9, generator=torch.Generator().manual_seed(3)) + 1000
    norm(share(images))
    expected = 0.9 + 0.1 * images.double().var((0, 2, 3))
    assert relative_difference(norm.running_var.double(), expected) < TOLERANCE


def check_float32_under_autocast() -> None:
    norm, plain = norms(4)
    images = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(4)).bfloat16()
    own = share(images).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(own)
    y.float().square().sum().backward()
    expected = plain(images.float())
    assert y.dtype == own.grad.dtype == torch.bfloat16
    assert norm.running_var.dtype == norm.weight.grad.dtype == torch.float32
    assert relative_difference(norm.running_var, plain.running_var) < TOLERANCE
    assert relative_difference(norm.running_mean, plain.running_mean) < TOLERANCE
    assert relative_difference(whole(y).float(), expected.detach()) < 2**-8  # one rounding


def trained(wrapped: nn.Module, network: Network, steps: int = 4) -> None:
    optimizer = nr.SGD(network, LR, momentum=0.9)
    for step in range(steps):
        images, labels = batch(count=8, seed=step)
        size, parts = len(share(labels)), dist.get_world_size()
        optimizer.zero_grad()
        logits = wrapped(share(images))
        loss = sum(F.cross_entropy(stream, share(labels)) for stream in logits.unbind(1))
        (loss * size * parts / len(labels)).backward()
        optimizer.step()


def check_training() -> None:
    """Nobody sends buffers, and they are equal; everything is as in one process."""
    network = vary(tiny(classes=10))
    alone = copy.deepcopy(network)
    wrapped = distributed.parallel(network, [CPU])
    trained(wrapped, network)
    assert wrapped.gradient_as_bucket_view
    distributed.check_equal(network)  # parameters and buffers, bit for bit
    optimizer = nr.SGD(alone, LR, momentum=0.9)
    for step in range(4):
        optimizer.zero_grad()
        loss_of(alone, *batch(count=8, seed=step)).backward()
        optimizer.step()
    for name, tensor in alone.state_dict().items():
        assert relative_difference(network.state_dict()[name], tensor) < 1e-4, name


def check_collectives() -> None:
    """A step: one all-reduce a batch norm and direction, one a gradient bucket, nothing else."""
    network = vary(tiny(classes=10))
    layers = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    wrapped = distributed.parallel(network, [CPU])
    trained(wrapped, network)  # DDP orders its buckets anew after its first step
    with profiled() as profile:
        trained(wrapped, network, steps=1)
    assert collectives(profile) == {"c10d::allreduce_": 2 * layers + 1}


def profiled() -> torch.profiler.profile:
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])


def collectives(profile: torch.profiler.profile) -> dict[str, int]:
    """How often each was called."""
    return {e.key: e.count for e in profile.key_averages() if e.key.startswith("c10d::")}


class Parts:
    """Batches of 8, 8 and 6 images, two to a step; of them one's share of several processes."""

    def __init__(self, rank: int = 0, world: int = 1):
        self.shares = train_shares(22, 8, rank, world, iter_size=2)

    def __len__(self) -> int:
        return len(self.shares)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = batch(count=22, seed=epoch)
        for taken in self.shares:
            yield images[taken.positions], labels[taken.positions]


def check_steps_of_several_batches() -> None:
    """Gradients are sent once a step; each is that of one process, and so is the training."""
    network = vary(tiny(classes=10))
    alone = copy.deepcopy(network)
    layers = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    wrapped = distributed.parallel(network, [CPU])
    optimizers = [nr.SGD(model, LR, momentum=0.9) for model in (network, alone)]
    parts = Parts(dist.get_rank(), dist.get_world_size()), Parts()
    for epoch in range(2):  # DDP orders its buckets anew after its first step
        with profiled() as profile:
            train_epoch(wrapped, parts[0], epoch, optimizers[0], False, Stop())
        train_epoch(alone, parts[1], epoch, optimizers[1], False, Stop())
    assert collectives(profile) == {"c10d::allreduce_": 3 * 2 * layers + 2}
    distributed.check_equal(network)
    for name, parameter in alone.named_parameters():
        own = network.get_parameter(name)
        assert relative_difference(own, parameter) < 1e-4, name
        assert relative_difference(own.grad, parameter.grad) < 1e-4, name


class Uneven:
    """Batches of 8 and 3 images, of the second of which process 0 has none; or all of them."""

    def __init__(self, rank: int | None = None):
        whole = [Share(slice(0, 8), 1.0), Share(slice(8, 11), 1.0)]
        parts = [Share(slice(0, 5), 1.25), Share(slice(8, 8), 0.0)]
        others = [Share(slice(5, 8), 0.75), Share(slice(8, 11), 2.0)]
        self.shares = whole if rank is None else (parts, others)[rank]

    def __len__(self) -> int:
        return 2

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = batch(count=11, seed=epoch)
        for taken in self.shares:
            yield images[taken.positions], labels[taken.positions]


def check_a_process_without_an_image() -> None:
    """It takes part in the step, which is that of one process, in both forms of a network."""
    for streams in (1, 2):
        network = vary(tiny(classes=10))
        if streams == 2:
            network.features.first.norms[0].weight.data[:2] = 0
            nr.rejuvenate(network, cross="attention")
            distributed.copy_from_main(network)
        alone = copy.deepcopy(network)
        wrapped = distributed.parallel(network, [CPU])
        optimizers = [nr.SGD(model, LR, momentum=0.9) for model in (network, alone)]
        for epoch in range(2):
            batches = Uneven(dist.get_rank()), Uneven()
            sums = train_epoch(wrapped, batches[0], epoch, optimizers[0], False, Stop())
            expected = train_epoch(alone, batches[1], epoch, optimizers[1], False, Stop())
            torch.testing.assert_close(distributed.total(sums), expected, rtol=1e-4, atol=1e-4)
        distributed.check_equal(network)
        for name, tensor in alone.state_dict().items():
            assert relative_difference(network.state_dict()[name], tensor) < 1e-4, name


def main() -> None:
    distributed.start([0])
    sys.stdout = sys.__stdout__
    orders, dtypes = (torch.contiguous_format, torch.channels_last), (torch.float32, torch.float64)
    for order, dtype, momentum in product(orders, dtypes, (0.1, None)):
        check_equal_to_one_process(order, dtype, momentum)
    check_far_from_zero()
    check_float32_under_autocast()
    check_training()
    check_collectives()
    check_steps_of_several_batches()
    check_a_process_without_an_image()
    distributed.stop()


if __name__ == "__main__":
    main()
