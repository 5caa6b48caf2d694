"""Several GPUs of one process."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Replicas(nn.DataParallel[nn.Module]):
    """nn.DataParallel whose replicas compute in the autocast type of the thread that calls it.

    torch tells its threads whether autocast is on, but not its type: on GPUs they would compute in
    float16 instead of bfloat16.
    """

    def parallel_apply(
        self, replicas: Sequence[nn.Module], inputs: Sequence[Any], kwargs: Any
    ) -> list[Any]:
        kind = self.src_device_obj.type
        enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

        def cast(replica: nn.Module) -> Any:
            def forward(*positional: Any, **named: Any) -> Any:
                with torch.autocast(kind, dtype, enabled=enabled):
                    return replica(*positional, **named)

            return forward

        return super().parallel_apply([cast(replica) for replica in replicas], inputs, kwargs)
