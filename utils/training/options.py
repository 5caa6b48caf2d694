"""Command-line flags: those that both scripts share, and the checks before any work."""

import argparse
import math
import os
from collections.abc import Callable
from functools import partial

from nr.method.costs import LATENCY, WEIGHTS
from nr.network.units import CROSS, PRUNED
from utils.machine import compiler
from utils.training import archs

LARGEST = 2**64 - 1  # whole number that a flag takes
MOST_DIGITS = 1000  # characters that are read as a number at all
# Flags that say how a network is rejuvenated.
NEEDING = (
    "nr_compress_only",
    "nr_from_scratch",
    "nr_bn_target",
    "nr_round_to",
    "nr_rounds",
    "nr_keep",
    "nr_carry",
)
NO_REJUVENATION = 0.999  # a --nr-target from here on means plain training (spec section 5)


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    value = whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least 1")
    return value


def natural(text: str) -> int:
    """A whole number of at least 0."""
    value = whole(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def whole(text: str) -> int:
    """A whole number of 64 bits: a checkpoint with a longer one may not be readable again."""
    if len(text) > MOST_DIGITS or int(text) > LARGEST:
        raise argparse.ArgumentTypeError(f"{text:.30} is larger than {LARGEST}")
    return int(text)


def real(low: float, high: float = math.inf, *, open_low: bool = False) -> Callable[[str], float]:
    """A parser for finite numbers in low..high, without ``low`` itself when ``open_low``."""

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value) or not low <= value <= high or (open_low and value == low):
            bounds = f"{'above' if open_low else 'from'} {low:g}"
            bounds += f" to {high:g}" if math.isfinite(high) else ""
            raise argparse.ArgumentTypeError(f"{text} is not a finite number {bounds}")
        return value

    return number


