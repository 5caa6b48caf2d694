"""timm's networks by their names, and their weights as timm loads them; skipped without timm."""

import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision
from torchvision.models.resnet import BasicBlock

import cifar
import imagenet
import models
from models import from_timm, pretrained
from tests.helpers import batch, logits_of, random_norms, relative_difference, same_tensors
from utils.data.normalisation import USUAL

timm = pytest.importorskip("timm")
NAME = "mobilenetv3_small_050"
ARCH = f"timm_{NAME}"
IMAGES = batch(count=2, size=32)[0]


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """Nothing is downloaded, and no cache of the machine is looked into."""

    def refused(request, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(from_timm.urllib.request, "urlopen", refused)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    torch.manual_seed(1)
    network = timm.create_model(NAME, num_classes=1000).eval()
    random_norms(network)
    return network


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_a_file_is_read_as_timm_reads_it(tmp_path, theirs, key):
    weights = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save({key: weights, "epoch": 3} if key else weights, tmp_path / "w.pth")
    assert same_tensors(pretrained.read(ARCH, str(tmp_path / "w.pth")), theirs.state_dict())


def test_a_file_of_other_classes_leaves_the_classifier_fresh(tmp_path):
    theirs = timm.create_model(NAME, num_classes=6).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    weights = pretrained.read(ARCH, str(tmp_path / "w.pth"))
    ours = models.build("cifar", ARCH, num_classes=4)
    fresh = ours.classifier.linears[0].weight.clone()
    assert not pretrained.load(ours, weights, ARCH)
    assert torch.equal(ours.classifier.linears[0].weight, fresh)
    theirs.classifier = ours.classifier.linears[0]
    logits = logits_of(ours, IMAGES)[:, 0]
    assert relative_difference(logits, theirs(IMAGES).detach()) < 1e-5


def test_what_is_put_where_a_failed_download_says_is_taken(tmp_path, theirs):
    with pytest.raises(ValueError) as caught:
        pretrained.read(ARCH, None)
    said = str(caught.value)
    assert "\n" not in said and f"timm's {NAME} cannot be had: " in said and "no network" in said
    url, place = said.split("; get ")[1].split(", or name it")[0].split(" and put it at ")
    assert url == timm.get_pretrained_cfg(NAME).url
    Path(place).parent.mkdir(parents=True)
    torch.save(theirs.state_dict(), place)
    assert same_tensors(pretrained.read(ARCH, None), theirs.state_dict())


def test_weights_in_the_cache_of_the_hub_are_taken(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    pytest.importorskip("safetensors")
    from safetensors.torch import save_file

    arch = "timm_mobilenetv4_conv_small_050"  # on the hub alone
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    if not hasattr(hub, "try_to_load_from_cache"):
        pytest.skip("no huggingface_hub that is whole")
    theirs = timm.create_model(arch.removeprefix("timm_")).eval()
    with pytest.raises(ValueError, match=r"cannot be had: .*no network") as caught:
        pretrained.read(arch, None)
    url, place = str(caught.value).split("; get ")[1].split(", or name")[0].split(" and put it at ")
    assert url.startswith("https://huggingface.co/timm/mobilenetv4_conv_small_050.")
    Path(place).parent.mkdir(parents=True)
    save_file(theirs.state_dict(), place)
    assert same_tensors(pretrained.read(arch, None), theirs.state_dict())


@pytest.mark.parametrize("content", [None, b"nothing", {"a": torch.zeros(2)}])
def test_a_file_that_holds_no_weights_is_named_in_one_line(tmp_path, content):
    file = tmp_path / "w.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content:
        torch.save(content, file)
    with pytest.raises(ValueError) as caught:
        pretrained.read(ARCH, str(file))
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)
    assert content is not None or "No such file" in str(caught.value)


def test_a_network_without_weights_says_so():
    bare = next(
        name for name in timm.list_models() if not timm.get_pretrained_cfg(name).has_weights
    )
    with pytest.raises(ValueError, match=rf"timm has no weights of {bare}: .*--pretrained FILE"):
        pretrained.read(f"timm_{bare}", None)


def test_images_are_normalised_as_for_the_weights():
    assert pretrained.normalisation("timm_resnet18d") == USUAL["imagenet"]
    assert pretrained.normalisation("timm_inception_v4") == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            "-a timm:resnet18dd",
            "timm has no network 'resnet18dd', the nearest is resnet18d",
        ),
        ("-a timm:resnet18d.nothing", "'resnet18d.nothing', the nearest is resnet18d"),
        ("-a timm:vit_tiny_patch16_224", "arch timm:vit_tiny_patch16_224: "),
        ("-a timm:resnet18d --depth 20", "depth: timm_resnet18d takes no"),
    ],
)
def test_what_cannot_be_built_is_a_usage_error(flags, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        cifar.parse(flags.split())
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_files_are_named_without_a_colon(monkeypatch):
    made = []

    def small(name: str, classes: int) -> torch.nn.Module:
        made.append(name)
        return torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1], num_classes=classes)

    monkeypatch.setattr(from_timm, "make", small)
    for name in (NAME, f"{NAME}.lamb_in1k"):
        args, keywords = imagenet.parse(["--synthetic", "-a", f"timm:{name}", "--image-size", "32"])
        assert args.arch == f"timm_{name}"
        assert args.checkpoint == f"checkpoints/synthetic/timm_{name}"
        assert keywords == {"image_size": 32}
    assert made == [NAME, f"{NAME}.lamb_in1k"]
