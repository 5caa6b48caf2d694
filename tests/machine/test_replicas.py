"""machine.distributed and machine.compiler: several GPUs of one process, played by the CPU."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from utils.machine import compiler, distributed

CPU = torch.device("cpu")


class Observed(nn.Conv2d):
    """A convolution that remembers the type of its results, in all replicas together."""

    seen: list = []  # noqa: RUF012 - shared by the replicas, which torch copies

    def forward(self, x):
        y = super().forward(x)
        self.seen.append((y.dtype, torch.is_grad_enabled()))
        return y


@pytest.fixture
def two(monkeypatch):
    """Wrap a network for two devices, which are threads on the CPU."""
    for room in (torch.cuda, torch.accelerator):  # the first is asked by torch before 2.7
        for name in ("current_stream", "device_index", "device", "stream"):
            monkeypatch.setattr(room, name, lambda *_: nullcontext(), raising=False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: CPU)

    def wrap(network: nn.Module) -> nn.Module:
        model = distributed.parallel(network, [torch.device("cuda", i) for i in range(2)])
        model.device_ids, model.dim, model.output_device = [0, 1], 0, 0
        model.src_device_obj = CPU
        model.scatter = lambda inputs, *_: ([(x,) for x in inputs[0].chunk(2)], [{}, {}])
        model.replicate = lambda module, ids: [copy.deepcopy(module) for _ in ids]
        model.gather = lambda outputs, _: torch.cat(outputs)
        Observed.seen.clear()
        return model

    return wrap


# On a CPU torch's own type is bfloat16, on a GPU float16: either may be the one that is not asked.
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_replica_computes_in_the_type_that_was_asked_for(two, dtype):
    model = two(nn.Sequential(Observed(3, 4, 1), Observed(4, 2, 1)))
    images = torch.randn(6, 3, 2, 2)
    with torch.autocast("cpu", dtype):
        logits = model(images)
    assert logits.dtype == dtype and logits.shape == (6, 2, 2, 2)
    assert Observed.seen == [(dtype, True)] * 4


@torch.no_grad()
def test_without_autocast_the_replicas_compute_in_float32(two):
    model = two(Observed(3, 4, 1))
    images = torch.randn(6, 3, 2, 2)
    torch.testing.assert_close(model(images), model.module(images))
    assert Observed.seen == [(torch.float32, False)] * 3


def test_a_network_on_several_gpus_is_not_compiled_and_one_line_says_so(monkeypatch, capsys):
    monkeypatch.setattr(compiler, "can_compile", lambda device_type: True)
    compiler.say_not_compiled.cache_clear()
    network = nn.Linear(2, 2)
    for _ in range(2):  # the search phase's and the train phase's
        compiler.compile_network(network, [torch.device("cuda", i) for i in range(4)])
    assert network._compiled_call_impl is None
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "--compile: not with the 4 GPUs of --gpu-id, so running without it; torchrun can"
    ]


def test_a_network_on_one_device_is_compiled(monkeypatch, capsys):
    monkeypatch.setattr(compiler, "can_compile", lambda device_type: True)
    network = nn.Linear(2, 2)
    compiler.compile_network(network, [CPU])
    assert network._compiled_call_impl is not None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("version, right", [("2.8.0+cpu", False), ("2.10.0", True)])
def test_a_torch_whose_compiler_is_wrong_on_cpus_is_not_asked(version, right, monkeypatch, capsys):
    """Before 2.9 gradients came out as zeros on CPUs without AVX-512."""
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    compiler.can_compile.cache_clear()
    try:
        assert compiler.can_compile("cpu") is right
    finally:
        compiler.can_compile.cache_clear()
    line = "--compile: on CPUs torch before 2.9 may compute wrongly: running without it\n"
    assert capsys.readouterr().out == ("" if right else line)
