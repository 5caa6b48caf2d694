"""What follows the convolution of a unit: a batch norm, a scale or a bias."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor, fx, nn

COUNT = "num_batches_tracked"  # torch's name of the count of batches

M = TypeVar("M", bound=nn.Module)
if TYPE_CHECKING:

    class Layers(nn.ModuleList, Generic[M]):
        """An nn.ModuleList that tells a type checker what is in it."""

        def __iter__(self) -> Iterator[M]: ...

        def __getitem__(self, idx: int) -> M: ...  # type: ignore[override] # and no slice

else:
    Layers = nn.ModuleList


class BatchNorm(nn.BatchNorm2d):
    """torch's batch norm without its count of batches, which costs one small operation a pass.

    Only ``momentum=None`` reads the count, and then it is there. If momentum becomes None later, as
    torch.optim.swa_utils.update_bn sets it for a while, the count is there but in no file. Files
    with a count load.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1):
        super().__init__(num_features, eps=eps, momentum=momentum)
        if self.momentum is not None:
            self._non_persistent_buffers_set.add(COUNT)
            self.register_load_state_dict_pre_hook(_drop_count)

    def reset_running_stats(self) -> None:
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked = None
        self.begin_count()

    def begin_count(self) -> None:
        """Make a count of batches."""
        if self.momentum is None:
            self.count()

    def count(self) -> Tensor:
        """The count of batches, from now on where there was none."""
        if self.num_batches_tracked is None:
            device = self.running_mean.device
            self.num_batches_tracked = torch.zeros((), dtype=torch.long, device=device)
        return self.num_batches_tracked

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, fx.Proxy):  # torch.fx looks into all modules but torch's own
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), {})
        self.begin_count()
        return super().forward(x)


def loses_count(norm: BatchNorm) -> bool:
    """Whether ``momentum`` became None after the norm was made, and files lack its count."""
    return norm.momentum is None and COUNT in norm._non_persistent_buffers_set


def _drop_count(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Take the count of batches, which torch's loading adds where it misses it, out again."""
    state_dict.pop(f"{prefix}{COUNT}", None)


class Bias(nn.Module):
    """x + bias for [B, C, H, W] and [C], instead of a batch norm; x if the bias is None."""

    def __init__(self, width: int, bias: bool = True):
        super().__init__()
        self.width = width
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.bias is None else x + self.bias.view(-1, 1, 1)

    def extra_repr(self) -> str:
        return f"{self.width}, bias={self.bias is not None}"


class Scale(nn.Module):
    """x · γ for [B, C, H, W] and [C], where there is no batch norm."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view(-1, 1, 1)

    def extra_repr(self) -> str:
        return str(len(self.weight))


# What stands behind the convolution of a unit; torch's batch norms may, in the place of ours.
Follower = BatchNorm | Bias | Scale


def norm_like(norm: Follower, width: int) -> Follower:
    """A fresh norm of the class of ``norm``, with its eps and momentum."""
    if isinstance(norm, Bias):
        return Bias(width, bias=norm.bias is not None)
    if isinstance(norm, Scale):
        return Scale(width)
    fresh = type(norm)(width, eps=norm.eps, momentum=norm.momentum)
    if isinstance(norm, nn.SyncBatchNorm) and isinstance(fresh, nn.SyncBatchNorm):
        fresh.process_group = norm.process_group
        fresh._non_persistent_buffers_set = norm._non_persistent_buffers_set.copy()
    return fresh


def take_after(layer: nn.Module, old: nn.Module) -> None:
    """Give ``layer`` the device, precision, mode and frozen parameters of ``old``."""
    layer.train(old.training)
    parameters = {name: p for name, p in old._parameters.items() if p is not None}
    own = (p for p in layer._parameters.values() if p is not None)
    for first, like in islice(zip(own, parameters.values(), strict=False), 1):
        if (first.device, first.dtype) != (like.device, like.dtype):  # a missing bias has none
            layer.to(like.device, like.dtype)
    for name, parameter in parameters.items():
        if (fresh := layer._parameters.get(name)) is not None:
            fresh.requires_grad_(parameter.requires_grad)
