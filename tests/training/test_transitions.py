"""training.transitions and training.identity: from epoch to epoch, and whose a file is."""

from copy import deepcopy
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from utils.shown.meters import Figures
from utils.training import identity
from utils.training.identity import mismatch
from utils.training.state import Epoch, RunState, Usage
from utils.training.transitions import (
    after_epoch,
    after_rejuvenation,
    at_phase_end,
    begin,
    improves,
    next_round,
)

SEARCH = RunState("search", 1, epoch=4, sparsity=1e-4, utilization=0.75, seconds=2.5)
TRAIN = RunState("train", 1, epoch=7, search_epochs=5, utilization=0.5, best_acc=40.0)
SPEC = {"family": "cifar", "arch": "resnet", "options": {"depth": 8}}
FLAGS = {
    "evaluate": False,
    "manualSeed": None,
    "dataset": "cifar10",
    "subset": None,
    "image_size": 32,
    "nr_target": 0.5,
    "train_batch": 8,
    "nr_rounds": 1,
}


METHOD = {
    "pretrained": None,
    "nr_target": 0.5,
    "nr_cross": "full",
    "nr_from_scratch": False,
    "nr_flops": False,
    "nr_budget": "params",
    "nr_latency_batch": 1,
    "nr_round_to": 1,
    "nr_keep": None,
    "nr_carry": False,
}


def shown(top1: float, ratio: float = 0.625) -> Epoch:
    """An epoch with this test accuracy and utilization."""
    usage = Usage(ratio, 100, {"stem": 0.5}, [1, 2])
    return Epoch(0.1, Figures(2.0, 30.0, 60.0, 24), Figures(3.0, top1, 70.0, 10), usage, 9.0)


def payload(phase: str = "search", partial: object = None, **args: object) -> dict:
    """Of a checkpoint of these flags and the seed 1."""
    run = {"phase": phase, "seed": 1}
    return {"network": SPEC, "args": FLAGS | args, "run": run, "partial": partial}


# Where a run stands.


@pytest.mark.parametrize(
    ("target", "phase", "sparsity"),
    [(0.998, "search", 0.25), (0.999, "train", 0), (1, "train", 0)],
)
def test_a_run_begins_in_its_search_unless_it_is_plain_training(target, phase, sparsity):
    expected = RunState(phase, 7, epoch=3, sparsity=sparsity)
    assert begin(7, target, 0.25, first_epoch=3) == expected


def test_an_epoch_of_the_search():
    after = after_epoch(SEARCH, shown(50.0), top5=False)
    row = {
        "Learning Rate": 0.1,
        "Train Loss": 2.0,
        "Valid Loss": 3.0,
        "Train Acc.": 30.0,
        "Valid Acc.": 50.0,
        "Phase": "search",
        "Utilization": 0.625,
        "Sparsity": 1e-4,
        "Params": 100,
        "Seconds": 9.0,
    }
    assert list(after.rows[0]) == list(row)  # the order of the columns
    assert after == replace(
        SEARCH,
        epoch=5,
        utilization=0.625,
        acc=50.0,
        seconds=0.0,
        rows=[row],
        live=[{"stem": 0.5}],
        scales=[[1, 2]],
    )


@pytest.mark.parametrize(("top1", "best"), [(41.0, 41.0), (40.0, 40.0), (39.0, 40.0)])
def test_an_epoch_of_the_train_phase(top1, best):
    """Its network's usage is not kept for the pictures of the search."""
    after = after_epoch(TRAIN, shown(top1), top5=True)
    assert (after.epoch, after.phase_epoch, after.acc, after.best_acc) == (8, 3, top1, best)
    assert (after.live, after.scales) == ([], [])
    assert list(after.rows[0])[4:7] == ["Valid Acc.", "Valid 5 Acc.", "Phase"]
    assert after.rows[0]["Valid 5 Acc."] == 70.0


