"""--nr-rounds: merged, searched and rejuvenated again."""

import shutil

import pytest

import imagenet
import nr
from tests.helpers import form, prunable
from tests.training.run.small_runs import (
    AFTER,
    AFTER2,
    BEFORE,
    BEFORE2,
    BEST,
    LAST,
    PREVIOUS,
    TWO,
    assert_same_end,
    column,
    contents,
    go,
    interrupt,
    names,
    resume,
    state_in,
)
from utils.errors import InputError
from utils.machine import seeding
from utils.report.runs import read_run
from utils.training import checkpoint, phases, trainer
from utils.training import run as runs
from utils.training.signals import Stopped


def test_the_next_round_is_rejuvenated_as_the_first(epochs, tmp_path):
    go(tmp_path / "p", "--nr-cross full --nr-compress-only")
    resume(tmp_path / "q", TWO, path=str(tmp_path / "p" / AFTER))
    assert form(checkpoint.read(tmp_path / "q" / AFTER2)["structure"]) == "full"


ROUND = 5  # epochs of a round: two of the search, three of the train phase


def test_the_second_round_is_as_the_first(epochs, tmp_path, capsys):
    """λ is back, both clocks begin at 0 again, and what was searched is one plain network."""
    assert go(tmp_path, TWO) == 0
    assert column(tmp_path, "Phase") == (["search"] * 2 + ["train"] * 3) * 2
    assert column(tmp_path, "Learning Rate") == [0.1, 0.01, 0.1, 0.01, 0.001] * 2
    assert column(tmp_path, "Sparsity") == [0.001, 0.001, 0, 0, 0] * 2
    assert [row[0] for row in epochs.rows] == list(range(10))
    assert [row[1] for row in epochs.rows] == pytest.approx([0.1, 0.01, 0.1, 0.01, 0.001] * 2)
    assert [row[2] for row in epochs.rows] == [0.001, 0.001, 0, 0, 0] * 2
    usage = column(tmp_path, "Utilization")
    assert usage[6] < 0.6 < usage[5] and usage[6] < usage[7]
    state = state_in(tmp_path)
    assert (state.round, state.round_start, state.search_epochs, state.epoch) == (2, 5, 2, 10)
    lines = [line for line in capsys.readouterr().out.splitlines() if "Epoch:" in line]
    assert lines[1] == "Epoch: [2 | 5] LR: 0.01 (search)"
    assert lines[ROUND + 1] == "Epoch: [2 | 5] LR: 0.01 (search, round 2)"
    assert lines[-1] == "Epoch: [3 | 3] LR: 0.001 (train, round 2)"


def test_the_files_of_the_second_round(epochs, pictures, tmp_path):
    pictures()
    go(tmp_path, TWO)
    drawn = [f"{name}{end}.png" for name in ("scales", "utilization", "widths") for end in END]
    checkpoints = [LAST, PREVIOUS, BEST, BEFORE, AFTER, BEFORE2, AFTER2]
    assert names(tmp_path) == sorted([*checkpoints, *drawn, "curves.png", "log.txt", "run.json"])
    second = state_in(tmp_path)
    assert len(second.live) == len(second.scales) == 2  # this round's
    assert second.past[0]["widths"] == state_in(tmp_path, AFTER).widths != second.widths
    resume(tmp_path / "other", TWO, path=str(tmp_path / AFTER2))  # all pictures, elsewhere too
    assert {*drawn} <= {*names(tmp_path / "other")}


END = ("", "_round2")


@pytest.mark.parametrize(
    ("flags", "streams"),
    [("", 2), ("--nr-cross full", 2), ("--nr-cross none", 1), ("--nr-from-scratch", 1)],
)
def test_the_streams_are_merged_and_rejuvenated_again(epochs, tmp_path, flags, streams):
    go(tmp_path, f"{TWO} --nr-compress-only {flags}")
    first, merged, second = (nr.load(tmp_path / name) for name in (AFTER, BEFORE2, AFTER2))
    assert (first.streams, merged.streams, second.streams) == (streams, 1, streams)
    widths = {name: sum(layer.unit.out_channels) for name, layer in prunable(first).items()}
    assert widths == {n: layer.unit.out_channels[0] for n, layer in prunable(merged).items()}
    if streams == 2:
        survived = {name: layer.unit.out_channels[0] for name, layer in prunable(second).items()}
        assert survived == {name: width - int(2 / 3 * width) for name, width in widths.items()}


