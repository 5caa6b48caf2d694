"""machine.seeding: seeds that are distinct, stable over releases, and reproducible."""

import hashlib
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.machine.seeding import EPOCH, NETWORK, ORDER, REJUVENATION, mixed_seed, seed_generators


def drawn() -> tuple[float, float, float]:
    """The next number of each generator."""
    return random.random(), float(np.random.random()), torch.rand(()).item()


def by_definition(*parts: int) -> int:
    """The first eight bytes of the SHA-256 of the numbers written as a Python list."""
    digest = hashlib.sha256(f"[{', '.join(map(str, parts))}]".encode()).digest()
    return sum(byte << 8 * place for place, byte in enumerate(digest[:8]))


@pytest.mark.parametrize(
    ("parts", "seed"),
    [
        ((0,), 3999586761668934864),
        ((1, NETWORK), 8208879345394571258),
        ((7, REJUVENATION), 10766988467896376011),
        ((7, EPOCH, 12, 1), 9091967993172229027),
        ((7, ORDER, 12), 7910073844733926840),
    ],
)
def test_literal_values_never_change(parts, seed):
    """A checkpoint holds the seed of its run; another value would be another data order."""
    assert mixed_seed(*parts) == seed == by_definition(*parts)


def test_purposes_are_distinct():
    assert len({NETWORK, REJUVENATION, EPOCH, ORDER}) == 4


def test_every_seed_of_a_run_is_its_own():
    parts = [(seed, once) for seed in range(10) for once in (NETWORK, REJUVENATION)]
    parts += [(seed, ORDER, epoch) for seed in range(10) for epoch in range(50)]
    parts += [(s, EPOCH, e, rank) for s in range(10) for e in range(50) for rank in range(4)]
    assert len({mixed_seed(*part) for part in parts}) == len(parts)


@pytest.mark.parametrize(
    ("one", "other"), [((1, EPOCH), (1, EPOCH, 0, 0)), ((2**32, NETWORK), (0, REJUVENATION))]
)
def test_seeds_of_other_parts_differ(one, other):
    assert mixed_seed(*one) != mixed_seed(*other)


def test_the_order_of_the_parts_matters():
    assert mixed_seed(1, 2) != mixed_seed(2, 1)
    assert mixed_seed(3, EPOCH, 4) != mixed_seed(4, EPOCH, 3)


@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=4))
def test_a_seed_fits_in_64_bits_and_repeats(parts):
    seed = mixed_seed(*parts)
    assert type(seed) is int and 0 <= seed < 2**64
    assert seed == mixed_seed(*parts)


def test_generators_are_reproducible():
    seed_generators(7, EPOCH, 3)
    first = drawn()
    assert drawn() != first
    seed_generators(7, EPOCH, 3)
    assert drawn() == first


@pytest.mark.parametrize("parts", [(8, EPOCH, 3), (7, EPOCH, 4), (7, NETWORK, 3), (7, EPOCH, 3, 1)])
def test_all_three_generators_depend_on_every_part(parts):
    seed_generators(7, EPOCH, 3)
    first = drawn()
    seed_generators(*parts)
    assert all(a != b for a, b in zip(first, drawn(), strict=True))
