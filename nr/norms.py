"""The batch norm of a unit, and layers made anew after the ones that they replace."""

from torch import nn


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


def norm_like(norm: nn.Module, width: int) -> nn.Module:
    """A fresh batch norm of the class, eps and momentum of ``norm``."""
    fresh = type(norm)(width, eps=norm.eps, momentum=norm.momentum)
    if isinstance(norm, nn.SyncBatchNorm):
        fresh.process_group = norm.process_group
        fresh._non_persistent_buffers_set = norm._non_persistent_buffers_set.copy()
    return fresh


def take_after(layer: nn.Module, old: nn.Module) -> None:
    """Give ``layer`` the device, precision, mode and frozen parameters of ``old``."""
    layer.to(old.weight.device, old.weight.dtype).train(old.training)
    for name, parameter in old.named_parameters():
        if name in layer._parameters and layer._parameters[name] is not None:
            layer._parameters[name].requires_grad_(parameter.requires_grad)
