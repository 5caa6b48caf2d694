"""What makes training fast changes no result: memory order, bfloat16, compiling, half the memory.

No test here reads a clock.
"""

import copy
import functools
import gc
import re
import shutil
import weakref
from argparse import Namespace
from collections import OrderedDict
from itertools import product

import pytest
import torch
from torch import nn
from torch._dynamo import guards
from torch._dynamo.testing import CompileCounter
from torch._inductor import config as inductor
from torch._inductor import cpu_vec_isa
from torch.utils._python_dispatch import TorchDispatchMode

import nr
from models.cifar import densenet, resnet
from tests.benchmark import training as steps
from tests.forks import SERVER
from tests.helpers import (
    CLASSES,
    FAMILIES,
    MODES,
    batch,
    beginning,
    bottleneck,
    build,
    kill,
    logits_of,
    loss_of,
    open_cross_blocks,
    prunable,
    relative_difference,
    tiny,
    vary,
    worn,
)
from tests.launches import Launches
from utils.data.batches import TrainBatches
from utils.data.images import ImageSet
from utils.machine import compiler
from utils.training import engine
from utils.training.engine import evaluate, train_epoch
from utils.training.trainer import Trainer

CPU = torch.device("cpu")
FP32_TOLERANCE = 1e-5  # relative to the largest logit: the order of the sums differs
GRADIENT_TOLERANCE = 1e-4  # likewise, through the batch norms of a small batch
AMP_TOLERANCE = 0.05  # bfloat16 has 8 significant bits: 0.004 a rounding, some dozens in a row
OPTIMIZER = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}
VECTORS = ("avx512", "avx2")  # what torch's compiler uses for float
HAS_COMPILER = any(map(shutil.which, ("c++", "g++", "clang++")))


class Never:
    """No signal comes."""

    signum = 0

    def agreed(self) -> int:
        return 0

    agreed_now = agreed


class Batches:
    """The batches of an epoch, and of a test, of these sizes."""

    def __init__(self, *sizes: int):
        self.batches = [batch(count=size, seed=number) for number, size in enumerate(sizes)]
        self.shares = [Namespace(weight=1.0, steps=True) for _ in sizes]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)

    def epoch(self, epoch: int, first: int = 0):
        return iter(self.batches[first:])


def network(family: str, mode: str | None) -> nn.Module:
    """In its search (None), or rejuvenated, with cross blocks that count."""
    if mode is None:  # not worn: batch norm would blow up the rounding of dead channels
        return vary(build(family))
    model = worn(family)
    nr.rejuvenate(model, mode)
    open_cross_blocks(model)
    return model


