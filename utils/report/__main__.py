"""Tables, pictures, plans and exports of runs: python -m utils.report checkpoints/*/*"""

import argparse
import sys
from pathlib import Path

from utils.errors import InputError
from utils.report.comparison import arms, comparisons
from utils.report.export import WRITERS, best, export, load_normalisation
from utils.report.planning import plans
from utils.report.runs import Run, read_run, told_apart
from utils.report.tables import cifar_table, csv_text, imagenet_table
from utils.shown import screen
from utils.training import options

PICTURE = ".png"  # what the name of a picture ends in


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m utils.report", description=__doc__)
    add, one_of = options.adding(parser), options.adding(parser.add_mutually_exclusive_group())
    to_file = (
        "write the one RUN's network: OUT.pt2 of torch.export or OUT.onnx, whose output is"
        " [B, classes]; OUT.pt or .pth for nr.load"
    )
    paired = (
        "of a study's runs, folders SETTING-ARM-seedN, the difference to this arm of each,"
        " paired by seed; can be given several times"
    )
    planned = "what the one RUN's search, where it stands, would become by each form and budget"
    add("runs", "a checkpoint folder", Path, nargs="+", metavar="RUN")
    one_of("--csv", "a row a run instead of the tables")
    add("--plot", "draw the runs over each other", Path, metavar="OUT.png")
    one_of("--export", to_file, Path, metavar="OUT")
    add("--merge", "export both streams as one plain network")
    one_of("--compare", paired, str, action="append", metavar="ARM")
    one_of("--plan", planned)
    args = parser.parse_args(argv)
    if (args.plan or args.export) and len(args.runs) > 1:
        parser.error(f"--{'plan' if args.plan else 'export'} takes one RUN")
    if args.export and args.export.suffix not in WRITERS:
        parser.error(f"--export {args.export}: its name has to end in {' or '.join(WRITERS)}")
    if args.plot and (args.export or args.plan):
        parser.error(f"--plot: not beside --{'plan' if args.plan else 'export'}")
    if args.plot and args.plot.suffix.lower() != PICTURE:
        parser.error(f"--plot {args.plot}: its name has to end in {PICTURE}")
    if args.merge and not args.export:
        parser.error("--merge: only --export merges")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        if args.export:
            deviation = export(args.runs[0], args.export, args.merge)
            print(f"{args.export}: logits within {deviation:.1e} of the largest")
            print(f"It takes pixels / 255 normalised by {load_normalisation(best(args.runs[0]))}")
        elif args.plan:
            print(plans(args.runs[0]))
        else:
            report(args)
    except InputError as error:
        print(f"utils.report: {error}", file=sys.stderr)
        return 1
    return 0


def report(args: argparse.Namespace) -> None:
    """Print and draw what the flags ask for. Raises InputError, also where there is no run."""
    runs = read_runs(args.runs)
    named = told_apart(runs)
    if args.compare:
        there = {arm for by_arm in arms(runs).values() for arm in by_arm}
        if unknown := [arm for arm in args.compare if arm not in there]:
            raise InputError(
                f"--compare {unknown[0]}: no run of this arm, in a folder named"
                f" SETTING-{unknown[0]}-seedN; there"
                f" {'are ' + ', '.join(sorted(there)) if there else 'is none'}"
            )
        print(comparisons(runs, args.compare))
    elif args.csv:
        print(csv_text(runs), end="")
    else:
        print(cifar_table(named), imagenet_table(named), sep="\n\n")
    if not runs:
        raise InputError("no finished run in " + " ".join(map(str, args.runs)))
    if args.plot:
        from utils.shown import plots  # takes long to import

        several = len({run.data for run in named}) > 1
        pairs = [(f"{r.model} {r.arm}{f', {r.data}' if several else ''}", r.rows) for r in named]
        plots.comparison(pairs, args.plot)


def read_runs(folders: list[Path]) -> list[Run]:
    """The runs in ``folders``, each once; on the screen the folders that hold no finished one."""
    runs = []
    for folder in {folder.resolve(): folder for folder in folders}.values():
        if folder.is_file():  # that a pattern such as checkpoints/*/* took along
            continue
        try:
            runs.append(read_run(folder))
        except InputError as error:
            print(f"not in the tables: {error}", file=sys.stderr)
    return runs


if __name__ == "__main__":
    with screen.unbreakable():
        status = main()
    sys.exit(status)
