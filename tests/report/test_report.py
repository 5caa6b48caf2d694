"""utils.report: tables, csv, pictures and exports from the files that runs leave."""

import copy
import csv
import json
import re

import pytest
import torch

import models
import nr
from tests.helpers import kill, open_cross_blocks, tiny, vary
from tests.running import ROOT
from utils.errors import InputError
from utils.report import export, runs, tables
from utils.report.__main__ import main
from utils.shown.log import read_log, write_log

OPTIONS = {"depth": 8, "width_mult": 0.25, "num_classes": 10}
SPEC = {"family": "cifar", "arch": "resnet", "options": OPTIONS}
ARGS = {
    "arch": "resnet",
    "dataset": "cifar10",
    "data": "./data",
    "subset": None,
    "image_size": 32,
    "epochs": 2,
    "nr_target": 0.25,
    "nr_cross": "removed",
    "nr_bn_target": None,
    "nr_flops": False,
    "nr_from_scratch": False,
    "manualSeed": 1,
    "checkpoint": "c",
}

DESCRIBED = runs.described


def structure(form: str = "plain") -> dict:
    """The network of SPEC as built, or rejuvenated with half of each layer live."""
    from nr.wiring import wiring

    network = models.build("cifar", "resnet", **OPTIONS)
    if form != "plain":
        for layer in wiring(network).layers:
            if not layer.fixed:
                gamma = layer.unit.norms[0].weight.data
                gamma[len(gamma) // 2 :] = 0
        nr.rejuvenate(network, form)
    return nr.structure(network)


def write_run(folder, accuracies=(70.0, 80.0), search=1, seed=1, form="removed", **args) -> None:
    """A run folder with these accuracies, the first ``search`` of them in the search."""
    folder.mkdir(parents=True)
    rows = [
        {
            "Train Loss": 1.0,
            "Train Acc.": 90.0,
            "Valid Acc.": accuracy,
            "Phase": "search" if epoch < search else "train",
            "Utilization": 0.5,
            "Sparsity": 1e-3 if epoch < search else 0.0,
            "Seconds": 30.0,
        }
        for epoch, accuracy in enumerate([50.0] * search + list(accuracies))
    ]
    write_log(folder / "log.txt", rows)
    description = {
        "command": "cifar.py",
        "seed": seed,
        "network": SPEC,
        "structure": structure(form),
        "args": ARGS | {"manualSeed": seed, "checkpoint": str(folder)} | args,
    }
    (folder / "run.json").write_text(json.dumps(description))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def table_row(output: str, *words: str) -> dict[str, str]:
    """The row of the first table that holds these words, by column."""
    lines = output.splitlines()
    row = next(line for line in lines if all(word in line for word in words))
    return dict(zip(cells(lines[0]), cells(row), strict=True))


def test_seeds_of_one_command_are_one_row_with_mean_and_deviation(tmp_path, capsys):
    write_run(tmp_path / "a", (70, 80))
    write_run(tmp_path / "b", (82, 76), seed=2)
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    row = table_row(capsys.readouterr().out, "ResNet-8 x0.25")
    # Errors 20 and 24: mean 22, deviation √((4 + 4) / 1) = 2.83; the best 20 and 18.
    assert row["error, last epoch"] == "22.00 ± 2.83"
    assert row["best epoch"] == "19.00 ± 1.41"
    assert row["n"] == "2"
    assert row["epochs (search + train)"] == "1 + 2"
    assert row["λ"] == "0.001"
    assert row["minutes"] == "2"  # three epochs of 30 seconds, rounded


def test_two_rounds_are_a_row_with_the_epochs_of_every_phase(tmp_path, capsys):
    """A run from before there were rounds is in one row with a run of one round."""
    write_run(tmp_path / "old")
    write_run(tmp_path / "one", seed=2, nr_rounds=1)
    accuracies, phases = (50, 60, 70, 60, 65, 80), "search train train search train train"
    write_run(tmp_path / "two", (70, 80), nr_rounds=2)
    rows = [
        row | {"Phase": phase, "Valid Acc.": accuracy, "Sparsity": 1e-3 * (phase == "search")}
        for row, phase, accuracy in zip(
            read_log(tmp_path / "two" / "log.txt") * 2, phases.split(), accuracies, strict=True
        )
    ]
    write_log(tmp_path / "two" / "log.txt", rows)
    description = json.loads((tmp_path / "two" / "run.json").read_text())
    (tmp_path / "two" / "run.json").write_text(json.dumps(description | {"macs": [300, 500]}))
    main([str(tmp_path / name) for name in ("old", "one", "two")])
    output = capsys.readouterr().out
    assert table_row(output, "| NR-CR |")["n"] == "2"
    row = table_row(output, "NR-CR, 2 rounds")
    assert row["epochs (search + train)"] == "1 + 2 + 1 + 2"
    assert (row["λ"], row["error, last epoch"], row["best epoch"]) == ("0.001", "20.00", "20.00")
    assert row["minutes"] == "3" and row["published error"] == "-"
    found = runs.read_run(tmp_path / "two")
    built = nr.count_macs(models.build("cifar", "resnet", **OPTIONS), 32)
    assert found.training_macs == built + 2 * 300 + 500 + 2 * found.macs
    main(["--csv", str(tmp_path / "two")])
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert (row["search"], row["train"], row["epochs"]) == ("2", "4", "1 + 2 + 1 + 2")


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ("search", "round 1 of 2, search at utilization 0.500 after 1 epochs"),
        ("search train train", "round 1 of 2, 2 of 2 epochs of the train phase"),
        ("search train train search", "round 2 of 2, search at utilization 0.500 after 1 epochs"),
        ("search train train search train", "round 2 of 2, 1 of 2 epochs of the train phase"),
        ("search train train search train train", None),
    ],
)
def test_a_run_of_two_rounds_is_unfinished_until_the_last_epoch(phases, words):
    rows = [{"Phase": phase, "Utilization": 0.5} for phase in phases.split()]
    assert runs.unfinished(ARGS | {"nr_rounds": 2}, rows) == words


