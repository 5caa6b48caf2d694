"""nr.rejuvenation of frozen layers: they stay so, on demand as they are, or are named."""

import copy
import warnings

import pytest
import torch

import nr
from tests.helpers import (
    FAMILIES,
    MODES,
    batch,
    layers,
    logits_of,
    loss_of,
    relative_difference,
    silence,
    whole,
    worn,
)


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
