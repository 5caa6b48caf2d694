"""Seeds: given, drawn, named again."""

from pathlib import Path

import pytest
import torch

import cifar
from tests.helpers import same_tensors
from tests.training.run.small_runs import (
    AFTER,
    CLASSES,
    FLAGS,
    PLAIN,
    assert_same_end,
    go,
    made,
    resume,
    state_in,
)
from utils.errors import InputError
from utils.training import checkpoint, script, trainer
from utils.training.run import Run


def without_seed(flags: str) -> list[str]:
    words = [*FLAGS.split(), *flags.split()]
    at = words.index("--manualSeed")
    return words[:at] + words[at + 2 :]


def test_a_run_goes_on_without_naming_its_seed(tmp_path):
    go(tmp_path / "a", f"{PLAIN} --epochs 1")
    assert cifar.main(without_seed(f"{PLAIN} -c {tmp_path / 'a'} --resume auto")) == 0
    go(tmp_path / "b", PLAIN)
    assert_same_end(tmp_path / "a", tmp_path / "b")


def test_a_run_goes_on_when_its_drawn_seed_is_named(tmp_path):
    """The screen has said `==> Seed: N (--manualSeed)`."""
    cifar.main(without_seed(f"{PLAIN} -c {tmp_path} --epochs 1"))
    seed = state_in(tmp_path).seed
    assert resume(tmp_path, f"{PLAIN} --manualSeed {seed}") == 0


def test_a_run_goes_on_when_its_seed_is_named_again_after_a_resume_without_it(tmp_path):
    go(tmp_path, f"{PLAIN} --epochs 1")
    cifar.main(without_seed(f"{PLAIN} -c {tmp_path} --resume auto --epochs 2"))
    assert resume(tmp_path, PLAIN) == 0


def test_another_seed_is_refused_after_a_resume_without_one(tmp_path):
    """Now the flags of the checkpoint say None, but the run has the seed 1."""
    go(tmp_path, f"{PLAIN} --epochs 1")
    cifar.main(without_seed(f"{PLAIN} -c {tmp_path} --resume auto --epochs 2"))
    with pytest.raises(InputError, match="trained with manualSeed 1, but the flags say 2"):
        resume(tmp_path, f"{PLAIN} --manualSeed 2")


def initial(folder: Path, flags: str) -> dict:
    return made(folder, flags).network.state_dict()


def test_the_weights_are_a_function_of_the_seed(tmp_path):
    one, two, other = (
        initial(tmp_path / str(n), f"--manualSeed {seed}") for n, seed in enumerate((5, 5, 6))
    )
    assert same_tensors(one, two)
    assert not same_tensors(one, other)


def test_the_rejuvenated_weights_are_a_function_of_the_seed(epochs, monkeypatch, tmp_path):
    """Whatever has drawn random numbers before."""
    go(tmp_path / "a", "--nr-compress-only")
    evaluate = trainer.evaluate
    monkeypatch.setattr(trainer, "evaluate", lambda *rest: (torch.rand(7), evaluate(*rest))[1])
    go(tmp_path / "b", "--nr-compress-only")
    one, two = (checkpoint.read(tmp_path / name / AFTER)["state_dict"] for name in "ab")
    assert same_tensors(one, two)
    go(tmp_path / "c", "--nr-compress-only --manualSeed 2")
    weight = "features.stage1.0.branch.0.convs.1.weight"  # of rejuvenated channels
    other = checkpoint.read(tmp_path / "c" / AFTER)["state_dict"]
    assert other[weight].shape != one[weight].shape or not torch.equal(other[weight], one[weight])


def test_a_drawn_seed_is_shown_and_repeats_the_run(tmp_path, capsys):
    cifar.main(without_seed(f"{PLAIN} -c {tmp_path / 'a'} --epochs 1"))
    seed = state_in(tmp_path / "a").seed
    assert f"==> Seed: {seed} (--manualSeed)" in capsys.readouterr().out.splitlines()
    go(tmp_path / "b", f"{PLAIN} --epochs 1 --manualSeed {seed}")
    assert_same_end(tmp_path / "a", tmp_path / "b")


def test_drawn_seeds_differ(tmp_path):
    parsed = [cifar.parse(without_seed(f"-c {tmp_path / name}")) for name in "abc"]
    spec = {"family": "cifar", "arch": "resnet", "options": parsed[0][1]}
    runs = [
        Run(args, spec, [torch.device("cpu")], script.open_folder(args), 0, CLASSES)
        for args, _ in parsed
    ]
    assert len({run.state.seed for run in runs}) == 3
