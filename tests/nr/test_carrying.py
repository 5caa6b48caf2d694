"""nr.carry: the optimizer of a rebuilt network, with the state of what survived."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adafactor, Adam, AdamW, RMSprop
from torch.optim.lr_scheduler import StepLR
from torchvision.models.densenet import DenseNet

import nr
from nr.network.wiring import wiring
from tests.copies import copied
from tests.helpers import (
    FIRST,
    MODES,
    SECOND,
    batch,
    half_dead,
    kill,
    layers,
    loss_of,
    same_tensors,
    wear,
    worn,
)
from tests.nr import test_conversion as converted
from tests.nr.test_families import preactivation

LR, BETAS, G = 0.01, (0.9, 0.99), 0.1  # learning rate, Adam's, and a gradient
STEPS = 3  # before the rebuild


@copied
def torchvision_dense() -> nr.Network:
    """Its form: a norm before each convolution, pairs of reader and channel."""
    torch.manual_seed(0)
    return wear(nr.convert(DenseNet(4, (2, 2), 8, bn_size=2, num_classes=5), 32))


NETWORKS = {
    "vgg": lambda: worn("vgg"),
    "bottleneck": lambda: worn("bottleneck"),
    "dense": lambda: worn("dense"),
    "pairs": torchvision_dense,
    "norms": preactivation,
    "groups": lambda: converted.worn("regnet"),
    "depthwise": lambda: converted.worn("mobilenet"),
}


def marked(model: nr.Network) -> torch.optim.Optimizer:
    """Adam whose averages are the parameters, their negatives and twice them, after 7 steps."""
    optimizer = Adam(model.parameters(), amsgrad=True)
    for p in model.parameters():
        averages = {"exp_avg": p, "exp_avg_sq": -p, "max_exp_avg_sq": 2 * p}
        optimizer.state[p] = {n: x.detach().clone() for n, x in averages.items()}
        optimizer.state[p]["step"] = torch.tensor(7.0)
    return optimizer


def check_marks(model: nr.Network, optimizer: torch.optim.Optimizer, known: torch.Tensor) -> None:
    """Each entry's state is its own if it is one of before, which all differ, and 0 if not."""
    skipped = {id(p) for layer in wiring(model).makers for p in layer.unit.norms.parameters()}
    skipped |= {id(head.linears[0].bias) for head in model.heads}
    parameters = [*model.parameters()]
    among = torch.isin(torch.cat([p.detach().flatten() for p in parameters]), known)
    parts = among.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        entry = optimizer.state[parameter]
        assert entry.keys() == {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step"}
        assert entry["step"] == 7
        if id(parameter) in skipped:  # constants may have come into them
            continue
        old = part.view(parameter.shape)
        for name, value in (("exp_avg", parameter), ("exp_avg_sq", -parameter)):
            assert torch.equal(entry[name], torch.where(old, value, 0))
        assert torch.equal(entry["max_exp_avg_sq"], torch.where(old, 2 * parameter, 0))


@pytest.mark.parametrize("cross", (*MODES, "none", "from scratch"))
@pytest.mark.parametrize("name", NETWORKS)
def test_survivors_keep_their_rows_and_fresh_ones_begin_at_0(name, cross):
    """Through a rejuvenation and a merge, in one go."""
    model = NETWORKS[name]().double()
    for parameter in model.parameters():  # so that none equals one that is drawn afresh
        parameter.data.mul_(1 + 1e-8 * torch.rand_like(parameter))
    optimizer = marked(model)
    known = torch.cat([p.detach().flatten() for p in model.parameters()])
    scratch = cross == "from scratch"
    nr.rejuvenate(model, "removed" if scratch else cross, from_scratch=scratch)
    carried = nr.carry(optimizer)
    check_marks(model, carried, known[:0] if scratch else known)
    order = [id(p) for p in carried.param_groups[0]["params"]]
    assert order == [id(p) for p in model.parameters()]
    if cross in ("removed", "full"):
        nr.merge(model)
        carried = nr.carry(optimizer)
        check_marks(model, carried, known)
        held = carried.param_groups[0]["params"]  # in the order that files count on
        assert [id(p) for p in held] == [id(p) for p in model.parameters()]
        bias = model.heads[0].linears[0].bias  # stands for that of both streams, and counts twice
        assert torch.equal(carried.state[bias]["exp_avg"], bias / 2) or name in ("pairs", "norms")


OPTIMIZERS = {
    "sgd": lambda ps: SGD(ps, lr=LR, momentum=0.9, nesterov=True, foreach=True),
    "fused sgd": lambda ps: SGD(ps, lr=LR, momentum=0.9, weight_decay=0.1, fused=True),
    "plain sgd": lambda ps: SGD(ps, lr=LR),
    "adam": lambda ps: Adam(ps, lr=LR, betas=BETAS, amsgrad=True, foreach=True),
    "fused adam": lambda ps: Adam(ps, lr=LR, betas=BETAS, fused=True),
    "adamw": lambda ps: AdamW(ps, lr=LR, betas=BETAS, fused=True),
    "rmsprop": lambda ps: RMSprop(ps, lr=LR, centered=True, momentum=0.5, foreach=True),
}


def step(model: nr.Network, optimizer: torch.optim.Optimizer, gradient: float) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, gradient)
    optimizer.step()


