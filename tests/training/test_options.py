"""training.options through cifar.parse: refused before any work, defaults, README commands."""

import functools
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import pytest
import torch

import cifar
import imagenet
import models
import nr
from tests.running import ROOT
from utils.training import archs, options

REFUSED = {
    "--lr": ["nan", "inf", "0", "-1", "abc", ""],
    "--gamma": ["nan", "inf", "0", "-0.1", "x"],
    "--momentum": ["nan", "-0.1", "1", "1.5"],
    "--wd": ["nan", "inf", "-1e-4"],
    "--drop": ["nan", "-0.1", "1", "x"],
    "--width-mult": ["nan", "inf", "0", "-1"],
    "--epochs": ["0", "-1", "1.5", "x", "9" * 700],
    "--start-epoch": ["-1", "x"],
    "--train-batch": ["0", "-64", "64.0"],
    "--test-batch": ["0", "-1", "x"],
    "--schedule": ["0", "-1", "1.5", "x"],
    "--depth": ["0", "-8", "x"],
    "--manualSeed": ["-1", "1.5", "9" * 700, "9" * 5000, str(2**64)],
    "--subset": ["0", "-10", "x"],
    "--workers": ["-1", "x"],
    "--nr-target": ["-0.1", "1.1", "nan", "inf", "x"],
    "--nr-bn-target": ["0", "-0.5", "nan", "inf"],
    "--nr-max-epochs": ["0", "-1", "x"],
    "--nr-rounds": ["0", "-1", "1.5", "x"],
    "--nr-round-to": ["0", "-8", "1.5", "x"],
    "--nr-sparsity": ["-1e-4", "nan", "inf", "x"],
    "--compile": ["fast", "True"],
    "--nr-cross": ["some", "", "Removed"],
    "--growthRate": ["0", "-12", "1.5"],
    "--compressionRate": ["0.5", "0", "nan", "inf"],
    "--gpu-id": ["x", "0,0", "", "0,", "0,x", "-1", "1.5", "0 1", "0,00", "9" * 700],
    "--arch": ["unknown", "", "resnet18_nr"],
    "--dataset": ["unknown", "imagenet", ""],
    "--data": ["", " ", "~nobody-of-that-name/x"],
    "--checkpoint": ["", " "],
    "--resume": ["", " "],
}
SPELLINGS = [
    ("--lr", "--learning-rate", "0.5", "lr", 0.5),
    ("--drop", "--dropout", "0.5", "dropout", 0.5),
    ("--wd", "--weight-decay", "0.5", "weight_decay", 0.5),
    ("-c", "--checkpoint", "here", "checkpoint", "here"),
    ("-a", "--arch", "densenet", "arch", "densenet"),
    ("-j", "--workers", "7", "workers", 7),
    ("-d", "--dataset", "cifar100", "dataset", "cifar100"),
]
DEFAULTS = {
    "arch": "vgg19_bn",
    "dataset": "cifar10",
    "data": "./data",
    "epochs": 300,
    "start_epoch": 0,
    "train_batch": 64,
    "test_batch": 100,
    "lr": 0.1,
    "schedule": [150, 225],
    "gamma": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "checkpoint": "checkpoints/cifar10/vgg19_bn",
    "resume": None,
    "manualSeed": None,
    "evaluate": False,
    "gpu_id": [0],
    "width_mult": 1.0,
    "subset": None,
    "amp": False,
    "compile": None,
    "nr_target": 0.25,
    "nr_cross": "removed",
    "nr_sparsity": 1e-4,
    "nr_bn_target": None,
    "nr_round_to": 1,
    "nr_rounds": 1,
    "nr_keep": None,
    "nr_carry": False,
    "nr_budget": "params",
    "nr_latency_batch": 1,
    "nr_flops": False,
    "nr_compress_only": False,
    "nr_from_scratch": False,
    "nr_max_epochs": 300,
}
README = {
    "VGG-19": (
        "-d cifar10 -a vgg19_bn --epochs 300 --schedule 150 225 --gamma 0.1"
        " --checkpoint checkpoints/cifar10/vgg19_bn --nr-target 0.25 --nr-sparsity 1.5e-4",
        {"checkpoint": "checkpoints/cifar10/vgg19_bn", "nr_sparsity": 1.5e-4},
        {"width_mult": 1.0},
        20_035_018,
    ),
    "ResNet-164": (
        "-d cifar10 -a resnet --depth 110 --epochs 300 --schedule 150 225 --gamma 0.1 --wd 1e-4"
        " --checkpoint checkpoints/cifar10/resnet-164 --nr-target 0.25 --nr-sparsity 1.5e-4",
        {
            "arch": "resnet",
            "depth": 110,
            "checkpoint": "checkpoints/cifar10/resnet-164",
            "nr_sparsity": 1.5e-4,
        },
        {"depth": 110, "width_mult": 1.0},
        1_704_154,
    ),
    "DenseNet-100-40": (
        "-d cifar10 -a densenet --depth 100 --growthRate 40 --train-batch 64 --epochs 300"
        " --schedule 150 225 --wd 1e-4 --gamma 0.1"
        " --checkpoint checkpoints/cifar10/densenet-bc-100-12"
        " --nr-target 0.25 --nr-sparsity 1.0e-4",
        {
            "arch": "densenet",
            "depth": 100,
            "growthRate": 40,
            "checkpoint": "checkpoints/cifar10/densenet-bc-100-12",
        },
        {"depth": 100, "growth_rate": 40, "width_mult": 1.0},
        8_269_050,
    ),
}


