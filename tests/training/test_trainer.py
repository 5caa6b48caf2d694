"""training.trainer on its own: what it keeps of a network in training, and takes back."""

import random
from types import SimpleNamespace

import pytest
import torch

from tests.helpers import CLASSES, batch, prunable, same_tensors, tiny
from utils.data.batches import train_shares
from utils.errors import DataError, InputError
from utils.machine.seeding import EPOCH, seed_generators
from utils.training.signals import Stopped
from utils.training.state import RunState
from utils.training.trainer import Trainer

STATE = RunState("search", 1, epoch=2, sparsity=1e-3)


class Stop:
    """A signal comes in batch ``after``, if any."""

    signum = 0

    def __init__(self, after: int | None = None):
        self.left = after

    def agreed(self) -> int:
        if self.left is not None:
            self.left -= 1
        return 15 if self.left == 0 else 0

    agreed_now = agreed


class Batches:
    """Three batches of 8 images, to train and to test on."""

    shares = [SimpleNamespace(weight=1.0, steps=True)] * 3

    def __len__(self) -> int:
        return 3

    def __iter__(self):
        return self.epoch(0)

    def epoch(self, epoch: int, first: int = 0):
        return (batch(count=8, seed=seed) for seed in range(first, 3))


def trainer() -> Trainer:
    """Of the same small network each time."""
    torch.manual_seed(0)
    made = Trainer(
        [torch.device("cpu")],
        lr=0.5,
        momentum=0.9,
        weight_decay=0.0,
        amp=False,
        compiled=None,
    )
    made.use(tiny(classes=CLASSES))
    return made


def go(trainer: Trainer, after: int | None = None):
    return trainer.epoch(STATE, 0.01, Batches(), Batches(), Stop(after))


def test_an_epoch_gives_both_figures_and_sets_what_the_state_says():
    one = trainer()
    train, test = go(one)
    assert train.loss > 0 and test == one.evaluate(Batches(), Stop())
    assert (one.optimizer.param_groups[0]["lr"], one.optimizer.sparsity) == (0.01, 1e-3)
    assert one.partial is None


@pytest.mark.parametrize("after", [1, 3, 4])
def test_an_interrupted_epoch_ends_the_same_in_another_trainer(after):
    """Stopped in the first and last batch, and in the evaluation."""
    straight, stopped, again = trainer(), trainer(), trainer()
    with pytest.raises(Stopped):
        go(stopped, after)
    assert len(stopped.partial) == min(after, 3)
    again.network.load_state_dict(stopped.payload()["state_dict"])
    again.restore(stopped.payload(), STATE)
    assert go(again) == go(straight)
    one, two = (t.payload() for t in (again, straight))
    assert same_tensors(one["state_dict"], two["state_dict"])
    assert two["partial"] is None


class Broken(Batches):
    """After ``whole`` batches of training and evaluation none can be had."""

    def __init__(self, whole: int):
        self.left = whole

    def epoch(self, epoch: int, first: int = 0):
        for images in super().epoch(epoch, first):
            self.left -= 1
            if self.left < 0:
                raise DataError("a.png: broken")
            yield images


@pytest.mark.parametrize("whole", [1, 2, 3, 5])
def test_an_epoch_whose_data_break_off_ends_the_same_in_another_trainer(whole):
    """In the training, and in the evaluation."""
    straight, broken, again = trainer(), trainer(), trainer()
    data = Broken(whole)
    with pytest.raises(DataError):
        broken.epoch(STATE, 0.01, data, data, Stop())
    assert len(broken.partial) == min(whole, 3)
    again.network.load_state_dict(broken.payload()["state_dict"])
    again.restore(broken.payload(), STATE)
    assert go(again) == go(straight)
    assert same_tensors(again.payload()["state_dict"], straight.payload()["state_dict"])


def test_data_that_break_off_where_nothing_is_new_are_not_worth_a_checkpoint():
    one = trainer()
    for partial in (None, torch.ones(1, 4)):
        one.partial = partial
        with pytest.raises(InputError, match=r"^a\.png: broken$") as error:
            one.epoch(STATE, 0.01, Broken(0), Broken(0), Stop())
        assert not isinstance(error.value, DataError)


def test_weights_that_a_stop_would_save_are_finite(monkeypatch):
    one = trainer()
    monkeypatch.setattr(one.optimizer, "step", lambda: spoil(one.network))
    with pytest.raises(InputError, match=r"^features.*weight is not finite at epoch 3, learning"):
        go(one, after=1)


def test_compiled_code_is_not_given_a_batch_without_images():
    one, data = trainer(), Batches()
    one.compiled = "default"
    data.shares = train_shares(12, 5, 0, 3)  # the last batch has two images
    with pytest.raises(InputError, match=r"^--compile: the last batch .* another --train-batch"):
        one.epoch(STATE, 0.01, data, data, Stop())
    data.shares = train_shares(12, 5, 2, 3)
    one.epoch(STATE, 0.01, data, data, Stop())


@torch.no_grad()
def spoil(network: torch.nn.Module) -> None:
    next(network.parameters()).fill_(torch.nan)


def test_a_momentum_that_is_not_finite_is_refused():
    one = trainer()
    go(one)
    payload = one.payload()
    payload["optimizer"]["state"][0]["momentum_buffer"].fill_(torch.nan)
    with pytest.raises(ValueError, match="momentum"):
        trainer().restore(payload, STATE)


def test_generators_that_the_payload_has_not_are_seeded_from_the_place_in_the_epoch():
    one = trainer()
    with pytest.raises(Stopped):
        go(one, after=2)
    one.restore(one.payload() | {"rng": []}, STATE)
    drawn = random.random()
    seed_generators(STATE.seed, EPOCH, STATE.epoch, 0, 2)
    assert drawn == random.random()


def test_another_network_gets_a_fresh_optimizer_with_the_same_settings():
    one = trainer()
    go(one)
    assert one.payload()["optimizer"]["state"]
    one.use(tiny(classes=CLASSES))
    payload = one.payload()
    assert payload["optimizer"]["state"] == {}
    assert one.optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("flops", [False, True])
def test_what_is_measured(flops):
    """The pictures of the search are of prunable layers, and of a search only."""
    one = trainer()
    usage = one.measure(flops, 32, searching=True)
    assert usage.ratio == 1 and usage.params == sum(p.numel() for p in one.network.parameters())
    assert usage.live == dict.fromkeys(prunable(one.network), 1.0)
    assert sum(usage.scales) > 0
    assert one.measure(flops, 32, searching=False).live is None
