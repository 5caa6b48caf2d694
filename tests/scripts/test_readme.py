"""Figures of the READMEs that the code can work out."""

import re
import subprocess
import sys

import pytest
import torch

import models
import nr
from tests import packaging
from tests.running import ENVIRONMENT, LIMIT, ROOT

PACKAGES = ("models", "nr", "tests", "utils")  # of the checkout
IMAGES, SEARCH, RATE = 1_281_167, 30, 0.25 * 790e12  # as the README states them
README = (ROOT / "checkpoints" / "README.md").read_text(encoding="utf-8")
README_LINES = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
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
    for page in (*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert target.startswith("https://") or (page.parent / target).exists(), (page, target)


def test_the_readme_can_be_read_at_once():
    assert len(README_LINES) <= 150


def table(lines: list[str], first: str) -> list[dict]:
    """The rows of the table whose header begins with these cells."""
    at = next(i for i, line in enumerate(lines) if line.startswith(first))
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[at:]]
    end = next((i for i, row in enumerate(cells) if row == [""]), len(cells))
    return [dict(zip(cells[0], row, strict=True)) for row in cells[2:end]]


def test_the_short_table_of_results_is_part_of_the_long_one():
    short = table(README_LINES, "| setting | comparison |")
    whole = table(README.splitlines(), "| setting | comparison |")
    assert len(short) >= 3 and len(short[0]) <= 8
    for row in short:
        assert any(row.items() <= other.items() for other in whole), row


CHECKED = """
import runpy, sys
names = runpy.run_path("network.py")
assert names["prediction"].shape == (8,) and names["model"].streams == 1
print(*(file for m in [*sys.modules.values()] if (file := getattr(m, "__file__", None))), sep="\\n")
"""


def test_your_own_network_as_written(tmp_path):
    """The README's section is short, and runs where only nr is installed, far from the checkout."""
    section = "\n".join(README_LINES).split("## Your own network")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    assert len(code.splitlines()) < 40
    (tmp_path / "network.py").write_text(code, encoding="utf-8")
    site = packaging.installed(tmp_path)
    result = subprocess.run(
        [sys.executable, "-c", CHECKED],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert result.returncode == 0, result.stderr
    files = result.stdout.split("\n")
    assert str(site / "nr" / "__init__.py") in files
    mine = [file for file in files if any(f"{ROOT / name}/" in file for name in PACKAGES)]
    assert mine == []


def test_every_test_that_a_page_names_is_there():
    for path, name in re.findall(
        r"`([\w/]+\.py)(?:::(\w+))?`", (ROOT / "tests" / "README.md").read_text(encoding="utf-8")
    ):
        source = (ROOT / "tests" / path).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in source, (path, name)


@pytest.mark.parametrize("page", ["README.md", "checkpoints/README.md"])
def test_every_paragraph_is_a_whole_sentence(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    prose = [block.strip() for block in text.split("\n\n") if block.strip()]
    prose = [block for block in prose if not block.startswith(("#", "|", "!["))]
    assert [block for block in prose if not block.endswith((".", ":"))] == []
