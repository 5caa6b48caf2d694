"""What follows the convolution of a unit: a batch norm, or only a bias."""

import torch
from torch import Tensor, nn


class BatchNorm(nn.BatchNorm2d):
    """torch's batch norm without its count of batches, which is one small operation a pass.

    Only ``momentum=None`` would read the count. Files that hold it load.
    """

    def __init__(self, num_features: int, **options):
        super().__init__(num_features, **options)
        self.num_batches_tracked = None
        self.register_load_state_dict_pre_hook(_drop_count)

    def reset_running_stats(self) -> None:
        self.running_mean.zero_()
        self.running_var.fill_(1)


def _drop_count(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
    """Take the count of batches, which torch's loading adds where it misses it, out again."""
    state_dict.pop(f"{prefix}num_batches_tracked", None)


class Bias(nn.Module):
    """x + bias, in the place of a batch norm: [B, C, H, W] and [C]."""

    def __init__(self, num_features: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_features))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias[:, None, None]

    def extra_repr(self) -> str:
        return str(len(self.bias))


def norm_like(norm: nn.Module, width: int) -> nn.Module:
    """A fresh norm of the class of ``norm``, with its eps and momentum."""
    if isinstance(norm, Bias):
        return Bias(width)
    fresh = type(norm)(width, eps=norm.eps, momentum=norm.momentum)
    if isinstance(norm, nn.SyncBatchNorm):
        fresh.process_group = norm.process_group
        fresh._non_persistent_buffers_set = norm._non_persistent_buffers_set.copy()
    return fresh


def take_after(layer: nn.Module, old: nn.Module) -> None:
    """Give ``layer`` the device, precision, mode and frozen parameters of ``old``."""
    like = next(old.parameters())
    layer.to(like.device, like.dtype).train(old.training)
    for name, parameter in old.named_parameters():
        if name in layer._parameters and layer._parameters[name] is not None:
            layer._parameters[name].requires_grad_(parameter.requires_grad)
