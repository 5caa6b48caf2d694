"""training.engine: learning rates, losses, an epoch against a loop written by hand, evaluation."""

import copy
import math
import os
import signal

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nr
from tests.helpers import batch, norms, relative_difference, same_tensors, tiny, vary
from utils.data.batches import grouped, shares
from utils.errors import DataError, InputError
from utils.shown.meters import Figures
from utils.training.engine import evaluate, step_lr, stream_loss, train_epoch
from utils.training.signals import Stopped, StopRequest

SGD = {"lr": 0.125, "momentum": 0.75, "weight_decay": 0.0625}
AMP_TOLERANCE = 0.05  # bfloat16 has 8 significant bits: 0.004 a rounding, some of them in a row


class Batches:
    """Fixed batches of these sizes, other ones in every epoch; remembers what it was asked."""

    def __init__(self, sizes: tuple[int, ...], iter_size: int = 1):
        self.sizes, self.asked = sizes, []
        self.shares = grouped(shares(sum(sizes), max(sizes), 0, 1), list(sizes), iter_size)

    def __len__(self) -> int:
        return len(self.sizes)

    def epoch(self, epoch: int, first: int = 0):
        self.asked.append((epoch, first))
        yield from list(self.all(epoch))[first:]

    def __iter__(self):
        return self.all(0)

    def all(self, epoch: int):
        for number, size in enumerate(self.sizes):
            yield batch(count=size, seed=100 * epoch + number)


class Spoiled(Batches):
    """The second batch holds a pixel that is not finite."""

    def all(self, epoch):
        for number, (images, labels) in enumerate(super().all(epoch)):
            images[0, 0, 0, 0] = math.inf if number == 1 else 0
            yield images, labels


class Stop:
    """A stop request that comes after ``after`` batches of training."""

    def __init__(self, after: int = -1, signum: int = 15):
        self.after, self.coming, self.signum = after, signum, 0

    def agreed(self) -> int:
        self.after -= 1
        if self.after == 0:
            self.signum = self.coming
        return self.signum

    agreed_now = agreed


class Requested:
    """A stop request that has come already."""

    signum = signal.SIGINT

    def agreed(self) -> int:
        return self.signum

    agreed_now = agreed


def network(streams: int = 1) -> nn.Module:
    model = vary(tiny(classes=10))
    if streams == 2:
        model.features.first.norms[0].weight.data[:2] = 0
        torch.manual_seed(1)
        nr.rejuvenate(model, cross="attention")
    assert model.streams == streams
    return model


def trained(model: nn.Module, batches: Batches, epoch: int = 0, **options):
    """train_epoch with a fresh optimizer; returns the sums."""
    options = {"amp": False, "stop": Stop(), **options}
    return train_epoch(model, batches, epoch, nr.SGD(model, **SGD), **options)


def loss_by_hand(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return sum(F.cross_entropy(logits[:, s], labels) for s in range(logits.shape[1]))


def trained_by_hand(model: nn.Module, batches: Batches, epoch: int = 0) -> list[list[float]]:
    """The loop as torch's tutorial has it; returns rows of images, loss, hits, hits of 5."""
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    rows = []
    model.train()
    for images, labels in batches.all(epoch):
        optimizer.zero_grad()
        logits = model(images)
        loss = loss_by_hand(logits, labels)
        loss.backward()
        optimizer.step()
        order = logits.sum(dim=1).argsort(dim=1, descending=True)
        right = (order == labels[:, None]).tolist()
        hits = [sum(any(row[:k]) for row in right) for k in (1, 5)]
        rows.append([len(labels), loss.item() * len(labels), *hits])
    return rows


def changes(schedule: list[int], epochs: int) -> list[int]:
    """Epochs whose learning rate is not that of the epoch before."""
    rates = [step_lr(0.1, epoch, schedule, 0.1) for epoch in range(epochs)]
    return [epoch for epoch in range(1, epochs) if rates[epoch] != rates[epoch - 1]]


# Learning rates and losses.


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [(0, 0.1), (149, 0.1), (150, 0.01), (224, 0.01), (225, 0.001), (299, 0.001), (1000, 0.001)],
)
def test_the_learning_rates_of_the_readme(epoch, lr):
    assert step_lr(0.1, epoch, [150, 225], 0.1) == pytest.approx(lr, rel=1e-12)


