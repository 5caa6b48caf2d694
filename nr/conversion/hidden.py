"""What changes a network's function without being seen in its graph."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

CHANGED = (  # what a forward may change around its operations, in the order of ``surroundings``
    "torch.no_grad() or set_grad_enabled(False) (as do autograd functions, and activation"
    " checkpointing with use_reentrant=True)",
    "torch.inference_mode()",
)


def hidden(model: nn.Module) -> Iterator[tuple[str, str]]:
    """What changes a network's function without being seen in its graph, and where."""
    owners: dict[object, str] = {}
    for name, module in model.named_modules():
        place = name or type(module).__name__
        for own, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.numel():
                key = (tensor.device, tensor.data_ptr() or id(tensor))
                if (other := owners.setdefault(key, f"{place}.{own}")) != f"{place}.{own}":
                    yield (
                        f"{place}.{own}",
                        f"is shared with {other}, and each place in a network of units has weights"
                        " of its own: give each layer its own",
                    )
        if parametrize.is_parametrized(module):
            yield (
                place,
                "its weights are made of others: use"
                " torch.nn.utils.parametrize.remove_parametrizations first",
            )
        if module._backward_hooks or module._backward_pre_hooks:
            yield place, "has a backward hook, which would be lost: remove it first"
        if module._forward_hooks or module._forward_pre_hooks:
            yield (
                place,
                "has a forward hook (as of torch.nn.utils.prune and weight_norm), which would be"
                " lost: remove it first",
            )


def surroundings() -> tuple[Any, ...]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def drawn_from(like: Tensor) -> tuple[Any, ...]:
    """The states of the generators that a forward may draw from."""
    states = [torch.get_rng_state()]
    if like.is_cuda:
        states.append(torch.cuda.get_rng_state(like.device))
    found: list[Any] = [state.view(torch.int64).tolist() for state in states]
    found.append(random.getstate())
    if "numpy" in sys.modules:
        _, keys, place, *_ = sys.modules["numpy"].random.get_state()
        found += [keys.tobytes(), place]
    return tuple(found)


@contextmanager
def same_random() -> Iterator[None]:
    """Leave the generators of torch and Python as they were."""
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)
