"""imagenet.py as a user runs it: made images, and the sample photographs where they are."""

import itertools
import re
import signal
import tarfile
from pathlib import Path

import pytest
import torch
import torchvision

import models
from tests import real
from tests.helpers import form
from tests.running import ROOT, assert_same_run, drive, dying, load, started
from utils.shown.log import read_log
from utils.training import engine, signals, trainer

TINY = "--image-size 32 --width-mult 0.05 --train-batch 4 --manualSeed 1 --nr-max-epochs 6 -j 2"
SMALL = (
    f"--synthetic --subset 20 -a vgg_nr --epochs 2 --schedule 30 {TINY}"
    " --nr-target 0.5 --nr-sparsity-start 1e-3 --nr-increase-step 5e-4 --nr-increase-thres 0.05"
)
DYING = dying(4, 2)  # searches of five epochs, in the third of which utilization falls as well


@pytest.fixture(scope="module", autouse=True)
def searches_end():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "train_epoch", trainer.train_epoch)  # put back in the end
        DYING()
        yield


def train(flags: str, folder: Path, status: int = 0):
    return drive(flags, folder, status, script="imagenet.py")


def ends_at_once(monkeypatch) -> None:
    """Searches have one epoch."""
    monkeypatch.setattr(trainer, "train_epoch", engine.train_epoch)
    dying(0)()


@pytest.fixture(scope="module")
def one_step(tmp_path_factory) -> Path:
    """A run that searches, rejuvenates, rescales and trains in one command, a process for it."""
    folder = tmp_path_factory.mktemp("one-step")
    with started(f"{SMALL} --nr-bn-target 0.5", folder, "imagenet.py", DYING) as process:
        out, errors = process.communicate()
    assert process.returncode == 0, out + errors
    return folder


def test_files_are_named_by_the_full_name(one_step):
    names = {path.name for path in one_step.glob("*.tar")}
    assert {"NR_vgg16_nr_before_0.5.pth.tar", "NR_vgg16_nr_0.5.pth.tar"} <= names
    assert "model_best.pth.tar" in names
    payload = load(one_step / "checkpoint.pth.tar")
    assert payload["arch"] == "vgg16_nr"
    assert form(payload["structure"]) == "attention"


def test_log_has_the_top_5_column(one_step):
    header = (one_step / "log.txt").read_text().splitlines()[0].split("\t")
    assert header[4:7] == ["Valid Acc.", "Valid 5 Acc.", "Phase"]


def test_sparsity_grows_where_utilization_hardly_fell(one_step):
    search = [row for row in read_log(one_step / "log.txt") if row["Phase"] == "search"]
    assert search[0]["Sparsity"] == 1e-3
    falls = [1.0, *(row["Utilization"] for row in search)]
    for (before, after), row, following in zip(
        itertools.pairwise(falls), search, search[1:], strict=False
    ):
        step = 5e-4 if before - after < 0.05 else 0
        assert following["Sparsity"] == pytest.approx(row["Sparsity"] + step, rel=1e-4)
    assert len({row["Sparsity"] for row in search}) == len(search) - 1  # it fell once before


def test_two_steps_equal_one(one_step, tmp_path):
    """The README's pair: --nr-compress-only, then the NR file with --nr-bn-target."""
    train(SMALL + " --nr-compress-only", tmp_path)
    again = SMALL.replace("--nr-target 0.5", "")
    train(f"{again} --nr-bn-target 0.5 --resume {tmp_path / 'NR_vgg16_nr_0.5.pth.tar'}", tmp_path)
    assert_same_run(one_step, tmp_path)


def test_sparsity_is_restored_on_resume(one_step, tmp_path):
    train(SMALL + " --nr-max-epochs 3 --nr-bn-target 0.5", tmp_path, status=3)
    train(SMALL + " --nr-bn-target 0.5 --resume auto", tmp_path)
    assert_same_run(one_step, tmp_path)


def test_evaluation(one_step):
    result = train(SMALL + " -e --resume auto", one_step)
    row = read_log(one_step / "log.txt")[-1]
    assert f"Valid Acc.: {row['Valid Acc.']:.2f}" in result.stdout


PLAIN = (
    "--synthetic --subset 40 -a resnet18_nr --epochs 1 --schedule 30 --image-size 32"
    " --train-batch 4 --manualSeed 1 -j 0 --nr-target 1"
)


def test_a_step_of_several_batches_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """--iter-size: stopped after a step, in the middle of the epoch, and gone on with."""
    flags = f"{PLAIN} --width-mult 0.05"
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert "Training (10/10)" in train(f"{flags} --iter-size 4", straight).stdout
    with monkeypatch.context() as patch:
        asked = []
        patch.setattr(
            signals.StopRequest, "agreed", lambda self: asked.append(0) or 15 * (len(asked) == 2)
        )
        train(f"{flags} --iter-size 4", stopped, 128 + signal.SIGTERM)
    assert len(load(stopped / "checkpoint.pth.tar")["partial"]) == 8  # batches of 10
    refused = train(f"{flags} --resume auto", stopped, 1).stderr
    assert "inside an epoch, so --iter-size cannot change here" in refused
    train(f"{flags} --iter-size 4 --resume auto", stopped)
    assert_same_run(straight, stopped)


