"""utils.report: tables, csv, pictures and exports from the files that runs leave."""

import copy
import csv
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import models
import nr
from tests.helpers import kill, open_cross_blocks, tiny, vary
from tests.running import ROOT
from utils.data.normalisation import USUAL
from utils.errors import InputError
from utils.report import __main__ as report_main
from utils.report import export, runs, tables
from utils.report.__main__ import main
from utils.shown import plots
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
    from nr.network.wiring import wiring

    network = models.build("cifar", "resnet", **OPTIONS)
    if form != "plain":
        for layer in wiring(network).layers:
            if not layer.fixed:
                gamma = layer.unit.norms[0].weight.data
                gamma[len(gamma) // 2 :] = 0
        nr.rejuvenate(network, form)
    return nr.structure(network)


def write_run(
    folder, accuracies=(70.0, 80.0), search=1, seed=1, form="removed", known=None, **args
) -> None:
    """A run folder with these accuracies, the first ``search`` of them in the search.

    ``known``: what its data set is known by; None as where the run is older than that.
    """
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
        **({"data": known} if known else {}),
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


def identity(name: str = "pets", digest: str = "0123456789abcdef", **other: object) -> dict:
    """What a data set is known by."""
    return {"name": name, "classes": 10, "images": [24, 10], "digest": digest} | other


def rows_of(output: str) -> list[dict[str, str]]:
    """The rows of runs in the first table, by column."""
    lines = output.splitlines()
    found = [line for line in lines[2 : lines.index("")] if "not run" not in line]
    return [dict(zip(cells(lines[0]), cells(line), strict=True)) for line in found]


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [
        (  # older than the identity: the folder's name tells
            {"data": "a/cats"},
            {"data": "b/dogs"},
            ["cats", "dogs"],
        ),
        ({"known": identity("cats", "0" * 16)}, {"known": identity("dogs")}, ["cats", "dogs"]),
        (
            {"known": identity("pets", "0" * 16)},
            {"known": identity("pets")},
            ["pets [00000000]", "pets [01234567]"],
        ),
        ({"data": "a/pets"}, {"known": identity()}, ["pets", "pets [01234567]"]),
    ],
)
def test_runs_of_different_data_sets_are_not_merged(tmp_path, capsys, one, other, names):
    write_run(tmp_path / "a", dataset="folder", **one)
    write_run(tmp_path / "b", seed=2, dataset="folder", **other)
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    rows = rows_of(capsys.readouterr().out)
    assert [(row["data"], row["n"]) for row in rows] == [(name, "1") for name in names]


def test_a_data_set_is_the_same_wherever_it_lies(tmp_path, capsys):
    write_run(tmp_path / "a", dataset="folder", data="here/pets", known=identity())
    write_run(tmp_path / "b", seed=2, dataset="folder", data="there/p", known=identity("p"))
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert [row["n"] for row in rows_of(capsys.readouterr().out)] == ["2"]


def test_the_same_seed_twice_in_a_row_is_an_error_naming_both_folders(tmp_path, capsys):
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/a and {tmp_path}/b: the same command with the same seed 1" in line
    assert main([str(tmp_path / "a"), f"{tmp_path}/../{tmp_path.name}/a"]) == 0  # one folder
    assert [row["n"] for row in rows_of(capsys.readouterr().out)] == ["1"]


IMAGENET_ARGS = {"subset": None, "data": "~/dataset/ILSVRC2012/"}  # and no "dataset"
ILSVRC = identity("ILSVRC2012", classes=1000, images=[1281167, 50000])


@pytest.mark.parametrize(
    ("args", "known", "name"),
    [
        (IMAGENET_ARGS, ILSVRC, "ImageNet"),
        (
            IMAGENET_ARGS | {"subset": 1000},
            ILSVRC | {"images": [1000, 200]},
            "ILSVRC2012, 1,000 images",
        ),
        (IMAGENET_ARGS, None, "ILSVRC2012"),
        (IMAGENET_ARGS, identity("imagenette"), "imagenette"),
        (IMAGENET_ARGS, identity("ImageNet"), "ImageNet (folder)"),
        ({"subset": None, "synthetic": True, "data": None}, identity("synthetic"), "synthetic"),
        (ARGS, None, "CIFAR-10"),
        (ARGS | {"dataset": "folder", "data": "x/cifar10"}, None, "cifar10"),
        (ARGS | {"dataset": "folder", "data": "x/CIFAR-10"}, None, "CIFAR-10 (folder)"),
        (ARGS | {"dataset": "folder"}, identity("CIFAR-100"), "CIFAR-100 (folder)"),
        (ARGS | {"dataset": "folder", "data": "../cifar10-jpeg"}, None, "CIFAR-10 (JPEG)"),
    ],
)
def test_only_the_published_data_sets_are_called_so(args, known, name):
    assert runs.data_name(args, known) == name


