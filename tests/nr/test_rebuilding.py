"""nr.rebuilding: what was made before a rebuild is noticed, and what is made anew trains."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import nr
from tests.helpers import batch, build, loss_of, worn


def loaded(model, tmp_path):
    nr.save(model, tmp_path / "same.pth")
    nr.load(tmp_path / "same.pth", into=model)


def merged(model, tmp_path):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nr.rejuvenate(model)
    with pytest.raises(RuntimeError):
        optimizer.step()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step()
    nr.merge(model)
    with pytest.raises(RuntimeError):
        optimizer.step()


REBUILDS = {"rejuvenate": lambda model, _: nr.rejuvenate(model), "load": loaded, "merge": merged}


@pytest.mark.parametrize("rebuild", REBUILDS)
def test_an_old_optimizer_of_any_class_is_refused(rebuild, tmp_path):
    model, other = worn("basic"), worn("basic")
    optimizers = [nr.SGD(model, lr=0.1)] + [
        make(model.parameters(), lr=0.1)
        for make in (torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad)
    ]
    bystander = torch.optim.Adam(other.parameters())
    parts = [{"params": nn.Linear(2, 2).parameters()}, {"params": model.features[1].parameters()}]
    optimizers.append(torch.optim.SGD(parts, lr=0.1))
    REBUILDS[rebuild](model, tmp_path)
    for optimizer in optimizers:
        name = type(optimizer).__name__
        with pytest.raises(RuntimeError, match=f"^{name}: the network was rebuilt.*make a new one"):
            optimizer.step()
    loss_of(other, *batch()).backward()
    bystander.step()
    fresh = torch.optim.Adam(model.parameters())
    loss_of(model.train(), *batch()).backward()
    fresh.step()


def test_an_optimizer_of_a_network_that_stays_goes_on():
    model = build("basic")
    optimizer = torch.optim.Adam(model.parameters())
    assert nr.rejuvenate(model).expansion == 1
    nr.merge(model)
    optimizer.step()


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_an_old_wrapper_of_ddp_is_refused(group):
    model, other = worn("basic"), worn("basic")
    inside = DistributedDataParallel(nn.Sequential(model, nn.Flatten()))
    wrappers = [DistributedDataParallel(model), inside]
    bystander = DistributedDataParallel(other)
    images, labels = batch()
    nr.rejuvenate(model)
    for wrapper in wrappers:
        with pytest.raises(RuntimeError, match=r"^DistributedDataParallel: .*wrap it anew"):
            wrapper(images)
    loss_of(bystander, images, labels).backward()
    loss_of(DistributedDataParallel(model), images, labels).backward()
    assert all(p.grad is not None for p in (*model.parameters(), *other.parameters()))


def test_a_network_sharded_by_fsdp2_is_measured_and_penalised_but_not_cut(group, tmp_path):
    model = worn("basic")
    ratio = nr.utilization(model).ratio
    for block in (b for b in model.modules() if isinstance(b, nr.Residual)):
        fully_shard(block, mesh=init_device_mesh("cpu", (1,)))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    for refused in (
        lambda: nr.save(model, tmp_path / "sharded.pth"),
        lambda: nr.rejuvenate(model),
        lambda: nr.rescale(model, 0.5),
    ):
        with pytest.raises(ValueError, match=r"^the network is sharded by fully_shard.*[^\n]$"):
            refused()
    assert not [*tmp_path.iterdir()]
    assert nr.utilization(model).ratio == ratio
    assert nr.structure(model) == nr.structure(worn("basic"))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    nr.SGD(model, lr=0.1, sparsity=0.1).step()


def trains(model) -> None:
    optimizer = nr.SGD(model.train(), lr=0.1, sparsity=0.1)
    loss_of(model, *batch()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    optimizer.step()


def plain_network() -> nn.Module:
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.PReLU(), nn.AdaptiveAvgPool2d(1))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 10))


def test_what_is_made_under_inference_mode_trains(tmp_path):
    model, path = worn("basic"), tmp_path / "network.pth"
    with torch.inference_mode():
        nr.rejuvenate(model)
    trains(model)
    with torch.inference_mode():
        nr.rescale(model, 0.5)
        nr.merge(model)
        nr.save(model, path)
        found = [nr.load(path), nr.build(nr.structure(model)), nr.convert(plain_network(), 8)]
    for network in (model, *found):
        trains(network)
    with torch.inference_mode():
        nr.load(path, into=model)
    trains(model)
