"""Batch norm over the images of all processes, so that their number does not change a run."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nr.layers import BatchNorm


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return SumOverProcesses.apply(gradient)


class HostBatchNorm2d(BatchNorm):
    """nn.SyncBatchNorm for processes without GPUs, which it does not support."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        values = x.float()  # [b, C, H, W], this process's images
        ones = values.new_full((1,), values.numel() / values.shape[1])
        sums = SumOverProcesses.apply(torch.cat([values.sum((0, 2, 3)), ones]))
        count = sums[-1]
        mean = (sums[:-1] / count)[:, None, None]
        variance = SumOverProcesses.apply((values - mean).square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = (self.weight * (variance + self.eps).rsqrt())[:, None, None]
        return ((values - mean) * scale + self.bias[:, None, None]).to(x.dtype)


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> None:
    """Make every batch norm of ``network``, in place, one over all processes."""
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)
        for module in network.modules():
            if isinstance(module, nn.SyncBatchNorm):
                # It refuses to train without a count of batches; no file holds it.
                count = torch.zeros((), dtype=torch.long, device=module.running_mean.device)
                module.register_buffer("num_batches_tracked", count, persistent=False)
        return
    for module in network.modules():
        if type(module) is BatchNorm:
            module.__class__ = HostBatchNorm2d
