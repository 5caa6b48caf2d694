"""What a GPU is asked to do in a step; the number does not depend on widths or images."""

from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode


class Launches(TorchDispatchMode):
    """Counts operations, without views and allocations."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not (function.is_view or "empty" in function.__name__)
        return function(*args, **(kwargs or {}))


def launches(work: Callable[[], object]) -> int:
    """Those of ``work``, which is done once; it must not be compiled."""
    with Launches() as counted:
        work()
    return counted.count
