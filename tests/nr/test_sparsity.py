"""nr.sparsity: whom the penalty hits, when it is applied, and how λ grows."""

import copy
import pickle
from itertools import pairwise

import pytest
import torch

import nr
from tests.helpers import FAMILIES, MODES, batch, build, layers, loss_of, prunable, tiny, vary, worn

SPARSITY = 2**-7  # λ, exact in binary


def gammas(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """γ of the prunable layers, all streams."""
    return [norm.weight for layer in prunable(model).values() for norm in layer.unit.norms]


def train_step(model, optimizer, seed: int) -> list[torch.Tensor]:
    """One step; returns the gradients of the loss alone."""
    optimizer.zero_grad()
    loss_of(model, *batch(seed=seed)).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    optimizer.step()
    return gradients


def test_penalty_by_hand():
    """Gradients of 0.25 everywhere: λ·sign(γ) is added, sign(0) = 0."""
    model = tiny()
    first = model.features.first.norms[0]
    first.weight.data.copy_(torch.tensor([3.0, -0.001, 0.0, -2.0]))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    nr.penalise(model, 0.5)
    assert first.weight.grad.tolist() == [0.75, -0.25, 0.25, -0.25]
    assert model.features.second.norms[0].weight.grad.tolist() == [0.75] * 4
    hit = {id(gamma) for gamma in gammas(model)}
    assert all((p.grad == 0.25).all() for p in model.parameters() if id(p) not in hit)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_prunable_scales_are_hit(family):
    model = vary(build(family))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    nr.penalise(model, SPARSITY)
    hit = {n for n, p in model.named_parameters() if p.grad.any()}
    assert hit == {f"{name}.norms.0.weight" for name in prunable(model)}
    fixed = {"vgg": 0, "basic": 9, "bottleneck": 10, "dense": 0}  # stem, block ends, shortcuts
    assert len(layers(model)) - len(hit) == fixed[family]
    for gamma in gammas(model):
        assert torch.equal(gamma.grad, SPARSITY * gamma.sign())


@pytest.mark.parametrize("mode", MODES)
def test_both_streams_are_hit_after_rejuvenation(mode):
    model = worn("basic")
    nr.rejuvenate(model, cross=mode)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    nr.penalise(model, SPARSITY)
    hit = {n for n, p in model.named_parameters() if p.grad.any()}
    assert hit == {f"{name}.norms.{stream}.weight" for name in prunable(model) for stream in (0, 1)}


def test_adam_moves_only_the_prunable_scales():
    """Without a loss, Adam's first step is lr·sign(gradient): 0.125 towards 0, or nothing."""
    model = vary(build("basic"))
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.125, eps=1e-12)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    nr.penalise(model, SPARSITY)
    optimizer.step()
    hit = {f"{name}.norms.0.weight" for name in prunable(model)}
    for name, value in model.named_parameters():
        expected = before[name] - 0.125 * before[name].sign() * (name in hit)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-7)


def test_adam_sees_the_gradient_of_the_loss_and_the_penalty():
    """γ = 2, gradients 0.25 + 0.5, then -0.5 + 0.5 = 0: means 0.375 and 0.1875 with β 1/2."""
    model = tiny()
    gamma = model.features.first.norms[0].weight
    gamma.data.fill_(2)
    optimizer = torch.optim.Adam([gamma], lr=0.125, betas=(0.5, 0.75), eps=0)
    for gradient in (0.25, -0.5):
        gamma.grad = torch.full_like(gamma, gradient)
        nr.penalise(model, 0.5)
        optimizer.step()
    # m/(1 - β1²) = 0.1875/0.75 = 0.25; v = 0.75·(0.25·0.75²), v/(1 - β2²) = 0.10546875/0.4375
    expected = 2 - 0.125 - 0.125 * 0.25 / (0.10546875 / 0.4375) ** 0.5
    assert gamma.tolist() == pytest.approx([expected] * 4, rel=1e-6)


