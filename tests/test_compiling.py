"""Compiled networks compute what eager ones do, in every form, and a compiled run resumes.

Graphs here are taken, decomposed and cut in a forward and a backward one as for torch's compiler,
but then run as they are: its code costs a minute of g++ for each network. With NR_TEST_COMPILE=1
it is made, for each family in each form.
"""

import copy
import functools
import os
import shutil
from itertools import product

import pytest
import torch
from torch import nn

import nr
from models.cifar import densenet, resnet, vgg11_bn
from tests.helpers import (
    MODES,
    batch,
    beginning,
    kill,
    logits_of,
    loss_of,
    open_cross_blocks,
    prunable,
    vary,
)
from tests.running import assert_same_run, drive
from utils.machine import compiler

EVERYTHING = os.environ.get("NR_TEST_COMPILE") == "1"
BACKEND = "inductor" if EVERYTHING else "aot_eager_decomp_partition"
NO_COMPILER = EVERYTHING and not any(map(shutil.which, ("c++", "g++", "clang++")))
FAMILIES = {
    "vgg": functools.partial(vgg11_bn, width_mult=1 / 16),
    "basic": functools.partial(resnet, depth=8, width_mult=0.25),
    "dense": functools.partial(densenet, depth=10, growth_rate=4),
}
PLAIN = "plain"
SOME = [("basic", PLAIN), ("vgg", "removed"), ("basic", "attention"), ("dense", "full")]
RUN = (
    "-d synthetic --subset 50 -a vgg11_bn --width-mult 0.0625 --train-batch 10"
    " --test-batch 10 --schedule 9 --lr 0.01 --nr-target 1 --manualSeed 0 --compile"
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NO_COMPILER, reason="no C++ compiler"),
]


def network(family: str, form: str) -> nn.Module:
    """With logits of about 1, and after rejuvenation of a half live one with open cross blocks."""
    torch.manual_seed(0)
    model = vary(beginning(family, FAMILIES[family]()))
    if form != PLAIN:
        for name, layer in prunable(model).items():
            kill(model, {name: slice(layer.unit.out_channels[0] // 2)})
        nr.rejuvenate(model, form)
        open_cross_blocks(model)
    for linear in model.classifier.linears:
        linear.weight.data *= 30
    return model.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("family", "form"), product(FAMILIES, (PLAIN, *MODES)) if EVERYTHING else SOME
)
def test_compiled_is_eager(family, form):
    """Logits of both modes, gradients and statistics, as near as torch's own tests ask for."""
    torch._dynamo.reset()
    eager, (images, labels) = network(family, form), batch(count=16)
    compiled = copy.deepcopy(eager)
    compiled.compile(backend=BACKEND, fullgraph=True, dynamic=False)
    losses = [loss_of(model.train(), images, labels) for model in (compiled, eager)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses)
    for one, other in zip(compiled.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for one, other in zip(compiled.buffers(), eager.buffers(), strict=True):
        torch.testing.assert_close(one, other)
    found, expected = (logits_of(model, images) for model in (compiled, eager))
    assert expected.abs().max() > 0.3
    torch.testing.assert_close(found, expected)


def test_a_resumed_compiled_run_is_a_straight_one(tmp_path, monkeypatch):
    """Bit for bit, and each start compiles once to train and once to evaluate.

    The backward pass is a compilation of its own, unless torch's cache has it.
    """
    if not EVERYTHING:
        compile_with = functools.partialmethod(nn.Module.compile, backend=BACKEND)
        monkeypatch.setattr(nn.Module, "compile", compile_with)
        monkeypatch.setattr(compiler, "can_compile", lambda device_type: True)
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    before = straight / "checkpoint.prev.pth.tar"  # after two of its three epochs
    for folder, flags in ((straight, ""), (resumed, f" --resume {before}")):
        said = drive(f"{RUN} --epochs 3{flags}", folder).stdout
        assert said.count("| --compile: compiled in") in (2, 3)
    assert "Epoch: [3 | 3]" in said and "Epoch: [2 | 3]" not in said
    assert_same_run(straight, resumed)
