"""What the study ends with: tables, tests and pictures; and its logs copied to be committed."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from tests.study import pictures
from tests.study.jobs import Job, Places, data_in, data_of
from tests.study.progress import FINAL, progress
from tests.study.settings import NR_CR, PLAIN_ARMS, PLAIN_LONG, PLAIN_NARROW, SEARCH
from utils.errors import InputError
from utils.files import write_atomically
from utils.report.comparison import arms, comparisons, difference, differences, errors
from utils.report.runs import EVALUATION, Run, read_evaluation, read_run
from utils.report.tables import exact, markdown, spread
from utils.shown import plots
from utils.shown.log import read_log

COLLECTED = ("log.txt", "run.json", EVALUATION)
# The comparisons that matter: both train equally long, with as many parameters or from one search.
PAIRS = (("nr-ca", PLAIN_LONG), (NR_CR, PLAIN_NARROW), (NR_CR, "pruned"))
PAIR_COLUMNS = "setting|comparison|parameters|against|error, %|against"
PAIR_COLUMNS += "|difference: mean ± sd [95 % interval]|n"
LIVE_COLUMNS = "run|λ|epochs|live fraction|error before rejuvenation, %|error of NR-CR after, %"


def summarise(jobs: list[Job], runs: Path, out: Path) -> str:
    """Tables of what is finished in ``runs``; pictures and the text itself go to ``out``.

    A pilot has one run an arm: its place is the table of λ, not the comparisons.
    """
    finished, open_lines = [], []
    for job in jobs:
        if job.setting.pilot:
            continue
        if not (runs / job.name / "run.json").exists():  # not begun, or not needed
            continue
        try:
            finished.append(read_run(runs / job.name))
        except InputError as error:
            if job.arm.name != SEARCH:
                open_lines.append(f"not in the tables: {error}")
    parts = [
        pair_table(finished),
        comparisons(finished, list(PLAIN_ARMS)),
        live_table(jobs, runs),
        *open_lines,
    ]
    text = "\n\n".join(part for part in parts if part)
    out.mkdir(parents=True, exist_ok=True)
    draw(jobs, finished, runs, out)
    write_atomically(out / "summary.md", (text + "\n").encode())
    return text


def pair_table(finished: list[Run]) -> str:
    """A row a setting and pair of arms, of the seeds that both have been evaluated with."""
    rows = []
    for setting, by_arm in arms(finished).items():
        for names in PAIRS:
            ours, base = (errors(by_arm.get(name, [])) for name in names)
            found = difference(ours, base)
            if found is None:
                continue
            shared = ours.keys() & base.keys()
            runs = [[run for run in by_arm[name] if run.seed in shared] for name in names]
            params = [exact([run.params for run in group]) for group in runs]
            tested = [spread(run.tested for run in group) for group in runs]
            cells = [setting, " minus ".join(names), *params, *tested, str(found), str(found.n)]
            rows.append(cells)
    return markdown(PAIR_COLUMNS.split("|"), rows) if rows else ""


def draw(jobs: list[Job], finished: list[Run], runs: Path, out: Path) -> None:
    """Error curves, differences and live channels of every setting."""
    for setting, by_arm in arms(finished).items():
        curves = [(arm, run.rows) for arm, group in by_arm.items() for run in group]
        plots.comparison(curves, out / f"{setting}-errors.png")
        found = {base: differences(by_arm, base) for base in PLAIN_ARMS}
        intervals = {
            base: {arm: (value.mean, value.half) for arm, value in rows.items()}
            for base, rows in found.items()
        }
        pictures.differences(intervals, out / f"{setting}-differences.png")
    for group, networks in live_networks(jobs, runs).items():
        pictures.live(networks, out / f"{group}-live.png")


def live_networks(jobs: list[Job], runs: Path) -> dict[str, list[pictures.Live]]:
    """Plain runs and searches in ``runs``, by setting (all λ of a pilot together)."""
    found: dict[str, list[pictures.Live]] = {}
    for job in unrejuvenated(jobs):
        if rows := unrejuvenated_rows(job, runs):
            evaluated = read_evaluation(runs / job.name) or {}
            network = pictures.Live(sparsity(job), rows, evaluated.get("live", {}))
            found.setdefault(group_name(job), []).append(network)
    return found


def unrejuvenated(jobs: list[Job]) -> list[Job]:
    """Plain runs and searches: those whose utilization says what the penalty does."""
    return sorted(
        (job for job in jobs if job.arm.name in (SEARCH, "plain")),
        key=lambda job: (group_name(job), sparsity(job), job.seed),
    )


def sparsity(job: Job) -> float:
    """λ of a run that is one of ``unrejuvenated``."""
    return job.setting.sparsity or 0.0 if job.arm.name == SEARCH else 0.0


def group_name(job: Job) -> str:
    """A setting's own name, the same for all λ of a pilot."""
    return job.setting.name.split("_")[0]


