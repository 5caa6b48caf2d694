"""Command-line flags: those that both scripts share, and the checks before any work."""

import argparse
import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

from nr.method.costs import LATENCY, WEIGHTS
from nr.network.units import CROSS, PRUNED
from utils.machine import compiler
from utils.training import archs

LARGEST = 2**64 - 1  # whole number that a flag takes
MOST_DIGITS = 1000  # characters that are read as a number at all
# Flags that say how a network is rejuvenated, and what they are in plain training.
PLAIN: dict[str, Any] = {
    "nr_compress_only": False,
    "nr_from_scratch": False,
    "nr_bn_target": None,
    "nr_round_to": 1,
    "nr_rounds": 1,
    "nr_keep": None,
    "nr_carry": False,
}
NO_REJUVENATION = 0.999  # a --nr-target from here on means plain training (spec section 5)


def natural(text: str, least: int = 0) -> int:
    """A whole number of 64 bits, ``least`` or more; one of more bits may not be readable again."""
    if len(text) > MOST_DIGITS or int(text) > LARGEST:
        raise argparse.ArgumentTypeError(f"{text:.30} is larger than {LARGEST}")
    if int(text) < least:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of at least {least}")
    return int(text)


def positive_int(text: str) -> int:
    """A whole number of at least 1."""
    return natural(text, least=1)


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
    numbers = [natural(name) for name in names]
    if len(set(numbers)) != len(numbers):
        raise argparse.ArgumentTypeError(f"{text!r} names a GPU twice")
    return numbers


class Flags(argparse.Namespace):
    """The flags of a run; ``given``: the names of those on its command line, no part of vars()."""

    __slots__ = ("given",)
    given: frozenset[str]


def parsed(parser: argparse.ArgumentParser, argv: list[str] | None) -> Flags:
    """The flags of a command line, which know which of them it has given."""
    args, unset = parser.parse_args(argv, Flags()), object()
    again = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(vars(args), unset)))
    args.given = frozenset(name for name, value in vars(again).items() if value is not unset)
    return args


def adding(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> Callable[..., None]:
    """A function that adds a flag to ``group``.

    It takes the flag's names in one string, what --help says, and how a value is read; a flag that
    reads none and has no choices is a switch. The rest is argparse's.
    """

    def add(names: str, says: str, reads: Callable[[str], Any] | None = None, **rest: Any) -> None:
        if reads is not None:
            rest["type"] = reads
        elif "choices" not in rest:
            rest["action"] = "store_true"
        group.add_argument(*names.split(), help=says, **rest)

    return add


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
    add, positive = adding(parser.add_argument_group("training")), real(0, open_low=True)
    begin = (
        "begin with weights of torchvision or timm, from FILE or downloaded, the classifier"
        f" afresh where the classes are others: {', '.join(archs.pretrained_ones(family))}"
    )
    of_tests = "test batch, over all devices (imagenet.py: 100, on a GPU --train-batch if larger)"
    falls = "epochs at which the learning rate falls, counted from the start of each phase"
    add("-a --arch", archs.usage(family), partial(archs.arch, family), metavar="ARCH")
    add("--depth", "depth of a resnet (6n+2) or densenet (6n+4)", positive_int)
    add("--drop --dropout", "dropout rate, where the family has it", real(0, 0.99), dest="dropout")
    add("--width-mult", "scale every width", positive, default=1.0)
    add("--pretrained", begin, path, nargs="?", const=True, metavar="FILE")
    add("--epochs", "epochs of the train phase", positive_int)
    add("--start-epoch", "number of a fresh run's first epoch", natural, default=0)
    add("--train-batch", "training batch, over all devices", positive_int)
    add("--test-batch", of_tests, positive_int, default=100)
    add("--lr --learning-rate", "base learning rate", positive, default=0.1)
    add("--schedule", falls, positive_int, nargs="+")
    add("--gamma", "factor by which the learning rate falls", positive, default=0.1)
    add("--momentum", "SGD momentum", real(0, 0.9999), default=0.9)
    add("--wd --weight-decay", "weight decay", real(0), default=1e-4, dest="weight_decay")
    add("--manualSeed", "seed; drawn and printed when not given", natural)
    some = "only N training and N/5 test images, class-balanced"
    add("--subset", some, positive_int, metavar="N")


def _add_rejuvenation(parser: argparse.ArgumentParser) -> None:
    add = adding(parser.add_argument_group("neural rejuvenation"))
    target = "rejuvenate at this utilization; from 0.999 on: plain training"
    cross = "cross-connections between survived and rejuvenated channels; none: only prune"
    scales = "raise batch-norm scales below this value after rejuvenation (NR-BR)"
    budget = (
        "what the rebuilt network keeps: parameters, multiply-adds (as --nr-flops), or the"
        " seconds of a forward pass on this machine"
    )
    images = "images of the forward pass that --nr-budget latency times"
    kept = "layers that stay as wide as they are, by patterns of their names, such as 'layer4.*'"
    momentum = "survivors keep their momentum through a rebuild, which otherwise begins afresh"
    rounds = "after a train phase merge both streams, search, rejuvenate and train again"
    number = {"reads": positive_int, "metavar": "N"}
    add("--nr-target", target, real(0, 1))
    add("--nr-cross", cross, choices=(*CROSS, PRUNED))
    add("--nr-bn-target", scales, real(0, open_low=True))
    add("--nr-flops", "utilization and budget in multiply-adds, not parameters")
    add("--nr-compress-only", "stop after rejuvenation")
    add("--nr-from-scratch", "train the new widths from a fresh start (NR-FS)")
    add("--nr-round-to", "survivors and new widths in multiples of N", **number, default=1)
    add("--nr-budget", budget, choices=(*WEIGHTS, LATENCY))
    add("--nr-latency-batch", images, **number, default=1)
    add("--nr-keep", kept, str, nargs="+", metavar="PATTERN")
    add("--nr-carry", momentum)
    add("--nr-max-epochs", "give up a search after N epochs (default: --epochs)", **number)
    add("--nr-rounds", rounds, **number, default=1)


def _add_machine(parser: argparse.ArgumentParser) -> None:
    add = adding(parser.add_argument_group("machine and files"))
    folder = "folder of checkpoints, log and pictures (default: checkpoints/<data set>/<arch>)"
    resume = "go on from a checkpoint; auto: from the folder's last, if any"
    modes = "torch.compile, in a mode of it (reduce-overhead: CUDA graphs)"
    add("-c --checkpoint", folder, path, default=argparse.SUPPRESS, metavar="DIR")
    add("--resume", resume, path, metavar="PATH|auto")
    add("-e --evaluate", "only evaluate the checkpoint named by --resume")
    add("-j --workers", "threads or processes that decode images", natural)
    add("--gpu-id", "GPUs; several: DataParallel", gpu_ids, default=[0], metavar="ID[,ID...]")
    add("--amp", "bfloat16 autocast")
    add("--compile", modes, nargs="?", const=compiler.DEFAULT, choices=compiler.MODES)


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
    searches = args.nr_target < NO_REJUVENATION
    for name, usual in () if searches else PLAIN.items():
        if getattr(args, name) != usual:
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
    flag = "nr-max-epochs" if searches and args.nr_max_epochs != args.epochs else "epochs"
    end = args.nr_max_epochs if searches else args.epochs
    if args.start_epoch >= end:
        parser.error(f"--start-epoch {args.start_epoch}: has to be below --{flag} {end}")
