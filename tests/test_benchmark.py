"""tests.benchmark: its arithmetic by hand, and its whole table with tiny networks."""

import time
from contextlib import contextmanager
from functools import partial

import pytest
import torch

import models
import nr
from nr.network.wiring import wiring
from tests import forks, plain, real
from tests.benchmark import __main__ as script
from tests.benchmark import converted, measuring, settings, table, training
from tests.launches import launches
from utils.machine import compiler

CPU = torch.device("cpu")
TINY = {"width_mult": 1 / 16}


def tiny_plain() -> torch.nn.Module:
    """Its speed is of no interest, only that it takes the same images."""
    return torch.nn.Sequential(*plain.conv_bn_relu(3, 4, 3), *plain.head(4))


@contextmanager
def in_this_process(network, names, device, batch):
    yield {phase: training.phase_step(network, phase, device, batch) for phase in names}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Three tiny networks, a small ceiling, no photographs, one process of one thread."""
    threads = torch.get_num_threads()
    monkeypatch.setattr(settings, "THREADS", 1)
    network = (tiny_plain, "vgg11_bn", TINY)
    monkeypatch.setattr(settings, "NETWORKS", dict.fromkeys(settings.NETWORKS, network))
    monkeypatch.setattr(settings, "MATRIX", {"cpu": 256})
    monkeypatch.setattr(settings, "BATCH", {"cpu": 4, "cuda": 4})
    monkeypatch.setattr(settings, "WARM_UP", 1)
    monkeypatch.delenv(real.VARIABLE, raising=False)
    monkeypatch.setattr(measuring, "keep_freed_memory", lambda: None)
    monkeypatch.setattr(table, "footprint_in_child", training.footprint)  # a child is slow
    monkeypatch.setattr(table, "in_processes", in_this_process)
    few = partial(table.augmentation_row, batch=4, batches=2)
    monkeypatch.setattr(table, "augmentation_row", few)
    monkeypatch.setattr(converted, "NAMES", ("mobilenet_v3_small",))
    monkeypatch.setattr(converted, "SELECTIONS", "shufflenet_v2_x0_5")
    monkeypatch.setattr(converted, "SIZE", 32)
    monkeypatch.setattr(converted, "BATCH", 2)
    yield
    torch.set_num_threads(threads)


def test_the_ratio_is_the_median_over_the_rounds():
    assert measuring.ratio([2, 30, 4], [1, 10, 1]) == 3  # 2, 3 and 4
    assert measuring.ratio([1.5], [3.0]) == 0.5


def test_a_phase_takes_turns_with_what_it_is_compared_to_and_few_do_at_once():
    for phase, comparisons in settings.PHASES.items():
        assert {phase, *(reference for reference, _ in comparisons)} <= {*settings.home(phase)}
    assert max(map(len, settings.TURNS)) <= 4  # DenseNet-100-40 takes 3 GB a process


def test_twice_the_work_takes_twice_the_time():
    steps = {
        name: measuring.timed(partial(time.sleep, seconds), CPU)
        for name, seconds in (("once", 0.02), ("twice", 0.04))
    }
    times = measuring.take_turns(steps, rounds=9)
    assert {len(seconds) for seconds in times.values()} == {9}
    assert measuring.ratio(times["twice"], times["once"]) == pytest.approx(2, rel=0.25)


def test_the_steps_take_turns(monkeypatch):
    monkeypatch.setattr(settings, "WARM_UP", 1)
    calls = []
    steps = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
    assert measuring.take_turns(steps, rounds=2) == {"a": [3, 5], "b": [4, 6]}
    assert "".join(calls) == "ababab"


def test_the_share_of_the_ceiling_by_hand():
    # 1e6 multiply-adds, 3 times (forward, two backward), 2 FLOP each, 50 images/s: 3e8 FLOP/s
    assert measuring.share(1_000_000, 50, 1e9) == pytest.approx(0.3)


def test_the_ceiling_is_a_speed(monkeypatch):
    monkeypatch.setattr(settings, "MATRIX", {"cpu": 256})
    monkeypatch.setattr(measuring, "take_turns", lambda steps, rounds: {"mm": [0.5, 0.25]})
    assert measuring.ceiling(CPU, torch.float32) == 2 * 256**3 / 0.25


def test_half_of_each_layer_is_live():
    usage = nr.utilization(training.half_dead("vgg11_bn", TINY, CPU))
    assert all(2 * row.live_out == row.out_channels for row in usage.layers)


def test_the_networks_are_set_up_as_in_a_run():
    run = training.in_use(models.build("cifar", "vgg11_bn", **TINY), CPU)
    weight = run.network.features[0][0].convs[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert isinstance(run.optimizer, nr.SGD)
    assert run.optimizer.param_groups[0]["fused"]
    assert {name: run.optimizer.param_groups[0][name] for name in settings.OPTIMIZER} == (
        settings.OPTIMIZER
    )


def test_what_is_measured_where():
    on = partial(settings.phases, compiled=False)
    assert on("ResNet-164", CPU) == on("VGG-19", CPU)
    assert on("ResNet-164", CPU) == [
        "plain torch",
        "plain torch, defaults",
        "search",
        "search --amp",
        "new widths",
        "removed",
        "attention",
        "new widths --nr-round-to 8",
        "removed --nr-round-to 8",
        "attention --nr-round-to 8",
    ]
    compiled = {f"{phase} --compile" for phase in ("search", "removed", "attention")}
    with_compiled = settings.phases("ResNet-164", CPU, compiled=True)
    assert set(with_compiled) - set(on("ResNet-164", CPU)) == compiled
    assert settings.phases("VGG-19", CPU, compiled=True) == on("VGG-19", CPU)
    on_gpu = settings.phases("ResNet-164", torch.device("cuda"), compiled=True)
    assert on_gpu == list(settings.PHASES)


@pytest.mark.slow
def test_steps_of_phases_in_processes_of_their_own(monkeypatch):
    monkeypatch.setattr(training, "get_context", lambda method: forks.SERVER)
    network = (tiny_plain, "vgg11_bn", TINY)
    with training.in_processes(network, ["removed"], CPU, 4) as steps:
        assert all(step.seconds() > 0 < step.launches() for step in steps.values())
    assert not training.prepared  # of this process


def test_the_rows_of_a_network(small, monkeypatch):
    """Times made up: half the seconds of plain torch in the search, and so on."""
    seconds = {phase: 2.0**-number for number, phase in enumerate(settings.PHASES)}
    monkeypatch.setattr(
        table, "take_turns", lambda steps, rounds: {name: [seconds[name]] for name in steps}
    )
    ceilings = {"fp32": 1e9, "bf16": 2e9}
    rows, seen = {}, []
    for row in table.network_rows("VGG-19", 1, CPU, ceilings):
        seen.append(row[1])
        rows[row[1], row[6] if len(row) > 6 else None] = (*row[2:3], *row[4:])
    assert set(seen) == {phase for phase in settings.PHASES if "--compile" not in phase}
    macs = nr.count_macs(models.build("cifar", "vgg11_bn", **TINY))
    assert all(rows[phase, None] == ("not measured",) for phase in settings.GPU_ONLY)
    removed = nr.count_macs(training.phase_network("vgg11_bn", TINY, "removed", CPU))
    assert removed < 0.7 * macs
    speed = 4 / seconds["removed"]
    part = f"{6 * removed * speed / 1e9:.3f}"  # of its own multiply-adds
    assert rows["removed", "search"] == (f"{speed:.1f}", part, "0.12", "search", 0.55)
    assert rows["removed", "new widths"] == (f"{speed:.1f}", part, "0.50", "new widths", 1.05)
    assert rows["attention", "new widths"][2:] == ("0.25", "new widths", 2.0)
    same = "new widths --nr-round-to 8"
    assert rows["removed --nr-round-to 8", same][2:] == ("0.50", same, 1.05)
    assert rows["attention --nr-round-to 8", same][2:] == ("0.25", same, 2.0)
    assert rows["plain torch", None] == ("4.0", f"{6 * macs * 4 / 1e9:.3f}")  # a batch of 4 in 1 s
    found = rows["search", "plain torch"]
    assert found == ("16.0", f"{6 * macs * 16 / 1e9:.3f}", "0.25", "plain torch", 1.03)
    assert rows["search --amp", "fp32 search"] == (
        "32.0",
        f"{6 * macs * 32 / 2e9:.3f}",
        "0.50",
        "fp32 search",
        0.5,
    )


@pytest.mark.parametrize("rounded", ["", " --nr-round-to 8"])
def test_the_plain_network_of_the_new_widths_has_both_streams_in_one(rounded):
    plainly, removed = (
        training.phase_network("vgg11_bn", {"width_mult": 0.5}, name + rounded, CPU)
        for name in ("new widths", "removed")
    )
    assert (plainly.streams, removed.streams) == (1, 2)
    widths = [
        [sum(layer.unit.out_channels) for layer in wiring(network).layers]
        for network in (plainly, removed)
    ]
    assert widths[0] == widths[1] and max(widths[0]) > 200
    assert all(width % 8 == 0 for width in widths[0]) == bool(rounded)


def test_a_gpu_is_waited_for_around_a_group_of_steps_and_not_in_it(monkeypatch, small):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    monkeypatch.setattr(training, "run_step", lambda *_, **__: lambda: calls.append("step"))
    step = training.phase_step((None, "vgg11_bn", TINY), "search", torch.device("cuda"), 4)
    calls.clear()
    seconds = iter([1.0, 6.0])
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(seconds))
    assert step.seconds() == 5.0 / settings.GROUP["cuda"]
    assert calls == ["wait", *["step"] * settings.GROUP["cuda"], "wait"]


def test_launches_of_a_step_are_printed(small, monkeypatch):
    """A convolution is one, a view none; what is compiled is not looked into."""
    monkeypatch.setattr(compiler, "can_compile", lambda device_type: False)
    x = torch.randn(2, 3, 4, 4)
    weight = torch.randn(5, 3, 1, 1)
    assert launches(lambda: torch.conv2d(x, weight).view(-1)) == 1
    steps = [
        training.phase_step(settings.NETWORKS["VGG-19"], phase, CPU, 4)
        for phase in ("plain torch", "removed", "attention", "search --compile")
    ]
    plainly, removed, attention, compiled = (step.launches() for step in steps)
    assert 10 < plainly < removed < attention and compiled is None
    ceilings = dict.fromkeys(("fp32", "bf16"), 1e9)
    rows = {row[1]: row for row in table.network_rows("VGG-19", 1, CPU, ceilings)}
    assert rows["removed"][3] == removed


@pytest.mark.slow
def test_the_whole_table(small, capsys):
    script.main(["--rounds", "1"])
    caption, empty, *lines = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__}, batch 4 at 32x32; ceiling" in caption and not empty
    cells = [line.strip("| ").split(" | ") for line in lines]
    assert {len(row) for row in cells} == {len(settings.HEADER)}
    assert cells[0] == list(settings.HEADER) and set(cells[1]) == {"---"}
    eager = [phase for phase in settings.PHASES if "--compile" not in phase]
    again = sum(
        max(1, len(settings.PHASES[phase])) for phase in eager if phase not in settings.GPU_ONLY
    )
    assert len(lines) == 2 + 3 * (again + len(settings.GPU_ONLY)) + 3 + 10 + 2
    rows = {(row[0], row[1]): row for row in cells}
    assert rows["-", "imagenet loader"][2] == "not measured"
    assert float(rows["VGG-19", "removed, checkpoint"][5]) < 1
    assert rows["ResNet-164", "nr.rejuvenate"][5].endswith(" ms")
    assert float(rows["mobilenet_v3_small", "converted, search"][5]) > 0
    (picked,) = (row for row in cells if row[0] == "shufflenet_v2_x0_5")
    assert 0 < float(picked[5].removesuffix(" %")) < 100


def test_what_saving_blocks_and_what_it_takes(small):
    row = table.saving_row(1, CPU)
    blocked, whole = float(row[5].removesuffix(" s")), float(row[6].split()[4])
    assert 0 < blocked <= whole + 0.01
    assert row[6].startswith("writing 0.3 MB in ")  # weights of the narrow network and momentum


@real.needs(real.PHOTOGRAPHS)
def test_the_loader_is_measured(monkeypatch):
    monkeypatch.setattr(settings, "WARM_UP", 0)
    monkeypatch.setattr(table, "IMAGENET_REPEATS", 1)
    row = table.loader_row(1, CPU)
    assert float(row[2]) > 0 and float(row[5]) > 0
