"""Widths that hardware likes: survivors and new widths in multiples of N (spec section 5)."""

from collections import defaultdict
from math import gcd, isqrt, lcm

from torch import Tensor

from nr.utilization import Masks, by_tie, part_scores
from nr.wiring import Layer


def new_widths(live: int, total_live: int, total: int, multiple: int = 1) -> tuple[int, int]:
    """(survived, rejuvenated) parts of a layer, from live·r with r = √(total / total_live).

    A part is a channel, but where groups tie several to each other.

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


def multiples(layers: list[Layer], multiple: int) -> dict[str, int]:
    """By tie, the number of parts that makes whole multiples of ``multiple`` channels."""
    found: dict[str, int] = defaultdict(lambda: 1)
    for layer in layers:
        found[layer.tie] = lcm(found[layer.tie], multiple // gcd(multiple, layer.part))
    return found


def round_up(layers: list[Layer], masks: Masks, multiple: int) -> Masks:
    """``masks`` with the survivors of each prunable layer rounded up to a multiple.

    The dead channels of the largest |γ| survive too, the first of equal ones, as far as there are
    any. Fixed layers and layers without any survivor stay as they are.
    """
    found = dict(masks)
    multiple_of = multiples(layers, multiple)
    for tied in by_tie([layer for layer in layers if not layer.fixed]):
        scores = part_scores(tied, [_gammas(layer) for layer in tied])
        first = tied[0]
        for layer in tied:
            found[layer.name] = tuple(
                _filled(live, score, multiple_of[first.tie], layer.part)
                for live, score in zip(masks[layer.name], scores, strict=True)
            )
    return found


def _gammas(layer: Layer) -> tuple[Tensor, ...]:
    """|γ| of each stream on the CPU."""
    return tuple(norm.weight.detach().abs().cpu() for norm in layer.unit.norms)


def _filled(live: Tensor, score: Tensor, multiple: int, part: int) -> Tensor:
    """The mask [C] with as many more parts as a multiple needs, by their score [C / part]."""
    parts = live[::part]
    missing = -int(parts.sum()) % multiple
    order = score.masked_fill(parts, -1).argsort(descending=True, stable=True)  # dead ones first
    return parts.index_fill(0, order[:missing], True).repeat_interleave(part)
