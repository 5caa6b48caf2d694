"""cifar.py as a user runs it: whole commands, in processes of their own where that counts."""

import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.ops import Conv2dNormActivation

import nr
from models import from_torchvision
from nr.network.graph import IMAGE
from nr.network.wiring import wiring
from tests.helpers import form, widths
from tests.running import (
    ENVIRONMENT,
    ROOT,
    assert_same_run,
    drive,
    dying,
    load,
    run,
    started,
    wait_for,
)
from utils.shown.log import read_log
from utils.training import engine, trainer

SMALL = (
    "-d synthetic --subset 50 -a resnet --depth 8 --width-mult 0.25 --train-batch 20 --epochs 3"
    " --schedule 2 --gamma 0.5 --nr-sparsity 1e-3 --nr-target 0.9 --nr-max-epochs 5 --manualSeed 1"
)
COLUMNS = ["Learning Rate", "Train Loss", "Valid Loss", "Train Acc.", "Valid Acc."]
NR_COLUMNS = ["Phase", "Utilization", "Sparsity", "Params", "Seconds"]
DYING = dying(2)  # a search of three epochs


@pytest.fixture(scope="module", autouse=True)
def searches_end():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_epoch", trainer.train_epoch)  # put back in the end
        DYING()
        yield


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> tuple[Path, str]:
    """A run through both phases that nothing interrupts: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("straight")
    with started(SMALL, folder, setup=DYING) as process:
        out, errors = process.communicate()
    assert process.returncode == 0, errors
    return folder, out


@pytest.fixture(scope="module")
def compressed(tmp_path_factory) -> Path:
    """The folder of a run that stopped after its rejuvenation; not to be written to."""
    folder = tmp_path_factory.mktemp("compressed")
    drive(SMALL + " --nr-compress-only", folder)
    return folder


def test_files(straight):
    names = {path.name for path in straight[0].iterdir()}
    assert names == {
        "log.txt",
        "run.json",
        "scales.png",
        "checkpoint.pth.tar",
        "checkpoint.prev.pth.tar",
        "model_best.pth.tar",
        "NR_resnet_before_0.9.pth.tar",
        "NR_resnet_0.9.pth.tar",
        "curves.png",
        "utilization.png",
        "widths.png",
    }


def test_log(straight):
    header = (straight[0] / "log.txt").read_text().splitlines()[0]
    assert header.split("\t") == COLUMNS + NR_COLUMNS
    rows = read_log(straight[0] / "log.txt")
    search = [row for row in rows if row["Phase"] == "search"]
    train = [row for row in rows if row["Phase"] == "train"]
    assert rows == search + train
    assert len(search) >= 2 and len(train) == 3
    assert all(row["Utilization"] > 0.9 for row in search[:-1])
    assert search[-1]["Utilization"] <= 0.9
    assert {row["Sparsity"] for row in search} == {1e-3}
    assert {row["Sparsity"] for row in train} == {0}
    assert [row["Learning Rate"] for row in train] == [0.1, 0.1, 0.05]
    assert [row["Learning Rate"] for row in search][:3] == [0.1, 0.1, 0.05]
    assert train[0]["Params"] < search[0]["Params"]


def test_screen(straight):
    screen = straight[1]
    assert "Epoch: [1 | 3] LR: 0.1" in screen
    assert screen.count("| Parameter utilization") == screen.count("Epoch: [")
    changes = re.findall(
        r"\| Rejuvenation \| input (\d+) -> (\d+) \| output (\d+) -> (\d+)", screen
    )
    assert len(changes) == 9  # the stem, two in each of three blocks, two downsamples
    assert changes[0][:3] == ("3", "3", "4")
    budget = re.search(r"\| Expansion .* parameters; with all connections ([\d.]+)% of", screen)
    before, after = (
        sum(
            (3 if IMAGE in layer.sources else sum(layer.unit.in_channels))  # of an image, once
            * sum(layer.unit.out_channels)
            * layer.unit.taps
            for layer in wiring(nr.load(straight[0] / f"NR_resnet_{name}.pth.tar")).layers
        )
        for name in ("before_0.9", "0.9")
    )
    assert budget[1] == f"{100 * after / before:.1f}"
    best = float(re.search(r"Best acc: ([\d.]+)", screen)[1])
    rows = read_log(straight[0] / "log.txt")
    assert best == max(row["Valid Acc."] for row in rows if row["Phase"] == "train")


def test_checkpoints(straight):
    before, after, last = (
        load(straight[0] / name)
        for name in (
            "NR_resnet_before_0.9.pth.tar",
            "NR_resnet_0.9.pth.tar",
            "checkpoint.pth.tar",
        )
    )
    keys = {"epoch", "arch", "state_dict", "acc", "best_acc", "optimizer"}
    assert keys <= last.keys()
    assert form(before["structure"]) == "plain"
    assert after["structure"] == last["structure"]
    assert form(after["structure"]) == "removed"
    assert before["epoch"] == after["epoch"] == last["run"]["search_epochs"] == last["epoch"] - 3
    network = nr.load(straight[0] / "checkpoint.pth.tar")
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 2, 10)


def test_evaluate_prints_the_last_row(straight):
    result = drive(SMALL + " -e --resume auto", straight[0])
    row = read_log(straight[0] / "log.txt")[-1]
    assert f"Valid Acc.: {row['Valid Acc.']:.2f}" in result.stdout
    loss = float(re.search(r"^Valid Loss: ([\d.]+)", result.stdout, re.MULTILINE).group(1))
    assert loss == pytest.approx(row["Valid Loss"], abs=1e-4)


def dying_slowly() -> None:
    """In a process that gets a signal: which comes before the end, however short a batch is."""
    DYING()
    batch_sums = engine.batch_sums

    def slow(*of_a_batch: Tensor) -> Tensor:
        time.sleep(0.1)
        return batch_sums(*of_a_batch)

    engine.batch_sums = slow


SEARCH, EXPANSION, TRAIN = r"Epoch: \[2 .*search", r"\| Expansion", r"Epoch: \[2 .*train"


@pytest.mark.parametrize(
    "signum, moment",
    [
        (signal.SIGTERM, SEARCH),
        (signal.SIGTERM, EXPANSION),
        (signal.SIGINT, TRAIN),
        (signal.SIGKILL, SEARCH),
        (signal.SIGKILL, EXPANSION),
    ],
)
def test_interrupted_and_resumed_equals_straight(signum, moment, straight, tmp_path):
    """A signal at some moment of either phase, then --resume auto: the same run in the end."""
    with started(SMALL, tmp_path, setup=dying_slowly) as process:
        wait_for(moment, process)
        process.send_signal(signum)
        process.communicate()
    assert process.returncode == (-9 if signum == signal.SIGKILL else 128 + signum)
    drive(SMALL + " --resume auto", tmp_path)
    assert_same_run(tmp_path, straight[0])
    assert not list(tmp_path.glob("earlier-*"))


def test_compress_only_then_resume_equals_one_step(straight, compressed, tmp_path):
    assert not (compressed / "model_best.pth.tar").exists()
    drive(SMALL + f" --resume {compressed / 'NR_resnet_0.9.pth.tar'}", tmp_path)
    assert_same_run(tmp_path, straight[0])


def test_rescaling_in_one_step_and_in_two(compressed, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    drive(SMALL + " --nr-bn-target 0.4", one)
    shutil.copytree(compressed, two)
    resumed = SMALL + f" --nr-bn-target 0.4 --resume {two / 'NR_resnet_0.9.pth.tar'}"
    assert "Rescaled" in drive(resumed, two).stdout
    assert_same_run(one, two)
    again = SMALL + f" --nr-bn-target 0.4 --resume {one / 'NR_resnet_0.9.pth.tar'}"
    assert "Rescaled" not in drive(again, tmp_path / "three").stdout
    assert_same_run(one, tmp_path / "three")


@pytest.mark.parametrize("cross", ["attention", "full"])
def test_cross_connections(cross, tmp_path):
    drive(SMALL + f" --nr-cross {cross} --nr-flops --epochs 1", tmp_path)
    assert form(load(tmp_path / "checkpoint.pth.tar")["structure"]) == cross


def test_from_scratch(straight, tmp_path):
    drive(SMALL + " --nr-from-scratch --epochs 1", tmp_path)
    structure = load(tmp_path / "checkpoint.pth.tar")["structure"]
    streams = widths(load(straight[0] / "checkpoint.pth.tar")["structure"])
    assert form(structure) == "plain"
    assert widths(structure) == {name: [sum(pair)] for name, pair in streams.items()}


def test_plain_training(tmp_path):
    result = drive(SMALL + " --nr-target 1", tmp_path)
    rows = read_log(tmp_path / "log.txt")
    assert [row["Phase"] for row in rows] == ["train"] * 3
    assert {row["Sparsity"] for row in rows} == {0}
    assert "Rejuvenation" not in result.stdout


def test_the_search_gives_up(tmp_path):
    result = drive(SMALL + " --nr-sparsity 0 --nr-max-epochs 1", tmp_path, status=3)
    (line,) = result.stderr.splitlines()
    assert "utilization is 1.0000" in line and "--nr-sparsity" in line
    assert (tmp_path / "checkpoint.pth.tar").exists()


@pytest.mark.parametrize(
    "flags, status, words",
    [
        ("--lr nan", 2, "--lr"),
        ("-e", 2, "--resume"),
        ("--pretrained", 2, "--pretrained: there are weights of torchvision:<name> timm:<name>"),
        ("-a vgg19_bn --pretrained w.pth", 2, "--pretrained: there are weights of torchvision:"),
        ("-d folder --data /nowhere", 1, "/nowhere/train"),
        ("--resume /nowhere/x.pth.tar", 1, "/nowhere/x.pth.tar"),
        ("--lr 1e30 --nr-sparsity 0", 1, "epoch 1, batch"),
    ],
)
def test_refusals_are_one_line(flags, status, words, tmp_path):
    result = drive(f"{SMALL} {flags}", tmp_path, status)
    assert words in result.stderr.splitlines()[-1]
    if status == 1:
        assert len(result.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("*.pth.tar"))


def readme_commands() -> list[str]:
    """The cifar.py commands of the README's Training section, continuation lines joined."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    section = text.split("\n## Training")[1].split("\n## ")[0]
    return re.findall(r"^python cifar\.py (.*)$", section, flags=re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("flags", readme_commands())
def test_readme_commands(flags, tmp_path):
    """Each command as written, made small: fewer images, epochs and channels."""
    small = (
        " -d synthetic --subset 50 --train-batch 50 --width-mult 0.1 --epochs 1 --schedule 1"
        " --nr-max-epochs 1 --manualSeed 0"
    )
    status = 0 if re.search(r"--nr-target 1( |$)", flags) else 3
    drive(flags + small, tmp_path, status)
    assert len(read_log(tmp_path / "log.txt")) == 1


@pytest.mark.slow
def test_quick_start(tmp_path, monkeypatch):
    """The README's first command trains through both phases and leaves pictures.

    It imports no torchvision, which takes seconds, since its data and its network need none of it.
    Its search ends on every machine: a scale that nothing holds falls by 0.005 a step from 0.5, is
    dead after 109 of the 150 steps before the schedule, and settles behind it. The target asks for
    a seventh of the channels; in six seeds it was 25 to 42 % by then, and more in later epochs.
    """
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPROFILEIMPORTTIME", "1")
    flags = re.search(
        r"python cifar\.py (-d synthetic .*)$", (ROOT / "README.md").read_text(), re.M
    )
    imported = run(flags[1], tmp_path).stderr
    assert re.search(r"\| +torch$", imported, re.M)
    assert not re.search(r"\| +(torchvision|timm|matplotlib\.pyplot|tkinter)$", imported, re.M)
    phases = [row["Phase"] for row in read_log(tmp_path / "log.txt")]
    assert set(phases) == {"search", "train"}
    assert (tmp_path / "widths.png").exists()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_run_is_interrupted_and_goes_on(tmp_path):
    with started(SMALL + " --amp", tmp_path, setup=DYING) as process:
        wait_for(SEARCH, process)
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 143
    drive(SMALL + " --amp --nr-sparsity 0.1 --resume auto", tmp_path)
    assert read_log(tmp_path / "log.txt")[-1]["Phase"] == "train"


def small_mobilenet(name: str, num_classes: int) -> MobileNetV2:
    """In the place of torchvision's, which is slow to train."""
    setting = [[1, 16, 1, 1], [2, 16, 2, 1]]
    network = MobileNetV2(num_classes, 0.5, inverted_residual_setting=setting)
    network.features[-1] = Conv2dNormActivation(8, 64, 1, activation_layer=nn.ReLU6)  # of 1280
    network.classifier[-1] = nn.Linear(64, num_classes)
    return network


def test_a_network_of_torchvision_searches_rejuvenates_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(from_torchvision, "make", small_mobilenet)
    flags = SMALL.replace("-a resnet --depth 8 --width-mult 0.25", "-a torchvision:mobilenet_v2")
    straight, halved = tmp_path / "straight", tmp_path / "halved"
    drive(flags, straight)
    drive(f"{flags} --nr-compress-only", halved)
    assert (halved / "NR_torchvision_mobilenet_v2_0.9.pth.tar").exists()
    assert load(halved / "checkpoint.pth.tar")["arch"] == "torchvision_mobilenet_v2"
    drive(f"{flags} --resume auto", halved)
    assert_same_run(straight, halved)
    assert nr.load(halved / "checkpoint.pth.tar").streams == 2


def test_pretrained_weights_begin_a_fresh_run_only(tmp_path, monkeypatch):
    """All but those of the classifier, where the file has other classes."""
    monkeypatch.setattr(from_torchvision, "make", small_mobilenet)
    name, folder, file = "features.features.0.0.convs.0.weight", tmp_path / "run", tmp_path / "w"
    weights = small_mobilenet("mobilenet_v2", 1000).state_dict()
    torch.save(weights, file)
    flags = "-d synthetic --subset 50 --train-batch 25 --manualSeed 1 --nr-target 1 --lr 1e-9"
    flags += f" -a torchvision:mobilenet_v2 --schedule 9 --pretrained {file}"
    out = drive(f"{flags} --epochs 1", folder).stdout
    assert f"==> Weights of {file}\n" in out
    assert "--pretrained: its classes are not as many, so the classifier begins afresh" in out
    first = load(folder / "checkpoint.pth.tar")["state_dict"]
    assert first["classifier.linears.0.weight"].shape[0] == 10
    torch.testing.assert_close(first[name], weights["features.0.0.weight"])
    torch.save({name: torch.zeros_like(tensor) for name, tensor in weights.items()}, file)
    out = drive(f"{flags} --epochs 2 --resume auto", folder).stdout
    assert "--pretrained: the checkpoint has its own weights, so it is not applied" in out
    torch.testing.assert_close(load(folder / "checkpoint.pth.tar")["state_dict"][name], first[name])