@pytest.mark.parametrize(
    ("sparsities", "text"),
    [
        ([1, 1, None, 1], "1"),
        ([1, 2, None, 1, 3], "1 to 2, 1 to 3"),
        ([1, 2, None, 1, 2], "1 to 2"),
        ([None], "-"),
    ],
)
def test_sparsities_of_several_rounds_are_named_where_they_differ(sparsities, text):
    rows = [{"Phase": "search" if s else "train", "Sparsity": s or 0} for s in sparsities]
    assert runs.sparsity_text(rows) == text


def test_different_commands_are_different_rows(tmp_path, capsys):
    write_run(tmp_path / "a", form="plain", search=0, nr_target=1)
    write_run(tmp_path / "b", form="attention", nr_cross="attention")
    write_run(tmp_path / "c", form="plain", nr_from_scratch=True)
    write_run(tmp_path / "d", nr_bn_target=0.5, nr_flops=True)
    main([str(tmp_path / name) for name in "abcd"])
    found = re.findall(r"^\| ResNet-8 x0.25 \| ([^|]+) \|", capsys.readouterr().out, re.MULTILINE)
    assert found == ["baseline", "NR-CA", "NR-FS", "NR-CR + NR-BR 0.5, by FLOPs"]


def test_parameters_with_and_without_cross_connections(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", form="attention", nr_cross="attention")
    removed, attention = (runs.read_run(tmp_path / name) for name in "ab")
    network = nr.build(structure("removed"))
    assert removed.params == nr.count_params(network) < removed.params_with_cross
    assert removed.macs == nr.count_macs(network, 32)
    assert removed.params_with_cross == attention.params == attention.params_with_cross


@pytest.mark.parametrize(
    "spec, name",
    [
        (("cifar", "torchvision_resnet18", {}), "torchvision:resnet18"),
        (("cifar", "vgg19_bn", {}), "VGG-19"),
        (("cifar", "resnet", {"depth": 110}), "ResNet-164"),
        (("cifar", "resnet", {"depth": 20}), "ResNet-20"),
        (("cifar", "densenet", {"depth": 100, "growth_rate": 40}), "DenseNet-100-40"),
        (("cifar", "vgg11_bn", {"width_mult": 0.5}), "VGG-11 x0.5"),
        (("imagenet", "resnet50_nr", {}), "ResNet-50"),
        (("imagenet", "vgg16_nr", {}), "VGG-16"),
        (("imagenet", "densenet121_nr", {}), "DenseNet-121"),
    ],
    ids=str,
)
def test_networks_are_named_as_in_the_published_tables(spec, name):
    assert runs.model_name(dict(zip(("family", "arch", "options"), spec, strict=True))) == name


def test_a_published_row_gives_way_to_a_run_of_it(tmp_path, capsys, monkeypatch):
    row = ("ResNet-8 x0.25", "1M", "CIFAR-10", "1e-3", "7.77")
    monkeypatch.setattr(tables, "PUBLISHED_CIFAR", (row,))
    main([str(tmp_path / "none")])
    assert table_row(capsys.readouterr().out, "ResNet-8")["error, last epoch"] == "not run"
    write_run(tmp_path / "a")
    main([str(tmp_path / "a")])
    output = capsys.readouterr().out
    assert output.count("7.77") == 1
    assert table_row(output, "ResNet-8")["published error"] == "7.77"
    assert table_row(output, "ResNet-8")["error, last epoch"] == "20.00"


def test_every_published_row_is_there():
    cifar, imagenet = tables.cifar_table([]), tables.imagenet_table([])
    assert cifar.count("not run") == 3 * 6 and imagenet.count("not run") == 4 * 6
    page = (ROOT / "checkpoints" / "README.md").read_text()
    assert cifar in page and imagenet in page


def test_broken_and_unfinished_runs_are_named(tmp_path, capsys):
    write_run(tmp_path / "whole")
    write_run(tmp_path / "short", epochs=5)
    write_run(tmp_path / "searching", accuracies=(), search=3)
    write_run(tmp_path / "no-log")
    (tmp_path / "no-log" / "log.txt").unlink()
    write_run(tmp_path / "rubbish")
    (tmp_path / "rubbish" / "run.json").write_text("{")
    names = ["whole", "short", "searching", "no-log", "rubbish", "missing"]
    files = [str(tmp_path / "whole" / "log.txt")]  # of a pattern, and not named
    assert main([str(tmp_path / name) for name in names] + files) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [name for name in names[1:] for line in lines if f"/{name}" in line] == names[1:]
    assert len(lines) == 5
    assert "2 of 5 epochs" in lines[0]
    assert "search at utilization 0.500 after 3 epochs" in lines[1]


def test_csv_has_a_row_a_run(tmp_path, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", (60, 90), seed=2)
    main(["--csv", str(tmp_path / "a"), str(tmp_path / "b")])
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert [(row["seed"], row["last"], row["best"]) for row in rows] == [
        ("1", "20.0", "20.0"),
        ("2", "10.0", "10.0"),
    ]
    assert rows[0]["command"] == "cifar.py"


def test_plot_draws_the_runs(tmp_path):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", search=0, nr_target=1)
    picture = tmp_path / "all.png"
    main([str(tmp_path / "a"), str(tmp_path / "b"), "--plot", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")


def run_network(form: str, folder, monkeypatch) -> nr.Network:
    """The network of the run in ``folder``: of two streams with open cross blocks, or plain."""
    network = vary(tiny())
    if form != "plain":
        kill(network, {"features.first": slice(2)})
        nr.rejuvenate(network, form)
        open_cross_blocks(network)
    monkeypatch.setattr(export, "load_network", lambda path: copy.deepcopy(network).eval())
    (folder / export.LAST).touch()
    return network.eval()


@pytest.mark.parametrize("form", ["plain", "removed", "attention", "full"])
def test_an_exported_network_gives_the_logits_of_the_run(form, tmp_path, monkeypatch, capsys):
    network = run_network(form, tmp_path, monkeypatch)
    assert main(["--export", str(tmp_path / "x.pt2"), str(tmp_path)]) == 0
    assert "logits within" in capsys.readouterr().out
    images = torch.randn(5, 3, 8, 8)
    exported = torch.export.load(tmp_path / "x.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(exported(images), network(images))


@pytest.mark.parametrize("name", ["x.pt", "x.pt2"])
@pytest.mark.parametrize("form", ["removed", "full"])
def test_a_merged_export_has_one_stream_with_the_sum_of_the_logits(
    form, name, tmp_path, monkeypatch
):
    network = run_network(form, tmp_path, monkeypatch)
    assert main(["--export", str(tmp_path / name), "--merge", str(tmp_path)]) == 0
    if name == "x.pt":
        found = nr.load(tmp_path / name)
        assert found.streams == 1
    else:
        found = torch.export.load(tmp_path / name).module()
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        merged, expected = found(images), network(images).sum(1, keepdim=True)
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["plain", "attention"])
def test_an_export_for_nr_is_the_network_of_the_run(form, tmp_path, monkeypatch):
    network = run_network(form, tmp_path, monkeypatch)
    assert main(["--export", str(tmp_path / "x.pth"), str(tmp_path)]) == 0
    found, images = nr.load(tmp_path / "x.pth"), torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(found(images), network(images))


def test_gates_that_were_trained_are_not_merged(tmp_path, monkeypatch, capsys):
    run_network("attention", tmp_path, monkeypatch)
    assert main(["--export", str(tmp_path / "x.pt"), "--merge", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--merge" in line and str(tmp_path / export.LAST) in line and "attention" in line
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--merge"], "--merge: only --export merges"),
        (["--export", "x.onnx"], "--export x.onnx: its name has to end in .pt2 or .pt or .pth"),
    ],
)
def test_exports_that_make_no_sense_are_usage_errors(words, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*words, str(tmp_path)])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_an_export_that_deviates_is_refused(tmp_path, monkeypatch):
    networks = iter([tiny().eval()])
    monkeypatch.setattr(export, "load_network", lambda path: next(networks))
    monkeypatch.setattr(export, "TOLERANCE", -1)
    (tmp_path / export.LAST).touch()
    with pytest.raises(InputError, match="differ"):
        export.export(tmp_path, tmp_path / "x.pt2")


def test_an_export_of_nothing_is_one_line(tmp_path, capsys):
    assert main(["--export", str(tmp_path / "x.pt2"), str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "model_best" in line


def test_every_committed_run_is_reported(capsys, monkeypatch):
    """In one row each with the other seeds of its command; the searches alone are left out.

    Each network is built once, which takes far longer than to read its runs, without values.
    """
    folders = sorted(path.parent for path in (ROOT / "checkpoints/study").glob("*/run.json"))
    built = []

    def described(*network):
        built.append(json.dumps(network))
        with monkeypatch.context() as inner:
            inner.setattr(torch.Tensor, "normal_", pytest.fail)
            return DESCRIBED(*network)

    runs.counted.cache_clear()
    monkeypatch.setattr(runs, "described", described)
    assert main([str(folder) for folder in folders]) == 0
    output, left_out = capsys.readouterr()
    rows = [line.split(" | ") for line in output.splitlines() if "CIFAR-10 (JPEG)" in line]
    searches = [folder for folder in folders if "-search-" in folder.name]
    assert sum(int(cells[-3]) for cells in rows) == len(folders) - len(searches)
    assert len(left_out.splitlines()) == len(searches)
    assert 0 < len(built) == len(set(built)) < len(folders)
