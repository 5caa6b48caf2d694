"""What moves channels, found by running it on numbers.

chunk, split, slices, view, permute, flatten and their kin only move elements. They are run on the
places 0, 1, 2, ... of an activation's elements; where these end up says which channels are where.
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

    ``flat``: as [B, C·H·W], not [B, C, H, W]. ``spread``: one pixel is repeated over the map.
    """

    chosen: Tensor
    flat: bool
    spread: bool = False


def places(shape: torch.Size) -> Tensor:
    """The places of the elements of an activation of this shape."""
    return torch.arange(shape.numel(), device="cpu").view(shape)


def channels(moved: Tensor, shape: torch.Size) -> Channels | None:
    """The channels that ``moved`` places of an activation [B, C, ...] make; None if they make none.

    Batch and pixels have to be where they were. Parts of channels [B, ..., H, W] are channels, too.
    """
    batch, pixels = shape[0], shape[2:].numel()
    if moved.ndim > 4:
        moved = moved.flatten(1, -3)
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


def flat(shape: torch.Size) -> torch.Size:
    """The shape of all channels: of parts of them [B, ..., H, W], or of pixels [B, ...]."""
    pixels = shape[-2:] if len(shape) > 4 else ()
    return torch.Size((shape[0], shape[1 : len(shape) - len(pixels)].numel(), *pixels))


def parts(places: Tensor, shape: torch.Size, dim: int) -> list[Tensor]:
    """The parts of an activation's ``places`` side by side along ``dim``: [B, C, H, W]."""
    found = places.unbind(dim)
    return [part.flatten(1)[:, :, None, None] if shape[2:].numel() == 1 else part for part in found]


def averaged(places: Tensor, shape: torch.Size, dims: set[int]) -> tuple[bool, bool] | None:
    """Whether ``dims`` of an activation's ``places`` are all of H, and all of W.

    None if they are anything else.
    """
    if len(shape) < 4:
        return None
    height, width = shape[2:]
    rest = [dim for dim in range(places.ndim) if dim not in dims]
    along = places.permute(*rest, *sorted(dims)).flatten(len(rest))
    steps = along - along[..., :1]
    for whole, wanted in (
        ((True, True), torch.arange(height * width, device="cpu")),
        ((False, True), torch.arange(width, device="cpu")),
        ((True, False), torch.arange(height, device="cpu") * width),
    ):
        if steps.shape[-1:] == wanted.shape and bool((steps == wanted).all()):
            return whole
    return None


def pooled(places: Tensor, shape: torch.Size, whole: tuple[bool, bool]) -> Tensor:
    """The same places when the sides that are ``whole`` have become one pixel."""
    height, width = shape[2:]
    channel, row, column = places // (height * width), places // width % height, places % width
    row, column = (at * (not gone) for at, gone in zip((row, column), whole, strict=True))
    high, wide = (1 if gone else side for side, gone in zip(shape[2:], whole, strict=True))
    return (channel * high + row) * wide + column
