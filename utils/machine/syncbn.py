"""Batch norm over the images of all processes, so that their number does not change a run."""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from nr.network.norms import BatchNorm


class WholeBatchNorm2d(BatchNorm):
    """nn.BatchNorm2d over the batches of all processes, on any device and of any sizes, 0 too.

    One all-reduce forward and one backward; the host never waits for the device, as it does three
    times a pass in nn.SyncBatchNorm. Statistics are float32 under autocast.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        y, mean, variance, count = Normalise.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            share = self.share()
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            unbiased = variance * (count / (count - 1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)
        return y

    def share(self) -> float | Tensor:
        """This batch's weight in the running statistics; momentum=None: that of each before it."""
        if self.momentum is None:
            return 1 / self.count().add_(1).to(self.running_mean.dtype)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return self.momentum


class Normalise(torch.autograd.Function):
    """x [b, C, H, W] normalised over all processes' images, then scaled by γ and shifted by β.

    Also returns their mean [C], biased variance [C] and count of values a channel, []. The sums
    and the elementwise parts are torch's own batch norm kernels, with other statistics.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Given statistics to update, the kernel computes in their type, whatever that of x is.
        own_mean, own_variance = torch.zeros_like(gamma), torch.zeros_like(gamma)
        if len(x):
            own_mean, own_variance = torch.batch_norm_update_stats(x, own_mean, own_variance, 0.0)
        mean, variance, count = over_processes(own_mean, own_variance, x.numel() // x.shape[1])
        y = F.batch_norm(x, mean, variance, gamma, beta, training=False, eps=eps)
        ctx.save_for_backward(x, gamma, mean, variance, count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return y, mean, variance, count

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: None) -> tuple[Tensor, Tensor, Tensor, None]:
        """∂x = γ/σ·(∂y − Σ∂y/N − x̂·Σ(∂y·x̂)/N); γ and β get this process's sums, as in DDP."""
        x, gamma, mean, variance, count = ctx.saved_tensors
        inverse = (variance + ctx.eps).rsqrt()
        own_gamma, own_beta = torch.zeros_like(gamma), torch.zeros_like(gamma)
        if len(x):
            _, own_gamma, own_beta = torch.ops.aten.native_batch_norm_backward(
                gradient, x, gamma, None, None, mean, inverse, True, ctx.eps, [False, True, True]
            )
        sums = torch.stack([own_gamma, own_beta])  # [2, C]: Σ ∂y·x̂ and Σ ∂y
        dist.all_reduce(sums)
        by_x, constant = sums * (-gamma * inverse / count)
        shift = F.batch_norm(x, mean, variance, by_x, constant, training=False, eps=ctx.eps)
        by_gradient = (gamma * inverse)[:, None, None]
        return torch.addcmul(shift, gradient, by_gradient).to(x.dtype), own_gamma, own_beta, None


def over_processes(mean: Tensor, variance: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean [C], biased variance [C] and count [] of all processes' values, from those of each.

    A table with a row a process is all-reduced. Chan, Golub and LeVeque's formula (1979) subtracts
    no large sums from each other.
    """
    table = mean.new_zeros(dist.get_world_size(), 2 * len(mean) + 1)
    table[dist.get_rank()] = torch.cat([mean, variance, mean.new_full((1,), count)])
    dist.all_reduce(table)
    means, variances, counts = table.split([len(mean), len(mean), 1], dim=1)  # [P, C | C | 1]
    total = counts.sum()
    share = counts / total
    mean = (means * share).sum(0)
    variance = ((variances + (means - mean).square()) * share).sum(0)
    return mean, variance, total


def synchronise_batch_norm(network: nn.Module) -> None:
    """Make every batch norm of ``network``, in place, one over all processes."""
    for module in network.modules():
        if type(module) in (BatchNorm, nn.BatchNorm2d):
            module.__class__ = WholeBatchNorm2d
