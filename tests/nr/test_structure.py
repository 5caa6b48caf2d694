"""nr.structure: a network as plain data and back, refusals, and the counts."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nr
from tests.copies import copied
from tests.helpers import (
    FAMILIES,
    MODES,
    batch,
    build,
    described,
    kill,
    layers,
    logits_of,
    prunable,
    rebuilt,
    tiny,
    vary,
)

REBUILDS = [*MODES, "scratch"]
WIDTHS = {
    "vgg": {"width_mult": st.sampled_from([1 / 32, 1 / 16, 1 / 10])},
    "basic": {"width_mult": st.sampled_from([1 / 8, 0.2, 0.25]), "depth": st.sampled_from([8, 14])},
    "bottleneck": {
        "width_mult": st.sampled_from([1 / 16, 1 / 8]),
        "depth": st.sampled_from([8, 14]),
    },
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
    """Strings, numbers, bools, None, lists and dicts only."""
    if type(value) is dict:
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if type(value) is list:
        return all(map(is_plain, value))
    return value is None or type(value) in (str, int, float, bool)


def assert_round_trip(model) -> None:
    """structure -> json -> build -> strict load gives the same output bit for bit."""
    found = nr.structure(model)
    assert is_plain(found)
    fresh = nr.build(json.loads(json.dumps(found)))
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
    model = FAMILIES[family](**options)
    vary(model, seed=data.draw(st.integers(0, 99)))
    share = data.draw(st.floats(0, 1))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    for name, layer in prunable(model).items():
        dead = torch.rand(layer.unit.out_channels[0], generator=generator) < share
        kill(model, {name: dead})
    rejuvenate(model, how)
    assert_round_trip(model)


@pytest.mark.parametrize("how", REBUILDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_without_any_branch(family, how):
    model = vary(build(family))
    kill(model, dict.fromkeys(prunable(model), slice(None)))
    rejuvenate(model, how)
    assert_round_trip(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_fresh_network_is_described_as_built(family):
    model = build(family)
    found = described(nr.structure(model))
    assert {node["form"] for node in found.values()} == {"plain"}
    assert {name: node["out_channels"] for name, node in found.items()} == {
        n: list(layer.unit.out_channels) for n, layer in layers(model).items()
    }
    assert_round_trip(model)


def test_structure_by_hand():
    model = tiny()
    kill(model, {"features.first": [0, 3], "features.second": [1, 2]})
    nr.rejuvenate(model, cross="attention")
    model.features.second.norms[0].eps = 1e-3
    window = {"type": "ConvBN", "kernel_size": 3, "stride": 1, "padding": 1, "gamma": 1.0}
    norm = {"eps": 1e-5, "momentum": 0.1}
    relu = {"type": "ReLU", "inplace": False}
    first = {"form": "removed", "in_channels": [3, 3], "out_channels": [2, 1]}
    second = {"form": "attention", "in_channels": [2, 1], "out_channels": [2, 1]}
    pool = {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1, "ceil_mode": False}
    assert nr.structure(model) == {
        "version": 2,
        "image_size": 8,
        "features": {
            "type": "Chain",
            "modules": {
                "first": window | first | norm,
                "relu1": relu,
                "halve": {"type": "MaxPool2d"} | pool,
                "second": window | second | norm | {"eps": 1e-3},
                "relu2": relu,
                "pool": {"type": "AdaptiveAvgPool2d", "output_size": 1},
            },
        },
        "classifier": {"in_channels": [2, 1], "num_classes": 2},
        "frozen": [],
    }


def test_built_weights_are_fresh():
    model, _ = rebuilt("basic", "full")
    for layer in layers(nr.build(nr.structure(model))).values():
        assert [norm.weight.unique().tolist() for norm in layer.unit.norms] == [[1.0], [0.5]]
        assert not any(block.any() for i, o, block in layer.unit.blocks() if i != o)


def at(*path: str, **changes):
    """An edit of the node at ``path`` in the features."""

    def edit(structure: dict) -> None:
        node = structure["features"]
        for name in path:
            node = node["modules"][name] if "modules" in node else node[name]
        for key, value in changes.items():
            del node[key]
            if value is not ...:
                node[key] = value

    return edit


def nested(structure: dict) -> None:
    node = structure["features"]
    for _ in range(2000):
        node = {"type": "Chain", "modules": {"0": node}}
    structure["features"] = node


def doubling(structure: dict) -> None:
    """Small in memory, 2⁴⁰ modules when written out."""
    node = {"type": "ReLU", "inplace": False}
    for _ in range(40):
        node = {"type": "Chain", "modules": {"0": node, "1": node}}
    structure["features"] = node


def stem(structure: dict) -> dict:
    return structure["features"]["modules"]["stem"]["modules"]["0"]


STEM, SHORTCUT = ("stem", "0"), ("stage2", "0", "shortcut")
POOL = ("pool",)
REFUSALS = {
    "unknown form": at(*STEM, form="none"),
    "form that is a list": at(*STEM, form=[]),
    "wrong number of streams": at(*STEM, form="plain"),
    "missing key": at(*STEM, eps=...),
    "one width": at(*STEM, out_channels=[4]),
    "three widths": at(*STEM, out_channels=[4, 1, 1]),
    "zero width": at(*STEM, out_channels=[4, 0]),
    "negative width": at(*STEM, out_channels=[4, -1]),
    "width that is no integer": at(*STEM, out_channels=[4, 1.0]),
    "width that is a bool": at(*STEM, out_channels=[4, True]),
    "width that is text": at(*STEM, out_channels=["4", "1"]),
    "width that fits nothing": at(*STEM, out_channels=[4, 9]),
    "enormous width": at(*STEM, out_channels=[10**12, 1]),
    "sum of unequal widths": at(*SHORTCUT, out_channels=[8, 9]),
    "a sum without its shortcut": at("stage2", "0", shortcut=None),
    "nan": at(*STEM, eps=float("nan")),
    "negative eps": at(*STEM, eps=-1e-5),
    "kernel of another kind": at(*STEM, kernel_size=[3, 3, 3]),
    "stride 0": at(*STEM, stride=0),
    "enormous kernel": at(*STEM, kernel_size=10**9),
    "unknown type": at(*POOL, type="Flatten"),
    "a name of another place": at(*POOL, type="os.system"),
    "a type that is no text": at(*POOL, type=["Chain"]),
    "a custom module": at(*POOL, type="custom"),
    "wrong argument": at(*POOL, output_size="x"),
    "argument that is a dict": at(*POOL, output_size={}),
    "enormous map": at(*POOL, output_size=10**9),
    "wrong argument of an activation": at("stem", "1", inplace=...),
    "no pooling": at("pool", type="Identity", output_size=...),
    "another version": lambda s: s.update(version=3),
    "no image": lambda s: s.update(image_size=0),
    "three sides": lambda s: s.update(image_size=[8, 8, 8]),
    "no classes": lambda s: s["classifier"].update(num_classes=0),
    "key too many": lambda s: s.update(extra=1),
    "features are text": lambda s: s.update(features="ReLU"),
    "modules are a list": lambda s: s["features"].update(modules=[]),
    "a name with a dot": lambda s: s["features"]["modules"].update({"a.b": {"type": "Tanh"}}),
    "the name of a method": lambda s: s["features"]["modules"].update(forward={"type": "Tanh"}),
    "a name that is a number": lambda s: s["features"]["modules"].update({1: {"type": "Tanh"}}),
    "a linear layer with padding": lambda s: stem(s).update(linear=True),
    "linear that is no bool": lambda s: stem(s).update(linear=1),
    "the name of a norm that is no path": lambda s: stem(s).update(norm_name="a..b"),
    "the name of a classifier that is a number": lambda s: s["classifier"].update(name=1),
    "too deep": nested,
    "too many": doubling,
}


@copied
def rebuilt_description() -> dict:
    """Of a network of two streams; it fits."""
    structure = nr.structure(rebuilt("basic", "removed")[0])
    nr.build(structure)
    return structure


@pytest.mark.parametrize("edit", REFUSALS.values(), ids=REFUSALS.keys())
def test_a_description_that_does_not_fit_is_refused(edit):
    structure = rebuilt_description()
    edit(structure)
    with pytest.raises(ValueError, match=r"structure|features|image_size"):
        nr.build(structure)


@pytest.mark.parametrize("structure", [None, [], {}, 7, "text", {"version": 1}], ids=repr)
def test_what_is_no_description_is_refused(structure):
    with pytest.raises(ValueError, match="structure"):
        nr.build(structure)


def test_nothing_is_allocated_for_a_description_that_is_refused(monkeypatch):
    """Each width is allowed, together they do not fit: 4 TB if it were tried."""
    structure = nr.structure(tiny())
    for name in ("first", "second"):
        structure["features"]["modules"][name]["out_channels"] = [2**20]
    made = []
    monkeypatch.setattr(nn.Conv2d, "__init__", spy(nn.Conv2d.__init__, made))
    with pytest.raises(ValueError, match=r"second: reads 4 channels"):
        nr.build(structure)
    assert made and all(device.type == "meta" for device in made)


def spy(init, made):
    def spied(self, *args, **kwargs):
        init(self, *args, **kwargs)
        made.append(self.weight.device)

    return spied


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
