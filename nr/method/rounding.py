"""Widths that hardware likes: survivors and new widths in multiples of N (spec section 5)."""

from math import gcd, isqrt, lcm

import torch

from nr.method.growth import Families, Family
from nr.method.life import Life, absolute_gammas, part_scores


def new_widths(live: int, total_live: int, total: int, multiple: int = 1) -> tuple[int, int]:
    """(survived, rejuvenated) parts of a layer from live·r, with r = √(total / total_live).

    A part is a channel, or several that groups tie to each other. ``multiple`` 1: int(live·r), at
    least one more than live. N > 1: the multiple of N nearest to live·r (the larger of two), at
    least N more than live. In exact integers. If nothing in the network is dead, nothing is
    rejuvenated.
    """
    if total == total_live:
        return live, 0
    if multiple == 1:
        return live, max(isqrt(live * live * total // total_live) - live, 1)
    twice = isqrt(4 * live * live * total // total_live)  # int(2·live·r)
    nearest = (twice + multiple) // (2 * multiple) * multiple
    least = live + multiple + -live % multiple
    return live, max(nearest, least) - live


def rounded(live: int, r: float, multiple: int = 1) -> int:
    """The width of a layer for any r, as of ``new_widths`` if something is dead."""
    if multiple == 1:
        return max(int(live * r), live + 1)
    nearest = (int(2 * live * r) + multiple) // (2 * multiple) * multiple
    return max(nearest, live + multiple + -live % multiple)


def parts_in(family: Family, multiple: int) -> int:
    """How many parts make a multiple of ``multiple`` channels in every layer."""
    return lcm(*(multiple // gcd(multiple, width) for width in family.widths.values()))


def round_up(families: Families, alive: Life, multiple: int) -> Life:
    """``alive``, with the survivors of each prunable layer rounded up to a multiple.

    The dead channels of the largest |γ| survive too, the first of equal ones, as far as there are
    any. Fixed layers, and layers without a survivor, stay as they are.
    """
    if multiple == 1:
        return alive
    plan = families.plan
    scores, live = part_scores(plan, absolute_gammas(plan)), alive.live.clone()
    score, units = torch.zeros_like(scores), torch.zeros_like(live)
    units[torch.cat([numbers for layer in plan.layers for numbers in layer.numbers])] = True
    for family in families.all:
        survivors = families.survivors(alive, family)
        missing = -len(survivors) % parts_in(family, multiple)
        held = any(plan.by_name[name].fixed for name in family.widths)
        if missing and len(survivors) and not held:
            for layer in (plan.by_name[name] for name in family.widths):
                own = layer.numbers[0]
                score[families.part[own]] = scores[plan.ties.part[own]]
            dead = family.parts[~torch.isin(family.parts, survivors)]
            order = score[dead].argsort(descending=True, stable=True)
            revived = dead[order[:missing]]
            live[units & torch.isin(families.part, revived)] = True
    return alive._replace(live=live)
