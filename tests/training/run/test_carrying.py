"""--nr-carry and --nr-keep: what goes on through a rebuild, in runs and as they are resumed."""

import pytest

import imagenet
import nr
from tests.training.run.small_runs import (
    AFTER,
    BEFORE,
    LAST,
    TWO,
    assert_same_end,
    go,
    interrupt,
    resume,
    state_in,
)
from utils.errors import InputError
from utils.training import checkpoint
from utils.training.signals import Stopped

CARRY = "--nr-carry --nr-keep stage1.0.branch.0 stem"
KEPT = "features.stage1.0.branch.0"


def momenta(path) -> dict:
    return checkpoint.read(path)["optimizer"]["state"]


def test_survivors_keep_their_momentum_and_kept_layers_their_width(epochs, tmp_path):
    go(tmp_path, f"{CARRY} --nr-compress-only")
    before, after = momenta(tmp_path / BEFORE), momenta(tmp_path / AFTER)
    network = nr.load(tmp_path / AFTER)
    assert network.keep == ("stage1.0.branch.0", "stem")
    names = [name for name, _ in network.named_parameters()]
    assert len(after) == len(names)
    first = after[names.index(f"{KEPT}.convs.0.weight")]["momentum_buffer"]
    assert any(first.equal(entry["momentum_buffer"]) for entry in before.values())
    assert not after[names.index(f"{KEPT}.convs.1.weight")]["momentum_buffer"].any()
    widths = {name: row for name, *row in state_in(tmp_path).widths}
    assert widths[KEPT] == [4, 4, 5]
    assert "stem" in (tmp_path / "run.json").read_text()


@pytest.mark.parametrize("after", [13, 28])
def test_a_run_interrupted_anywhere_ends_the_same(straight, monkeypatch, tmp_path, after):
    """In a train phase, with what was carried, and in the search behind a merge."""
    flags = f"{TWO} {CARRY}"
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(Stopped):
            go(tmp_path, flags)
    resume(tmp_path, flags)
    assert_same_end(tmp_path, straight(flags))


def test_every_file_leads_to_the_same_end_and_a_flag_that_contradicts_it_is_refused(
    straight, tmp_path
):
    for name in (BEFORE, AFTER):
        path = str(straight(CARRY) / name)
        resume(tmp_path / name, "" if name == AFTER else "--nr-carry", path=path)
        assert_same_end(tmp_path / name, straight(CARRY))
    path = str(straight(CARRY) / LAST)
    with pytest.raises(
        InputError, match=r"made with --nr-keep stage1\.0\.branch\.0 stem: --nr-keep"
    ):
        resume(tmp_path / "b", "--nr-keep stem", path=path)
    with pytest.raises(InputError, match="made without --nr-carry: --nr-carry contradicts"):
        resume(tmp_path / "c", "--nr-carry", path=str(straight() / LAST))


def test_imagenet_keeps_and_carries_too(epochs, tmp_path):
    network = "-a resnet18_nr --width-mult 0.125 --synthetic --subset 20 --image-size 32 -j 0"
    flags = f"{network} --nr-target 0.9 --train-batch 10 --manualSeed 1 --schedule 9 --epochs 3"
    flags += " --nr-compress-only --nr-carry --nr-keep stage1"
    assert imagenet.main([*flags.split(), "-c", str(tmp_path)]) == 0
    payload = checkpoint.read(tmp_path / LAST)
    assert payload["structure"]["keep"] == ["stage1"] and payload["optimizer"]["state"]
