"""Widths that hardware likes: survivors and new widths in multiples of N (spec section 5)."""

from math import isqrt

from torch import Tensor

from nr.utilization import Masks
from nr.wiring import Layer


def new_widths(live: int, total_live: int, total: int, multiple: int = 1) -> tuple[int, int]:
    """(survived, rejuvenated) channels of a layer, from live·r with r = √(total / total_live).

    ``multiple`` 1: int(live·r), at least one more than live. N > 1: the multiple of N nearest to
    live·r (the larger of two), at least N more than live. Exact integers; nothing is rejuvenated
    where nothing in the network is dead.
    """
    if total == total_live:
        return live, 0
    if multiple == 1:
        return live, max(isqrt(live * live * total // total_live) - live, 1)
    twice = isqrt(4 * live * live * total // total_live)  # int(2·live·r)
    nearest = (twice + multiple) // (2 * multiple) * multiple
    least = live + multiple + -live % multiple
    return live, max(nearest, least) - live


def round_up(layers: list[Layer], masks: Masks, multiple: int) -> Masks:
    """``masks`` with the survivors of each prunable layer rounded up to a multiple.

    The dead channels of the largest |γ| survive too, the first of equal ones, as far as there are
    any. Fixed layers and layers without any survivor stay as they are.
    """
    prunable = [layer for layer in layers if not layer.fixed]
    return masks | {
        layer.name: tuple(
            _filled(live, norm.weight.detach().abs().to(live.device), multiple)
            for live, norm in zip(masks[layer.name], layer.unit.norms, strict=True)
        )
        for layer in prunable
    }


def _filled(live: Tensor, gamma: Tensor, multiple: int) -> Tensor:
    """The mask [C] with as many more channels as a multiple needs, by |γ| [C]."""
    missing = -int(live.sum()) % multiple
    order = gamma.masked_fill(live, -1).argsort(descending=True, stable=True)  # dead ones first
    return live.index_fill(0, order[:missing], True)