def half_live(width: int = 8) -> nn.Module:
    model = vary(tiny(width=width, classes=CLASSES))
    kill(model, dict.fromkeys(("features.first", "features.second"), slice(width // 2)))
    return model


def stem_of(model: nn.Module) -> nr.Network:
    """The first layer of ``half_live``, pooled: what is compiled costs seconds a layer."""
    parts = dict(model.features.named_children())
    parts |= {"second": nn.Identity(), "relu2": nn.Identity()}
    return nr.Network(nr.Chain(OrderedDict(parts)), model.classifier, image_size=8)


def channels_last(model: nn.Module) -> bool:
    """Whether every convolution's weight is in this order."""
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Conv2d)]
    return all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


# Memory order and bfloat16.


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_in_memory_changes_no_logits(family, mode, training):
    model, (images, _) = network(family, mode), batch(size=16)
    expected = logits_of(model, images, training)
    found = logits_of(model.to(memory_format=torch.channels_last), images, training)
    assert channels_last(model)
    assert relative_difference(found, expected) < FP32_TOLERANCE


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_rejuvenation_does_not_see_the_order_in_memory(family, mode):
    images, _ = batch(size=16)
    logits = []
    for order in (torch.contiguous_format, torch.channels_last):
        model = worn(family).to(memory_format=order)
        torch.manual_seed(5)
        nr.rejuvenate(model, mode)
        logits.append(logits_of(model.to(memory_format=order), images))
    assert relative_difference(*logits) < FP32_TOLERANCE


@pytest.mark.parametrize("mode", [None, *MODES])
@pytest.mark.parametrize("family", FAMILIES)
def test_amp_logits_are_near_those_of_fp32(family, mode):
    model, (images, _) = network(family, mode), batch(size=16)
    expected = logits_of(model, images)
    model = model.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        found = logits_of(model, images)
    assert found.dtype == torch.bfloat16
    assert 0 < relative_difference(found.float(), expected) < AMP_TOLERANCE


# Compiling.


@pytest.fixture
def counter(monkeypatch):
    """Counts what dynamo hands to its backend, which then runs it as it is."""
    torch._dynamo.reset()
    counter = CompileCounter()
    compile_with = functools.partialmethod(nn.Module.compile, backend=counter)
    monkeypatch.setattr(nn.Module, "compile", compile_with)
    monkeypatch.setattr(compiler, "can_compile", lambda device_type: True)
    # Or torch empties the CPU's caches for each graph, to log how long its guards take.
    monkeypatch.setattr(guards, "profile_guard_manager", lambda *_: 0.0, raising=False)
    yield counter
    torch._dynamo.reset()


def in_use(model: nn.Module) -> Trainer:
    """As a run uses it with --compile."""
    trainer = Trainer([CPU], amp=False, compiled=compiler.DEFAULT, **OPTIMIZER)
    trainer.use(model)
    return trainer


def compiled_in(counter: CompileCounter, run: Trainer, *sizes: int) -> list[int]:
    """How many graphs are compiled by two epochs: in training and in evaluation of each."""
    counts = []
    for epoch in range(2):
        for go in (
            lambda e=epoch: train_epoch(
                run.model, Batches(*sizes), e, run.optimizer, False, Never()
            ),
            lambda: evaluate(run.model, Batches(*sizes), False, Never()),
        ):
            before = counter.frame_count
            go()
            counts.append(counter.frame_count - before)
    return counts


@pytest.mark.parametrize("mode", MODES)
def test_each_network_compiles_once_in_each_mode_and_lets_go_of_its_old_weights(counter, mode):
    run = in_use(half_live())
    assert compiled_in(counter, run, 8, 8, 8) == [1, 1, 0, 0]
    old = [weakref.ref(parameter) for parameter in run.network.parameters()]
    nr.rejuvenate(run.network, mode)
    run = in_use(run.network)
    assert compiled_in(counter, run, 8, 8, 8) == [1, 1, 0, 0]
    gc.collect()
    assert [reference() for reference in old] == [None] * len(old)


def test_a_smaller_last_batch_compiles_once_more_and_all_of_it_is_said(counter, capsys):
    """However many networks there were: torch stops after 8 compilations of one function."""
    for mode in (None, "attention", None):
        model = stem_of(half_live())
        if mode:
            nr.rejuvenate(model, mode)
        assert compiled_in(counter, in_use(model), 8, 8, 5) == [2, 2, 0, 0]
        lines = [line for line in capsys.readouterr().out.splitlines() if "--compile" in line]
        assert len(lines) == 4
        assert all(re.fullmatch(r"\| --compile: compiled in \d+\.\d s", line) for line in lines)


def one_bottleneck() -> nr.Network:
    """A stem, and the block of the second stage, which halves the image."""
    model = bottleneck(depth=8, width_mult=0.25)
    stem, _, stage, *_ = model.features.children()
    stem[0] = nr.ConvBN(3, 16, 3)
    features = nr.Chain(OrderedDict(stem=stem, stage=stage))
    return nr.Network(features, model.classifier, image_size=32)


SHORT = {  # of one block a stage
    "vgg": FAMILIES["vgg"],
    "basic": functools.partial(resnet, depth=8, width_mult=0.25),
    "bottleneck": one_bottleneck,
    "dense": functools.partial(densenet, depth=10, growth_rate=4),
}


ELSEWHERE = {("basic", None), ("vgg", "removed"), ("dense", "full")}  # in test_compiling.py
REPEATED = {("basic", "attention"), ("dense", "attention")}  # here with blocks that repeat


@pytest.mark.parametrize(
    ("family", "mode"), [c for c in product(FAMILIES, (None, *MODES)) if c not in ELSEWHERE]
)
def test_a_network_is_one_graph(counter, family, mode, monkeypatch):
    """fullgraph raises where a graph would break."""
    repeated = (family, mode) in REPEATED
    whole = FAMILIES[family] if repeated else SHORT[family]
    name = f"beginning of {family}, {repeated=}"  # of its own: what is built is kept by name
    monkeypatch.setitem(FAMILIES, name, lambda: beginning(family, whole()))
    model, (images, labels) = network(name, mode), batch()
    model.compile(fullgraph=True, dynamic=False)
    for graphs, training in enumerate((True, False), start=1):
        loss_of(model.train(training), images, labels).backward()
        assert counter.frame_count == graphs


@pytest.mark.parametrize("mode", compiler.MODES)
def test_the_mode_is_that_of_the_flag(mode, monkeypatch):
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda _, **how: asked.append(how))
    monkeypatch.setattr(compiler, "can_compile", lambda device_type: True)
    Trainer([CPU], amp=False, compiled=mode, **OPTIMIZER).use(half_live())
    assert asked == [{"mode": mode, "dynamic": False}]


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="no C++ compiler")
@pytest.mark.skipif(torch.__version__ < compiler.RIGHT_ON_CPUS, reason="its compiler is wrong")
@pytest.mark.parametrize("mode", [None, "attention"])
# Or torch compiles and starts a program for each of the CPU's vector instructions first.
# And it starts a process of workers that import torch again.
@inductor.patch({"cpp.vec_isa_ok": True, "compile_threads": 1})
def test_compiled_logits_and_gradients_are_those_of_the_eager_network(mode, monkeypatch):
    # Likewise for instructions on bfloat16 and bytes, of which there are none here.
    used = [isa for isa in cpu_vec_isa.supported_vec_isa_list if str(isa) in VECTORS]
    monkeypatch.setattr(cpu_vec_isa, "supported_vec_isa_list", used)
    torch._dynamo.reset()
    model, (images, labels) = half_live(8 if mode is None else 10), batch()
    if mode is None:
        model = stem_of(model)
    else:
        model.features.halve = nn.Identity()  # each part costs a second of g++ or more
        nr.rejuvenate(model, mode, round_to=5)  # streams of equal widths share their code
        open_cross_blocks(model)
    compiled = in_use(copy.deepcopy(model)).model
    found, expected = (logits_of(network, images) for network in (compiled, model))
    assert relative_difference(found, expected) < FP32_TOLERANCE
    for network in (compiled, model):
        loss_of(network.train(), images, labels).backward()
    for parameter, eager in zip(compiled.parameters(), model.parameters(), strict=True):
        assert relative_difference(parameter.grad, eager.grad) < GRADIENT_TOLERANCE