def test_the_state_before_an_epoch_is_left_as_it_was():
    before = deepcopy(SEARCH)
    after_epoch(after_epoch(SEARCH, shown(50.0), top5=False), shown(51.0), top5=False)
    assert before == SEARCH


def test_only_a_better_epoch_of_the_train_phase_improves():
    assert [improves(TRAIN, top1) for top1 in (39.9, 40.0, 40.1)] == [False, False, True]
    assert not improves(SEARCH, 100.0)


def test_rejuvenation_ends_the_search_and_starts_the_clock_again():
    stem = SimpleNamespace(name="stem", before=(3, 16), survived=(3, 8), after=(3, 11))
    after = after_rejuvenation(SEARCH, SimpleNamespace(layers=[stem]))
    assert (SEARCH.searching, SEARCH.phase_epoch) == (True, 4)
    assert (after.searching, after.phase_epoch) == (False, 0)
    assert after == replace(
        SEARCH, phase="train", search_epochs=4, sparsity=0.0, widths=[["stem", 16, 8, 11]]
    )


def test_the_next_round_searches_again_on_clocks_that_begin_at_0():
    """What the run has shown so far stays; what is drawn of the round before is kept."""
    first = replace(
        TRAIN,
        acc=30.0,
        rescaled=True,
        rows=[{"Phase": "train"}],
        live=[{"stem": 0.5}],
        scales=[[1, 2]],
        widths=[["stem", 16, 8, 11]],
    )
    after = next_round(first, 1e-4, (70, 90))
    assert (after.searching, after.phase_epoch, after.utilization) == (True, 0, 1.0)
    assert after == RunState(
        "search",
        1,
        epoch=7,
        round=2,
        round_start=7,
        sparsity=1e-4,
        acc=30.0,
        best_acc=40.0,
        rows=[{"Phase": "train"}],
        past=[{"live": [{"stem": 0.5}], "scales": [[1, 2]], "widths": [["stem", 16, 8, 11]]}],
        macs=[70, 90],
    )
    trained = after_rejuvenation(replace(after, epoch=10), SimpleNamespace(layers=[]))
    assert (trained.search_epochs, trained.phase_epoch, trained.sparsity) == (3, 0, 0)
    assert replace(trained, epoch=12).phase_epoch == 2
    third = next_round(replace(trained, epoch=12), 1e-4, (50, 60))
    assert (third.round, third.round_start, third.macs) == (3, 12, [70, 90, 50, 60])
    assert len(third.past) == 2


@pytest.mark.parametrize(("number", "suffix"), [(1, ""), (2, "_round2"), (11, "_round11")])
def test_files_of_later_rounds_are_named_by_them(number, suffix):
    assert replace(SEARCH, round=number).suffix == suffix


@pytest.mark.parametrize(
    ("state", "ends"),
    [
        (SEARCH, False),
        (replace(SEARCH, utilization=0.5), True),
        (replace(SEARCH, epoch=6), True),
        (replace(SEARCH, epoch=9, round=2, round_start=4), False),
        (replace(SEARCH, epoch=10, round=2, round_start=4), True),
        (replace(TRAIN, epoch=5), True),
        (TRAIN, False),
        (replace(TRAIN, epoch=8), True),
    ],
)
def test_where_a_phase_ends(state, ends):
    assert at_phase_end(state, target=0.5, max_epochs=6, epochs=3) == ends


# What has been done to a network.

FLAGS_OF_PLAIN = {"pretrained": None, "nr_target": 1.0} | identity.PLAIN


