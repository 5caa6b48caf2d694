"""The study: gets its data, runs every arm, evaluates, compares, and can be killed at any moment.

python -m tests.study                          settings a, b and c, in the background for days
python -m tests.study --pilot b                λ of setting b, on held-out training images
python -m tests.study --paper cifar --print    the commands of the published settings
python -m tests.study --quick                  all of it on made images, in two minutes
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from tests.running import ROOT
from tests.study import data, evaluation, summary
from tests.study.jobs import (
    CIFAR,
    Job,
    Places,
    Shape,
    all_jobs,
    evaluation_words,
    start_words,
)
from tests.study.progress import TRAINED, begun, progress, report
from tests.study.scheduler import EVALUATED, Scheduler, refuse_second
from tests.study.settings import ARMS, GROUPS, HELD_OUT, IMAGES, SEARCH, Setting
from utils.data import torchvision_cifar
from utils.data.identity import folder_name
from utils.errors import InputError
from utils.training.checkpoint import LAST

COMMITTED = ROOT / "checkpoints/study"


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    everything = "what to run, all of them where nothing is said"
    add("--setting", nargs="+", choices=named("setting"), help=everything)
    add("--pilot", nargs="+", choices=named("pilot"), help="λ on held-out training images")
    add("--paper", nargs="+", choices=named("paper"), help="the published settings")
    add("--quick", action="store_true", help="made images and tiny networks instead")
    add("--arms", nargs="+", choices=ARMS, help="only these of each setting")
    add("--seeds", nargs="+", type=int, help="instead of those of each setting")
    add("--cores", type=int, default=os.cpu_count(), help="runs at once, each on one thread")
    add("--data", default=CIFAR, help="cifar10 (torchvision's), or a folder with train/ and test/")
    add("--archive", type=Path, help="what the folder --data is unpacked from, if it is not there")
    add("--runs", type=Path, help="folder of the run folders, runs/NAME OF --data if not given")
    add("--imagenet", type=Path, default=Path("~/dataset/ILSVRC2012"), help="train/ and val/")
    add("--extra", default="", help="flags for every run, such as '--gpu-id 0,1 -j 20'")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--print", action="store_true", help="print the commands, run nothing")
    modes.add_argument("--status", action="store_true", help="print what is done and what is left")
    modes.add_argument("--summary", action="store_true", help="print the tables, run nothing")
    modes.add_argument(
        "--collect",
        nargs="?",
        type=Path,
        const=COMMITTED,
        metavar="DIR",
        help="copy logs, run.json and evaluations (to checkpoints/study)",
    )
    args = parser.parse_args(argv)
    if args.cores < 1:
        parser.error(f"--cores {args.cores}: at least 1")
    if args.archive and args.data == CIFAR:
        parser.error(f"--archive {args.archive}: name the folder for its images with --data")
    return args


def named(kind: str) -> list[str]:
    """The names of the groups of settings of this kind."""
    return [name.split()[1] for name in GROUPS if name.startswith(f"{kind} ")]


def chosen(args: argparse.Namespace) -> tuple[Setting, ...]:
    """The settings that the flags ask for, in order."""
    if args.quick:
        return GROUPS["quick"]
    asked = {kind: getattr(args, kind) for kind in ("setting", "pilot", "paper")}
    if not any(asked.values()):
        asked["setting"] = named("setting")
    groups = [f"{kind} {name}" for kind, names in asked.items() for name in names or ()]
    return tuple(setting for group in groups for setting in GROUPS[group])


def places_of(args: argparse.Namespace) -> Places:
    """Where the flags say that things are."""
    data = None if args.data == CIFAR else for_scripts(Path(args.data))
    runs = args.runs or ROOT / "runs" / folder_name(args.data)
    downloads = for_scripts(ROOT / "data")  # as cifar.py
    return Places(for_scripts(runs), data, for_scripts(args.imagenet), args.extra, downloads)


def for_scripts(path: Path) -> Path:
    """``path`` for the scripts, which run in the checkout: relative to it where it lies beside."""
    path = path.expanduser().resolve()
    beside = path.is_relative_to(ROOT.parent)
    return Path(os.path.relpath(path, ROOT)) if beside else path


def main(argv: list[str] | None = None) -> int:
    sys.stdout.reconfigure(line_buffering=True)
    args = parse(argv)
    settings = chosen(args)
    jobs = [
        job for job in all_jobs(settings, args.seeds) if not args.arms or job.arm.name in args.arms
    ]
    places = places_of(args)
    os.chdir(ROOT)
    try:
        if args.collect:
            print(f"{summary.collect(places.runs, args.collect)} runs in {args.collect}")
        elif args.print:
            print("\n".join(printed(job, places) for job in jobs))
        elif args.status:
            print(report(jobs, places, args.cores))
        elif args.summary:
            print(summary.summarise(jobs, places.runs, places.runs))
        else:
            return run(settings, jobs, places, args)
    except InputError as error:
        print(f"tests.study: {error}", file=sys.stderr)
        return 1
    return 0


def printed(job: Job, places: Places) -> str:
    """The commands of a run, with what its search decides where that is done."""
    stands = progress(job, places.runs)
    shaped = stands.shaped
    if stands.searched is None and job.arm.needs_search and not job.arm.resumes:
        setting = job.setting
        why = f"length: {job.arm.length}" + (", width: NR-CR's parameters" * job.arm.narrow)
        shaped = Shape(setting.epochs, setting.schedule, setting.width)
        note = f"# {job.name} ({why}; decided by {job.search.name}; before it, as plain):"
    elif stands.searched is not None and shaped is None:
        return f"# {job.name}: {stands.state}"
    else:
        shaped = shaped or Shape(job.setting.epochs, job.setting.schedule, job.setting.width)
        note = f"# {job.name}"
    line = start_words(job, places, shaped, begun=False)
    text = f"{note}\n{shlex.join(['python', *line])}"
    if not job.setting.chosen and job.arm.searches:
        text += "  # λ: not chosen yet, run the pilot"
    return text


def run(
    settings: tuple[Setting, ...], jobs: list[Job], places: Places, args: argparse.Namespace
) -> int:
    """Fetch the data, run what is left, print the summary. Returns the exit status."""
    for setting in settings:
        if not setting.chosen:
            print(f"setting {setting.name}: left out, its λ is not chosen: --pilot {setting.name}")
    jobs = [job for job in jobs if job.setting.chosen]
    study = refuse_second(places.runs)
    try:
        make_data(settings, places, args.archive)
        if restored := summary.restore(jobs, COMMITTED, places):
            print(f"{restored} finished runs taken from {COMMITTED}")
        print(report(jobs, places, args.cores))

        def line(job: Job) -> list[str]:
            stands = progress(job, places.runs)
            if stands.state == TRAINED:
                last = evaluated_file(job, places.runs / job.name)
                return evaluation_words(job, places, stands.shaped, last)
            return start_words(job, places, stands.shaped, begun(job, places.runs))

        def finish(job: Job, step: str) -> None:
            folder = places.runs / job.name
            if step == TRAINED:
                said = (folder / EVALUATED).read_text()
                evaluation.write(folder, said, evaluated_file(job, folder))
                print(report(jobs, places, args.cores).splitlines()[-1])

        scheduler = Scheduler(
            jobs,
            places.runs,
            args.cores,
            state=lambda job: progress(job, places.runs).state,
            line=line,
            finish=finish,
        )
        status = scheduler.run()
        if status < 128:
            print(summary.summarise(jobs, places.runs, places.runs))
        return status
    finally:
        os.close(study)


def evaluated_file(job: Job, folder: Path) -> str:
    """The checkpoint that is evaluated: the last, or of a search the one before it was rebuilt."""
    rebuilt = job.arm.name == SEARCH and (folder / job.before).exists()
    return job.before if rebuilt else LAST


def make_data(settings: tuple[Setting, ...], places: Places, archive: Path | None) -> None:
    """The images that ``settings`` read, where they are not there yet: before runs that share them.

    Raises InputError where they cannot be had.
    """
    kinds = {setting.data for setting in settings}
    if places.data and kinds & {IMAGES, HELD_OUT}:
        data.made_folder(places.data, archive)
    if places.data and HELD_OUT in kinds:
        data.hold_out(places.data, places.held_out)
    filled = [places.filled(kind) for kind in kinds]
    for name, kind in torchvision_cifar.KINDS.items():
        if any(flags.startswith(f"-d {name} ") for flags in filled):
            torchvision_cifar.load(kind, places.downloads)
    if not places.data and HELD_OUT in kinds:
        train, _ = torchvision_cifar.load(torchvision_cifar.KINDS[CIFAR], places.downloads)
        data.hold_out_of(train, places.held_out)


if __name__ == "__main__":
    sys.exit(main())
