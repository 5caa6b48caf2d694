"""Checkpoints that older versions of the scripts have written: evaluated and resumed for ever."""

import json

import pytest
import torch

from tests.kept import CHECKPOINT, EXPECTED, FILES, FLAGS, says
from tests.running import drive
from utils.shown.log import read_log
from utils.training.checkpoint import load_network

KEPT = [pytest.param(folder, id=folder.name) for folder in sorted(FILES.glob("[0-9]*"))]


@pytest.mark.parametrize("folder", KEPT)
def test_a_checkpoint_of_any_version_is_the_network_that_it_was(folder):
    expected = json.loads((folder / EXPECTED).read_text())[CHECKPOINT]
    found = says(load_network(folder / CHECKPOINT))
    assert {**found, "logits": None} == {**expected, "logits": None}
    torch.testing.assert_close(
        torch.tensor(found["logits"]), torch.tensor(expected["logits"]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("folder", KEPT)
def test_a_checkpoint_of_any_version_is_resumed(folder, tmp_path):
    drive(f"{FLAGS} --epochs 2 --resume {folder / CHECKPOINT}", tmp_path)
    phases = [row["Phase"] for row in read_log(tmp_path / "log.txt")]
    assert phases == ["search", "train", "train"]