def refusal(capsys, *flags: str) -> str:
    """The last line on the screen after flags that must be refused as usage."""
    with pytest.raises(SystemExit) as end:
        cifar.parse(list(flags))
    assert end.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flag", "value"), [(flag, value) for flag, values in REFUSED.items() for value in values]
)
def test_a_value_that_makes_no_sense_is_refused(capsys, flag, value):
    line = refusal(capsys, "-a", "densenet", flag, value)  # the family that takes every flag
    assert ": error: argument " in line and flag in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--schedule 225 150", "--schedule 225 150: epochs must increase"),
        ("--schedule 10 20 20", "--schedule 10 20 20: epochs must increase"),
        ("-a resnet --depth 100", "--depth 100: a CIFAR ResNet needs 6n+2, for example 98 or 104"),
        ("-a resnet --depth 2", "--depth 2: a CIFAR ResNet needs 6n+2, for example 8 or 14"),
        ("-a densenet --depth 101", "--depth 101: a CIFAR DenseNet needs 6n+4, for example 100 or"),
        ("-a densenet --depth 4", "--depth 4: a CIFAR DenseNet needs 6n+4, for example 10 or 16"),
        ("-a vgg19_bn --depth 19", "--depth: vgg19_bn takes no such option"),
        ("-a vgg19_bn --drop 0.1", "--dropout: vgg19_bn takes no such option"),
        ("-a resnet --growthRate 12", "--growthRate: resnet takes no such option"),
        ("-a resnet --compressionRate 2", "--compressionRate: resnet takes no such option"),
        ("-a resnet --dropout 0.1", "--dropout: resnet takes no such option"),
        ("-a densenet --dropout 1", "--dropout: 1 is not a finite number from 0 to 0.99"),
        ("-e", "-e evaluates the checkpoint named by --resume, and none is named"),
        ("--evaluate", "-e evaluates the checkpoint named by --resume, and none is named"),
        ("--nr-compress-only --nr-target 1", "--nr-compress-only: --nr-target 1 never rejuvenates"),
        ("--nr-compress-only --nr-target 0.999", "--nr-target 0.999 never rejuvenates"),
        ("--lr nan", "--lr/--learning-rate: nan is not a finite number above 0"),
        ("--nr-target 1.1", "--nr-target: 1.1 is not a finite number from 0 to 1"),
        ("--train-batch 0", "--train-batch: 0 is not a whole number of at least 1"),
        ("--gpu-id x", "--gpu-id: 'x' is not a list of GPU numbers such as 0,1"),
        ("--gpu-id 0,0", "--gpu-id: '0,0' names a GPU twice"),
        ("--nr-from-scratch --nr-target 1", "--nr-from-scratch: --nr-target 1 never rejuvenates"),
        ("--nr-round-to 8 --nr-target 1", "--nr-round-to: --nr-target 1 never rejuvenates"),
        ("--nr-rounds 2 --nr-target 1", "--nr-rounds: --nr-target 1 never rejuvenates"),
        (
            "--nr-rounds 2 --nr-cross attention",
            "--nr-rounds 2: --nr-cross attention has gates, which cannot be merged into one stream",
        ),
        ("--nr-round-to 513", "--nr-round-to 513: the widest layer has 512 channels"),
        ("--nr-bn-target 0.5 --nr-target 1", "--nr-bn-target: --nr-target 1 never rejuvenates"),
        ("--start-epoch 9 --epochs 9", "--start-epoch 9: has to be below --epochs 9"),
        (
            "--start-epoch 9 --epochs 9 --nr-target 1 --nr-max-epochs 20",
            "--start-epoch 9: has to be below --epochs 9",
        ),
        (
            "--start-epoch 5 --epochs 9 --nr-max-epochs 4",
            "--start-epoch 5: has to be below --nr-max-epochs 4",
        ),
        ("--nr-keep stage9.*", "--nr-keep: 'stage9.*' matches no layer of features."),
        ("--nr-carry --nr-target 1", "--nr-carry: --nr-target 1 never rejuvenates"),
        ("--nr-keep stage1 --nr-target 1", "--nr-keep: --nr-target 1 never rejuvenates"),
        ("--nr-flops --nr-budget latency", "--nr-flops: --nr-budget latency is another budget"),
        ("--nr-latency-batch 8", "--nr-latency-batch: --nr-budget params times nothing"),
        ("--nr-carry --nr-from-scratch", "--nr-carry: --nr-from-scratch keeps no weights"),
        ("--no-such-flag", "unrecognized arguments: --no-such-flag"),
        ("--nr-sparsity-start 0", "--nr-sparsity-start"),
    ],
)
def test_the_refusal_says_what_is_wrong(capsys, flags, message):
    assert message in refusal(capsys, *flags.split())