def path(text: str) -> str:
    """The name of a file or folder; no shell has seen the ~ of --checkpoint=~/x."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty, and has to name a file or folder")
    name = os.path.expanduser(text)
    if name.startswith("~"):
        raise argparse.ArgumentTypeError(f"{text}: no user of that name has a folder; ./{text}?")
    return name


def gpu_ids(text: str) -> list[int]:
    """Comma-separated device numbers, each once."""
    names = [part.strip() for part in text.split(",")]
    if not all(name.isdecimal() for name in names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of GPU numbers such as 0,1")
    numbers = [whole(name) for name in names]
    if len(set(numbers)) != len(numbers):
        raise argparse.ArgumentTypeError(f"{text!r} names a GPU twice")
    return numbers


def shared_parser(family: str, description: str, **defaults: object) -> argparse.ArgumentParser:
    """The flags of both scripts; ``defaults`` are the script's own."""
    parser = argparse.ArgumentParser(
        prog=f"{family}.py",
        description=description,
        usage="%(prog)s [flags]; --help lists them",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_training(parser, family)
    _add_rejuvenation(parser)
    _add_machine(parser)
    parser.set_defaults(**defaults)
    return parser


def _add_training(parser: argparse.ArgumentParser, family: str) -> None:
    add = parser.add_argument_group("training").add_argument
    add(
        "-a",
        "--arch",
        type=partial(archs.arch, family),
        metavar="ARCH",
        help=archs.usage(family),
    )
    add("--depth", type=positive_int, help="depth of a resnet (6n+2) or densenet (6n+4)")
    add(
        "--drop",
        "--dropout",
        type=real(0, 0.99),
        dest="dropout",
        help="dropout rate, where the family has it",
    )
    add("--width-mult", type=real(0, open_low=True), default=1.0, help="scale every width")
    add(
        "--pretrained",
        nargs="?",
        const=True,
        type=path,
        metavar="FILE",
        help="begin with weights of torchvision or timm, from FILE or downloaded, the classifier"
        f" afresh where the classes are others: {', '.join(archs.pretrained_ones(family))}",
    )
    add("--epochs", type=positive_int, help="epochs of the train phase")
    add("--start-epoch", type=natural, default=0, help="number of a fresh run's first epoch")
    add("--train-batch", type=positive_int, help="training batch, over all devices")
    add(
        "--test-batch",
        type=positive_int,
        default=100,
        help="test batch, over all devices (imagenet.py: 100, on a GPU --train-batch if larger)",
    )
    add(
        "--lr",
        "--learning-rate",
        type=real(0, open_low=True),
        default=0.1,
        help="base learning rate",
    )
    add(
        "--schedule",
        type=positive_int,
        nargs="+",
        help="epochs at which the learning rate falls, counted from the start of each phase",
    )
    add(
        "--gamma",
        type=real(0, open_low=True),
        default=0.1,
        help="factor by which the learning rate falls",
    )
    add("--momentum", type=real(0, 0.9999), default=0.9, help="SGD momentum")
    add(
        "--wd",
        "--weight-decay",
        type=real(0),
        default=1e-4,
        dest="weight_decay",
        help="weight decay",
    )
    add("--manualSeed", type=natural, help="seed; drawn and printed when not given")
    add(
        "--subset",
        type=positive_int,
        metavar="N",
        help="only N training and N/5 test images, class-balanced",
    )


def _add_rejuvenation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("neural rejuvenation").add_argument
    add(
        "--nr-target",
        type=real(0, 1),
        help="rejuvenate at this utilization; from 0.999 on: plain training",
    )
    add(
        "--nr-cross",
        choices=(*CROSS, PRUNED),
        help="cross-connections between survived and rejuvenated channels; none: only prune",
    )
    add(
        "--nr-bn-target",
        type=real(0, open_low=True),
        help="raise batch-norm scales below this value after rejuvenation (NR-BR)",
    )
    add(
        "--nr-flops",
        action="store_true",
        help="utilization and budget in multiply-adds, not parameters",
    )
    add("--nr-compress-only", action="store_true", help="stop after rejuvenation")
    add(
        "--nr-from-scratch",
        action="store_true",
        help="train the new widths from a fresh start (NR-FS)",
    )
    add(
        "--nr-round-to",
        type=positive_int,
        default=1,
        metavar="N",
        help="survivors and new widths in multiples of N",
    )
    add(
        "--nr-budget",
        choices=(*WEIGHTS, LATENCY),
        help="what the rebuilt network keeps: parameters, multiply-adds (as --nr-flops), or the"
        " seconds of a forward pass on this machine",
    )
    add(
        "--nr-latency-batch",
        type=positive_int,
        default=1,
        metavar="N",
        help="images of the forward pass that --nr-budget latency times",
    )
    add(
        "--nr-keep",
        nargs="+",
        metavar="PATTERN",
        help="layers that stay as wide as they are, by patterns of their names, such as 'layer4.*'",
    )
    add(
        "--nr-carry",
        action="store_true",
        help="survivors keep their momentum through a rebuild, which otherwise begins afresh",
    )
    add(
        "--nr-max-epochs",
        type=positive_int,
        metavar="N",
        help="give up a search after N epochs (default: --epochs)",
    )
    add(
        "--nr-rounds",
        type=positive_int,
        default=1,
        metavar="N",
        help="after a train phase merge both streams, search, rejuvenate and train again",
    )


def _add_machine(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("machine and files").add_argument
    add(
        "-c",
        "--checkpoint",
        type=path,
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="folder of checkpoints, log and pictures (default: checkpoints/<data set>/<arch>)",
    )
    add(
        "--resume",
        type=path,
        metavar="PATH|auto",
        help="go on from a checkpoint; auto: from the folder's last, if any",
    )
    add(
        "-e",
        "--evaluate",
        action="store_true",
        help="only evaluate the checkpoint named by --resume",
    )
    add("-j", "--workers", type=natural, help="threads or processes that decode images")
    add(
        "--gpu-id",
        type=gpu_ids,
        default=[0],
        metavar="ID[,ID...]",
        help="GPUs; several: DataParallel",
    )
    add("--amp", action="store_true", help="bfloat16 autocast")
    add(
        "--compile",
        nargs="?",
        const=compiler.DEFAULT,
        choices=compiler.MODES,
        help="torch.compile, in a mode of it (reduce-overhead: CUDA graphs)",
    )


def check(parser: argparse.ArgumentParser, args: argparse.Namespace, data_name: str) -> None:
    """Refuse, as usage errors, what the single flags cannot see; set what follows from others.

    ``data_name``: of the data set, for the folder that a run has without -c.
    """
    if "checkpoint" not in args:
        args.checkpoint = f"checkpoints/{data_name}/{args.arch}"
    if any(a >= b for a, b in zip(args.schedule, args.schedule[1:], strict=False)):
        parser.error(f"--schedule {' '.join(map(str, args.schedule))}: epochs must increase")
    if args.evaluate and not args.resume:
        parser.error("-e evaluates the checkpoint named by --resume, and none is named")
    for name in NEEDING if args.nr_target >= NO_REJUVENATION else ():
        if getattr(args, name) != parser.get_default(name):
            flag = name.replace("_", "-")
            parser.error(f"--{flag}: --nr-target {args.nr_target:g} never rejuvenates")
    if args.nr_flops and args.nr_budget not in (None, "flops"):
        parser.error(f"--nr-flops: --nr-budget {args.nr_budget} is another budget")
    args.nr_budget = args.nr_budget or ("flops" if args.nr_flops else "params")
    args.nr_flops = args.nr_budget == "flops"
    if args.nr_latency_batch != 1 and args.nr_budget != LATENCY:
        parser.error(f"--nr-latency-batch: --nr-budget {args.nr_budget} times nothing")
    if args.nr_carry and args.nr_from_scratch:
        parser.error("--nr-carry: --nr-from-scratch keeps no weights, and no momentum either")
    if args.nr_rounds > 1 and args.nr_cross == "attention" and not args.nr_from_scratch:
        parser.error(
            f"--nr-rounds {args.nr_rounds}: --nr-cross attention has gates, which cannot be merged"
            " into one stream for another round; removed, full or none can"
        )
    if args.nr_max_epochs is None:
        args.nr_max_epochs = args.epochs
    searches = args.nr_target < NO_REJUVENATION
    flag = "nr-max-epochs" if searches and args.nr_max_epochs != args.epochs else "epochs"
    end = args.nr_max_epochs if searches else args.epochs
    if args.start_epoch >= end:
        parser.error(f"--start-epoch {args.start_epoch}: has to be below --{flag} {end}")
