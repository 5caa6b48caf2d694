"""torch.compile where a compiler is present."""

import functools
import time

import torch
from torch import nn

DEFAULT = "default"
RIGHT_ON_CPUS = (2, 9)  # torch's first version whose code for CPUs without AVX-512 computes right
MODES = (DEFAULT, "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch


@functools.cache
def can_compile(device_type: str) -> bool:
    """Whether torch.compile works here, found out by compiling one addition."""
    if device_type == "cpu" and tuple(map(int, torch.__version__.split(".")[:2])) < RIGHT_ON_CPUS:
        version = ".".join(map(str, RIGHT_ON_CPUS))
        print(f"--compile: on CPUs torch before {version} may compute wrongly: running without it")
        return False
    try:
        torch.compile(lambda x: x + 1)(torch.ones(1, device=device_type))
    except Exception as error:  # the backends raise many kinds
        reason = str(error).strip().splitlines()[0][:120]
        print(f"--compile: no working compiler here ({reason}): running without it")
        return False
    return True


def compile_network(network: nn.Module, devices: list[torch.device], mode: str = DEFAULT) -> None:
    """Compile ``network`` in place at its next call, where that is possible.

    Once to train, once to evaluate, and once more for a smaller last batch of each: a graph for
    any size would be slower. What was compiled before is forgotten, or torch, which counts, would
    stop compiling after a few networks.
    """
    if len(devices) > 1:
        say_not_compiled(len(devices))
    elif can_compile(devices[0].type):
        torch.compiler.reset()
        announce()
        network.compile(mode=mode, dynamic=False)


def announce() -> None:
    """From now to the next reset every compilation is said in a line with its seconds."""
    from torch._dynamo.callback import callback_handler  # seconds to load, so not for every run

    began: list[float] = []

    def end(*_: object) -> None:
        print(f"| --compile: compiled in {time.perf_counter() - began.pop():.1f} s")

    callback_handler.register_start_callback(lambda *_: began.append(time.perf_counter()))
    callback_handler.register_end_callback(end)


@functools.cache
def say_not_compiled(devices: int) -> None:
    """One line a process: every replica would compute with the weights of the first GPU."""
    print(
        f"--compile: not with the {devices} GPUs of --gpu-id, so running without it; torchrun can"
    )
