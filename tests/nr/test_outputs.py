"""nr.loss, nr.predict and nr.Joined: the outputs of one stream, two, and several heads."""

import pytest
import torch
import torch.nn.functional as F

import nr
from tests.helpers import MODES, batch, build, kill_random, loss_of, tiny, vary

LOGITS = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))  # [B, S, classes]
LABELS = torch.tensor([0, 1, 2, 1])


def test_the_loss_is_the_sum_of_the_streams_cross_entropies():
    by_hand = -LOGITS.log_softmax(-1)[torch.arange(4), :, LABELS].mean(0).sum()
    torch.testing.assert_close(nr.loss(LOGITS, LABELS), by_hand)
    maps, labels = torch.randn(2, 2, 3, 4, 5), torch.randint(3, (2, 4, 5))
    found = nr.loss(maps, labels, ignore_index=0)
    expected = sum(F.cross_entropy(maps[:, s], labels, ignore_index=0) for s in (0, 1))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", MODES)
def test_a_network_trains_on_it_and_predicts(form):
    network = vary(build("vgg"))
    kill_random(network)
    nr.rejuvenate(network, form)
    images, labels = batch()
    assert torch.equal(nr.loss(network(images), labels), loss_of(network, images, labels))
    logits = network.eval()(images)
    assert torch.equal(nr.predict(logits), logits[:, 0] + logits[:, 1])


def test_several_heads_are_added_up_and_keep_their_structure():
    heads = {"out": LOGITS, "aux": LOGITS * 2, "off": None}
    own = {"out": LABELS, "aux": LABELS.flip(0)}
    expected = nr.loss(LOGITS, LABELS) + nr.loss(LOGITS * 2, LABELS.flip(0))
    torch.testing.assert_close(nr.loss(heads, own), expected)
    both = nr.loss(LOGITS, LABELS) + nr.loss(LOGITS * 2, LABELS)
    torch.testing.assert_close(nr.loss((LOGITS, LOGITS * 2), LABELS), both)
    assert {n: None if h is None else h.shape for n, h in nr.predict(heads).items()} == {
        "out": (4, 3),
        "aux": (4, 3),
        "off": None,
    }
    assert torch.equal(nr.predict((LOGITS, [LOGITS]))[1][0], LOGITS.sum(1))


@pytest.mark.parametrize(
    ("logits", "labels", "said"),
    [
        (LOGITS[:, 0], LABELS, r"logits: \[4, 3\] has no streams.*\[B, S, classes\]"),
        ("text", LABELS, "logits: a str is no tensor"),
        ({"out": LOGITS, "aux": LOGITS}, {"out": LABELS}, "labels: .*'aux'"),
        ((LOGITS, LOGITS), 3, "labels: a int is no tensor"),
    ],
)
def test_what_has_no_loss_is_named(logits, labels, said):
    with pytest.raises(ValueError, match=said):
        nr.loss(logits, labels)
    if said.startswith("logits"):
        with pytest.raises(ValueError, match=said):
            nr.predict(logits)


def test_a_joined_network_gives_one_output_and_follows_the_network():
    network = vary(tiny())
    joined, images = nr.Joined(network).eval(), torch.randn(2, 3, 8, 8)
    assert torch.equal(joined(images), network(images)[:, 0])
    network.get_submodule("features.first").norms[0].weight.data[:2] = 0
    nr.rejuvenate(network)
    assert torch.equal(joined(images), network(images).sum(1)) and joined(images).shape == (2, 2)
    assert {*joined.parameters()} == {*network.parameters()}
    with pytest.raises(ValueError, match="is no nr"):
        nr.Joined(torch.nn.Linear(2, 2))
