"""nr.norms: batch norm as torch's own, but for the count of batches, and files that hold one."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import nr
from nr.network.convolutions import ConvBN
from nr.network.layers import Chain, Classifier, Network
from nr.network.norms import BatchNorm
from tests.helpers import MODES, batch, rebuilt, same_tensors, worn


def with_counts(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights as torch's own batch norm would have saved them."""
    state = dict(model.state_dict())
    places = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    return state | {f"{name}.num_batches_tracked": torch.tensor(7) for name in places}


@pytest.mark.parametrize("mode", [None, *MODES])
def test_no_network_holds_a_count_of_batches(mode):
    model = worn("basic") if mode is None else rebuilt("basic", mode)[0]
    model.train()(batch()[0])
    assert not [name for name in model.state_dict() if "num_batches" in name]
    assert not [name for name, _ in model.named_buffers() if "num_batches" in name]


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("mode", [None, *MODES])
def test_weights_saved_with_a_count_load(mode, assign):
    model = worn("dense") if mode is None else rebuilt("dense", mode)[0]
    fresh = nr.build(nr.structure(model))
    old = with_counts(model)
    assert len(old) > len(model.state_dict())
    fresh.load_state_dict(old, strict=True, assign=assign)
    assert same_tensors(fresh.state_dict(), model.state_dict())


@pytest.mark.parametrize("versioned", [False, True])
def test_a_norm_loads_what_torchs_own_saves(versioned):
    old, new = nn.BatchNorm2d(4), BatchNorm(4)
    old(torch.randn(8, 4, 2, 2))
    state = old.state_dict() if versioned else dict(old.state_dict())
    new.load_state_dict(state)
    assert torch.equal(new.running_mean, old.running_mean) and old.running_mean.any()
    copy.deepcopy(new).load_state_dict(state)
    with pytest.raises(RuntimeError, match="number_of_batches"):
        new.load_state_dict(state | {"number_of_batches": torch.tensor(1)})


def test_a_norm_does_what_torchs_own_does():
    old, new, x = nn.BatchNorm2d(4), BatchNorm(4), torch.randn(8, 4, 2, 2)
    for _ in range(3):
        assert torch.equal(new(x), old(x))
    assert torch.equal(new.running_var, old.running_var)
    assert torch.equal(new.eval()(x), old.eval()(x))
    new.reset_parameters()
    assert not new.running_mean.any() and (new.running_var == 1).all()


def test_a_trained_unit_begins_afresh_when_its_parameters_are_reset():
    unit = ConvBN(3, 4, 3)
    before = copy.deepcopy(unit.state_dict())
    torch.nn.init.ones_(unit.norms[0].bias)
    unit((torch.randn(8, 3, 4, 4),))
    unit.reset_parameters()
    after = unit.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in before if n.startswith("norms"))


@pytest.mark.parametrize("since_made", [True, False])
def test_without_momentum_every_batch_weighs_the_same(since_made):
    """As torch's own, also where momentum becomes None for a while, as update_bn lets it."""
    old = nn.BatchNorm2d(4, momentum=None)
    new = BatchNorm(4, momentum=None if since_made else 0.1)
    batches = [torch.randn(8, 4, 2, 2) + number for number in range(3)]
    for _ in range(2):
        if since_made:
            new.reset_running_stats()
            for x in batches:
                new(x)
        else:
            update_bn(batches, new)
        old.reset_running_stats()
        for x in batches:
            old(x)
        assert torch.equal(new.running_mean, old.running_mean)
        assert torch.equal(new.running_var, old.running_var)
    assert ("num_batches_tracked" in new.state_dict()) == since_made


def test_a_count_that_is_read_is_kept_in_files(tmp_path):
    parts = [ConvBN(3, 4, 3, momentum=None), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    model, images = Network(Chain(*parts), Classifier(4, 2), 8), batch()[0]
    model(images)
    nr.save(model, tmp_path / "network.pt")
    loaded = nr.load(tmp_path / "network.pt").train()
    assert torch.equal(loaded(images + 1), model(images + 1))
    assert same_tensors(loaded.state_dict(), model.state_dict())
    assert model.features[0].norms[0].num_batches_tracked == 2
