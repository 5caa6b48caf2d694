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

from tests.helpers import same_tensors
from tests.machine.conftest import as_torchrun
from utils.errors import InputError
from utils.machine import distributed

NO_GPU = "No GPU on this machine: running on the CPU.\n"


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


@pytest.mark.parametrize("missing", ["RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"])
def test_some_of_torchruns_names_alone_mean_an_ordinary_run(monkeypatch, capsys, gpus, missing):
    """As job schedulers and notebooks leave them; LOCAL_RANK is not even a number of a GPU."""
    selected = gpus(2)
    as_torchrun(monkeypatch, local_rank=3, world=4)
    monkeypatch.delenv(missing)
    assert not distributed.launched()
    assert distributed.start([1]) == selected == [torch.device("cuda", 1)]
    assert not dist.is_initialized()
    gpus(0)
    assert distributed.start([0]) == [torch.device("cpu")]
    assert capsys.readouterr().out == NO_GPU


def start_all(monkeypatch, gpus, visible: list[str | None], count: int, host=None) -> list:
    """``start`` in one process after another, as if together: their devices, or their errors.

    ``visible``: CUDA_VISIBLE_DEVICES of each; each sees ``count`` GPUs.
    """
    told, devices = [], []
    gpus(count)
    monkeypatch.setattr(distributed, "join", lambda backend: None)
    for look in (lambda gpu: told.append(gpu) or [gpu], lambda gpu: told):
        monkeypatch.setattr(distributed, "gathered", look)
        devices.clear()
        for local_rank, names in enumerate(visible):
            as_torchrun(monkeypatch, local_rank, len(visible))
            monkeypatch.setattr(socket, "gethostname", host or (lambda: "node1"))
            if names is None:
                monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
            else:
                monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
            try:
                devices += distributed.start([0])
            except InputError as error:
                devices.append(str(error))
    return devices


@pytest.mark.parametrize(
    ("visible", "count", "gpu", "there"),
    [
        ([None] * 3, 2, "0", 2),
        ([None] * 5, 4, "0", 4),
        (["4,6"] * 3, 2, "4", 2),
        (["5", "5"], 1, "5", 1),
        (["1", "0", "1"], 1, "1", 2),
    ],
)
def test_more_processes_than_gpus_are_refused_by_all(monkeypatch, gpus, visible, count, gpu, there):
    errors = start_all(monkeypatch, gpus, visible, count)
    assert errors == [
        f"torchrun: 2 processes would share GPU {gpu} of node1; start at most {there} there"
        " (--nproc_per_node), or give each its own CUDA_VISIBLE_DEVICES"
    ] * len(visible)


@pytest.mark.parametrize(
    ("visible", "count", "indices"),
    [
        ([None] * 4, 4, [0, 1, 2, 3]),
        (["0", "1", "2"], 1, [0, 0, 0]),
        (["GPU-aa", "GPU-bb"], 1, [0, 0]),
        (["0,1", "2,3"], 2, [0, 1]),
    ],
)
def test_processes_with_gpus_of_their_own_start(monkeypatch, gpus, visible, count, indices):
    devices = [torch.device("cuda", index) for index in indices]
    assert start_all(monkeypatch, gpus, visible, count) == devices


def test_machines_have_gpus_of_the_same_number(monkeypatch, gpus):
    hosts = iter(["node1", "node2"] * 2)
    assert (
        start_all(monkeypatch, gpus, ["0", "0"], 1, lambda: next(hosts))
        == [torch.device("cuda", 0)] * 2
    )


def test_a_network_on_one_device_is_not_wrapped():
    network = nn.Linear(2, 2)
    assert distributed.parallel(network, [torch.device("cpu")]) is network


@pytest.mark.skipif(torch.cuda.is_available(), reason="the pretended devices would be used")
def test_several_devices_mean_data_parallel():
    network = nn.Linear(2, 2)
    model = distributed.parallel(network, [torch.device("cuda", 0), torch.device("cuda", 1)])
    assert isinstance(model, nn.DataParallel)
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


def test_a_port_in_use_is_named(monkeypatch, gpus):
    gpus(0)
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        as_torchrun(monkeypatch)
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(InputError, match=rf"^MASTER_PORT {port}: in use on 127.0.0.1, "):
            distributed.start([0])
    assert not dist.is_initialized()


def test_a_place_to_meet_that_is_none_is_named(monkeypatch, gpus):
    gpus(0)
    as_torchrun(monkeypatch)
    monkeypatch.setenv("MASTER_PORT", "x")
    with pytest.raises(InputError, match=r"cannot meet at MASTER_ADDR 127.0.0.1, MASTER_PORT x: "):
        distributed.start([0])


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
    as_torchrun(monkeypatch, local_rank, world=4)
    monkeypatch.setattr(distributed, "join", backends.append)
    assert distributed.start([0]) == [torch.device("cuda", device)]
    assert selected == [torch.device("cuda", device)]
    assert backends == ["cpu:gloo,cuda:nccl"]


def test_only_one_process_of_a_machine_says_that_there_is_no_gpu(monkeypatch, capsys, gpus):
    gpus(0)
    as_torchrun(monkeypatch, local_rank=1, world=2)
    monkeypatch.setattr(distributed, "join", lambda backend: None)
    assert distributed.start([0]) == [torch.device("cpu")]
    assert capsys.readouterr().out == ""


def test_other_processes_write_nothing_on_the_screen(monkeypatch, capsys, gpus):
    gpus(0)
    as_torchrun(monkeypatch, local_rank=1, world=2)
    monkeypatch.setattr(distributed, "join", lambda backend: None)
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    screen = sys.stdout
    monkeypatch.setattr(sys, "stdout", screen)  # put back after the test
    distributed.start([0])
    assert sys.stdout.name == os.devnull
    print("nothing")
    assert capsys.readouterr().out == ""
