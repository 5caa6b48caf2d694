"""Figures of the READMEs that the code can work out."""

import re

import pytest
import torch

import models
import nr
from tests.running import ROOT

IMAGES, SEARCH, RATE = 1_281_167, 30, 0.25 * 790e12  # as the README states them
README = (ROOT / "checkpoints" / "README.md").read_text()
COSTS = re.findall(
    r"^\| [\w-]+ \| `(\w+)` \| ([\d.]+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$",
    README,
    re.MULTILINE,
)


def test_the_cost_table_has_every_row():
    assert len(COSTS) == 6


@pytest.mark.parametrize("row", COSTS, ids=lambda row: row[0])
def test_cost_of_an_imagenet_run(row):
    arch, billions, epochs, operations, one, eight = row
    with torch.device("meta"):
        macs = nr.count_macs(models.build("imagenet", arch), 224)
    total = 6 * macs * IMAGES * (SEARCH + int(epochs))
    hours = total / RATE / 3600
    assert [billions, operations] == [f"{macs / 1e9:.2f}", f"{total / 1e18:.2f}"]
    assert [one, eight] == [f"{hours:.1f}", f"{hours / 8:.1f}"]


def test_every_link_and_picture_is_there():
    for page in (ROOT / "README.md", *ROOT.glob("*/README.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), (page, target)