def test_a_rebuilt_network_is_penalised_as_it_is_now():
    model = worn("basic")
    optimizer = nr.SGD(model, lr=0.1, sparsity=SPARSITY)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    nr.rejuvenate(model)
    with pytest.raises(RuntimeError, match=r"^SGD: the network was rebuilt"):
        optimizer.step()
    step = nr.SGD(model, lr=0.1, sparsity=SPARSITY).step
    for network_penalty in (lambda: nr.penalise(model, SPARSITY), step):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        network_penalty()
        assert all(torch.equal(gamma.grad, SPARSITY * gamma.sign()) for gamma in gammas(model))


def test_a_scale_falls_as_the_docstring_says():
    """lr·λ/(1 - momentum) a step, once the momentum has built up."""
    model = tiny()
    gamma = model.features.first.norms[0].weight
    optimizer = nr.SGD(model, lr=0.125, momentum=0.75, sparsity=SPARSITY)
    fell = []
    for _ in range(40):
        before = gamma.tolist()
        gamma.grad = torch.zeros_like(gamma)
        optimizer.step()
        fell.append(before[0] - gamma[0].item())
    assert fell[:2] == pytest.approx([0.125 * SPARSITY, 0.125 * SPARSITY * 1.75])
    assert fell[-1] == pytest.approx(0.125 * SPARSITY / (1 - 0.75), rel=1e-4)


@pytest.mark.parametrize("sparsity", [-1e-4, float("nan"), float("inf")])
def test_senseless_penalties_are_refused(sparsity):
    with pytest.raises(ValueError, match=r"sparsity: .* not a finite number from 0"):
        nr.penalise(tiny(), sparsity)


def test_penalty_precedes_weight_decay_and_momentum():
    """Two steps of: g ← g + λ·sign(γ) + wd·p; buffer ← 0.75·buffer + g; p ← p - lr·buffer."""
    model = vary(tiny(classes=10))
    optimizer = nr.SGD(model, lr=0.125, momentum=0.75, weight_decay=0.0625, sparsity=SPARSITY)
    hit = {id(gamma) for gamma in gammas(model)}
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    buffers = [torch.zeros_like(parameter) for parameter in expected]
    penalised = [SPARSITY * (id(parameter) in hit) for parameter in model.parameters()]
    for step in range(2):
        gradients = train_step(model, optimizer, seed=step)
        for g, value, buffer, penalty in zip(gradients, expected, buffers, penalised, strict=True):
            buffer.mul_(0.75).add_(g + penalty * value.sign() + 0.0625 * value)
            value.sub_(0.125 * buffer)
    for parameter, value in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", ["vgg", "basic"])
def test_without_penalty_it_is_torch_sgd_bit_for_bit(family):
    model = vary(build(family))
    twin = copy.deepcopy(model)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
    optimizers = (nr.SGD(model, **options), torch.optim.SGD(twin.parameters(), **options))
    for step in range(3):
        for network, optimizer in zip((model, twin), optimizers, strict=True):
            train_step(network, optimizer, seed=step)
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
    assert optimizers[0].state_dict().keys() == optimizers[1].state_dict().keys()


def test_parameters_without_gradient_are_left_alone():
    model = tiny()
    before = copy.deepcopy(model.state_dict())
    optimizer = nr.SGD(model, lr=0.1, weight_decay=0.1, sparsity=0.5)
    optimizer.step()
    gamma = model.features.second.norms[0].weight
    gamma.grad = torch.zeros_like(gamma)
    optimizer.step()
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed == {"features.second.norms.0.weight"}


def test_penalty_alone_moves_a_scale_by_hand():
    model = tiny()
    gamma = model.features.first.norms[0].weight
    gamma.data.copy_(torch.tensor([1.0, -1.0, 0.0, 0.25]))
    gamma.grad = torch.zeros(4)
    nr.SGD(model, lr=0.5, sparsity=0.25).step()
    assert gamma.tolist() == [0.875, -0.875, 0.0, 0.125]