@pytest.mark.parametrize(
    ("run", "args", "known"),
    [
        (SEARCH, {}, {"pretrained": None, "nr_keep": None}),  # nothing has, and the flags decide
        (replace(TRAIN, search_epochs=0), {"nr_target": 1.0}, FLAGS_OF_PLAIN),
        # As the first programs have let it be called.
        (
            replace(TRAIN, search_epochs=0),
            {"nr_target": 0.5},
            FLAGS_OF_PLAIN | {"nr_target": 0.999},
        ),
        (replace(TRAIN, epoch=5), {}, METHOD),  # not rescaled, and may be
        (TRAIN, {"nr_bn_target": 0.5}, METHOD | {"nr_bn_target": None}),
        (replace(TRAIN, rescaled=True), {"nr_bn_target": 0.5}, METHOD | {"nr_bn_target": 0.5}),
        (replace(SEARCH, round=2), {}, METHOD | {"nr_bn_target": None}),
        (replace(SEARCH, round=2), {"nr_bn_target": 0.5}, METHOD | {"nr_bn_target": 0.5}),
    ],
)
def test_what_has_been_done_is_read_from_the_checkpoint(run, args, known):
    """Of one that is older than some of the flags."""
    found = payload() | {"run": asdict(run), "args": FLAGS | {"nr_cross": "full"} | args}
    assert identity.done(found) == known


# Whose a checkpoint is.


@pytest.mark.parametrize("phase", ["search", "train"])
def test_a_checkpoint_of_the_same_run_fits(phase):
    other = {"checkpoint": "elsewhere", "lr": 0.2, "train_batch": 16, "manualSeed": 1}
    assert mismatch(payload(phase), SPEC, FLAGS) is None
    assert mismatch(payload(phase), SPEC, FLAGS | other) is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"dataset": "cifar100"}, "was trained with dataset cifar10, but the flags say cifar100"),
        ({"subset": 50}, "was trained with subset None, but the flags say 50"),
        ({"image_size": 64}, "was trained with image_size 32, but the flags say 64"),
        ({"manualSeed": 2}, "was trained with manualSeed 1, but the flags say 2"),
        ({"nr_target": 1.0}, "stands in its search, which --nr-target 1 never ends"),
    ],
)
def test_what_is_wrong_is_named_and_evaluation_does_not_mind(flags, words):
    assert mismatch(payload(), SPEC, FLAGS | flags) == words
    assert mismatch(payload(), SPEC, FLAGS | flags | {"evaluate": True}) is None


def test_a_converted_network_may_be_evaluated_at_another_size():
    """And its checkpoint may be from before its description had one."""
    spec = SPEC | {"options": SPEC["options"] | {"image_size": 64}}
    assert mismatch(payload(), spec, FLAGS | {"evaluate": True}) is None
    assert mismatch(payload(), spec, FLAGS) is None


@pytest.mark.parametrize(("rounds", "fits"), [(1, False), (2, True), (3, True)])
def test_a_round_that_the_flags_do_not_have_is_wrong(rounds, fits):
    later = payload()
    later["run"]["round"] = 2
    words = "stands in round 2, but --nr-rounds is 1"
    assert mismatch(later, SPEC, FLAGS | {"nr_rounds": rounds}) == (None if fits else words)
    assert mismatch(later, SPEC, FLAGS | {"evaluate": True}) is None


@pytest.mark.parametrize("evaluate", [False, True])
def test_another_network_is_always_wrong(evaluate):
    other = SPEC | {"arch": "densenet"}
    words = f"holds {SPEC}, but the flags say {other}"
    assert mismatch(payload(), other, FLAGS | {"evaluate": evaluate}) == words


def test_a_target_of_1_fits_the_train_phase():
    assert mismatch(payload("train"), SPEC, FLAGS | {"nr_target": 1.0}) is None


def test_the_batch_size_counts_inside_an_epoch_only():
    flags = FLAGS | {"train_batch": 16}
    words = "stands inside an epoch, so --train-batch cannot change here"
    assert mismatch(payload(partial=[]), SPEC, flags) == words
    assert mismatch(payload(partial=[]), SPEC, FLAGS) is None
    assert mismatch(payload(partial=None), SPEC, flags) is None
    flags = FLAGS | {"iter_size": 2}
    words = "stands inside an epoch, so --iter-size cannot change here"
    assert mismatch(payload(partial=[]), SPEC, flags) == words
    assert mismatch(payload(partial=[]), SPEC, FLAGS | {"iter_size": 1}) is None
    assert mismatch(payload(partial=None), SPEC, flags) is None
