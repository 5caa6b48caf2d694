"""Optimizers and wrappers from before a rebuild, which hold parameters that are gone."""

import gc
from collections.abc import Mapping
from functools import cache

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from nr.network.layers import Network

# Attribute of a parameter that a rebuild took out of its network: where it went.
GONE = "nr_gone"


def retire(
    model: Network, old: list[nn.Parameter], origins: Mapping[int, object] | None = None
) -> None:
    """Mark those of the parameters ``old`` that ``model`` no longer has.

    The next step of an optimizer that holds one is a RuntimeError, and so is the next pass through
    a DistributedDataParallel around the network, which synchronises them. ``origins``: by its id,
    where a parameter lives on in others; None if that is not known.
    """
    kept = set(map(id, model.parameters()))
    for parameter in old:
        if id(parameter) not in kept:
            gone = None if origins is None else origins.get(id(parameter), ())
            setattr(parameter, GONE, gone)
    _watch_optimizers()
    if dist.is_available() and dist.is_initialized():
        for thing in gc.get_objects():  # a network does not know what wraps it
            wraps = DistributedDataParallel in type(thing).__mro__
            if wraps and any(module is model for module in thing.modules()):
                thing.register_forward_pre_hook(_refuse_old_wrapper)


@cache
def _watch_optimizers() -> None:
    """From the first rebuild on, check the parameters of every optimizer at each step."""
    # Kept out of a compiled step. torch.compiler.disable would load the compiler at once, which
    # takes a second; this waits for the first optimizer, with which torch loads it anyway.
    register_optimizer_step_pre_hook(torch._disable_dynamo(_refuse_gone))


def _refuse_gone(optimizer: Optimizer, *_: object) -> None:
    if any(GONE in vars(p) for group in optimizer.param_groups for p in group["params"]):
        raise RuntimeError(
            f"{type(optimizer).__name__}: the network was rebuilt after this optimizer was made,"
            " which steps on parameters that are no longer its own: make a new one"
        )


def _refuse_old_wrapper(wrapper: nn.Module, *_: object) -> None:
    raise RuntimeError(
        f"{type(wrapper).__name__}: its network was rebuilt after it was wrapped, and the new"
        " parameters would not be synchronised: wrap it anew, in every process"
    )
