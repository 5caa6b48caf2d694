"""models.pretrained: torchvision's ResNets and ours give the same logits, bit for bit."""

import copy
import pickle
import re
from collections.abc import Callable
from functools import cache

import pytest
import torch
import torchvision
from torchvision.models import DenseNet
from torchvision.models.mobilenetv2 import MobileNetV2

import models
from models import from_torchvision, pretrained
from tests.helpers import batch, logits_of, random_norms, relative_difference, same_tensors
from utils.data.normalisation import USUAL

ARCH = "torchvision_mobilenet_v2"
IMAGES = batch(count=2, size=64)[0]


@pytest.fixture(scope="module")
def made() -> Callable[[str], tuple[torch.nn.Module, torch.nn.Module]]:
    """Makes a random network of torchvision, in eval mode, and a fresh one of ours."""

    @cache
    def once(arch: str) -> tuple[torch.nn.Module, torch.nn.Module]:
        torch.manual_seed(1)
        theirs = getattr(torchvision.models, arch)().eval()
        random_norms(theirs)
        return theirs, models.build("imagenet", f"{arch}_nr")

    return lambda arch: copy.deepcopy(once(arch))


def take_pixels_first(network: torch.nn.Module) -> None:
    """Compute the strided 1x1 convolutions as ours do (see nr.ConvBN): equal up to bits."""
    for conv in network.modules():
        if isinstance(conv, torch.nn.Conv2d) and conv.kernel_size == (1, 1):
            step, conv.stride = conv.stride[0], (1, 1)
            conv.register_forward_pre_hook(lambda _, args, s=step: (args[0][..., ::s, ::s],))


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_logits_are_torchvisions_bit_for_bit(tmp_path, made, arch, prefix):
    theirs, ours = made(arch)
    torch.save({prefix + k: v for k, v in theirs.state_dict().items()}, tmp_path / "w.pth")
    assert pretrained.load(ours, pretrained.read(f"{arch}_nr", str(tmp_path / "w.pth")))
    logits = logits_of(ours, IMAGES)[:, 0]
    assert relative_difference(logits, theirs(IMAGES).detach()) < 1e-4
    take_pixels_first(theirs)
    assert torch.equal(logits, theirs(IMAGES).detach())


@pytest.mark.parametrize("arch", sorted(pretrained.ARCHS))
def test_every_weight_has_its_place(arch):
    with torch.device("meta"):
        ours, theirs = (
            models.build("imagenet", arch),
            getattr(torchvision.models, pretrained.ARCHS[arch])(),
        )
    own = {k: v.shape for k, v in ours.state_dict().items() if pretrained.COUNTER not in k}
    given = theirs.state_dict().items()
    assert own == {pretrained.renamed(k): v.shape for k, v in given if pretrained.COUNTER not in k}


def test_other_classes_leave_the_classifier_fresh(made):
    theirs = made("resnet18")[0].state_dict()
    ours = models.build("imagenet", "resnet18_nr", num_classes=7)
    fresh = ours.classifier.linears[0].weight.clone()
    assert not pretrained.load(ours, theirs)
    assert torch.equal(ours.classifier.linears[0].weight, fresh)
    assert torch.equal(ours.features.stem[0].convs[0].weight, theirs["conv1.weight"])


def missing(weights):
    del weights["layer1.0.bn1.bias"]


def unknown(weights):
    weights["layer1.0.se.weight"] = torch.zeros(1)


def other_shape(weights):
    weights["conv1.weight"] = torch.zeros(64, 3, 3, 3)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (missing, "there are no weights for features.stage1.0.branch.0.norms.0.bias"),
        (unknown, "layer1.0.se.weight: the network has no such weight"),
        (other_shape, "conv1.weight: is (64, 3, 3, 3), the network's is (64, 3, 7, 7)"),
    ],
)
def test_other_weights_are_refused_and_change_nothing(made, damage, words):
    theirs, ours = made("resnet18")
    weights = theirs.state_dict()
    damage(weights)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(ValueError) as caught:
        pretrained.load(ours, weights)
    assert str(caught.value) == words
    assert same_tensors(before, ours.state_dict())


@pytest.mark.parametrize("content", [None, b"no archive", [1, 2], {"epoch": 3}])
def test_a_file_that_holds_no_weights_is_named_in_one_line(tmp_path, content):
    file = tmp_path / "w.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(content, file)
    with pytest.raises(ValueError) as caught:
        pretrained.read("resnet18_nr", str(file))
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("how", [pickle.dump, torch.save])
def test_a_pickled_module_is_refused_in_our_words(tmp_path, how):
    with open(tmp_path / "w.pth", "wb") as file:
        how(torch.nn.Linear(2, 2), file)
    with pytest.raises(ValueError, match=r"w\.pth: holds something else than a state_dict, .*FILE"):
        pretrained.read("resnet18_nr", str(tmp_path / "w.pth"))


def test_without_a_file_torchvision_is_asked(monkeypatch):
    asked = []

    def state_dict(weights, progress):
        asked.append(weights)
        return {}

    enum = torchvision.models.ResNet34_Weights
    monkeypatch.setattr(enum, "get_state_dict", state_dict)
    assert pretrained.read("resnet34_nr", None) == {}
    assert asked == [enum.DEFAULT]