# Memory.


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_old_outlives_rejuvenation(family, mode):
    model = worn(family)
    images, labels = batch()
    run = steps.in_use(model, CPU)
    loss_of(model.train(), images, labels).backward()
    run.optimizer.step()
    units = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    old = [weakref.ref(thing) for thing in (*units, *model.parameters(), *model.buffers())]
    old += [weakref.ref(parameter.grad) for parameter in model.parameters()]
    del units
    report = nr.rejuvenate(model, mode)
    run = steps.in_use(model, CPU)
    gc.collect()
    assert report.expansion > 1
    assert sum(reference() is not None for reference in old) == 0


@pytest.mark.slow
def test_half_the_checkpoint_and_less_memory_without_the_cross_connections(monkeypatch):
    """Of whole processes, with the momentum."""
    monkeypatch.setattr(steps, "get_context", lambda method: SERVER)
    size = {"width_mult": 0.5}
    search, removed = (
        steps.footprint_in_child("vgg19_bn", size, phase, "cpu", 2, 2)
        for phase in ("search", "removed")
    )
    assert removed[0] < search[0]
    assert 0.45 < removed[1] / search[1] < 0.55


def test_half_the_bytes_of_weights_without_the_cross_connections():
    def stored(phase: str) -> int:
        model = steps.phase_network("vgg19_bn", {}, phase, CPU)
        return sum(tensor.nbytes for tensor in model.state_dict().values())

    assert 0.45 < stored("removed") / stored("search") < 0.55


