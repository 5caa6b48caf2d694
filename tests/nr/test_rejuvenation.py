"""nr.rejuvenation: widths, what survives, what is new, and that all of it can learn."""

import copy
import gc
import math
import warnings
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
    MODES,
    batch,
    branches,
    build,
    ends,
    kill,
    layers,
    logits_of,
    loss_of,
    norms,
    open_cross_blocks,
    prunable,
    relative_difference,
    same_tensors,
    silence,
    tiny,
    vary,
    worn,
)
from utils.machine.syncbn import WholeBatchNorm2d

FIRST, SECOND = "features.first", "features.second"
HALF_VGG19 = [63, 63, 127, 127, *[255] * 4, *[511] * 8]


def half_live(width: int = 10):
    """tiny() with the first half of each layer dead."""
    model = vary(tiny(width))
    kill(model, dict.fromkeys((FIRST, SECOND), slice(width // 2)))
    return model


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
    report = nr.rejuvenate(half_live())
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
    model = half_live()
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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [0, 10])
@pytest.mark.parametrize("family", FAMILIES)
def test_survived_logits_are_unchanged(family, seed, mode):
    model = worn(family, seed)
    silence(model)
    images, _ = batch()
    before = logits_of(model, images)
    report = nr.rejuvenate(model, cross=mode)
    assert report.utilization.live < report.utilization.total
    assert bool(report.dropped) == (family != "vgg")
    after = logits_of(model, images)
    assert after.shape == (8, 2, CLASSES)
    assert relative_difference(after[:, :1], before) < 1e-5
    assert not torch.allclose(after[:, 0], after[:, 1], rtol=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_pruned_is_one_stream_of_the_live_channels(family):
    """cross="none": the same logits from the live widths alone, and no channel more."""
    model = worn(family)
    silence(model)
    images, _ = batch()
    before, masks = logits_of(model, images), live_masks(wiring(model))
    report = nr.rejuvenate(model, cross="none")
    assert report.expansion == 1
    assert bool(report.dropped) == (family != "vgg")
    for name, layer in layers(model).items():
        assert layer.unit.form == "plain"
        assert layer.unit.out_channels == (int(masks[name][0].sum()),)
    assert report.utilization.live < report.utilization.total
    usage = nr.utilization(model)
    assert usage.total == report.utilization.live
    after = logits_of(model, images)
    assert after.shape == (8, 1, CLASSES)
    assert relative_difference(after, before) < 1e-5


@pytest.mark.parametrize("family", ["basic", "bottleneck"])
def test_residual_sums_stay_aligned(family):
    model = worn(family)
    before = {n: layer.unit.out_channels[0] for n, layer in layers(model).items()}
    r = nr.rejuvenate(model).expansion
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
    model = worn(family)
    masks = live_masks(wiring(model))
    report = nr.rejuvenate(model)
    for name, layer in layers(model).items():
        survived, rejuvenated = layer.unit.out_channels
        assert survived == int(masks[name][0].sum())
        assert survived + rejuvenated == max(int(survived * report.expansion), survived + 1)


@pytest.mark.parametrize("mode", MODES)
def test_survived_channels_are_copied(mode):
    """Live channels 5 to 9 of ten, in order: weights, γ, β and running statistics."""
    model = half_live()
    old = copy.deepcopy(model)
    nr.rejuvenate(model, cross=mode)
    for name, columns in (("first", slice(0, 3)), ("second", slice(5, 10))):
        before, after = (network.features.get_submodule(name) for network in (old, model))
        own = next(block for i, o, block in after.blocks() if (i, o) == (0, 0))
        assert torch.equal(own, before.convs[0].weight[5:10, columns])
        assert not any(block.any() for i, o, block in after.blocks() if i != o)
        kept, norm = before.norms[0].state_dict(), after.norms[0].state_dict()
        for key in ("weight", "bias", "running_mean", "running_var"):
            assert torch.equal(norm[key], kept[key][5:10])
    assert torch.equal(model.classifier.linears[0].weight, old.classifier.linears[0].weight[:, 5:])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_rejuvenated_channels_are_fresh(family, mode):
    model = worn(family)
    nr.rejuvenate(model, cross=mode)
    for layer in layers(model).values():
        norm = layer.unit.norms[1]
        assert (norm.weight == 0.5).all()
        assert not norm.bias.any()
        assert not norm.running_mean.any()
        assert (norm.running_var == 1).all()


@pytest.mark.parametrize("mode", MODES)
def test_rejuvenated_weights_are_normal_over_all_new_outputs(mode):
    model = half_live(160)
    nr.rejuvenate(model, cross=mode)
    unit = model.features.second
    std = math.sqrt(2 / (9 * sum(unit.out_channels)))
    block = next(block for i, o, block in unit.blocks() if (i, o) == (1, 1))
    assert block.std().item() == pytest.approx(std, rel=0.02)


def test_classifier_after_rejuvenation():
    model = vary(tiny(1000, classes=10))
    model.classifier.linears[0].bias.data.normal_()
    bias = model.classifier.linears[0].bias.detach().clone()
    kill(model, {SECOND: slice(500)})
    nr.rejuvenate(model)
    first, second = model.classifier.linears
    assert torch.equal(first.bias, bias)
    assert second.bias is None
    assert second.weight.shape == (10, second.in_features)
    assert second.weight.std().item() == pytest.approx(0.01, rel=0.05)


# Wide enough for several channels a stream: batch norm hides the scale of a single one.
WIDER = {
    "vgg": {"width_mult": 1 / 8},
    "basic": {"width_mult": 1},
    "bottleneck": {"width_mult": 1},
    "dense": {"growth_rate": 8},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_learns(family, mode):
    """Each block, cross blocks and their zeros included, has a gradient and moves in one step."""
    torch.manual_seed(0)
    model = vary(FAMILIES[family](**WIDER[family]))
    for name, layer in prunable(model).items():
        kill(model, {name: slice(layer.unit.out_channels[0] * 3 // 4)})
    nr.rejuvenate(model, cross=mode)
    model.train()
    before = copy.deepcopy(model)
    optimizer = nr.SGD(model, lr=0.1)
    loss_of(model, *batch(count=16)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    optimizer.step()
    for name, layer in layers(model).items():
        old = layers(before)[name].unit
        for (i, o, new), (_, _, block) in zip(layer.unit.blocks(), old.blocks(), strict=True):
            assert not torch.equal(new, block), (name, i, o)
        for new, norm in zip(layer.unit.norms, old.norms, strict=True):
            assert not torch.equal(new.weight, norm.weight), name
            assert not torch.equal(new.bias, norm.bias), name


def positions() -> list[tuple[str, str]]:
    """Every chain layer, and every prunable layer of the first and last block of each stage."""
    found = []
    for family in FAMILIES:
        names = prunable(build(family))
        found += [(family, name) for name in names if ".branch." not in name]
        found += [(family, name) for name in ends(names)]
    return found


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("family", "name"), positions())
def test_a_dead_layer_anywhere_is_rebuilt(family, name, mode):
    model = vary(build(family))
    kill(model, {name: slice(None)})
    silence(model)
    images, labels = batch()
    before = logits_of(model, images)
    report = nr.rejuvenate(model, cross=mode)
    assert report.dropped == ((name.split(".branch.")[0],) if ".branch." in name else ())
    assert relative_difference(logits_of(model, images)[:, :1], before) < 1e-5
    loss_of(model.train(), images, labels).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_all_layers_dead_are_rebuilt(family, mode):
    model = vary(build(family))
    kill(model, dict.fromkeys(layers(model), slice(None)))
    report = nr.rejuvenate(model, cross=mode)
    assert set(report.dropped) == branches(model).keys()
    assert all(container.branch is None for container in branches(model).values())
    images, labels = batch()
    loss = loss_of(model.train(), images, labels)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in model.parameters())


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
    model, twin = worn(family), worn(family)
    nr.rejuvenate(twin)
    report = nr.rejuvenate(model, from_scratch=True)
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
    model = half_live()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"cross: .* expected one of"):
        nr.rejuvenate(model, cross=mode)
    assert same_tensors(before, model.state_dict())


@pytest.mark.parametrize("mode", MODES)
def test_second_rejuvenation_is_refused(mode):
    model = half_live()
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
    model = half_live().train(training)
    nr.rejuvenate(model)
    assert {module.training for module in model.modules()} == {training}


def test_precision_of_the_network_is_kept():
    model = half_live().double()
    nr.rejuvenate(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("mode", ["attention", "full"])
def test_cross_blocks_matter_once_they_are_open(mode):
    """The oracle of the tests above can fail: with open cross blocks the logits do change."""
    model = worn("basic")
    silence(model)
    images, _ = batch()
    before = logits_of(model, images)
    nr.rejuvenate(model, cross=mode)
    open_cross_blocks(model)
    assert relative_difference(logits_of(model, images)[:, :1], before) > 1e-3


def test_rebuilt_in_place():
    """The units stay the same objects, so that names and references to them stay good."""
    model = worn("basic")
    units = {name: layer.unit for name, layer in layers(model).items()}
    nr.rejuvenate(model)
    assert all(layer.unit is units[name] for name, layer in layers(model).items())


def whole(model: torch.nn.Module) -> dict:
    """Everything that a rebuild could change: modules, tensors themselves, and shapes."""
    return {
        "modules": [(name, id(module)) for name, module in model.named_modules()],
        "tensors": [
            (name, id(t)) for name, t in (*model.named_parameters(), *model.named_buffers())
        ],
        "shapes": nr.structure(model),
    }


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


def test_frozen_parameters_stay_frozen():
    model = worn("basic")
    model.features.stem.requires_grad_(False)
    model.classifier.linears[0].bias.requires_grad_(False)
    with pytest.warns(UserWarning, match=r"^nr\.rejuvenate: the weights of features\.stem\.0 are"):
        nr.rejuvenate(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    stem = {n for n, _ in model.named_parameters() if n.startswith("features.stem.")}
    assert frozen == stem | {"classifier.linears.0.bias"}


@pytest.mark.parametrize("freeze", ["features.stem", "features.stage2", "classifier"])
def test_rejuvenated_channels_that_cannot_learn_are_named(freeze):
    model = worn("basic")
    model.get_submodule(freeze).requires_grad_(False)
    with pytest.warns(
        UserWarning, match=rf"{freeze}.* never learn: nr\.hold\(model, freeze="
    ) as found:
        nr.rejuvenate(copy.deepcopy(model))
    assert [warning.filename for warning in found] == [__file__]
    before = whole(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nr.rejuvenate(copy.deepcopy(model), cross="none")  # nothing is rejuvenated
        with pytest.raises(UserWarning):
            nr.rejuvenate(model)
    assert whole(model) == before


@pytest.mark.parametrize("cross", (*MODES, "none"))
@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_layers_are_left_as_they_are_on_demand(family, cross):
    """Whole, with all their dead channels, and frozen; what is new beside them learns."""
    model = worn(family)
    silence(model)
    images, labels = batch()
    frozen = [name for name in layers(model) if ".branch." not in name][:2]
    nr.hold(model, freeze=(*frozen, "classifier"))
    expected = logits_of(model, images)
    old = {name: copy.deepcopy(model.get_submodule(name)) for name in frozen}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nr.rejuvenate(model, cross=cross)
    found = logits_of(model, images)
    assert relative_difference(found[:, :1], expected) < 1e-5
    for name, unit in old.items():
        now = model.get_submodule(name)
        assert now.out_channels[0] == unit.out_channels[0]
        assert torch.equal(now.norms[0].weight, unit.norms[0].weight)
        assert not now.convs[0].weight.requires_grad and not now.norms[0].weight.requires_grad
        assert now.form == ("plain" if cross == "none" else "removed")
    first = model.get_submodule(frozen[0])
    assert torch.equal(first.convs[0].weight, old[frozen[0]].convs[0].weight)
    loss_of(model.train(), images, labels).backward()
    fresh = [m for name in frozen for m in model.get_submodule(name).convs[1:]]
    fresh += model.classifier.linears[1:]
    assert len(fresh) == (0 if cross == "none" else 3)
    assert all(module.weight.grad.any() for module in fresh)


def test_frozen_layers_are_not_left_as_they_are_from_scratch():
    model = worn("basic")
    nr.hold(model, freeze="stem")
    with pytest.raises(ValueError, match=r"^freeze: from_scratch keeps no weights"):
        nr.rejuvenate(model, from_scratch=True)


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