def test_the_published_figure_is_beside_runs_of_imagenet_only(tmp_path):
    write_run(tmp_path / "a", form="attention", nr_cross="attention")
    found = runs.read_run(tmp_path / "a")
    for known, figure in ((ILSVRC, "28.86, 9.93"), (identity("imagenette"), "-")):
        name = runs.data_name(IMAGENET_ARGS, known)
        run = replace(found, family="imagenet", model="ResNet-18", data=name, last5=10.0)
        (row,) = rows_of(tables.imagenet_table([run]) + "\n\n")
        assert row["published top-1, top-5"] == figure


def test_a_bar_and_a_line_break_end_no_cell(tmp_path, capsys):
    write_run(tmp_path / "a", dataset="folder", data="x/cats | dogs\nand more")
    main([str(tmp_path / "a")])
    lines = capsys.readouterr().out.splitlines()
    assert r"| cats \| dogs and more |" in lines[2]
    assert len(re.split(r"(?<!\\)\|", lines[2])) == len(lines[0].split("|"))


@pytest.mark.parametrize("words", [[], ["--csv"], ["--plot", "{0}/x.png"]])
def test_where_no_run_is_read_the_status_is_1(tmp_path, capsys, words):
    write_run(tmp_path / "short", epochs=5)
    words = [word.format(tmp_path) for word in words]
    assert main([str(tmp_path / "short"), str(tmp_path / "none"), *words]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "utils.report: no finished run in" in lines[2]
    assert not (tmp_path / "x.png").exists()


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


def test_runs_of_different_data_sets_have_lines_of_their_own(tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(plots, "comparison", lambda pairs, path: labels.extend(dict(pairs)))
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", dataset="cifar100")
    main([str(tmp_path / "a"), str(tmp_path / "b"), "--plot", "x.png"])
    assert labels == ["ResNet-8 x0.25 NR-CR, CIFAR-10", "ResNet-8 x0.25 NR-CR, CIFAR-100"]


def run_network(form: str, folder, monkeypatch) -> nr.Network:
    """The network of the run in ``folder``: of two streams with open cross blocks, or plain."""
    network = vary(tiny())
    if form != "plain":
        kill(network, {"features.first": slice(2)})
        nr.rejuvenate(network, form)
        open_cross_blocks(network)
    monkeypatch.setattr(export, "load_network", lambda path: copy.deepcopy(network).eval())
    for module in (export, report_main):
        monkeypatch.setattr(module, "load_normalisation", lambda path: USUAL["cifar"])
    (folder / export.LAST).touch()
    return network.eval()


def run_exported(path: Path, images: torch.Tensor) -> torch.Tensor:
    """What a file for inference gives."""
    if path.suffix == ".pt2":
        with torch.no_grad():
            return torch.export.load(path).module()(images)
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(found)


def needs_onnx(name: str) -> None:
    for module in export.ONNX if name.endswith(".onnx") else ():
        pytest.importorskip(module)


@pytest.mark.parametrize("name", ["x.pt2", "x.onnx"])
@pytest.mark.parametrize("form", ["plain", "removed", "attention", "full"])
def test_an_exported_network_gives_the_logits_of_the_run(form, name, tmp_path, monkeypatch, capsys):
    """[B, classes], the sum over the streams, of any number of images."""
    needs_onnx(name)
    network = run_network(form, tmp_path, monkeypatch)
    assert main(["--export", str(tmp_path / name), str(tmp_path)]) == 0
    assert "logits within" in capsys.readouterr().out
    images = torch.randn(5, 3, 8, 8)
    found = run_exported(tmp_path / name, images)
    assert found.shape == (5, 2)
    with torch.no_grad():
        torch.testing.assert_close(found, network(images).sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["x.pt", "x.pt2", "x.onnx"])
@pytest.mark.parametrize("form", ["removed", "full"])
def test_a_merged_export_has_one_stream_with_the_sum_of_the_logits(
    form, name, tmp_path, monkeypatch
):
    needs_onnx(name)
    network = run_network(form, tmp_path, monkeypatch)
    assert main(["--export", str(tmp_path / name), "--merge", str(tmp_path)]) == 0
    images = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        expected = network(images).sum(1)
        if name == "x.pt":
            assert nr.load(tmp_path / name).streams == 1
            merged = nr.load(tmp_path / name)(images)[:, 0]
        else:
            merged = run_exported(tmp_path / name, images)
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)


def test_an_export_to_onnx_without_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    run_network("plain", tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for name in export.ONNX[:2]:
        monkeypatch.setitem(sys.modules, name, sys)
    assert main(["--export", str(tmp_path / "x.onnx"), str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "--export" in line and "onnxruntime is not installed: pip install onnx" in line
    assert not (tmp_path / "x.onnx").exists()


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
        (["--csv", "--compare", "plain"], "not allowed with argument"),
        (["--csv", "--export", "x.pt"], "not allowed with argument"),
        (["--compare", "plain", "--export", "x.pt"], "not allowed with argument"),
        (["--plot", "x.png", "--export", "x.pt"], "--plot: not beside --export"),
        (["--plot", "x.pdf"], "--plot x.pdf: its name has to end in .png"),
        (
            ["--export", "x.h5"],
            "--export x.h5: its name has to end in .pt2 or .onnx or .pt or .pth",
        ),
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
    monkeypatch.setattr(export, "load_normalisation", lambda path: USUAL["cifar"])
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