def test_step_takes_no_closure():
    with pytest.raises(ValueError, match="closure"):
        nr.SGD(tiny(), lr=0.1, sparsity=0.1).step(lambda: torch.tensor(0.0))


@pytest.mark.parametrize(
    ("sparsity", "previous", "ratio", "expected"),
    [
        (0.0, 1.0, 1.0, 0.125),  # nothing fell: grow
        (0.0, 1.0, 0.875, 0.125),  # fell by 1/8, less than 1/4
        (0.5, 0.75, 0.5, 0.5),  # fell by exactly the threshold: not less
        (0.5, 1.0, 0.25, 0.5),  # fell by more
        (0.5, 0.5, 0.75, 0.625),  # rose: grow
    ],
)
def test_grow_sparsity(sparsity, previous, ratio, expected):
    assert nr.grow_sparsity(sparsity, previous, ratio, threshold=0.25, step=0.125) == expected


def test_grow_sparsity_with_the_defaults_of_the_specification():
    history = [1.0, 0.995, 0.98, 0.975, 0.5, 0.4999]
    sparsity = 0.0
    for previous, ratio in pairwise(history):
        sparsity = nr.grow_sparsity(sparsity, previous, ratio, threshold=0.01, step=5e-5)
    assert sparsity == pytest.approx(3 * 5e-5)  # after epochs 1, 3 and 5


class Scaler:
    """What torch's GradScaler does with an optimizer, without a GPU."""

    def __init__(self, scale: float):
        self.scale = torch.tensor(scale)

    def step(self, optimizer) -> None:
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.grad_scale, optimizer.found_inf = self.scale, torch.tensor(0.0)
            optimizer.step()
            del optimizer.grad_scale, optimizer.found_inf
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.div_(self.scale)
        optimizer.step()


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale", [None, 2.0**16])
def test_the_penalty_is_lambda_whatever_scales_or_turns_the_gradients(fused, maximize, scale):
    """Without a loss γ falls by lr·λ towards 0; with one, by what the loss asks for besides."""
    model = vary(tiny())
    optimizer = nr.SGD(model, lr=0.5, sparsity=SPARSITY, fused=fused, maximize=maximize)
    before = [gamma.detach().clone() for gamma in gammas(model)]
    for gamma in gammas(model):
        gamma.grad = torch.full_like(gamma, 0.25 * (scale or 1))
    optimizer.step() if scale is None else Scaler(scale).step(optimizer)
    for gamma, old in zip(gammas(model), before, strict=True):
        expected = old - 0.5 * SPARSITY * old.sign() - 0.125 * (-1 if maximize else 1)
        torch.testing.assert_close(gamma.detach(), expected, rtol=1e-6, atol=1e-7)


def test_the_penalty_for_an_optimizer_that_climbs_is_subtracted():
    model = vary(tiny())
    for gamma in gammas(model):
        gamma.grad = torch.zeros_like(gamma)
    nr.penalise(model, SPARSITY, maximize=True)
    assert all(torch.equal(gamma.grad, -SPARSITY * gamma.sign()) for gamma in gammas(model))


@pytest.mark.parametrize("through", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("fused", [False, True])
def test_a_copied_or_pickled_optimizer_goes_on_like_the_original(through, fused):
    model = vary(tiny(classes=10))
    options = {"lr": 0.125, "momentum": 0.75, "sparsity": SPARSITY, "fused": fused}
    optimizer = nr.SGD(model, **options)
    train_step(model, optimizer, seed=0)
    twin_model, twin = through((model, optimizer))
    assert twin.model is twin_model and twin.sparsity == SPARSITY
    alone = through(optimizer)
    for network, steps in ((model, optimizer), (twin_model, twin), (alone.model, alone)):
        train_step(network, steps, seed=1)
        assert all(map(torch.equal, network.parameters(), model.parameters()))


def test_the_optimizer_takes_the_network_not_its_parameters():
    with pytest.raises(ValueError, match=r"is no nr\.Network"):
        nr.SGD(tiny().parameters(), lr=0.1)
