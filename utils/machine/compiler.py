"""torch.compile where a compiler is present."""

import functools

import torch
from torch import nn


@functools.cache
def can_compile(device_type: str) -> bool:
    """Whether torch.compile works here, found out by compiling one addition."""
    try:
        torch.compile(lambda x: x + 1)(torch.ones(1, device=device_type))
    except Exception as error:  # the backends raise many kinds
        reason = str(error).strip().splitlines()[0][:120]
        print(f"--compile: no working compiler here ({reason}): running without it")
        return False
    return True


def compile_network(network: nn.Module, devices: list[torch.device]) -> None:
    """Compile ``network`` in place at its next call, where that is possible."""
    if len(devices) > 1:
        say_not_compiled(len(devices))
    elif can_compile(devices[0].type):
        network.compile()


@functools.cache
def say_not_compiled(devices: int) -> None:
    """One line a process: every replica would compute with the weights of the first GPU."""
    print(
        f"--compile: not with the {devices} GPUs of --gpu-id, so running without it; torchrun can"
    )