def test_the_learning_rate_falls_at_exactly_the_scheduled_epochs():
    assert changes([150, 225], 300) == [150, 225]
    assert changes([30, 60, 90], 100) == [30, 60, 90]
    assert changes([1], 5) == [1]
    assert changes([10], 5) == []


def test_learning_rates_exact_in_binary():
    rates = [step_lr(0.5, epoch, (2, 3), 0.25) for epoch in range(5)]
    assert rates == [0.5, 0.5, 0.125, 0.03125, 0.03125]


def test_the_loss_of_one_stream_by_hand():
    """Probabilities 1/2 and 3/4 of the right class: (ln 2 + ln 4/3) / 2."""
    logits = torch.tensor([[[0.0, 0.0]], [[0.0, math.log(3)]]])
    loss = stream_loss(logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4 / 3)) / 2)


def test_the_losses_of_two_streams_are_added():
    """Probabilities 1/2 in one and 3/4 in the other stream: ln 2 + ln 4/3 = ln 8/3."""
    logits = torch.tensor([[[0.0, 0.0], [0.0, math.log(3)]]])
    assert stream_loss(logits, torch.tensor([1])).item() == pytest.approx(math.log(8 / 3))


def test_the_loss_of_bfloat16_logits_is_float32():
    logits = torch.zeros(2, 1, 10, dtype=torch.bfloat16)
    loss = stream_loss(logits, torch.tensor([0, 1]))
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(math.log(10), rel=1e-6)


# Training.


@pytest.mark.parametrize("streams", [1, 2])
def test_an_epoch_is_the_loop_by_hand_bit_for_bit(streams):
    model = network(streams)
    twin = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    sums = trained(model, Batches((8, 8, 5)), epoch=3)
    rows = trained_by_hand(twin, Batches((8, 8, 5)), epoch=3)
    assert sums.tolist() == rows
    assert same_tensors(model.state_dict(), twin.state_dict())
    assert not same_tensors(model.state_dict(), before)


def test_an_epoch_asks_for_its_own_batches_and_keeps_the_learning_rate():
    model, batches = network().eval(), Batches((4, 4))
    optimizer = nr.SGD(model, **SGD)
    train_epoch(model, batches, 7, optimizer, False, Stop())
    assert batches.asked == [(7, 0)]
    assert optimizer.param_groups[0]["lr"] == 0.125
    assert model.training


def test_the_penalty_of_the_optimizer_is_applied():
    plain, penalised = network(), network()
    trained(plain, Batches((4,)))
    optimizer = nr.SGD(penalised, **SGD, sparsity=0.5)
    train_epoch(penalised, Batches((4,)), 0, optimizer, False, Stop())
    moved = {
        name
        for name, value in penalised.state_dict().items()
        if not torch.equal(value, plain.state_dict()[name])
    }
    assert moved == {f"features.{name}.norms.0.weight" for name in ("first", "second")}


@pytest.mark.parametrize("after", [1, 2, 4])
def test_an_interrupted_epoch_goes_on_bit_for_bit(after):
    model, batches = network(), Batches((6, 6, 6, 3))
    whole = copy.deepcopy(model)
    expected = trained(whole, batches, epoch=2)
    optimizer = nr.SGD(model, **SGD)
    with pytest.raises(Stopped) as stopped:
        train_epoch(model, batches, 2, optimizer, False, Stop(after))
    done = stopped.value.sums
    assert done.tolist() == expected[:after].tolist()
    sums = train_epoch(model, batches, 2, optimizer, False, Stop(), done)
    assert batches.asked == [(2, 0), (2, 0), (2, after)]
    assert torch.equal(sums, expected)
    assert same_tensors(model.state_dict(), whole.state_dict())


class Joined(Batches):
    """The batches of another series as large ones: each of all the images of a step."""

    def __init__(self, small: Batches, iter_size: int):
        starts = range(0, len(small), iter_size)
        self.small, self.iter_size = small, iter_size
        super().__init__(tuple(sum(small.sizes[at : at + iter_size]) for at in starts))

    def all(self, epoch: int):
        parts = list(self.small.all(epoch))
        for start in range(0, len(parts), self.iter_size):
            yield tuple(map(torch.cat, zip(*parts[start : start + self.iter_size], strict=True)))