@pytest.mark.parametrize("cross", [*MODES, "none"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_survivors_go_on_as_in_the_network_of_before(name, cross):
    """Entry by entry to the bit, as these optimizers treat each by itself; and all go on."""
    model = half_dead()
    optimizer = OPTIMIZERS[name](model.parameters())
    for gradient in (0.3, -0.2, 0.5)[:STEPS]:
        step(model, optimizer, gradient)
    kill(model, dict.fromkeys((FIRST, SECOND), slice(5)))
    reference, state = copy.deepcopy(model), copy.deepcopy(optimizer.state_dict())
    nr.rejuvenate(model, cross)
    alive = [
        torch.isin(p, torch.cat([q.flatten() for q in reference.parameters()]))
        for p in model.parameters()
    ]
    carried, other = nr.carry(optimizer), OPTIMIZERS[name](reference.parameters())
    other.load_state_dict(state)
    step(reference, other, G)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step(model, carried, G)
    known = torch.cat([q.detach().flatten() for q in reference.parameters()])
    for parameter, was, old in zip(model.parameters(), before, alive, strict=True):
        old &= was != 0  # of which there are many
        assert torch.isin(parameter[old], known).all()
        if not old.any() and name == "adam" and parameter.ndim == 4:
            t = STEPS + 1
            m, v = (1 - BETAS[0]) * G, (1 - BETAS[1]) * G**2
            change = LR * m / (1 - BETAS[0] ** t) / ((v / (1 - BETAS[1] ** t)) ** 0.5 + 1e-8)
            torch.testing.assert_close(was - parameter, torch.full_like(was, change))
    with pytest.raises(RuntimeError, match="the network was rebuilt"):
        optimizer.step()


def test_an_update_of_momentum_by_hand():
    model = half_dead()
    optimizer = nr.SGD(model, lr=LR, momentum=0.9, sparsity=0.02)
    step(model, optimizer, 0.3)  # of γ: 0.3 ± 0.02
    kill(model, dict.fromkeys((FIRST, SECOND), slice(5)))
    nr.rejuvenate(model)
    carried = nr.carry(optimizer)
    assert (type(carried), carried.sparsity, carried.model) == (nr.SGD, 0.02, model)
    carried.sparsity = 0.0
    (survived, fresh), first = model.features.first.norms, model.features.first.convs
    before = [p.detach().clone() for p in (survived.weight, fresh.weight, first[0].weight)]
    signs = before[0].sign()
    step(model, carried, G)
    after = (survived.weight, fresh.weight, first[0].weight)
    moved = [(was - now) / LR for was, now in zip(before, after, strict=True)]
    torch.testing.assert_close(moved[0], 0.9 * (0.3 + 0.02 * signs) + G, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moved[1], torch.full((4,), G), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(moved[2], torch.full((5, 3, 3, 3), 0.37), rtol=1e-3, atol=1e-3)
    carried.sparsity = 0.02  # falls on both streams
    step(model, carried, 0.0)
    assert all(norm.weight.grad.abs().allclose(torch.tensor(0.02)) for norm in (survived, fresh))


def test_groups_options_names_and_hooks_stay():
    """Norms and biases in the group in which they were, also through a merge."""
    model, met = worn("bottleneck"), []
    named = dict(model.named_parameters())
    norms = {n for n in named if "norms" in n or n.endswith("bias")}
    rest = named.keys() - norms - {"features.stem.0.convs.0.weight"}
    groups = [
        {"params": [(n, named[n]) for n in sorted(norms)], "weight_decay": 0.0, "lr": 0.3},
        {"params": [(n, named[n]) for n in sorted(rest)], "weight_decay": 0.1},
    ]
    optimizer = AdamW(groups, lr=0.2, fused=True)
    optimizer.register_step_pre_hook(lambda optimizer, *_: met.append(optimizer))
    StepLR(optimizer, 1)  # which replaces its step
    loss_of(model, *batch()).backward()
    optimizer.step()
    nr.rejuvenate(model, "attention")
    for rounds in range(2):
        carried = nr.carry(optimizer)
        assert type(carried) is AdamW and carried.defaults == optimizer.defaults
        found = {n: p for n, p in model.named_parameters() if "stem.0.convs" not in n}
        held = {}
        for group, was in zip(carried.param_groups, optimizer.param_groups, strict=True):
            assert {**group, "params": 0, "param_names": 0} == {
                **was,
                "params": 0,
                "param_names": 0,
            }
            held |= dict(zip(group["param_names"], group["params"], strict=True))
            assert all(
                ("norms" in n or n.endswith("bias")) == (group["lr"] == 0.3)
                for n in group["param_names"]
            )
        assert {n: id(p) for n, p in held.items()} == {n: id(p) for n, p in found.items()}
        loss_of(model.train(), *batch()).backward()
        carried.step()
        assert met[-1] is carried and "step" not in vars(carried)
        assert carried._step_supports_amp_scaling
        assert all(carried.state[p]["step"] == 2 + rounds for p in held.values())
        for layer in layers(model).values():  # so that the gates are shut, and it merges
            for i, o, block in layer.unit.blocks():
                if i != o:
                    block.zero_()
        if rounds == 0:
            nr.merge(model)
            optimizer = carried


def test_what_is_gone_is_not_held_and_what_stays_is_the_same():
    model = worn("dense")
    model.features.append(nn.PReLU())
    optimizer = marked(model)
    slope = model.features[-1].weight
    entry = optimizer.state[slope]
    report = nr.rejuvenate(model)
    assert report.dropped
    carried = nr.carry(optimizer)
    assert carried.state[slope] is entry
    assert {*carried.state} == {*carried.param_groups[0]["params"]} == {*model.parameters()}


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_the_state_is_in_the_order_and_precision_that_it_had(memory):
    model = worn("basic").to(memory_format=memory)
    optimizer = SGD(model.parameters(), lr=LR, momentum=0.9, fused=True)
    loss_of(model, *batch()).backward()
    optimizer.step()
    for entry in optimizer.state.values():
        entry["momentum_buffer"] = entry["momentum_buffer"].double()
    nr.rejuvenate(model)
    for parameter, entry in nr.carry(optimizer).state.items():
        assert entry["momentum_buffer"].stride() == parameter.stride()
        assert entry["momentum_buffer"].dtype == torch.float64


def test_an_optimizer_of_what_was_not_rebuilt_is_the_same():
    model = worn("basic")
    nr.rejuvenate(model)
    optimizer = Adam(model.parameters(), lr=LR)
    step(model, optimizer, G)
    carried = nr.carry(optimizer)
    a, b = carried.state_dict(), optimizer.state_dict()
    assert a["param_groups"] == b["param_groups"]
    assert all(same_tensors(a["state"][n], b["state"][n]) for n in b["state"])


def test_what_cannot_be_carried_is_refused(tmp_path):
    model = worn("basic")
    with pytest.raises(ValueError, match=r"^optimizer: a Network is no torch"):
        nr.carry(model)
    loaded = Adam(model.parameters())
    nr.save(model, tmp_path / "x.pt")
    nr.load(tmp_path / "x.pt", into=model)
    with pytest.raises(ValueError, match=r"^Adam: its network was loaded anew"):
        nr.carry(loaded)
    optimizer = Adafactor(model.parameters())
    step(model, optimizer, G)
    nr.rejuvenate(model)
    with pytest.raises(ValueError, match=r"^Adafactor: its state '\w+' is neither a number nor"):
        nr.carry(optimizer)


def test_the_old_network_is_not_kept_alive():
    """By neither the new optimizer nor the new network."""
    model = worn("basic")
    optimizer = marked(model)
    old = [weakref.ref(p) for p in model.parameters()]
    nr.rejuvenate(model)
    carried = nr.carry(optimizer)
    del optimizer
    gc.collect()
    kept = {id(p) for p in model.parameters()}
    assert all(ref() is None or id(ref()) in kept for ref in old)
    assert carried.state
