"""training.checkpoint: there and back, the random generators too."""

import copy
import random

import numpy as np
import pytest
import torch

import nr
from tests.helpers import MODES, batch, logits_of, same_tensors, worn
from tests.training.checkpoint.payloads import (
    CASES,
    SPECS,
    names,
    payload_of,
    rebuilt,
    small,
)
from utils.training import checkpoint


def test_everything_comes_back(path):
    payload = small()
    checkpoint.save(path, payload)
    found = checkpoint.read(path)
    assert found.keys() == payload.keys()
    for key in payload.keys() - {"state_dict", "rng"}:
        assert found[key] == payload[key]
    assert same_tensors(found["state_dict"], payload["state_dict"])
    assert names(path.parent) == [path.name]


def test_plain_torch_load_reads_it_with_weights_only(path):
    payload = small()
    checkpoint.save(path, payload)
    found = torch.load(path, weights_only=True)
    assert same_tensors(found["state_dict"], payload["state_dict"])
    assert found["network"] == payload["network"]


def test_a_path_may_be_text(path):
    checkpoint.save(path, small())
    assert checkpoint.read(str(path))["epoch"] == 3


def test_upstreams_keys_are_in_it(path):
    checkpoint.save(path, small())
    upstream = {"epoch", "arch", "state_dict", "acc", "best_acc", "optimizer"}
    assert upstream <= checkpoint.read(path).keys()


@pytest.mark.parametrize(("family", "how"), CASES)
def test_a_loaded_network_has_the_same_logits(path, family, how):
    """Networks with dead channels and a dead branch, before and after rejuvenation."""
    model = rebuilt(family, how)
    checkpoint.save(path, payload_of(model, *SPECS[family]))
    images, _ = batch(count=4, size=32)
    loaded = nr.load(path)
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(loaded(images), logits_of(model, images))
    assert loaded.streams == (2 if how in MODES else 1)
    assert nr.structure(loaded) == nr.structure(model)


def test_a_loaded_network_can_be_trained_on(path):
    checkpoint.save(path, small())
    model = nr.load(str(path))
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    images, _ = batch(count=2, size=32)
    before = copy.deepcopy(model.state_dict())
    model.train()(images).sum().backward()
    nr.SGD(model, lr=0.1).step()
    moved = [n for n, v in model.named_parameters() if not torch.equal(v, before[n])]
    assert len(moved) > 10


@pytest.mark.parametrize("family", ["vgg", "basic"])
def test_a_module_prefix_is_accepted(path, family):
    """Saved again with torch.save from a network inside DataParallel: no seal, a prefix."""
    model = worn(family)
    weights = torch.nn.DataParallel(model).state_dict()
    assert all(name.startswith("module.") for name in weights)
    torch.save(payload_of(model, *SPECS[family], state_dict=weights), path)
    images, _ = batch(count=2, size=32)
    assert torch.equal(nr.load(path)(images), logits_of(model, images))


@pytest.mark.parametrize(("family", "how"), CASES)
def test_a_file_with_counts_of_batches_loads(path, family, how):
    """Earlier versions saved torch's count beside the running statistics."""
    model = rebuilt(family, how)
    state = dict(model.state_dict())
    for name in [name for name in state if name.endswith("running_var")]:
        state[name.replace("running_var", "num_batches_tracked")] = torch.tensor(5)
    checkpoint.save(path, payload_of(model, *SPECS[family], state_dict=state))
    assert same_tensors(nr.load(path).state_dict(), model.state_dict())


def test_a_sealed_file_with_a_prefix_loads_too(path):
    payload = small()
    weights = {f"module.{name}": value for name, value in payload["state_dict"].items()}
    checkpoint.save(path, payload | {"state_dict": weights})
    assert same_tensors(nr.load(path).state_dict(), payload["state_dict"])


def drawn() -> list[float]:
    """Draws of the three generators; the normal ones of Python and numpy are made in pairs."""
    torchs = torch.rand(3).tolist() + torch.randn(2).tolist()
    numpys = [*np.random.random(3).tolist(), np.random.randn()]
    return torchs + numpys + [random.random(), random.gauss(0, 1), random.randrange(10**9)]


def test_the_generators_go_on_where_they_were(path):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    drawn()
    checkpoint.save(path, small(seed=4, rng=checkpoint.rng_state()))
    checkpoint.set_rng_state(checkpoint.read(path)["rng"])
    first = drawn()
    assert drawn() != first
    checkpoint.set_rng_state(checkpoint.read(path)["rng"])
    assert drawn() == first


def test_the_stream_is_that_of_the_moment_of_saving(path):
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    drawn()
    state = checkpoint.rng_state()
    expected = drawn()
    checkpoint.save(path, small(rng=state))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    assert drawn() != expected
    checkpoint.set_rng_state(checkpoint.read(path)["rng"])
    assert drawn() == expected


def test_generators_of_gpus_are_put_back_only_where_as_many_are_here(monkeypatch):
    put_back = []
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", put_back.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    state = checkpoint.rng_state()
    for count in range(4):
        checkpoint.set_rng_state(state | {"cuda": [state["torch"]] * count})
    assert [len(states) for states in put_back] == [2]