def test_the_optimizer_of_the_second_search_is_fresh(epochs, monkeypatch, tmp_path):
    momenta = []
    merge = nr.merge
    monkeypatch.setattr(nr, "merge", lambda network: momenta.append(None) or merge(network))
    used = trainer.Trainer.use

    def use(self, network):
        used(self, network)
        momenta.append(len(self.optimizer.state))

    monkeypatch.setattr(trainer.Trainer, "use", use)
    go(tmp_path, TWO)
    assert momenta == [0, 0, None, 0, 0]  # built, rejuvenated, merged, rejuvenated


@pytest.mark.parametrize("after", [26, 28, 33, 35, 36, 42, 50])
def test_a_run_interrupted_in_its_second_round_ends_the_same(
    straight, monkeypatch, tmp_path, after
):
    """In its search from batch 26 on, in its train phase from 36 on."""
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(Stopped):
            go(tmp_path / "a", TWO)
    stopped = state_in(tmp_path / "a")
    assert (stopped.round, stopped.searching) == (2, after <= 35)
    assert resume(tmp_path / "a", TWO) == 0
    assert_same_end(tmp_path / "a", straight(TWO))


def test_every_file_leads_to_the_same_end_of_the_second_round(straight, tmp_path):
    """Of a run that was to have one round first: flags may change."""
    shutil.copytree(straight(), tmp_path / "a")
    resume(tmp_path / "a", TWO)
    assert not list((tmp_path / "a").glob("earlier-*"))
    assert_same_end(tmp_path / "a", straight(TWO))
    for name in (BEFORE, AFTER, BEFORE2, AFTER2):
        resume(tmp_path / name, TWO, path=str(tmp_path / "a" / name))
        assert_same_end(tmp_path / name, straight(TWO))


def test_a_search_killed_before_its_first_save_is_merged_again(straight, monkeypatch, tmp_path):
    """Merging leaves no file, and needs none."""

    def killed(run):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(phases, "after_merging", killed)
        with pytest.raises(MemoryError):
            go(tmp_path / "a", TWO)
    assert state_in(tmp_path / "a").round == 1
    resume(tmp_path / "a", TWO)
    assert_same_end(tmp_path / "a", straight(TWO))


def test_the_best_model_is_that_of_all_train_phases(epochs, accuracies, tmp_path, capsys):
    accuracies(90, 95, 10, 30, 20, 99, 99, 25, 28, 29)
    go(tmp_path, TWO)
    best = checkpoint.read(tmp_path / BEST)
    assert (best["epoch"], best["best_acc"]) == (4, 30)
    assert state_in(tmp_path).best_acc == 30
    assert capsys.readouterr().out.splitlines()[-1] == "Best acc: 30.00"


def test_a_better_epoch_of_the_second_train_phase_is_the_best(epochs, accuracies, tmp_path):
    accuracies(90, 95, 10, 30, 20, 99, 99, 25, 31, 29)
    go(tmp_path, TWO)
    best = checkpoint.read(tmp_path / BEST)
    assert (best["epoch"], best["best_acc"], best["run"]["round"]) == (9, 31, 2)


def test_compress_only_ends_after_the_last_rejuvenation(straight, tmp_path):
    assert go(tmp_path / "a", f"{TWO} --nr-compress-only") == 0
    assert column(tmp_path / "a", "Phase") == ["search"] * 2 + ["train"] * 3 + ["search"] * 2
    assert state_in(tmp_path / "a").phase == "train"
    assert resume(tmp_path / "a", TWO) == 0
    assert_same_end(tmp_path / "a", straight(TWO))


@pytest.mark.parametrize("after", [None, 26, 36, 38])
def test_every_round_is_rescaled_once(epochs, rescalings, monkeypatch, tmp_path, after):
    """Interrupted in no batch, or in one of the second round."""
    flags = f"{TWO} --nr-bn-target 0.7"
    if after is not None:
        with monkeypatch.context() as patch:
            interrupt(patch, after)
            with pytest.raises(Stopped):
                go(tmp_path, flags)
        resume(tmp_path, flags)
    else:
        go(tmp_path, flags)
    assert rescalings == [0.7, 0.7]
    assert [state_in(tmp_path, name).rescaled for name in (BEFORE2, AFTER2)] == [False, True]


