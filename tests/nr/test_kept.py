"""Files that older versions have written load for ever: tests.kept says how they are made."""

import json

import pytest
import torch

import nr
from nr.files.structure import VERSION
from tests.helpers import kill_random
from tests.kept import CHECKPOINT, EXPECTED, FILES, FORMS, images, networks, says

FIRST = 1  # files of version 0 are checkpoints of the scripts, which alone can read them
KEPT = [
    pytest.param(path, expected, id=f"{folder.name}/{name}")
    for folder in sorted(FILES.glob("[0-9]*"))
    for name, expected in json.loads((folder / EXPECTED).read_text()).items()
    if int(folder.name) >= FIRST
    for path in [folder / name]
]


@pytest.mark.parametrize("path, expected", KEPT)
def test_a_file_of_any_version_is_the_network_that_it_was(path, expected, tmp_path):
    loaded = nr.load(path)
    nr.save(loaded, tmp_path / "again.pt")
    for model in (loaded, nr.load(tmp_path / "again.pt")):
        found = says(model)
        assert not model.training
        assert {**found, "logits": None} == {**expected, "logits": None}
        torch.testing.assert_close(
            torch.tensor(found["logits"]), torch.tensor(expected["logits"]), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("path, expected", KEPT)
def test_a_file_of_any_version_is_rejuvenated_or_merged(path, expected):
    model = nr.load(path).float()
    if model.streams == 1:
        kill_random(model)
        frozen = {n.split(".convs.")[0] for n, p in model.named_parameters() if not p.requires_grad}
        nr.hold(model, freeze=[name for name in frozen if not name.endswith(("weight", "bias"))])
        nr.rejuvenate(model)
        assert model(images(model)).shape[1] == 2
    elif not path.name.endswith("attention.pt"):  # whose gates are open
        nr.merge(model)
        total = torch.tensor(expected["logits"]).sum(1)
        torch.testing.assert_close(model(images(model)).sum(1), total, rtol=1e-3, atol=1e-3)


def test_every_version_has_files_in_every_form():
    """Whoever raises VERSION, or adds a network, runs python -m tests.kept."""
    folders = {int(folder.name) for folder in FILES.glob("[0-9]*")}
    assert folders == {*range(VERSION + 1)}
    for version in range(FIRST, VERSION + 1):
        expected = json.loads((FILES / str(version) / EXPECTED).read_text())
        assert {*(f"{form}.pt" for form in FORMS), CHECKPOINT} <= expected.keys()
    assert networks().keys() <= expected.keys()
