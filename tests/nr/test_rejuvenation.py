"""nr.rejuvenation: widths, what survives, what is new, and that all of it can learn."""

import copy
import gc
import weakref
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import nr
from models.cifar import vgg19_bn
from nr.method.rejuvenation import LayerChange
from nr.method.rounding import new_widths
from nr.method.utilization import live_masks
from nr.network.wiring import wiring
from tests.helpers import (
    CLASSES,
    FAMILIES,
    FIRST,
    MODES,
    SECOND,
    batch,
    build,
    half_dead,
    kill,
    layers,
    logits_of,
    norms,
    rebuilt,
    same_tensors,
    vary,
    whole,
    worn,
)
from utils.machine.syncbn import WholeBatchNorm2d

HALF_VGG19 = [63, 63, 127, 127, *[255] * 4, *[511] * 8]


@pytest.fixture(scope="module")
def half_live_vgg19():
    model = vgg19_bn()
    for layer in layers(model).values():
        layer.unit.norms[0].weight.data[: layer.unit.out_channels[0] // 2] = 0
    return model


@pytest.mark.parametrize(
    ("mode", "params"), [("removed", 9_979_564), ("attention", 19_941_196), ("full", 19_941_196)]
)
def test_half_live_vgg19_of_the_specification(half_live_vgg19, mode, params):
    model = copy.deepcopy(half_live_vgg19)
    report = nr.rejuvenate(model, cross=mode)
    assert report.expansion == pytest.approx(1.99991, abs=5e-6)
    assert [sum(layer.unit.out_channels) for layer in layers(model).values()] == HALF_VGG19
    assert [layer.after[1] for layer in report.layers] == HALF_VGG19
    assert nr.count_params(model) == params


def test_report_of_the_tiny_network():
    # live 27·5 + 9·25 = 360 of 27·10 + 9·100 = 1170; r = √3.25 = 1.802776; int(5r) = 9
    report = nr.rejuvenate(half_dead())
    assert (report.utilization.live, report.utilization.total) == (360, 1170)
    assert report.expansion == pytest.approx(1.8027756)
    assert report.layers == (
        LayerChange(FIRST, before=(3, 10), survived=(3, 5), after=(3, 9)),  # one image for both
        LayerChange(SECOND, before=(10, 10), survived=(5, 5), after=(9, 9)),
    )
    assert report.dropped == ()


@pytest.mark.parametrize(
    ("size", "expansion", "width"),
    [
        (None, 1.6087993, 8),  # (270·64 + 900·16) / (135·64 + 225·16) = 31680 / 12240
        (16, 1.6087993, 8),
        (9, 1.5796696, 7),  # (270·81 + 900·16) / (135·81 + 225·16) = 36270 / 14535
    ],
)
def test_flops_budget(size, expansion, width):
    model = half_dead()
    report = nr.rejuvenate(model, flops=True, image_size=size)
    assert report.expansion == pytest.approx(expansion)
    assert model.features.second.out_channels == (5, width - 5)


@given(
    live=st.integers(1, 5000),
    total_live=st.integers(1, 10**13),
    extra=st.integers(0, 10**13),
)
@example(live=11, total_live=121, extra=104)  # 11·√(225/121) = 15, in floats 14.999…
@example(live=64, total_live=1, extra=2**62)
@settings(max_examples=300, deadline=None)
def test_new_widths_are_exact(live, total_live, extra):
    """(survived + rejuvenated) is the largest integer w with w² ≤ live²·total/live, or live + 1."""
    total = total_live + extra
    survived, rejuvenated = new_widths(live, total_live, total)
    width, square = survived + rejuvenated, Fraction(live * live * total, total_live)
    assert survived == live
    assert square < (width + 1) ** 2
    assert width**2 <= square or (width == live + 1 and extra > 0)
    assert (rejuvenated > 0) == (extra > 0)


@pytest.mark.parametrize(
    ("live", "total_live", "total", "expected"),
    [
        (3, 100, 100, (3, 0)),  # nothing dead
        (3, 100, 101, (3, 1)),  # 3·√1.01 = 3.01 would not grow
        (1, 1, 2, (1, 1)),  # √2
        (5, 4, 9, (5, 2)),  # 7.5
        (4, 1, 4, (4, 4)),  # exactly 8
        (832, 169, 225, (832, 128)),  # 832·15/13 = 960, which floats miss
        (512, 5_005_152, 20_018_880, (512, 511)),
    ],
)
def test_new_widths_by_hand(live, total_live, total, expected):
    assert new_widths(live, total_live, total) == expected


@pytest.mark.parametrize("family", ["basic", "bottleneck"])
def test_residual_sums_stay_aligned(family):
    before = {n: layer.unit.out_channels[0] for n, layer in layers(worn(family)).items()}
    model, report = rebuilt(family, "removed")
    r = report.expansion
    stages = {}
    for name, layer in layers(model).items():
        if layer.fixed:
            survived, rejuvenated = layer.unit.out_channels
            assert survived == before[name]  # all of its outputs
            assert survived + rejuvenated == max(int(survived * r), survived + 1)
            stages.setdefault(name.split(".")[1], set()).add((survived, rejuvenated))
    assert [len(widths) for widths in stages.values()] == [1, 1, 1, 1]  # stem and three stages


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_keeps_its_live_outputs_and_grows(family):
    masks = live_masks(wiring(worn(family)))
    model, report = rebuilt(family, "removed")
    for name, layer in layers(model).items():
        survived, rejuvenated = layer.unit.out_channels
        assert survived == int(masks[name][0].sum())
        assert survived + rejuvenated == max(int(survived * report.expansion), survived + 1)


def test_dropped_layers_are_reported():
    model = build("basic")
    kill(model, {"features.stage1.1.branch.0": slice(None)})
    report = nr.rejuvenate(model)
    assert report.dropped == ("features.stage1.1",)
    rows = {row.name: row for row in report.layers}
    assert rows["features.stage1.1.branch.2"] == LayerChange(
        "features.stage1.1.branch.2", before=(4, 4), survived=(0, 0), after=(0, 0)
    )
    assert rows["features.stage1.0.branch.2"].survived == (4, 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_from_scratch_is_one_fresh_stream_of_the_new_widths(family):
    (twin, _), (model, report) = (rebuilt(family, how) for how in ("removed", "scratch"))
    assert model.streams == 1
    assert logits_of(model, batch()[0]).shape == (8, 1, CLASSES)
    new, old = layers(model), layers(twin)
    assert new.keys() == old.keys()
    for name, layer in new.items():
        assert layer.unit.form == "plain"
        assert layer.unit.out_channels == (sum(old[name].unit.out_channels),)
    assert all((norm.weight == (0.5 if family == "vgg" else 1)).all() for norm in norms(model))
    assert not any(norm.bias.any() or norm.running_mean.any() for norm in norms(model))
    assert not model.classifier.linears[0].bias.any()
    widths = {row.name: row.after[1] for row in report.layers if row.after[1]}
    assert widths == {name: layer.unit.out_channels[0] for name, layer in new.items()}


@pytest.mark.parametrize("mode", [*MODES, "none", "scratch"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_dead_changes_nothing(family, mode):
    model = vary(build(family))
    before, structure = copy.deepcopy(model.state_dict()), nr.structure(model)
    options = {"from_scratch": True} if mode == "scratch" else {"cross": mode}
    report = nr.rejuvenate(model, **options)
    assert report.expansion == 1
    assert report.dropped == ()
    assert all(row.before == row.survived == row.after for row in report.layers)
    assert nr.structure(model) == structure
    assert same_tensors(before, model.state_dict())


@pytest.mark.parametrize("mode", ["", "None", "Removed", "plain", None])
def test_unknown_mode_is_refused_before_any_work(mode):
    model = half_dead()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"cross: .* expected one of"):
        nr.rejuvenate(model, cross=mode)
    assert same_tensors(before, model.state_dict())


@pytest.mark.parametrize("mode", MODES)
def test_second_rejuvenation_is_refused(mode):
    model = half_dead()
    nr.rejuvenate(model, cross=mode)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="before"):
        nr.rejuvenate(model, cross=mode)
    assert same_tensors(before, model.state_dict())


@pytest.mark.parametrize("mode", MODES)
def test_old_weights_are_let_go(mode):
    model = worn("basic")
    old = [weakref.ref(parameter) for parameter in model.parameters()]
    old += [weakref.ref(norm) for norm in norms(model)]
    report = nr.rejuvenate(model, cross=mode)
    gc.collect()
    assert not [reference for reference in old if reference() is not None]
    assert report.expansion > 1


@pytest.mark.parametrize("training", [True, False])
def test_mode_of_the_network_is_kept(training):
    """A network in eval mode is in eval mode afterwards: no mix of both."""
    model = half_dead().train(training)
    nr.rejuvenate(model)
    assert {module.training for module in model.modules()} == {training}


def test_precision_of_the_network_is_kept():
    model = half_dead().double()
    nr.rejuvenate(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_rebuilt_in_place():
    """The units stay the same objects, so that names and references to them stay good."""
    model = worn("basic")
    units = {name: layer.unit for name, layer in layers(model).items()}
    nr.rejuvenate(model)
    assert all(layer.unit is units[name] for name, layer in layers(model).items())


@pytest.mark.parametrize(
    ("what", "after"),
    [
        *((name, after) for name in ("ConvBN.build", "_copy_norm") for after in (0, 1, 5, 9)),
        ("Classifier.build", 0),
    ],
)
@pytest.mark.parametrize("family", ["basic", "dense"])
def test_a_failure_in_the_middle_leaves_the_network_as_it_was(monkeypatch, family, what, after):
    """As a full memory or an interrupt would; ``after``: calls that still succeed."""
    model = worn(family)
    before, state = whole(model), copy.deepcopy(model.state_dict())
    owner = nr.method.rebuilding if what == "_copy_norm" else getattr(nr, what.split(".")[0])
    name, calls = what.split(".")[-1], iter(range(after))
    method = getattr(owner, name)

    def failing(*args, **kwargs):
        if next(calls, None) is None:
            raise MemoryError("no memory is left")
        return method(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        with pytest.raises(MemoryError):
            nr.rejuvenate(model)
    assert whole(model) == before
    assert same_tensors(state, model.state_dict())
    nr.rejuvenate(model)
    assert model.streams == 2


class OwnNorm(torch.nn.BatchNorm2d):
    """A batch norm of a user's own."""


@pytest.mark.parametrize("norm", [OwnNorm, torch.nn.SyncBatchNorm, WholeBatchNorm2d])
@pytest.mark.parametrize("scratch", [False, True])
def test_the_batch_norm_is_kept(norm, scratch):
    model = worn("basic")
    for layer in layers(model).values():
        old = layer.unit.norms[0]
        layer.unit.norms[0] = norm(old.num_features, eps=1e-3, momentum=0.25)
        layer.unit.norms[0].load_state_dict({**old.state_dict()})  # without a version: no count
    model.features.stem[0].norms[0].eval()
    nr.rejuvenate(model, from_scratch=scratch)
    for layer in layers(model).values():
        for made in layer.unit.norms:
            assert type(made) is norm
            assert (made.eps, made.momentum) == (1e-3, 0.25)
            assert made.training == (layer.name != "features.stem.0")


@pytest.mark.parametrize("cross", MODES)
def test_the_memory_order_is_kept(cross):
    model = worn("basic").to(memory_format=torch.channels_last)
    nr.rejuvenate(model, cross=cross)
    for layer in layers(model).values():
        for conv in layer.unit.convs:
            assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_network_in_half_precision_but_for_its_norms_stays_so():
    model = worn("basic")
    for layer in layers(model).values():
        layer.unit.convs.to(torch.bfloat16)
    nr.rejuvenate(model)
    for layer in layers(model).values():
        assert {conv.weight.dtype for conv in layer.unit.convs} == {torch.bfloat16}
        assert {norm.weight.dtype for norm in layer.unit.norms} == {torch.float32}