def evaluating(model: nn.Module) -> None:
    """Let the engine train ``model`` without batch statistics."""
    for norm in norms(model.eval()):
        norm.train = lambda mode=True: None


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("iter_size", [2, 3, 9])
def test_a_step_of_several_batches_is_that_of_one_large_batch(iter_size, streams):
    """With batch norms in eval mode; the last step of the epoch has fewer and a smaller batch."""
    model = network(streams)
    large = copy.deepcopy(model)
    for each in (model, large):
        evaluating(each)
    small = Batches((6, 6, 6, 6, 3), iter_size)
    sums = trained(model, small, epoch=1)
    assert sums.shape == (5, 4) and sums[:, 0].tolist() == [6, 6, 6, 6, 3]
    joined = trained(large, Joined(small, iter_size), epoch=1)
    assert sums.sum(0)[0] == joined.sum(0)[0] == 27
    for name, value in model.named_parameters():
        wanted = large.get_parameter(name)
        assert relative_difference(value.grad, wanted.grad) < 1e-5, name
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-6)


def test_the_optimizer_steps_once_a_group(monkeypatch):
    steps, step = [], nr.SGD.step
    monkeypatch.setattr(nr.SGD, "step", lambda self: steps.append(None) or step(self))
    trained(network(), Batches((6, 6, 6, 6, 3), iter_size=2))
    assert len(steps) == 3


@pytest.mark.parametrize("after", [1, 2])
def test_a_run_of_several_batches_a_step_stops_after_one_and_goes_on_bit_for_bit(after):
    model, batches = network(), Batches((6, 6, 6, 6, 3), iter_size=2)
    whole = copy.deepcopy(model)
    expected = trained(whole, batches, epoch=2)
    optimizer = nr.SGD(model, **SGD)
    with pytest.raises(Stopped) as stopped:
        train_epoch(model, batches, 2, optimizer, False, Stop(after))
    done = stopped.value.sums
    assert done.tolist() == expected[: 2 * after].tolist()
    sums = train_epoch(model, batches, 2, optimizer, False, Stop(), done)
    assert batches.asked[-1] == (2, 2 * after)
    assert torch.equal(sums, expected)
    assert same_tensors(model.state_dict(), whole.state_dict())


def test_a_stop_is_told_with_its_signal_and_the_sums():
    with pytest.raises(Stopped) as stopped:
        trained(network(), Batches((6, 6, 6)), stop=Stop(after=2, signum=2))
    assert stopped.value.signum == 2
    assert str(stopped.value) == "SIGINT"
    assert stopped.value.sums.shape == (2, 4)
    assert stopped.value.sums[:, 0].tolist() == [6, 6]


def test_a_stop_shows_how_far_the_epoch_came(capsys):
    with pytest.raises(Stopped):
        trained(network(), Batches((6, 6, 6)), stop=Stop(after=2))
    assert "Training (2/3) " in capsys.readouterr().out


def test_the_last_batch_is_always_shown(capsys):
    trained(network(), Batches((6, 6, 6)))
    assert capsys.readouterr().out.count("Training (3/3) ") == 1


def test_a_loss_that_is_not_finite_names_epoch_batch_and_learning_rate():
    """Found at the end of the epoch, but the batch named is the first bad one."""
    message = "the loss is not finite at epoch 5, batch 2, learning rate 0.125; nothing of this"
    with pytest.raises(InputError, match=message) as error:
        trained(network(), Spoiled((4, 4, 4)), epoch=4)
    assert len(str(error.value).splitlines()) == 1


def test_a_loss_that_is_not_finite_goes_before_a_stop():
    """Nothing of such an epoch may be saved, so it must not end as Stopped."""
    with pytest.raises(InputError, match="batch 2"):
        trained(network(), Spoiled((4, 4, 4)), stop=Stop(after=2))


def test_amp_gradients_are_close_to_those_of_float32():
    """Relative difference below 0.05 over all gradients, and not 0: bfloat16 is really used."""
    gradients = []
    for amp in (False, True):
        model = network(streams=2)
        trained(model, Batches((8,)), amp=amp)
        assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert 0 < relative_difference(gradients[1], gradients[0]) < AMP_TOLERANCE


