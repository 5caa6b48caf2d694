"""Channel numbers: which channel stands where, and which are tied to each other.

Every channel that a network makes has a number. A stream of an activation is the list of the
numbers that it carries, a LongTensor [C]; cat joins lists, a selection picks from them.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

Lists = tuple[Tensor, ...]  # one LongTensor [C] a stream


def count_to(count: int, first: int = 0) -> Tensor:
    """0 to count - 1 on the CPU, where numbers are, whatever the default device is."""
    return torch.arange(first, count, device="cpu")


def joined(edges: Iterable[tuple[Tensor, Tensor]], count: int) -> Tensor:
    """For each of ``count`` numbers the least number that it is joined with: [count].

    ``edges``: pairs of lists of the same length, which join numbers at the same place.
    """
    label = count_to(count)
    pairs = list(edges)
    if not pairs:
        return label
    a, b = (torch.cat(side) for side in zip(*pairs, strict=True))
    while True:
        least = torch.minimum(label[a], label[b])
        found = label.scatter_reduce(0, a, least, "amin").scatter_reduce(0, b, least, "amin")
        found = found.scatter_reduce(0, label, found, "amin")[label]
        if torch.equal(found, label):
            return label
        label = found


def places(wanted: Tensor, given: Tensor) -> Tensor:
    """Where each of ``wanted`` stands in ``given``; the n-th of equal ones is the n-th there."""
    order = given.argsort(stable=True)
    first = torch.searchsorted(given[order], wanted)
    return order[first + nth(wanted)]


def nth(numbers: Tensor) -> Tensor:
    """How many equal numbers stand before each: [C]."""
    if (numbers[1:] > numbers[:-1]).all():  # in order, as most lists
        return torch.zeros_like(numbers)
    order = numbers.argsort(stable=True)
    ranked = numbers[order]
    found = torch.empty_like(numbers)
    found[order] = count_to(len(numbers)) - torch.searchsorted(ranked, ranked)
    return found


def matched(new: Tensor, old: Tensor) -> tuple[Tensor, Tensor]:
    """The places in each of two lists of what both hold; the n-th of equal ones is the n-th."""
    if not len(new) or not len(old) or new.min() > old.max():  # as of fresh ones
        return (count_to(0),) * 2
    times = max(len(new), len(old))
    keys, theirs = new * times + nth(new), old * times + nth(old)
    order = theirs.argsort()
    at = torch.searchsorted(theirs[order], keys).clamp(max=len(old) - 1)
    found = theirs[order[at]] == keys
    return found.nonzero().flatten(), order[at[found]]