def unrejuvenated_rows(job: Job, runs: Path) -> list[dict]:
    """The rows of ``job``'s log before its network was rebuilt; none where it has not begun."""
    path = runs / job.name / "log.txt"
    rows = read_log(path) if path.exists() else []
    searching = [row for row in rows if row["Phase"] == "search"]
    return searching if job.arm.name == SEARCH else rows


def live_table(jobs: Iterable[Job], runs: Path) -> str:
    """How much lives without and with a penalty, and the error before rejuvenation and after."""
    rows = []
    for job in unrejuvenated(list(jobs)):
        log = unrejuvenated_rows(job, runs)
        if not log:
            continue
        evaluated = read_evaluation(runs / job.name)
        after = read_evaluation(runs / job.name.replace("-search-", "-nr-cr-"))
        rows.append(
            [
                job.name,
                f"{sparsity(job):g}",
                str(len(log)),
                f"{log[-1]['Utilization']:.3f}",
                f"{100 - evaluated['accuracy']:.2f}" if evaluated else "-",
                f"{100 - after['accuracy']:.2f}" if after and job.arm.name == SEARCH else "-",
            ]
        )
    return markdown(LIVE_COLUMNS.split("|"), rows) if rows else ""


def collect(runs: Path, target: Path) -> int:
    """Copy log, description and evaluation of every run in ``runs``; how many runs there were.

    Raises InputError, before anything is copied, for a run that would take the place of one on
    other data.
    """
    folders = sorted(path.parent for path in runs.glob("*/log.txt"))
    for folder in folders:
        there = target / folder.name
        if (there / "run.json").exists() and data_in(there) != data_in(folder):
            raise InputError(
                f"{there}: a run on {data_in(there)}, and {folder} is one on {data_in(folder)}:"
                " give --collect another folder"
            )
    for folder in folders:
        (target / folder.name).mkdir(parents=True, exist_ok=True)
        for name in COLLECTED:
            if (folder / name).exists():
                shutil.copyfile(folder / name, target / folder.name / name)
    return len(folders)


def restore(jobs: list[Job], source: Path, places: Places) -> int:
    """The other way, on a new machine: runs of ``jobs`` that are finished in ``source``.

    Those on other data than ``places`` has are none of them. Without checkpoints a search is of no
    use to arms that start from its network: where one of those is not finished, only runs that
    need no search are copied. Returns how many.
    """
    runs = places.runs
    states = {job: progress(job, source).state for job in jobs}
    stuck = {job.search.name for job in jobs if job.arm.resumes and states[job] not in FINAL}
    wanted = [
        job
        for job in jobs
        if states[job] in FINAL
        and (source / job.name).is_dir()
        and data_in(source / job.name) == data_of(job.setting, places)
        and not (runs / job.name / "log.txt").exists()
        and not (job.search.name in stuck and (job.arm.needs_search or job.arm.name == SEARCH))
    ]
    for job in wanted:
        shutil.copytree(source / job.name, runs / job.name, dirs_exist_ok=True)
    return len(wanted)
