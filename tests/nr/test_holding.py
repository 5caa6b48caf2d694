"""nr.hold: layers, by name, that are never dead, are not penalised, and stay as they are."""

import copy
import warnings

import pytest
import torch
from torch import nn

import nr
from nr.network.wiring import wiring
from tests.helpers import (
    MODES,
    batch,
    half_dead,
    kill,
    kill_random,
    layers,
    logits_of,
    loss_of,
    relative_difference,
    silence,
    worn,
)
from tests.nr import test_conversion as converted


def test_a_kept_layer_lives_whole_is_not_penalised_and_grows_by_the_least():
    model = half_dead()
    nr.hold(model, keep="first")
    first, second = nr.utilization(model).layers
    assert (first.live_out, first.fixed, second.live_out, second.fixed) == (10, True, 5, False)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for penalise in (
        lambda: nr.penalise(model, 0.1),
        lambda: nr.SGD(model, lr=0.0, sparsity=0.1).step(),
    ):
        penalise()
        assert not model.features.first.norms[0].weight.grad.any()
        assert model.features.second.norms[0].weight.grad[5:].all()
    before = copy.deepcopy(model.features.first.state_dict())
    report = nr.rejuvenate(model)
    # 27·11 + 11·9·w <= 27·10 + 900 for w = 8, not for 9
    assert [layer.after for layer in report.layers] == [(3, 11), (11, 8)]
    assert torch.equal(model.features.first.convs[0].weight, before["convs.0.weight"])
    nr.merge(model)
    assert nr.utilization(model).layers[0].fixed  # in the next round too


def test_a_kept_layer_grows_as_a_sum_has_it():
    """Alone with the others of its sum; where all of those are kept, by the least."""
    grown = []
    for keep in ((), ("stage1.0.branch.2",), ("stem", "stage1.*")):
        model = worn("basic")
        nr.hold(model, keep=keep)
        nr.rejuvenate(model, published=False)
        sizes = {layers(model)[f"features.{n}"].unit.out_channels for n in ("stem.0", SUMMED)}
        assert len(sizes) == 1
        grown.append(sizes.pop()[1])
    assert grown[0] >= 1 and grown[1] >= 1 and grown[2] == 1
    assert model.features.stage1[1].branch is not None  # which is dead where it is not kept


SUMMED = "stage1.0.branch.2"


def patterned(name: str) -> nr.Network:
    return worn(name) if name in ("dense", "basic") else converted.worn(name)


@pytest.mark.parametrize("cross", (*MODES, "none"))
@pytest.mark.parametrize(
    ("name", "freeze"),
    [
        ("basic", ("stem", "stage2.0.*")),
        ("dense", ("block2.0", "classifier")),
        ("regnet", ("trunk_output.block2*",)),
        ("mobilenet", ("*.2.*",)),
    ],
)
def test_what_is_frozen_does_not_change_at_all(name, freeze, cross):
    model = patterned(name)
    nr.hold(model, freeze=freeze)
    frozen = wiring(model).held.freeze
    assert frozen
    silence(model)
    images, labels = batch(size=32)
    expected = logits_of(model, images)
    old = {n: copy.deepcopy(model.get_submodule(n).state_dict()) for n in frozen}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nr.rejuvenate(model, cross)
    assert relative_difference(logits_of(model, images)[:, :1], expected) < 1e-5
    logits_of(model, images)
    if model.streams == 2:
        loss_of(model.eval(), images, labels % 5).backward()
        if name != "mobilenet":  # whose ReLU6 is not homogeneous
            nr.rescale(model, 0.5)
    for n, values in old.items():
        now = model.get_submodule(n)
        for key, value in values.items():
            assert torch.equal(now.state_dict()[key], value)
        assert not any(
            now.get_parameter(key).requires_grad for key in values if "running" not in key
        )
        if model.streams == 2:
            assert all(p.grad is not None for p in now.parameters() if p.requires_grad)


def test_a_layer_that_another_needs_does_not_die_as_a_whole():
    """A branch with a kept layer stays, though the layer before or behind it is dead."""
    for dead, kept in (("0", "2"), ("2", "0")):
        model = worn("dense")
        branch = "features.block1.1.branch"
        names = [name for name in layers(model) if name.startswith(branch)]
        assert len(names) == 2, layers(model).keys()
        by_end = {name.removeprefix(f"{branch}."): name for name in names}
        ends = sorted(by_end)
        dead, kept = by_end[ends[int(dead) // 2]], by_end[ends[int(kept) // 2]]
        kill(model, {dead: slice(None)})
        assert branch.removesuffix(".branch") in nr.plan(model).dropped
        nr.hold(model, keep=kept)
        rows = {row.name: row for row in nr.plan(model).layers}
        assert len(rows[dead].survivors) == 1
        assert len(rows[kept].survivors) == rows[kept].outputs
        nr.rejuvenate(model)


def test_it_is_kept_in_copies_files_and_conversions(tmp_path):
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3))
    plain = nn.Sequential(*plain, nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    plain = nn.Sequential(*plain, nn.Linear(4, 3))
    model = nr.convert(plain, 8, keep=["0"], freeze=["features.3"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {
        f"features.3.{n}" for n in ("convs.0.weight", "norms.0.weight", "norms.0.bias")
    }
    nr.save(model, tmp_path / "x.pt")
    into = nr.convert(plain, 8)
    nr.load(tmp_path / "x.pt", into=into)
    for other in (
        copy.deepcopy(model),
        nr.load(tmp_path / "x.pt"),
        into,
        nr.build(nr.structure(model)),
    ):
        assert (other.keep, other.freeze) == (("0",), ("features.3",))
        assert nr.structure(other) == nr.structure(model)
        assert all(row.fixed for row in nr.utilization(other).layers)
    description = nr.structure(model)
    for wrong in ("0", [0], None):
        with pytest.raises(ValueError, match=r"^structure: keep: a list of patterns"):
            nr.build(description | {"keep": wrong})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep": "layer4.*"}, r"^keep: 'layer4\.\*' matches no layer of features\.stem\.0, "),
        ({"freeze": ["stem", "relu"]}, r"^freeze: 'relu' matches no layer"),
        ({"keep": [3]}, r"^keep: 3 is no pattern of names"),
        ({"keep": [""]}, r"^keep: '' is no pattern of names"),
        ({"keep": 3}, r"^keep: 3 is no pattern of names"),
    ],
)
def test_a_pattern_without_a_match_is_refused(given, said):
    model = worn("basic")
    nr.hold(model, keep=["stem"])
    with pytest.raises(ValueError, match=said):
        nr.hold(model, **given)
    assert (model.keep, model.freeze) == (("stem",), ())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_nothing_held_is_as_before():
    model, other = worn("basic"), worn("basic")
    kill_random(other)
    nr.hold(model, keep=["stem"])
    nr.hold(model)
    assert nr.structure(model) == nr.structure(other)