# Evaluation.


def test_a_place_beyond_the_batches_of_an_epoch_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"after batch 3 of epoch 2, which has only 2 of these"):
        trained(network(), Batches((4, 4)), epoch=1, done=torch.ones(3, 4))


class Failing(Batches):
    """The batch after ``whole`` others cannot be had."""

    def __init__(self, whole: int, iter_size: int):
        super().__init__((4,) * 5, iter_size)
        self.whole = whole

    def epoch(self, epoch: int, first: int = 0):
        yield from list(self.all(epoch))[first : self.whole]
        raise DataError("a.png: broken")


@pytest.mark.parametrize(("whole", "iter_size"), [(0, 1), (3, 1), (2, 2), (4, 4)])
def test_a_batch_that_cannot_be_had_leaves_the_sums_of_the_whole_steps_before_it(whole, iter_size):
    with pytest.raises(DataError) as error:
        trained(network(), Failing(whole, iter_size))
    assert error.value.sums[:, 0].tolist() == [4] * whole


@pytest.mark.parametrize("whole", [1, 3])
def test_inside_a_step_nothing_is_whole(whole):
    with pytest.raises(InputError, match=r"^a\.png: broken$") as error:
        trained(network(), Failing(whole, 2))
    assert not isinstance(error.value, DataError)


@pytest.mark.parametrize("streams", [1, 2])
def test_evaluation_by_hand_with_a_smaller_last_batch(streams):
    model, batches = network(streams), Batches((8, 8, 3))
    images, labels = map(torch.cat, zip(*batches, strict=True))
    with torch.no_grad():
        logits = model.eval()(images)
    order = logits.sum(dim=1).argsort(dim=1, descending=True)
    hits = [int((order[:, :k] == labels[:, None]).sum()) for k in (1, 5)]
    found = evaluate(model.train(), batches, False, Stop())
    assert type(found) is Figures
    assert found.loss == pytest.approx(loss_by_hand(logits, labels).item(), rel=1e-6)
    assert [found.top1, found.top5] == [100 * hit / 19 for hit in hits]
    assert 0 < hits[1] < 19


def test_evaluation_changes_nothing_but_the_mode():
    model = network().train()
    model.classifier.linears[0].weight.grad = torch.ones(10, 4)
    before = copy.deepcopy(model.state_dict())
    evaluate(model, Batches((8, 3)), False, Stop())
    assert same_tensors(model.state_dict(), before)
    assert (model.classifier.linears[0].weight.grad == 1).all()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == [
        "classifier.linears.0.weight"
    ]
    assert not model.training


def test_evaluation_keeps_no_graph():
    model, enabled = network(), []
    model.register_forward_hook(lambda *_: enabled.append(torch.is_grad_enabled()))
    evaluate(model, Batches((4, 3)), False, Stop())
    assert enabled == [False, False]
    assert torch.is_grad_enabled()


def test_evaluation_with_amp_is_close(capsys):
    found = [evaluate(network(), Batches((8, 8)), amp, Stop()) for amp in (False, True)]
    assert found[1].loss == pytest.approx(found[0].loss, rel=0.02)
    assert found[1].loss != found[0].loss
    assert capsys.readouterr().out.count("Evaluating (2/2) ") == 2


def test_evaluation_stops_after_a_signal():
    seen = []

    class Counted(Batches):
        def all(self, epoch):
            for item in super().all(epoch):
                seen.append(len(seen))
                yield item

    with pytest.raises(Stopped) as stopped:
        evaluate(network(), Counted((4, 4, 4)), False, Requested())
    assert stopped.value.signum == 2
    assert stopped.value.sums is None
    assert seen == [0]


def test_a_test_loss_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="the test loss is not finite"):
        evaluate(network(), Spoiled((4, 4)), False, Stop())


# Signals.


@pytest.fixture
def handlers():
    """Put the handlers back that the tests replace."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_remembered_and_the_second_is_the_systems(handlers, signum):
    request = StopRequest()
    assert request.agreed() == 0
    os.kill(os.getpid(), signum)
    assert request.agreed() == signum
    for other in (signal.SIGINT, signal.SIGTERM):
        assert signal.getsignal(other) is signal.SIG_DFL