def test_a_download_that_fails_is_told_in_one_line(monkeypatch):
    def refused(*_, **__):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(torchvision.models.ResNet34_Weights, "get_state_dict", refused)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/hub")
    with pytest.raises(ValueError) as caught:
        pretrained.read("resnet34_nr", None)
    url = "https://download.pytorch.org/models/resnet34-b627a593.pth"
    assert str(caught.value) == (
        f"torchvision's resnet34 cannot be had: no; get {url} and put it at"
        " /hub/checkpoints/resnet34-b627a593.pth, or name it: --pretrained FILE"
    )


def small_mobilenet(name: str, num_classes: int) -> torch.nn.Module:
    """In the place of torchvision's, which is slow to make."""
    assert name == "mobilenet_v2"
    setting = [[1, 16, 1, 1], [2, 16, 2, 2]]
    return MobileNetV2(num_classes, 0.25, inverted_residual_setting=setting)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(from_torchvision, "make", small_mobilenet)


@pytest.mark.parametrize("family", ["cifar", "imagenet"])
@pytest.mark.parametrize("classes", [1000, 7])
def test_converted_networks_take_the_weights_of_theirs(tmp_path, small, family, classes):
    torch.manual_seed(1)
    theirs = small_mobilenet("mobilenet_v2", 1000).eval()
    random_norms(theirs)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    ours = models.build(family, ARCH, num_classes=classes)
    fresh = ours.classifier.linears[0].weight.clone()
    weights = pretrained.read(ARCH, str(tmp_path / "w.pth"))
    assert pretrained.load(ours, weights, ARCH) == (classes == 1000)
    assert torch.equal(ours.classifier.linears[0].weight, fresh) == (classes == 7)
    if classes == 7:
        theirs.classifier[1] = ours.classifier.linears[0]
    logits = logits_of(ours, IMAGES)[:, 0]
    assert relative_difference(logits, theirs(IMAGES).detach()) < 1e-5


@pytest.mark.parametrize("weights", [{}, {"a": torch.zeros(2, 3)}])
def test_other_weights_of_converted_networks_are_refused(small, weights):
    ours = models.build("imagenet", ARCH)
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(ValueError, match=r"no weights of mobilenet_v2|Missing key"):
        pretrained.load(ours, weights, ARCH)
    assert same_tensors(before, ours.state_dict())


def test_what_is_put_where_a_failed_download_says_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    weights = {"conv1.weight": torch.ones(2)}
    torch.save(weights, tmp_path / "checkpoints" / "resnet34-b627a593.pth")
    monkeypatch.setattr(torch.hub, "HASH_REGEX", re.compile("nothing"))
    assert same_tensors(pretrained.read("resnet34_nr", None), weights)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("mnasnet0_5", lambda classes: torchvision.models.mnasnet0_5(num_classes=classes)),
        ("squeezenet1_1", lambda classes: torchvision.models.squeezenet1_1(num_classes=classes)),
        ("densenet121", lambda classes: DenseNet(4, (1, 1), 8, num_classes=classes)),
    ],
)
def test_what_a_file_says_beside_its_weights_is_kept(tmp_path, monkeypatch, name, make):
    """Versions of its modules; old names of torchvision's DenseNets; a classifier of maps."""
    monkeypatch.setattr(from_torchvision, "make", lambda _, classes: make(classes))
    theirs = make(9).eval()
    random_norms(theirs)
    weights = theirs.state_dict()
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))(?=[12]\.)")
    for key in [key for key in weights if old.search(key)]:
        weights[old.sub(r"\1.", key)] = weights.pop(key)
    torch.save(weights, tmp_path / "w")
    ours = models.build("imagenet", f"torchvision_{name}", num_classes=9, image_size=64)
    found = pretrained.read(f"torchvision_{name}", str(tmp_path / "w"))
    assert pretrained.load(ours, found, f"torchvision_{name}")
    assert relative_difference(logits_of(ours, IMAGES)[:, 0], theirs(IMAGES).detach()) < 1e-5


def test_files_without_auxiliary_heads_leave_these_fresh():
    make = torchvision.models.googlenet
    theirs = make(num_classes=7, aux_logits=False, init_weights=False).eval()
    ours = models.build("imagenet", "torchvision_googlenet", num_classes=7, image_size=32)
    assert pretrained.load(ours, theirs.state_dict(), "torchvision_googlenet")
    logits = logits_of(ours, IMAGES[..., :32, :32])[:, 0]
    assert relative_difference(logits, theirs(IMAGES[..., :32, :32]).detach()) < 1e-5


def test_images_are_normalised_as_for_the_weights():
    half, usual = ((0.5,) * 3, (0.5,) * 3), USUAL["imagenet"]
    assert pretrained.normalisation("resnet18_nr") == usual
    assert pretrained.normalisation("torchvision_mobilenet_v2") == usual
    assert pretrained.normalisation("torchvision_efficientnet_v2_l") == half
    # torchvision's own rescale their images, made for the usual normalisation, to this one.
    theirs = torchvision.models.Inception3(3, False, transform_input=True, init_weights=False)
    pixels = torch.rand(2, 3, 8, 8)
    mean, std = (torch.tensor(values)[:, None, None] for values in usual)
    given = theirs._transform_input((pixels - mean) / std)
    torch.testing.assert_close(given, (pixels - 0.5) / 0.5)
    for name in from_torchvision.RESCALED:
        assert pretrained.normalisation(f"torchvision_{name}") == half