@pytest.mark.parametrize(("flags", "size"), [("", 100), ("--test-batch 3", 3)])
def test_the_test_batch_of_a_cpu_is_100_or_the_one_given(tmp_path, flags, size):
    train(f"{PLAIN} --width-mult 0.05 --train-batch 128 {flags}", tmp_path)
    assert load(tmp_path / "checkpoint.pth.tar")["args"]["test_batch"] == size


def test_pretrained_weights_begin_a_fresh_run_only(tmp_path):
    name, folder, file = "features.stem.0.convs.0.weight", tmp_path / "run", tmp_path / "w.pth"
    weights = torchvision.models.resnet18().state_dict()
    torch.save(weights, file)
    flags = f"{PLAIN} --lr 1e-9 --train-batch 40 --pretrained {file}"
    out = train(flags, folder).stdout
    assert f"==> Weights of {file}" in out
    assert "--pretrained: its classes are not as many, so the classifier begins afresh" in out
    first = load(folder / "checkpoint.pth.tar")["state_dict"][name]
    assert torch.allclose(first, weights["conv1.weight"], atol=1e-6)
    torch.save({name: torch.zeros_like(tensor) for name, tensor in weights.items()}, file)
    out = train(f"{flags} --epochs 2 --resume auto", folder).stdout
    assert "--pretrained: the checkpoint has its own weights, so it is not applied" in out
    again = load(folder / "checkpoint.pth.tar")["state_dict"][name]
    assert torch.allclose(again, first, atol=1e-6)


@pytest.mark.parametrize(
    "flags, status, words",
    [
        ("", 2, "--data"),
        ("--synthetic --image-size 16", 2, "--image-size 16"),
        ("--synthetic --depth 18", 2, "--depth"),
        ("--synthetic --iter-size 0", 2, "--iter-size"),
        ("--synthetic -a vgg_nr --pretrained", 2, "--pretrained: there are weights of resnet18_nr"),
        ("--synthetic --pretrained ''", 2, "--pretrained"),
        ("--synthetic --width-mult 0.5 --pretrained", 2, "of --width-mult 1 only"),
        ("--synthetic --subset 10 --pretrained /no/w.pth", 1, "--pretrained: /no/w.pth: "),
        ("--data /nowhere", 1, "/nowhere"),
    ],
)
def test_refusals(flags, status, words, tmp_path):
    result = train(flags, tmp_path, status)
    assert words in result.stderr.splitlines()[-1]


@real.needs(real.PHOTOGRAPHS)
def test_the_readme_commands_on_photographs(tmp_path, monkeypatch):
    """The two VGG-16 commands as written, on 100 photographs as train and val, made small."""
    ends_at_once(monkeypatch)
    with tarfile.open(real.archive(real.PHOTOGRAPHS)) as archive:
        archive.extractall(tmp_path / "data", filter="data")
    (tmp_path / "data" / "train").symlink_to("val")
    readme = (ROOT / "README.md").read_text().replace("\\\n", " ")
    first, second = re.findall(r"^python imagenet\.py (-a vgg_nr .*)$", readme, re.M)
    small = f" {TINY} --epochs 1 --data {tmp_path / 'data'} --nr-sparsity-start 2e-3"
    folder = tmp_path / "run"
    train(first + small, folder)
    resumed = f" --resume {folder / 'NR_vgg16_nr_0.5.pth.tar'}"
    assert "Rescaled" in train(second + small + resumed, folder).stdout
    names = {path.name for path in folder.iterdir()}
    assert {"NR_vgg16_nr_before_0.5.pth.tar", "NR_vgg16_nr_0.5.pth.tar"} <= names
    assert "model_best.pth.tar" in names


@pytest.mark.slow
@pytest.mark.parametrize("arch", sorted(models.archs("imagenet").keys() - {"vgg_nr"}))
def test_every_network_searches_rejuvenates_and_trains(arch, tmp_path, monkeypatch):
    flags = (
        f"--synthetic --subset 20 -a {arch} --epochs 1 --schedule 30 --image-size 32"
        " --width-mult 0.05 --train-batch 20 --manualSeed 1 --nr-max-epochs 1 -j 0"
        " --nr-target 0.95 --nr-sparsity-start 1e-3"
    )
    ends_at_once(monkeypatch)
    train(flags, tmp_path)
    phases = [row["Phase"] for row in read_log(tmp_path / "log.txt")]
    assert phases[-1] == "train" and phases[0] == "search"
