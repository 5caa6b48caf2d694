"""machine.distributed in one process: devices, gpu ids, and a gloo group of one."""

import copy
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.helpers import batch, logits_of, relative_difference, same_tensors, worn
from utils.errors import InputError
from utils.machine import distributed
from utils.machine.syncbn import HostBatchNorm2d, synchronise_batch_norm

NO_GPU = "No GPU on this machine: running on the CPU.\n"


@pytest.fixture(autouse=True)
def not_launched(monkeypatch):
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that this machine has so many GPUs; returns the devices that were selected."""
    selected = []
    monkeypatch.setattr(torch.cuda, "set_device", selected.append)

    def pretend(count: int) -> list[torch.device]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        return selected

    return pretend


@pytest.fixture
def group(monkeypatch, gpus):
    """A gloo group of one process, as torchrun would start it."""
    gpus(0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"LOCAL_RANK": 0, "RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": port}
    for name, value in {"MASTER_ADDR": "127.0.0.1", **names}.items():
        monkeypatch.setenv(name, str(value))
    yield
    distributed.stop()


def test_one_process_is_the_main_one():
    assert not distributed.launched()
    assert distributed.rank() == 0
    assert distributed.world() == 1
    assert distributed.is_main()


@pytest.mark.parametrize("world", [1, 2, 5])
def test_what_dead_processes_left_in_the_store_misleads_nobody(world):
    """--max-restarts keeps the store: every start must agree on a name, and on a new one."""
    store = dist.HashStore()
    names = []
    for _ in range(4):
        with ThreadPoolExecutor(world) as pool:
            # The highest rank first, so that it meets the earlier start's name.
            ranks = reversed(range(world))
            agreed = {pool.submit(distributed.agreed_prefix, store, r, world) for r in ranks}
            (name,) = {future.result(timeout=20) for future in agreed}
        names.append(name)
    assert len(set(names)) == 4


@pytest.mark.parametrize("ids", [[0], [0, 1, 2, 3], [7]])
def test_without_a_gpu_the_cpu_is_used_and_one_line_says_so(capsys, gpus, ids):
    selected = gpus(0)
    assert distributed.start(ids) == [torch.device("cpu")]
    assert capsys.readouterr().out == NO_GPU
    assert selected == []


@pytest.mark.parametrize(
    ("count", "ids"), [(1, [0]), (2, [1]), (4, [0, 1, 2, 3]), (4, [3, 1]), (8, [7])]
)
def test_the_devices_of_gpu_id_in_their_order(capsys, gpus, count, ids):
    selected = gpus(count)
    devices = [torch.device("cuda", i) for i in ids]
    assert distributed.start(ids) == devices
    assert selected == devices[:1]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("count", "ids", "missing"), [(1, [1], 1), (2, [0, 2], 2), (2, [5, 1, 3], 5), (4, [0, 4], 4)]
)
def test_a_gpu_that_is_not_there_is_refused(gpus, count, ids, missing):
    selected = gpus(count)
    message = f"^--gpu-id {missing}: this machine has GPUs 0 to {count - 1}$"
    with pytest.raises(InputError, match=message):
        distributed.start(ids)
    assert selected == []


def test_a_network_on_one_device_is_not_wrapped():
    network = nn.Linear(2, 2)
    assert distributed.parallel(network, [torch.device("cpu")]) is network


@pytest.mark.skipif(torch.cuda.is_available(), reason="the pretended devices would be used")
def test_several_devices_mean_data_parallel():
    network = nn.Linear(2, 2)
    model = distributed.parallel(network, [torch.device("cuda", 0), torch.device("cuda", 1)])
    assert type(model) is nn.DataParallel
    assert model.module is network


def test_alone_everything_agrees_with_itself():
    figures = torch.tensor([1.0, 2.5])
    assert distributed.total(figures).tolist() == [1.0, 2.5]
    assert [distributed.largest(n) for n in (0, 15)] == [0, 15]
    assert distributed.gathered({"seed": 2**31 - 1}) == [{"seed": 2**31 - 1}]
    distributed.stop()  # without a group: nothing to leave
    assert not dist.is_initialized()


def test_a_group_of_one(capsys, group):
    screen = sys.stdout
    assert distributed.launched()
    assert distributed.start([0]) == [torch.device("cpu")]
    assert capsys.readouterr().out == NO_GPU
    assert dist.get_backend() == "gloo"
    assert (distributed.rank(), distributed.world(), distributed.is_main()) == (0, 1, True)
    assert sys.stdout is screen
    distributed.stop()
    assert not dist.is_initialized()


def test_what_a_group_of_one_agrees_on(group):
    distributed.start([0])
    figures = torch.tensor([1.0, 2.5])
    summed = distributed.total(figures)
    assert summed.tolist() == [1.0, 2.5]
    assert summed.data_ptr() != figures.data_ptr()  # all_reduce works in place, on a copy
    assert [distributed.largest(n) for n in (0, 15)] == [0, 15]
    assert distributed.gathered({"seed": 2**31 - 1}) == [{"seed": 2**31 - 1}]


def test_a_group_of_one_does_not_wait_for_itself(group):
    distributed.start([0])
    done = []
    with distributed.main_first():
        done.append("loaded")
    assert done == ["loaded"]


def test_alone_a_block_for_the_main_process_runs_and_its_errors_pass():
    with pytest.raises(InputError, match=r"^no data$"), distributed.main_first():
        raise InputError("no data")


def test_a_group_wraps_the_network_for_several_processes(group):
    distributed.start([0])
    network = nn.Linear(2, 2)
    model = distributed.parallel(network, [torch.device("cpu")])
    assert type(model) is nn.parallel.DistributedDataParallel
    assert model.module is network


def test_numbers_beyond_32_bits_survive_the_exchange(group):
    distributed.start([0])
    assert distributed.gathered(2**40 + 1) == [2**40 + 1]
    assert distributed.largest(2**40 + 1) == 2**40 + 1


def test_a_network_is_equal_to_itself_and_keeps_its_values(group):
    distributed.start([0])
    network = nn.BatchNorm2d(3)
    before = copy.deepcopy(network.state_dict())
    distributed.copy_from_main(network)
    distributed.check_equal(network)
    assert same_tensors(network.state_dict(), before)


def test_processes_with_different_networks_are_noticed(monkeypatch, group):
    """Another process reports another hash."""
    distributed.start([0])
    monkeypatch.setattr(distributed, "gathered", lambda value: [value, "another"])
    with pytest.raises(RuntimeError, match=r"^the processes hold different networks$"):
        distributed.check_equal(nn.Linear(2, 2))


def test_the_hash_sees_values_and_names(monkeypatch, group):
    distributed.start([0])
    hashes = []
    monkeypatch.setattr(distributed, "gathered", lambda value: hashes.append(value) or [value])
    first, same, value, name = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)
    for other in (same, value, name):
        other.load_state_dict(first.state_dict())
    value.weight.data[1, 1] += 1e-6
    for network in (first, same, value, nn.Sequential(name)):
        distributed.check_equal(network)
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_evaluation_takes_the_network_out_of_its_wrapper(group):
    distributed.start([0])
    network = nn.Linear(2, 2)
    assert distributed.local(network) is network
    assert distributed.local(distributed.parallel(network, [torch.device("cpu")])) is network


@pytest.mark.parametrize(
    ("count", "local_rank", "device"), [(4, 2, 2), (1, 0, 0), (2, 3, 1)], ids=str
)
def test_under_torchrun_a_process_takes_the_gpu_of_its_rank(
    monkeypatch, gpus, count, local_rank, device
):
    selected = gpus(count)
    backends = []
    monkeypatch.setenv("LOCAL_RANK", str(local_rank))
    monkeypatch.setattr(distributed, "join", backends.append)
    assert distributed.start([0]) == [torch.device("cuda", device)]
    assert selected == [torch.device("cuda", device)]
    assert backends == ["cpu:gloo,cuda:nccl"]


def test_only_one_process_of_a_machine_says_that_there_is_no_gpu(monkeypatch, capsys, gpus):
    gpus(0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(distributed, "join", lambda backend: None)
    assert distributed.start([0]) == [torch.device("cpu")]
    assert capsys.readouterr().out == ""


def test_other_processes_write_nothing_on_the_screen(monkeypatch, capsys, gpus):
    gpus(0)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(distributed, "join", lambda backend: None)
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    screen = sys.stdout
    monkeypatch.setattr(sys, "stdout", screen)  # put back after the test
    distributed.start([0])
    assert sys.stdout.name == os.devnull
    print("nothing")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_network_with_one_batch_norm_over_all_processes_trains(group, device):
    """torch's own class counts batches, which no file shows; a group of one needs no GPU here."""
    distributed.start([0])
    twin, network = worn("basic"), worn("basic")
    names, images = network.state_dict().keys(), batch()[0]
    synchronise_batch_norm(network, torch.device(device))
    kinds = {type(module) for module in network.modules() if "Norm" in type(module).__name__}
    assert kinds == {nn.SyncBatchNorm if device == "cuda" else HostBatchNorm2d}
    if device == "cuda":
        distributed.stop()  # torch's own refuses images on a CPU in a group
    found, expected = (logits_of(model, images, training=True) for model in (network, twin))
    assert relative_difference(found, expected) < 1e-4
    assert network.state_dict().keys() == names
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value, rtol=1e-4, atol=1e-5)
