"""The tables and pictures that the study ends with."""

import shutil

from tests.report.test_comparison import evaluate
from tests.report.test_report import table_row, write_run
from tests.running import ROOT
from tests.study import summary
from tests.study.__main__ import COMMITTED, main
from tests.study.jobs import all_jobs
from tests.study.settings import GROUPS, B, pilots
from tests.study.test_progress import rows
from utils.report.runs import read_run
from utils.shown.log import write_log


def test_the_comparisons_that_matter(tmp_path):
    """Only seeds of both arms count, in the errors as in the difference."""
    evaluated = {("nr-ca", 1): 80.0, ("nr-ca", 2): 78.0, ("nr-ca", 3): 79.0, ("nr-ca", 4): 10.0}
    evaluated |= {("plain-long", 1): 78.0, ("plain-long", 2): 77.0, ("plain-long", 3): 76.0}
    evaluated |= {("nr-cr", 1): 75.0, ("pruned", 1): 74.0}
    for (arm, seed), accuracy in evaluated.items():
        folder = tmp_path / f"a-{arm}-seed{seed}"
        plain = arm == "plain-long"
        form, target = ("plain", 1) if plain else ("removed", 0.25)
        write_run(folder, seed=seed, form=form, search=int(not plain), nr_target=target)
        evaluate(folder, accuracy)
    text = summary.pair_table([read_run(folder) for folder in sorted(tmp_path.iterdir())])
    row = table_row(text, "| a | nr-ca minus plain-long")
    assert row["difference: mean ± sd [95 % interval]"] == "-2.00 ± 1.00 [-4.48, +0.48], open"
    assert row["n"] == "3"
    assert "| 21.00 ± 1.00 | 23.00 ± 1.00 |" in text
    row = table_row(text, "| a | nr-cr minus pruned")
    assert row["difference: mean ± sd [95 % interval]"] == "-1.00 (n = 1, open)"
    assert len(text.splitlines()) == 4  # there is no plain-narrow


def test_live_channels_of_all_sparsities_of_a_pilot_are_drawn_together(tmp_path):
    """Of plain runs every epoch, of searches those before the network was rebuilt."""
    left = {"pilotb-plain-seed11": (0, 3), "pilotb_0.001-search-seed11": (2, 1)}
    left |= {"pilotb_0.002-search-seed11": (5, 0), "pilotb_0.001-nr-cr-seed11": (2, 3)}
    for name, lengths in left.items():
        (tmp_path / name).mkdir()
        write_log(tmp_path / name / "log.txt", rows(*lengths))
    (tmp_path / "pilotb-plain-seed11" / "evaluation.json").write_text('{"live": {"stem": 0.5}}')
    pilot, given = all_jobs(pilots(B, 1e-3, 2e-3), None), all_jobs(GROUPS["setting a"], None)
    (found,) = summary.live_networks([*given, *pilot], tmp_path).items()
    group, networks = found
    assert group == "pilotb"
    assert [(n.sparsity, len(n.rows), n.layers) for n in networks] == [
        (0, 3, {"stem": 0.5}),
        (0.001, 2, {}),
        (0.002, 5, {}),
    ]


def test_a_pilot_is_in_the_table_of_sparsities_alone(tmp_path):
    """It has one run an arm: nothing that could be compared."""
    for job in all_jobs(pilots(B, 1e-3), None):
        plain = job.arm.name == "plain"
        target = 1 if plain else 0.25
        folder = tmp_path / job.name
        write_run(folder, seed=11, form="plain" if plain else "removed", nr_target=target)
        evaluate(folder, {"plain": 70.0, "search": 50.0, "nr-cr": 72.5}[job.arm.name])
    text = summary.summarise(all_jobs(pilots(B, 1e-3), None), tmp_path, tmp_path / "out")
    assert text.startswith("| run | λ |")
    row = table_row(text, "| pilotb_0.001-search-seed11")
    assert row["error before rejuvenation, %"] == "50.00"
    assert row["error of NR-CR after, %"] == "27.50"
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"summary.md", "pilotb-live.png"}


def test_the_pages_show_what_the_committed_logs_say(tmp_path, capsys, monkeypatch):
    """By the page's own command, in a copy, since it draws pictures as well."""
    monkeypatch.chdir(ROOT)  # main goes there; this puts it back
    page = (COMMITTED.parent / "README.md").read_text()
    (command,) = (line for line in page.splitlines() if "tests.study --summary" in line)
    words = command.removeprefix("python -m tests.study ").split()
    words[words.index("checkpoints/study")] = str(tmp_path / "study")
    shutil.copytree(COMMITTED, tmp_path / "study")
    assert main(words) == 0
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert len(blocks) > 3
    for block in blocks:
        assert block in page
    assert blocks[0] in (ROOT / "README.md").read_text()
    pictures = {path.name for path in (tmp_path / "study").glob("*.png")}
    assert pictures == {path.name for path in COMMITTED.glob("*.png")}
    assert all(f"study/{name}" in page for name in pictures)