# Waiting for the device.


class Reads(TorchDispatchMode):
    """Counts the operations for which the host has to wait for values on the device."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.__name__.split(".")[0] in self.WAITING
        return function(*args, **(kwargs or {}))


def reads_of_epoch(monkeypatch, due: set[int], amp: bool, mode: str | None) -> int:
    """In an epoch of four batches, of which these are shown."""
    model = half_live()
    if mode is not None:
        nr.rejuvenate(model, mode)
    run = steps.in_use(model, CPU, amp)
    run.optimizer.sparsity = 1e-4
    monkeypatch.setattr(engine.Display, "due", lambda display, count: count in due)
    with Reads() as reads:
        for name in ("tolist", "numpy", "cpu"):  # which do not pass through the mode
            method = getattr(torch.Tensor, name)

            def counting(tensor, *arguments, method=method, **keywords):
                reads.count += 1
                return method(tensor, *arguments, **keywords)

            monkeypatch.setattr(torch.Tensor, name, counting)
        train_epoch(run.model, Batches(8, 8, 8, 5), 0, run.optimizer, amp, Never())
    monkeypatch.undo()
    return reads.count


@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("mode", [None, *MODES])
def test_an_epoch_reads_values_only_to_show_them(monkeypatch, mode, amp):
    assert reads_of_epoch(monkeypatch, set(), amp, mode) == 0


def test_each_look_at_the_figures_reads_as_much(monkeypatch):
    one, two = (reads_of_epoch(monkeypatch, due, False, None) for due in ({4}, {2, 4}))
    assert 0 < two == 2 * one


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("mode", [None, *MODES])
def test_an_epoch_never_waits_for_the_gpu(monkeypatch, mode, amp):
    """But once to draw its order, before its first batch."""

    class Watched(TrainBatches):
        def epoch(self, epoch, first_batch=0):
            for images, labels in super().epoch(epoch, first_batch):
                torch.cuda.set_sync_debug_mode("error")
                yield images, labels

    pixels = torch.randint(256, (60, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(CLASSES, (60,))
    images = ImageSet(pixels, labels, tuple("0123456789")).to("cuda")
    model = half_live()
    if mode is not None:
        nr.rejuvenate(model, mode)
    run = steps.in_use(model, torch.device("cuda"), amp)
    run.optimizer.sparsity = 1e-4
    monkeypatch.setattr(engine.Display, "due", lambda display, count: False)
    try:
        train_epoch(run.model, Watched(images, 16, seed=0), 0, run.optimizer, amp, Never())
    finally:
        torch.cuda.set_sync_debug_mode("default")


# Launches.


@pytest.mark.parametrize(
    ("mode", "most"),
    [(None, (560, 560)), ("removed", (1115, 1117)), ("attention", (1780, 3430))],
)
def test_launches_of_a_step_of_resnet_164(mode, most):
    model = vary(resnet(depth=110, width_mult=1 / 8))
    if mode is not None:
        for name, layer in prunable(model).items():
            kill(model, {name: slice(layer.unit.out_channels[0] // 2)})
        assert nr.rejuvenate(model, mode).dropped == ()
    model.train()
    images, labels = batch(count=2)
    with Launches() as forward:
        loss = loss_of(model, images, labels)
    with Launches() as backward:
        loss.backward()
    assert most[0] - 10 < forward.count <= most[0]  # the whole network is in it
    assert most[1] - 10 < backward.count <= most[1]
