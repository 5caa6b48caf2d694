"""A machine with GPUs, and a group of one process, for the tests of this room."""

import socket
from argparse import Namespace

import pytest
import torch

from utils.machine import distributed


@pytest.fixture(autouse=True)
def not_launched(monkeypatch):
    for name in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpus(monkeypatch):
    """Pretend that this machine has so many GPUs; returns the devices that were selected."""
    selected = []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "set_device", selected.append)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda d: Namespace(uuid=f"GPU-{d.index}")
    )

    def pretend(count: int) -> list[torch.device]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        return selected

    return pretend


def as_torchrun(monkeypatch, local_rank: int = 0, world: int = 1) -> None:
    """What torchrun puts in the environment of a process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = {"LOCAL_RANK": local_rank, "RANK": local_rank, "WORLD_SIZE": world, "MASTER_PORT": port}
    for name, value in {"MASTER_ADDR": "127.0.0.1", **names}.items():
        monkeypatch.setenv(name, str(value))


@pytest.fixture
def group(monkeypatch, gpus):
    """A gloo group of one process, as torchrun would start it."""
    gpus(0)
    as_torchrun(monkeypatch)
    yield
    distributed.stop()