def test_imagenet_has_to_be_told_how_its_rounds_are_merged(capsys):
    """Its default is attention; a network from scratch has no cross-connections at all."""
    flags = ["--synthetic", "--nr-rounds", "2"]
    with pytest.raises(SystemExit) as end:
        imagenet.parse(flags)
    assert end.value.code == 2
    assert "--nr-rounds 2: --nr-cross attention" in capsys.readouterr().err
    for more in (["--nr-cross", "full"], ["--nr-from-scratch"]):
        assert imagenet.parse([*flags, *more])[0].nr_rounds == 2


@pytest.mark.parametrize(
    "flags", ["--width-mult 1e9", "-a densenet --growthRate 1000000000000"], ids=str
)
def test_widths_that_no_tensor_has_are_refused(capsys, flags):
    assert flags.split()[-2] in refusal(capsys, *flags.split())


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults(name):
    args, _ = cifar.parse([])
    assert getattr(args, name) == DEFAULTS[name]


def test_densenet_defaults_are_growth_12_and_compression_2():
    network = models.build("cifar", "densenet", **cifar.parse(["-a", "densenet"])[1])
    same = models.build("cifar", "densenet", depth=100, growth_rate=12, compression_rate=2)
    assert nr.structure(network) == nr.structure(same)
    assert network.features.stem[0].out_channels == (24,)
    assert network.features.transition1[0].in_channels == (24 + 16 * 12,)
    assert network.features.transition1[0].out_channels == (108,)


@functools.cache
def folders() -> list[str]:
    """Where the runs of both scripts go that name no folder; no network is tried out for it."""
    with mock.patch.object(archs, "check_network", lambda *_: {}):
        return [args.checkpoint for args in flags_without_folder()]


def flags_without_folder() -> list[options.Flags]:
    found = [
        cifar.parse(["-d", data, "-a", arch])[0]
        for data in cifar.DATASETS
        for arch in models.archs("cifar")
    ]
    return found + [
        imagenet.parse([*data, "-a", arch])[0]
        for data in (["--data", "somewhere"], ["--synthetic"])
        for arch in models.archs("imagenet")
    ]


