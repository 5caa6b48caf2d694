"""Tables, pictures and exports of runs: python -m utils.report checkpoints/*/*"""

import argparse
import sys
from pathlib import Path

from utils.errors import InputError
from utils.report.comparison import comparisons
from utils.report.export import SUFFIXES, export
from utils.report.runs import read_run
from utils.report.tables import cifar_table, csv_text, imagenet_table
from utils.shown import screen


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m utils.report", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a checkpoint folder")
    parser.add_argument("--csv", action="store_true", help="a row a run instead of the tables")
    parser.add_argument(
        "--plot", type=Path, metavar="OUT.png", help="draw the runs over each other"
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="OUT",
        help="write the one RUN's network: OUT.pt2 for torch.export, OUT.pt or .pth for nr.load",
    )
    parser.add_argument(
        "--merge", action="store_true", help="export both streams as one plain network"
    )
    parser.add_argument(
        "--compare",
        action="append",
        metavar="ARM",
        help="of a study's runs, folders SETTING-ARM-seedN, the difference to this arm of each,"
        " paired by seed; can be given several times",
    )
    args = parser.parse_args(argv)
    if args.export and len(args.runs) > 1:
        parser.error("--export takes one RUN")
    if args.export and args.export.suffix not in SUFFIXES:
        parser.error(f"--export {args.export}: its name has to end in {' or '.join(SUFFIXES)}")
    if args.merge and not args.export:
        parser.error("--merge: only --export merges")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    try:
        if args.export:
            deviation = export(args.runs[0], args.export, args.merge)
            print(f"{args.export}: logits within {deviation:.1e} of the largest")
            return 0
        runs, left_out = [], []
        for folder in args.runs:
            if folder.is_file():  # that a pattern such as checkpoints/*/* took along
                continue
            try:
                runs.append(read_run(folder))
            except InputError as error:
                left_out.append(str(error))
        if args.compare:
            print(comparisons(runs, args.compare))
        elif args.csv:
            print(csv_text(runs), end="")
        else:
            print(cifar_table(runs), imagenet_table(runs), sep="\n\n")
        for line in left_out:
            print(f"not in the tables: {line}", file=sys.stderr)
        if args.plot:
            from utils.shown import plots  # takes long to import

            pairs = [(f"{run.model} {run.arm}", run.rows) for run in runs]
            plots.comparison(pairs, args.plot)
    except InputError as error:
        print(f"utils.report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with screen.unbreakable():
        status = main()
    sys.exit(status)
