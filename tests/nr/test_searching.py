"""nr.Search: a penalty inside of every step, and one rebuild, alike everywhere."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import SGD, AdamW

import nr
from tests.helpers import (
    CLASSES,
    batch,
    build,
    kill,
    kill_random,
    loss_of,
    same_tensors,
    tiny,
    vary,
)

SPARSITY = 2**-7  # λ, exact in binary
OPTIONS = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}


def searched(target: float = 0.5, **options) -> tuple[nr.Network, nr.Search]:
    """A small network whose channels are half dead, and its search."""
    network = vary(tiny(classes=CLASSES))
    kill(network, {"features.first": slice(2), "features.second": slice(2)})
    optimizer = SGD(network.parameters(), **OPTIONS)
    return network, nr.Search(network, optimizer, SPARSITY, target, **options)


def gradients(network: nr.Network) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in network.parameters()]


def test_every_step_is_that_of_nr_sgd():
    network = vary(build("basic"))
    other = copy.deepcopy(network)
    optimizers = SGD(network.parameters(), **OPTIONS), nr.SGD(other, sparsity=SPARSITY, **OPTIONS)
    nr.Search(network, optimizers[0], SPARSITY)
    for seed in range(3):
        for each, optimizer in zip((network, other), optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(each, *batch(seed=seed)).backward()
            optimizer.step()
    assert same_tensors(network.state_dict(), other.state_dict())


def test_a_step_with_a_closure_is_penalised_after_its_gradients():
    """As Lightning steps: the closure clears the gradients and makes them."""
    network, search = searched()
    loss_of(network, *batch()).backward()
    plain = gradients(network)

    def closure() -> torch.Tensor:
        network.zero_grad()
        loss = loss_of(network, *batch())
        loss.backward()
        return loss

    nr.penalise(network, SPARSITY)
    wanted = gradients(network)
    for step in (
        lambda: search.optimizer.step(closure),
        lambda: search.optimizer.step(closure=closure),
    ):
        state = copy.deepcopy(network.state_dict())
        assert step() > 0
        assert all(map(torch.equal, gradients(network), wanted))
        network.load_state_dict(state)
    assert not all(map(torch.equal, plain, wanted))


def test_a_scaler_unscales_before_the_penalty():
    network, search = searched()
    loss_of(network, *batch()).backward()
    nr.penalise(network, SPARSITY)
    wanted = gradients(network)
    network.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler.scale(loss_of(network, *batch())).backward()
    scaler.step(search.optimizer)
    for found, gradient in zip(gradients(network), wanted, strict=True):
        torch.testing.assert_close(found, gradient)


def test_it_rebuilds_once_at_the_target_and_carries_the_optimizer():
    network, search = searched(target=0.1, cross="full")
    optimizer = search.optimizer
    loss_of(network, *batch()).backward()
    optimizer.step()
    assert search.after_epoch() is None and search.plan is None and network.streams == 1
    search.target = 0.5
    report = search.after_epoch()
    assert report.utilization.ratio <= 0.5 and network.streams == 2
    assert search.plan.cross == "full"
    assert search.after_epoch() is None
    new = search.optimizer
    assert new is not optimizer and new.state[network.features.first.convs[0].weight]
    with pytest.raises(RuntimeError, match="make a new one"):
        optimizer.step()
    loss_of(network, *batch()).backward()
    before = gradients(network)
    new.step()
    assert all(map(torch.equal, gradients(network), before))  # no penalty any more


def test_copies_are_rebuilt_alike_and_random_numbers_go_on():
    network, search = searched()
    average = copy.deepcopy(network)
    torch.manual_seed(5)
    search.after_epoch(average)
    drawn = torch.rand(1)
    assert same_tensors(average.state_dict(), network.state_dict())
    torch.manual_seed(5)
    torch.randint(2**62, ())
    assert torch.equal(drawn, torch.rand(1))


def test_all_processes_do_what_the_first_has_planned(monkeypatch):
    """Here another one, which has seen that nothing is to be done."""
    network, search = searched(target=0.0)
    other, first = searched()
    said = first._planned()

    def broadcast(agreed: list) -> None:
        assert agreed[0] is None
        agreed[:] = said

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    assert search.after_epoch().utilization.ratio <= 0.5
    monkeypatch.setattr(first, "_planned", lambda: said)
    first.after_epoch()
    assert same_tensors(network.state_dict(), other.state_dict())


def test_a_copy_that_differs_is_refused_and_nothing_is_changed():
    network, search = searched()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(ValueError, match="plan"):
        search.after_epoch(copy.deepcopy(network), build("vgg"))
    assert same_tensors(before, network.state_dict()) and search.plan is None
    assert search.after_epoch() is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"sparsity": float("nan")}, "sparsity: nan"),
        ({"target": 50}, "target: 50 is no utilization"),
        ({"cross": "half"}, "cross: 'half'"),
        ({"optimizer": [1]}, "optimizer: a list"),
        ({"optimizer": SGD(tiny().parameters(), 0.1)}, "optimizer: does not step on all scales"),
        ({"model": nn.Linear(2, 2)}, "is no nr"),
    ],
)
def test_what_makes_no_sense_is_named(arguments, said):
    network = tiny()
    given = {"model": network, "optimizer": AdamW(network.parameters()), "sparsity": SPARSITY}
    with pytest.raises(ValueError, match=said):
        nr.Search(**given | arguments)


def test_a_second_penalty_is_refused():
    network = tiny()
    with pytest.raises(ValueError, match="penalises by itself"):
        nr.Search(network, nr.SGD(network, lr=0.1, sparsity=0.1), SPARSITY)


def test_the_penalty_may_grow():
    network, search = searched()
    kill_random(network)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    search.sparsity = nr.grow_sparsity(SPARSITY, 1.0, 1.0, 0.01, SPARSITY)
    search.optimizer.step()
    gamma = network.features.first.norms[0].weight.grad
    assert gamma.abs().max() == 2 * SPARSITY
