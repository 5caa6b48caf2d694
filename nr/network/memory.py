"""Copies of networks that take no memory."""

import copy
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def without_memory(model: M) -> M:
    """A copy whose parameters and buffers are on the meta device."""
    memo: dict[int, Any] = {}
    for module in model.modules():  # of the hooks that it has not, which take deepcopy longest
        empties = [v for v in vars(module).values() if type(v) in (dict, OrderedDict) and not v]
        memo |= {id(own): type(own)() for own in empties}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)
