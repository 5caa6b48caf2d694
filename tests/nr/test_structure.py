"""nr.structure: shapes as plain data and back, refusals, and the counts."""

import copy
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nr
from tests.helpers import (
    FAMILIES,
    MODES,
    batch,
    build,
    kill,
    layers,
    logits_of,
    prunable,
    same_tensors,
    tiny,
    vary,
    worn,
)

REBUILDS = [*MODES, "scratch"]
WIDTHS = {
    "vgg": {"width_mult": st.sampled_from([1 / 32, 1 / 16, 1 / 10])},
    "basic": {"width_mult": st.sampled_from([1 / 8, 0.2, 0.25]), "depth": st.sampled_from([8, 14])},
    "bottleneck": {"width_mult": st.sampled_from([1 / 16, 1 / 8])},
    "dense": {
        "growth_rate": st.integers(1, 5),
        "depth": st.sampled_from([10, 16]),
        "compression_rate": st.sampled_from([1, 1.5, 2, 3]),
    },
}


def rejuvenate(model, how: str) -> None:
    options = {"from_scratch": True} if how == "scratch" else {"cross": how}
    nr.rejuvenate(model, **options)


def is_plain(value: object) -> bool:
    """Strings, ints, lists and dicts only."""
    if type(value) is dict:
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if type(value) is list:
        return all(map(is_plain, value))
    return type(value) in (str, int)


def assert_round_trip(model, fresh) -> None:
    """structure -> json -> restore -> strict load gives the same output bit for bit."""
    found = nr.structure(model)
    assert is_plain(found)
    restored = nr.restore(fresh, json.loads(json.dumps(found)))
    assert restored is fresh
    assert nr.structure(fresh) == found
    assert fresh.load_state_dict(model.state_dict(), strict=True)
    images, _ = batch(count=2)
    assert torch.equal(logits_of(fresh, images), logits_of(model, images))
    assert nr.count_params(fresh) == nr.count_params(model)
    assert nr.count_macs(fresh) == nr.count_macs(model)


@pytest.mark.parametrize("how", REBUILDS)
@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=5, deadline=None)
def test_round_trip_of_random_networks(family, how, data):
    options = data.draw(st.fixed_dictionaries(WIDTHS[family]))
    model, fresh = (FAMILIES[family](**options) for _ in range(2))
    vary(model, seed=data.draw(st.integers(0, 99)))
    share = data.draw(st.floats(0, 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    for name, layer in prunable(model).items():
        dead = torch.rand(layer.unit.out_channels[0], generator=generator) < share
        kill(model, {name: dead})
    rejuvenate(model, how)
    assert_round_trip(model, fresh)


@pytest.mark.parametrize("how", REBUILDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_without_any_branch(family, how):
    model = vary(build(family))
    kill(model, dict.fromkeys(prunable(model), slice(None)))
    rejuvenate(model, how)
    assert_round_trip(model, build(family, seed=1))


@pytest.mark.parametrize("family", FAMILIES)
def test_fresh_network_restores_to_itself(family):
    model = build(family)
    found = nr.structure(model)
    assert found["form"] == "plain"
    assert found["dropped"] == []
    assert found["widths"] == {
        n: list(layer.unit.out_channels) for n, layer in layers(model).items()
    }
    assert_round_trip(model, build(family, seed=1))


def test_structure_by_hand():
    model = tiny()
    kill(model, {"features.first": [0, 3], "features.second": [1, 2]})
    nr.rejuvenate(model, cross="attention")
    assert nr.structure(model) == {
        "form": "attention",
        "widths": {"features.first": [2, 1], "features.second": [2, 1]},
        "dropped": [],
    }


def test_restored_weights_are_fresh():
    model, fresh = worn("basic"), build("basic")
    nr.rejuvenate(model, cross="full")
    nr.restore(fresh, nr.structure(model))
    for layer in layers(fresh).values():
        assert [norm.weight.unique().tolist() for norm in layer.unit.norms] == [[1.0], [0.5]]
        assert not any(block.any() for i, o, block in layer.unit.blocks() if i != o)


STEM, SHORTCUT = "features.stem.0", "features.stage2.0.shortcut"


def rename(structure: dict) -> None:
    structure["widths"]["features.stem.1"] = structure["widths"].pop(STEM)


REFUSALS = {
    "unknown form": lambda s: s.update(form="none"),
    "wrong number of streams": lambda s: s.update(form="plain"),
    "unknown layer": rename,
    "layer too many": lambda s: s["widths"].update({"features.stage9.0.shortcut": [1, 1]}),
    "layer missing": lambda s: s["widths"].pop(STEM),
    "layer of a dropped branch": lambda s: s["dropped"].append("features.stage3.1"),
    "branch missing": lambda s: s["dropped"].clear(),
    "unknown branch": lambda s: s["dropped"].append("features.stage9.0"),
    "a chain as branch": lambda s: s["dropped"].append("features.stage1"),
    "one width": lambda s: s["widths"].update({STEM: [4]}),
    "three widths": lambda s: s["widths"].update({STEM: [4, 1, 1]}),
    "zero width": lambda s: s["widths"].update({STEM: [4, 0]}),
    "negative width": lambda s: s["widths"].update({STEM: [4, -1]}),
    "width that is no integer": lambda s: s["widths"].update({STEM: [4, 1.0]}),
    "width that is a bool": lambda s: s["widths"].update({STEM: [4, True]}),
    "width that is text": lambda s: s["widths"].update({STEM: ["4", "1"]}),
    "sum of unequal widths": lambda s: s["widths"].update({SHORTCUT: [8, 9]}),
}


@pytest.mark.parametrize("edit", REFUSALS.values(), ids=REFUSALS.keys())
def test_foreign_structure_is_refused(edit):
    model, fresh = worn("basic"), build("basic")
    nr.rejuvenate(model)
    structure = nr.structure(model)
    assert structure["dropped"] == ["features.stage1.1"]
    edit(structure)
    state, own = copy.deepcopy(fresh.state_dict()), nr.structure(fresh)
    with pytest.raises(ValueError, match="structure"):
        nr.restore(fresh, structure)
    assert nr.structure(fresh) == own
    assert same_tensors(state, fresh.state_dict())


@pytest.mark.parametrize("family", FAMILIES)
def test_structure_of_another_family_is_refused(family):
    other = "dense" if family == "vgg" else "vgg"
    with pytest.raises(ValueError, match="structure"):
        nr.restore(build(other), nr.structure(build(family)))


def test_counts_by_hand():
    # 3x3 3->4 at 8x8, 3x3 4->4 at 4x4, two classes; batch norm 2·(4 + 4), bias 2
    model = tiny()
    assert nr.count_params(model) == 108 + 144 + 16 + 4 * 2 + 2
    assert nr.count_macs(model) == 108 * 64 + 144 * 16 + 8
    assert nr.count_macs(model, image_size=16) == 108 * 256 + 144 * 64 + 8
    assert nr.count_macs(model, 9) == 108 * 81 + 144 * 16 + 8


@pytest.mark.parametrize(("mode", "weights"), [("removed", 81 + 45), ("full", 81 + 81)])
def test_counts_after_rejuvenation_by_hand(mode, weights):
    # 2 + 1 channels in both layers; the stem has no cross blocks; classifier 3 x 2
    model = tiny()
    kill(model, {"features.first": [0, 3], "features.second": [1, 2]})
    nr.rejuvenate(model, cross=mode)
    assert nr.count_params(model) == weights + 2 * (3 + 3) + 3 * 2 + 2
    assert nr.count_macs(model) == 81 * 64 + (weights - 81) * 16 + 6
