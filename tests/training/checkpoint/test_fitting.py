"""training.checkpoint: networks and weights that do not fit, and those of format 1, which do."""

import pytest
import torch

import nr
from tests.helpers import batch, logits_of, worn
from tests.training.checkpoint.payloads import (
    CASES,
    SPECS,
    older,
    payload_of,
    refusal,
    small,
    small_older,
)
from utils.training import checkpoint


@pytest.mark.parametrize(("family", "how"), CASES)
def test_a_file_of_format_1_has_the_same_logits(path, family, how):
    model = worn(family)
    if how != "before":
        options = {"from_scratch": True} if how == "scratch" else {"cross": how}
        nr.rejuvenate(model, **options)
    payload = payload_of(model, *SPECS[family], format=1, structure=older(model))
    checkpoint.save(path, payload)
    images, _ = batch(count=4, size=32)
    loaded = checkpoint.load_network(path)
    assert torch.equal(loaded(images), logits_of(model, images))
    assert nr.structure(loaded) == nr.structure(model)
    assert refusal(path, nr.load).startswith("its network cannot be rebuilt: structure: ")


def wider(structure: dict) -> dict:
    name = next(iter(structure["widths"]))
    widths = {n: [w[0] + 1] if n == name else w for n, w in structure["widths"].items()}
    return structure | {"widths": widths}


def fewer(structure: dict) -> dict:
    names = list(structure["widths"])[:-1]
    return structure | {"widths": {name: structure["widths"][name] for name in names}}


@pytest.mark.parametrize(
    "change",
    [
        wider,
        fewer,
        lambda structure: structure | {"form": "removed"},
        lambda structure: structure | {"form": "unknown"},
        lambda structure: structure | {"dropped": ["features.block1.0"]},
        lambda structure: structure | {"dropped": ["nothing"]},
        lambda structure: structure | {"widths": []},
        lambda structure: {"form": "plain"},
        lambda structure: None,
        lambda structure: [],
    ],
)
def test_a_structure_that_does_not_fit_the_weights(path, change):
    payload = small_older()
    checkpoint.save(path, payload | {"structure": change(payload["structure"])})
    assert refusal(path, checkpoint.load_network).startswith("its network cannot be rebuilt: ")


@pytest.mark.parametrize(
    "change",
    [
        {"arch": "resnet", "options": {"depth": 8}},
        {"arch": "vgg11_bn", "options": {}},
        {"arch": "unknown"},
        {"family": "unknown"},
        {"options": {"depth": 16, "growth_rate": 2}},
        {"options": {"depth": 10, "growth_rate": 2, "num_classes": 100}},
        {"options": {"depth": 11}},
        {"options": {"depth": "10"}},
        {"options": {"unknown": 1}},
        {"options": None},
    ],
    ids=str,
)
def test_another_network_is_refused(path, change):
    payload = small_older()
    checkpoint.save(path, payload | {"network": payload["network"] | change})
    assert refusal(path, checkpoint.load_network).startswith("its network cannot be rebuilt: ")


def without_first(weights: dict) -> dict:
    return dict(list(weights.items())[1:])


def reshaped(weights: dict) -> dict:
    name, value = next(iter(weights.items()))
    return weights | {name: value[:-1]}


@pytest.mark.parametrize(
    "change",
    [
        without_first,
        reshaped,
        lambda weights: weights | {"extra": torch.zeros(1)},
        lambda weights: {},
        lambda weights: dict.fromkeys(weights, 0.5),
        lambda weights: None,
        lambda weights: list(weights),
        lambda weights: {name: value.long() for name, value in weights.items()},
        lambda weights: {name: value.to("meta") for name, value in weights.items()},
        lambda weights: {n: torch.zeros(()).expand(v.shape) for n, v in weights.items()},
        lambda weights: {name: value.to_sparse() for name, value in weights.items()},
        lambda weights: dict(enumerate(weights.values())),
    ],
)
def test_weights_that_do_not_fit_are_refused(path, change):
    payload = small()
    checkpoint.save(path, payload | {"state_dict": change(payload["state_dict"])})
    assert refusal(path, nr.load).startswith("its network cannot be rebuilt: ")