def test_the_folder_of_a_run_that_names_none():
    assert {"checkpoints/cifar100/resnet", "checkpoints/synthetic/vgg11_bn"} <= {*folders()}
    assert {"checkpoints/imagenet/vgg16_nr", "checkpoints/synthetic/resnet50_nr"} <= {*folders()}


def test_no_run_that_names_no_folder_touches_a_tracked_file():
    git = ["git", "-C", str(ROOT), "ls-files", "checkpoints"]
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no clone")
    listed = subprocess.run(git, capture_output=True, text=True, timeout=60, check=True).stdout
    parents = {str(parent) for path in listed.split() for parent in Path(path).parents}
    assert "checkpoints/pictures" in parents
    assert parents & {*folders()} == set()


@pytest.mark.parametrize("name", README)
def test_the_commands_of_the_readme(name):
    command, expected, keywords, params = README[name]
    args, found = cifar.parse(command.split())
    wanted = DEFAULTS | {"depth": None, "growthRate": None} | expected
    assert {key: getattr(args, key) for key in wanted} == wanted
    assert found == keywords
    with torch.device("meta"):
        assert nr.count_params(models.build("cifar", args.arch, **found)) == params


@pytest.mark.parametrize(("short", "long", "text", "name", "value"), SPELLINGS)
def test_both_spellings(short, long, text, name, value):
    network = ["-a", "densenet"] if name == "dropout" else []
    for flag in (short, long):
        assert getattr(cifar.parse([*network, flag, text])[0], name) == value


def test_both_spellings_of_evaluate():
    for flag in ("-e", "--evaluate"):
        assert cifar.parse([flag, "--resume", "auto"])[0].evaluate is True


@pytest.mark.parametrize(
    ("flags", "name", "value"),
    [
        ("--nr-target 0", "nr_target", 0.0),
        ("--nr-target 1", "nr_target", 1.0),
        ("--nr-sparsity 0", "nr_sparsity", 0.0),
        ("--wd 0", "weight_decay", 0.0),
        ("--momentum 0", "momentum", 0.0),
        ("--gamma 1", "gamma", 1.0),
        ("--manualSeed 0", "manualSeed", 0),
        ("-j 0", "workers", 0),
        ("--schedule 7", "schedule", [7]),
        ("--schedule 1 2 3", "schedule", [1, 2, 3]),
        ("--gpu-id 0,1,2,3", "gpu_id", [0, 1, 2, 3]),
        ("--gpu-id 2", "gpu_id", [2]),
        ("--compile", "compile", "default"),
        ("--compile --amp", "compile", "default"),
        ("--compile reduce-overhead", "compile", "reduce-overhead"),
        ("--nr-cross attention", "nr_cross", "attention"),
        ("--nr-cross full", "nr_cross", "full"),
        ("--nr-compress-only --nr-target 0.998", "nr_compress_only", True),
        ("--nr-round-to 512", "nr_round_to", 512),
        ("--epochs 20", "nr_max_epochs", 20),
        ("--epochs 20 --nr-max-epochs 40", "nr_max_epochs", 40),
    ],
)
def test_limits_that_are_allowed(flags, name, value):
    assert getattr(cifar.parse(flags.split())[0], name) == value


def test_a_home_folder_that_no_shell_has_seen(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    args, _ = cifar.parse(["--checkpoint=~/x", "--data=~/y", "--resume=~/z"])
    assert (args.checkpoint, args.data, args.resume) == ("/home/me/x", "/home/me/y", "/home/me/z")


def test_builder_keywords_hold_only_what_was_said():
    flags = "-a densenet --depth 16 --growthRate 4 --compressionRate 1.5 --drop 0.1 --width-mult 2"
    assert cifar.parse(flags.split())[1] == {
        "depth": 16,
        "growth_rate": 4,
        "compression_rate": 1.5,
        "dropout": 0.1,
        "width_mult": 2.0,
    }


def test_plain_training_begins_at_0_999():
    assert options.NO_REJUVENATION == 0.999


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as end:
        cifar.parse(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    flags = [*REFUSED, "--nr-flops", "--nr-compress-only", "--nr-from-scratch", "--amp"]
    flags += ["--resume", "--evaluate", "--checkpoint", "--data", "--dropout"]
    assert [flag for flag in flags if flag not in shown] == []