def test_every_search_has_its_epochs_before_it_gives_up(epochs, tmp_path, capsys):
    epochs.dead_later = ()
    assert go(tmp_path / "a", f"{TWO} --nr-max-epochs 2") == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "Gave up the search of round 2 after 2 epochs: utilization is" in line
    assert column(tmp_path / "a", "Phase")[ROUND:] == ["search"] * 2
    epochs.dead_later = (8,)
    assert resume(tmp_path / "a", f"{TWO} --nr-max-epochs 5") == 0
    assert column(tmp_path / "a", "Phase")[ROUND:] == ["search"] * 4 + ["train"] * 3


def test_rejuvenated_weights_of_every_round_have_their_own_seed(epochs, monkeypatch, tmp_path):
    seeds = []

    def seeded(*parts):
        seeds.append(parts)
        seeding.seed_generators(*parts)

    for module in (runs, phases):
        monkeypatch.setattr(module, "seed_generators", seeded)
    go(tmp_path, f"{TWO} --nr-compress-only")
    first = [(1, seeding.NETWORK), (1, seeding.REJUVENATION)]
    assert seeds == [*first, (1, seeding.REJUVENATION, 2)]


def test_attention_has_no_further_round(epochs, tmp_path):
    go(tmp_path, "--nr-cross attention")
    before = contents(tmp_path)
    with pytest.raises(InputError) as error:
        resume(tmp_path, TWO)
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{tmp_path / LAST}: --nr-rounds 2: its attention cross-connections")
    assert contents(tmp_path) == before
    assert resume(tmp_path, f"{TWO} -e") == 0


def test_a_round_that_the_flags_forget_is_refused(epochs, tmp_path):
    go(tmp_path, f"{TWO} --nr-compress-only")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="stands in round 2, but --nr-rounds is 1"):
        resume(tmp_path)
    assert contents(tmp_path) == before


def test_a_checkpoint_from_before_there_were_rounds_goes_on(straight, tmp_path):
    shutil.copytree(straight(), tmp_path / "a")
    payload = checkpoint.read(tmp_path / "a" / LAST)
    for name in ("round", "round_start", "past", "macs"):
        del payload["run"][name]
    del payload["args"]["nr_rounds"]
    checkpoint.save(tmp_path / "a" / LAST, payload)
    path = str(tmp_path / "a" / LAST)
    assert resume(tmp_path / "elsewhere", TWO, path=path) == 0
    assert resume(tmp_path / "a", TWO) == 0
    assert_same_end(tmp_path / "a", straight(TWO))
    assert_same_end(tmp_path / "elsewhere", straight(TWO))


def test_the_report_knows_rounds(straight, tmp_path):
    shutil.copytree(straight(), tmp_path / "one")
    found = read_run(straight(TWO))
    assert (found.arm, found.epochs) == ("NR-CR, 2 rounds", (2, 3, 2, 3))
    assert found.setting != read_run(tmp_path / "one").setting
    networks = [nr.load(straight(TWO) / name) for name in (BEFORE, AFTER, BEFORE2, AFTER2)]
    costs = [nr.count_macs(network, 32) for network in networks]
    assert len(set(costs)) == 4
    assert found.training_macs == sum(2 * a + 3 * b for a, b in (costs[:2], costs[2:]))
    assert found.params == nr.count_params(networks[-1])
    go(tmp_path / "b", f"{TWO} --nr-compress-only")
    with pytest.raises(InputError, match="unfinished: round 2 of 2, search at utilization 0"):
        read_run(tmp_path / "b")
    resume(tmp_path / "one", f"{TWO} --nr-compress-only")
    with pytest.raises(InputError, match="unfinished: round 2 of 2"):
        read_run(tmp_path / "one")


def test_imagenet_starts_every_search_with_the_first_sparsity(epochs, tmp_path):
    epochs.dead_later = (4,)
    network = "-a resnet18_nr --width-mult 0.125 --synthetic --subset 20 --image-size 32 -j 0"
    search = "--nr-target 0.8 --nr-sparsity-start 0.001 --nr-increase-step 0.001"
    flags = f"{network} {search} --nr-increase-thres 1 --train-batch 10 --manualSeed 1"
    flags += f" --epochs 1 --nr-max-epochs 5 --schedule 9 --nr-cross removed {TWO}"
    assert imagenet.main([*flags.split(), "-c", str(tmp_path)]) == 0
    assert column(tmp_path, "Phase") == ["search", "search", "train"] * 2
    assert column(tmp_path, "Sparsity") == [0.001, 0.002, 0] * 2
