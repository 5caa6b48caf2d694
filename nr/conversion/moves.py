"""What moves channels, found by running it: each element of an activation is a number.

chunk, split, slices, view, permute, flatten and their kind only move elements. Run on the places
0, 1, 2, ... of an activation's elements they give the places that stand where, from which the
channels are read that stand where.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

# Functions, methods and modules that move the elements of one tensor and change none.
_MOVING = (
    "getattr getitem flatten unflatten reshape view squeeze unsqueeze permute transpose swapaxes"
    " movedim chunk split tensor_split unbind narrow select index_select channel_shuffle expand"
    " expand_as clone"
)
WORDS = frozenset(_MOVING.split())
MODULES = (nn.Flatten, nn.Unflatten, nn.ChannelShuffle)


class Channels(NamedTuple):
    """``chosen``: the channels of an activation that are there, in order.

    ``flat``: [B, C·H·W] instead of [B, C, H, W]; ``spread``: one pixel repeated over a map.
    """

    chosen: Tensor
    flat: bool
    spread: bool = False


def places(shape: torch.Size) -> Tensor:
    """The places of the elements of an activation of this shape."""
    return torch.arange(shape.numel(), device="cpu").view(shape)


def channels(moved: Tensor, shape: torch.Size) -> Channels | None:
    """The channels that ``moved`` places of an activation [B, C, ...] make; None if it has none.

    Batch and pixels have to be where they were.
    """
    batch, pixels = shape[0], shape[2:].numel()
    if moved.ndim not in (2, 4) or moved.shape[0] != batch or moved.numel() == 0:
        return None
    if pixels == 1 and moved.ndim == 4 and moved.shape[2:].numel() > 1:
        once = channels(moved[:, :, :1, :1], shape)
        if once is None or not bool((moved == moved[:, :, :1, :1]).all()):
            return None
        return once._replace(spread=True)
    if moved.ndim == 4 and moved.shape[2:].numel() != pixels:
        return None
    if moved.ndim == 4 and len(shape) == 4 and moved.shape[2:] != shape[2:]:
        return None
    if moved[0].numel() % pixels:
        return None
    rows = moved.reshape(batch, -1, pixels)
    chosen = rows[0, :, 0] // pixels
    images = torch.arange(batch, device="cpu")[:, None, None] * shape[1:].numel()
    natural = images + chosen[:, None] * pixels + torch.arange(pixels, device="cpu")
    return Channels(chosen, moved.ndim == 2) if torch.equal(natural, rows) else None
