"""nr.numbers and nr.moves by hand, and numbers against what their definitions say."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nr.conversion import moves
from nr.network.numbers import joined, matched, places

NUMBERS = st.lists(st.integers(0, 5), max_size=8)


def longs(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.long)


def test_joined_by_hand():
    edges = [(longs(1, 2), longs(4, 5)), (longs(5), longs(0))]
    assert joined(edges, 7).tolist() == [0, 1, 0, 3, 1, 0, 6]
    assert joined([], 3).tolist() == [0, 1, 2]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_joined_are_the_connected_ones(pairs):
    label = list(range(10))
    for _ in range(10):
        for a, b in pairs:
            label = [min(label[a], label[b]) if x in (label[a], label[b]) else x for x in label]
    assert joined([(longs(a), longs(b)) for a, b in pairs], 10).tolist() == label


def test_places_and_matches_by_hand():
    given = longs(7, 3, 7, 5)
    assert places(longs(5, 7, 7), given).tolist() == [3, 0, 2]
    assert [side.tolist() for side in matched(longs(7, 9, 7, 7, 3), given)] == [
        [0, 2, 4],
        [0, 2, 1],
    ]
    assert [len(side) for side in matched(longs(), given) + matched(given, longs())] == [0] * 4


@given(NUMBERS, NUMBERS)
def test_matched_pairs_are_equal_and_as_many_as_both_hold(new, old):
    here, there = (side.tolist() for side in matched(longs(*new), longs(*old)))
    assert [new[place] for place in here] == [old[place] for place in there]
    assert len({*here}) == len(here) == sum(min(new.count(n), old.count(n)) for n in {*new})
    assert len({*there}) == len(there)


@given(NUMBERS.flatmap(lambda given: st.tuples(st.just(given), st.permutations(given))))
def test_places_undo_an_order(pair):
    given, wanted = pair
    found = places(longs(*wanted), longs(*given))
    assert longs(*given)[found].tolist() == wanted and len(found.unique()) == len(found)


SHAPE = torch.Size((2, 6, 3, 3))


def test_what_a_shuffle_a_chunk_and_a_flatten_move():
    whole = moves.places(SHAPE)
    shuffled = whole.view(2, 2, 3, 3, 3).transpose(1, 2).reshape(2, 6, 3, 3)
    assert moves.channels(shuffled, SHAPE).chosen.tolist() == [0, 3, 1, 4, 2, 5]
    assert moves.channels(nn.ChannelShuffle(3)(whole), SHAPE).chosen.tolist() == [0, 2, 4, 1, 3, 5]
    assert moves.channels(whole.chunk(3, dim=1)[1], SHAPE).chosen.tolist() == [2, 3]
    flat = moves.channels(whole.flatten(1), SHAPE)
    assert flat.flat and flat.chosen.tolist() == [*range(6)]


def test_what_are_no_whole_channels():
    whole = moves.places(SHAPE)
    for moved in (whole[:, :, 1:], whole.transpose(2, 3), whole.flip(0), whole.flatten(1)[:, 1:10]):
        assert moves.channels(moved, SHAPE) is None
